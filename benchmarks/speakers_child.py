"""What `scripts/bench speakers` measures, in a process with torch: `python -m benchmarks.speakers_child JSON`.

The JSON names one of the functions here and its arguments; the last line of stdout is the answer, as JSON. The folder
of the diarization models must be on PYTHONPATH (see `benchmarks.speakers.offline_models`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyannote.core import Annotation
from pyannote.core import Segment as Stretch
from pyannote.metrics.diarization import DiarizationErrorRate

from transcription.core import SAMPLE_RATE, Segment
from transcription.diarization import Diarizer, OncePerWindow
from transcription.pcm import samples_of
from transcription.speakers import BLOCK_S, Block, Turn, block_limits, blocks, linked

Answer = dict[str, Any]

EVERY = 16
"""One sample in so many is looked at to know a sound again."""


class Remembering:
    """A network that answers for a sound it has heard before from memory: a recording that repeats itself is cheap.

    For measuring memory over hours. What is remembered is a few numbers a sound, and only as many sounds as differ.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self._heard: dict[bytes, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, sounds: torch.Tensor, masks: torch.Tensor | None = None) -> Any:
        parts = [sounds[..., ::EVERY].numpy(), *([] if masks is None else [masks.numpy()])]
        keys = [hashlib.blake2b(b"".join(part[at].tobytes() for part in parts)).digest() for at in range(len(sounds))]
        new = [at for at, key in enumerate(keys) if key not in self._heard]
        if new:
            answers = self._network(sounds[new]) if masks is None else self._network(sounds[new], masks=masks[new])
            self._heard |= {keys[at]: answer for at, answer in zip(new, answers, strict=True)}
        return np.stack([self._heard[key] for key in keys])


def remember(pipeline: Any) -> None:
    """Let both networks of pyannote's *pipeline* remember."""
    vars(pipeline)["_embedding"] = Remembering(pipeline._embedding)
    pipeline._segmentation.infer = Remembering(pipeline._segmentation.infer)


def resident_bytes(field: str) -> int:
    """Of this process, as Linux tells: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def heard(diarizer: Diarizer, path: Path, samples: int, block_s: float, num: int | None = None) -> list[Turn]:
    """The whole recording as the service hears it, in blocks of *block_s*."""
    cut = blocks(samples, block_s)
    limits = block_limits(num, None, None, len(cut))
    found = [diarizer.diarize(Segment(path, first, count, at), *limits) for at, (first, count) in enumerate(cut)]
    return linked(found, num=num, least=None, most=None)


def memory(model: str, pcm: str, in_blocks: list[int], at_once: list[int]) -> list[Answer]:
    """How much it takes to hear so many samples of a recording that repeats itself.

    In blocks, then by WhisperX's pipeline as it comes; both with networks that have heard all of it before.
    """
    diarizer = Diarizer(model, None, "cpu")
    pipeline = diarizer._pipeline
    once = pipeline.model._embedding
    remember(pipeline.model)
    rows = [peak_of(True, samples, partial(heard, diarizer, Path(pcm), samples, BLOCK_S)) for samples in in_blocks]
    pipeline.model._embedding = once._embedding
    vars(pipeline.model)["_embedding"] = Remembering(once._embedding)
    pipeline.model.embedding_batch_size = 1
    for samples in at_once:
        sound = samples_of(Segment(Path(pcm), 0, samples, 0))
        rows.append(peak_of(False, samples, partial(pipeline, sound, return_embeddings=True)))
    return rows


def peak_of(in_blocks: bool, samples: int, work: Callable[[], Any]) -> Answer:
    """What *work* makes this process hold at most. Linux forgets the peak so far when "5" is written to clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident_bytes("VmRSS"), time.perf_counter()
    work()
    row = {
        "in_blocks": in_blocks,
        "samples": samples,
        "before": before,
        "peak": resident_bytes("VmHWM"),
        "seconds": time.perf_counter() - began,
    }
    print(row, file=sys.stderr, flush=True)
    return row


def speed(model: str, pcm: str, samples: int) -> Answer:
    """CPU-seconds of work: WhisperX's pipeline as its configuration has it, and ours."""
    segment = Segment(Path(pcm), 0, samples, 0)
    diarizer = Diarizer(model, None, "cpu")
    pipeline = diarizer._pipeline
    ours = {"segmentation_batch_size", "embedding_batch_size"}
    set_by_us = {name: getattr(pipeline.model, name) for name in ours}
    embedding = pipeline.model._embedding
    diarizer.diarize(Segment(segment.path, 0, 12 * SAMPLE_RATE, 0), None, None, None)
    took: dict[str, float] = {}
    for name, network, sizes in (
        ("theirs", embedding._embedding, dict.fromkeys(ours, 1)),
        ("ours", embedding, set_by_us),
    ):
        vars(pipeline.model)["_embedding"] = network
        for size, value in sizes.items():
            setattr(pipeline.model, size, value)
        began, cpu = time.perf_counter(), time.process_time()
        diarizer.diarize(segment, None, None, None)
        took |= {name: time.process_time() - cpu, f"{name}_wall": time.perf_counter() - began}
    return took | {"audio": segment.duration_s, "threads": torch.get_num_threads()}


def voices(windows: int) -> Answer:
    """The network of voices that pyannote's own pipelines have, with weights made up: speed does not depend on them.

    Windows of 10 s with two speakers and a silent third each, as pyannote asks for them and as we do.
    """
    from pyannote.audio.models.embedding import WeSpeakerResNet34
    from pyannote.audio.pipelines.speaker_verification import PyannoteAudioPretrainedSpeakerEmbedding

    torch.manual_seed(1)
    network = PyannoteAudioPretrainedSpeakerEmbedding(WeSpeakerResNet34())
    sounds = torch.randn(windows, 1, 10 * SAMPLE_RATE).repeat_interleave(3, dim=0) * 0.05
    masks = (torch.rand(windows * 3, 589) < 0.5).float()
    masks[2::3] = 0.0
    rows = {}
    for name, system, batch in (("theirs", network, 1), ("ours", OncePerWindow(network), 12)):
        system(sounds[:3], masks=masks[:3])
        began = time.process_time()
        answers = [system(sounds[at : at + batch], masks=masks[at : at + batch]) for at in range(0, len(masks), batch)]
        rows[name] = (time.process_time() - began, np.concatenate(answers), resident_bytes("VmHWM"))
    spoken = masks.any(dim=1).numpy()
    apart = np.abs(rows["theirs"][1] - rows["ours"][1])[spoken].max() / np.abs(rows["theirs"][1]).max()
    return {
        "theirs": rows["theirs"][0],
        "ours": rows["ours"][0],
        "audio": float(windows),
        "apart": float(apart),
        "peak": rows["ours"][2],
    }


def errors(model: str, pcm: str, samples: int, reference: str, block_lengths: list[float]) -> list[Answer]:
    """The diarization error rate, in blocks of each of these lengths, no collar, overlaps counted."""
    diarizer = Diarizer(model, None, "cpu")
    remember(diarizer._pipeline.model)
    rows = []
    for block_s in block_lengths:
        found = heard(diarizer, Path(pcm), samples, block_s)
        speakers = len({turn.speaker for turn in found})
        rows.append({"block_s": block_s, "rate": error_rate(found, Path(reference)), "speakers": speakers})
    return rows


def error_rate(turns: list[Turn], reference: Path) -> float:
    """Against an RTTM file."""
    lines = [line.split() for line in reference.read_text().splitlines()]
    truth = [(float(line[3]), float(line[3]) + float(line[4]), line[7]) for line in lines if line]
    found = [(turn.start, turn.end, str(turn.speaker)) for turn in turns]
    rate: float = DiarizationErrorRate()(annotation(truth), annotation(found))
    return rate


def annotation(turns: list[tuple[float, float, str]]) -> Annotation:
    made = Annotation()
    for number, (start, end, speaker) in enumerate(turns):
        made[Stretch(start, end), number] = speaker
    return made


def links(model: str, pcm: str, utterances: list[tuple[float, float, str]], block_lengths: list[float]) -> list[Answer]:
    """How well speakers are found again in other blocks: voices from utterances whose speakers are known."""
    network = Diarizer(model, None, "cpu")._pipeline.model._embedding
    heard_voices = []
    for start, end, speaker in utterances:
        count = int(min(10.0, end - start) * SAMPLE_RATE)
        sound = torch.from_numpy(samples_of(Segment(Path(pcm), int(start * SAMPLE_RATE), count, 0)))[None, None]
        heard_voices.append((start, min(10.0, end - start), speaker, network(sound, masks=torch.ones(1, 589))[0]))
    return [linked_well(heard_voices, block_s) for block_s in block_lengths]


def linked_well(heard_voices: list[tuple[float, float, str, Any]], block_s: float) -> Answer:
    made: dict[int, dict[str, list[tuple[float, float, Any]]]] = {}
    for start, length, speaker, voice in heard_voices:
        made.setdefault(int(start // block_s), {}).setdefault(speaker, []).append((start, length, voice))
    cut, truth = [], []
    for speakers in made.values():
        turns = [
            (Turn(start, start + length, number), speaker)
            for number, (speaker, said) in enumerate(speakers.items())
            for start, length, _ in said
        ]
        truth += turns
        means = [np.mean([voice for *_, voice in said], axis=0) for said in speakers.values()]
        cut.append(Block(tuple(turn for turn, _ in turns), tuple(tuple(map(float, mean)) for mean in means)))
    found = linked(cut, num=None, least=None, most=None)
    named = [speaker for _, speaker in sorted(truth, key=lambda pair: (pair[0].start, pair[0].end))]
    groups: dict[int, list[str]] = {}
    for turn, speaker in zip(found, named, strict=True):
        groups.setdefault(turn.speaker, []).append(speaker)
    mixed = sum(len(group) - max(map(group.count, group)) for group in groups.values())
    return {"block_s": block_s, "blocks": len(cut), "speakers": len(groups), "true": len(set(named)), "mixed": mixed}


ASKED: dict[str, Callable[..., Any]] = {each.__name__: each for each in (memory, speed, voices, errors, links)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asked = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk; stdout is the answer's alone
        answer = ASKED[asked.pop("what")](**asked)
    print(json.dumps(answer))
