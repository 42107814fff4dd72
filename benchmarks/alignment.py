"""Forced alignment beside `whisperx.align`: its seconds, its times, and how right they and the decoder's are.

Both use the same acoustic model, the stand-in of tests/stand_ins, on the same segments and words, as this service cuts
and decodes them. Over the long file its answers are remembered, so that what is timed is all but the model; with the
model, over the file's start. Its encoder always hears 30 s: so that the model's share is a usual one, both are timed
once more with a network of wav2vec2-base's size in its place. Rightness is held against PocketSphinx's forced alignment
of the reference text, which shares nothing with either.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.cutting import cut, decoded
from benchmarks.experiment import QUICK_S, Aim, Plan, Report, say
from benchmarks.results import percentile
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, percent
from benchmarks.weights import weights_folder
from transcription.alignment_text import AlignmentRequest
from transcription.core import Segment, SegmentRequest, TranscriptionOptions
from transcription.speech import CuttingRule

LONGEST_S = 600.0
"""Of the long file, with the model's answers remembered."""
START_S = 60.0
"""Of it, with the models at work: they take most of the time, the same for both."""
BATCH_SIZE = 8
NEAR_S = (0.010, 0.020, 0.050)
MODELS = ("tiny.en", "base")
UTTERANCES, QUICK_UTTERANCES = 14, 4
SPHINX_FRAME_S = 0.01

Times = list[tuple[float, float]]
"""(start, end) of each word, in seconds from the start of its segment."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One segment, the decoder's words and their times."""

    segment: Segment
    words: tuple[str, ...]
    times: Times


@dataclass(frozen=True, slots=True)
class Pass:
    """All segments aligned once."""

    system: str
    model: str
    audio_s: float
    wall_s: float
    model_s: float

    @property
    def rest_s(self) -> float:
        return self.wall_s - self.model_s


def heard(name: str, segments: Sequence[Segment], threads: int) -> list[Heard]:
    """What the service's own decoder hears; segments in which it hears nothing are left out."""
    from transcription.whisper import Whisper

    model = Whisper(weights_folder(name), device="cpu", device_index=0, compute_type="int8", threads=threads)
    options = TranscriptionOptions(name, "en", word_timestamps=True)
    found = []
    for first in range(0, len(segments), BATCH_SIZE):
        batch = segments[first : first + BATCH_SIZE]
        for segment, result in zip(batch, model.transcribe([SegmentRequest(s, options) for s in batch]), strict=True):
            if words := result.words:
                start_s = segment.start_s
                times = [(word.start - start_s, word.end - start_s) for word in words]
                found.append(Heard(segment, tuple(word.text for word in words), times))
    return found


def clocked(model: Any) -> Any:
    """*model* with a clock: `busy_s` are the seconds that were spent in it."""
    import torch

    class Clocked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.busy_s = 0.0

        def forward(self, *arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return self.inner(*arguments, **options)
            finally:
                self.busy_s += time.perf_counter() - begun

    return Clocked()


def remembered(stand_in: Any, network: Any = None) -> Any:
    """A model that asks *stand_in* once for each sound; *network* works every time, and its answer is not used.

    What a network costs does not depend on its weights: one of a usual size may have them by chance.
    """
    import torch

    class Remembered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.answers: dict[bytes, Any] = {}

        def forward(self, waveforms: Any, lengths: Any = None) -> Any:
            if self.network is not None:
                self.network(waveforms)
            sound = waveforms.numpy().tobytes()
            if sound not in self.answers:
                self.answers[sound] = stand_in(waveforms)
            return self.answers[sound]

    return Remembered()


def wav2vec2_base() -> Any:
    """The network of WhisperX's default for English, weights by chance."""
    import torchaudio  # type: ignore[import-untyped]

    return torchaudio.models.wav2vec2_base(aux_num_out=29).eval()


def by_us(model: Any, metadata: dict[str, Any], recording: Sequence[Heard]) -> list[Times | None]:
    from transcription.alignment import Aligner

    aligner = Aligner(model, metadata, "cpu")
    found = []
    for first in range(0, len(recording), BATCH_SIZE):
        found += aligner.align([AlignmentRequest(one.segment, one.words) for one in recording[first:][:BATCH_SIZE]])
    return [None if words is None else [(word.start, word.end) for word in words] for words in found]


def by_whisperx(model: Any, metadata: dict[str, Any], recording: Sequence[Heard]) -> Times:
    """Times from the start of the recording, of all words that have no space in them."""
    import whisperx.alignment

    sound = np.fromfile(recording[0].segment.path, np.int16).astype(np.float32) / 32_768
    segments = [
        {
            "start": one.segment.start_s,
            "end": one.segment.start_s + one.segment.duration_s,
            "text": "".join(one.words),
        }
        for one in recording
    ]
    found = whisperx.alignment.align(segments, model, metadata, sound, "cpu")
    return [(word["start"], word["end"]) for word in found["word_segments"]]


def spaced(recording: Sequence[Heard], aligned: Sequence[Times | None]) -> Times:
    """Our words' times from the start of the recording, those joined that have no space between them."""
    times: Times = []
    for one, words in zip(recording, aligned, strict=True):
        start_s = one.segment.start_s
        for number, (text, (start, end)) in enumerate(zip(one.words, words or one.times, strict=True)):
            first = start_s + start
            if number and not text.startswith(" "):
                first = times.pop()[0]
            times.append((first, start_s + end))
    return times


def timed(system: str, name: str, model: Any, work: Callable[[Any], Any], audio_s: float) -> tuple[Pass, Any]:
    clock = clocked(model)
    begun = time.perf_counter()
    found = work(clock)
    return Pass(system, name, audio_s, time.perf_counter() - begun, clock.busy_s), found


def raced(
    name: str, model: Any, metadata: dict[str, Any], recording: Sequence[Heard], repeats: int
) -> tuple[list[Pass], Times, Times]:
    """Both in turn, *repeats* times; what each found."""
    audio_s = sum(one.segment.duration_s for one in recording)
    passes: list[Pass] = []
    for repeat in range(repeats):
        ours, found = timed("stenogate", name, model, lambda m: by_us(m, metadata, recording), audio_s)
        theirs, other = timed("whisperx", name, model, lambda m: by_whisperx(m, metadata, recording), audio_s)
        passes += [ours, theirs]
        seconds = ", ".join(
            f"{each.system} {each.wall_s:.1f} s, {each.rest_s:.2f} s beside the model" for each in passes[-2:]
        )
        say(f"alignment, {name}, repeat {repeat + 1}: {seconds}")
    return passes, spaced(recording, found), other


def sphinx(reference: Sequence[str], segment: Segment) -> Times | None:
    """Where PocketSphinx hears the words of *reference*; None where it knows one of them not, or finds no way."""
    from pocketsphinx import Decoder  # type: ignore[import-untyped]

    aligner = Decoder(lm=None, loglevel="FATAL")
    if any(aligner.lookup_word(word) is None for word in reference):
        return None
    pcm = np.fromfile(segment.path, np.int16, segment.samples, offset=2 * segment.first_sample)
    aligner.set_align_text(" ".join(reference))
    aligner.start_utt()
    aligner.process_raw(pcm.tobytes(), full_utt=True)
    aligner.end_utt()
    found = [one for one in aligner.seg() or () if one.word[0] not in "<(["]
    if [re.sub(r"\(\d+\)$", "", one.word) for one in found] != list(reference):
        return None
    return [(one.start_frame * SPHINX_FRAME_S, (one.end_frame + 1) * SPHINX_FRAME_S) for one in found]


def plain(word: str) -> str:
    return re.sub(r"[^a-z']", "", word.lower())


def errors(reference: Sequence[str], right: Times, words: Sequence[str], times: Times) -> Iterator[tuple[float, float]]:
    """(error of the start, of the end) of each word that is in both texts."""
    matched = difflib.SequenceMatcher(None, list(reference), [plain(word) for word in words], autojunk=False)
    for block in matched.get_matching_blocks():
        for offset in range(block.size):
            wanted, found = right[block.a + offset], times[block.b + offset]
            yield abs(wanted[0] - found[0]), abs(wanted[1] - found[1])


def judged(title: str, clips: Sequence[Clip], plan: Plan, model: Any, metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The decoder's and the aligned times of each Whisper model's words, against PocketSphinx's."""
    with tempfile.TemporaryDirectory(prefix="stenogate-alignment-") as folder:
        paths = asyncio.run(decoded(clips, Path(folder)))
        wanted: list[tuple[Segment, list[str], Times]] = []
        for clip, path in zip(clips, paths, strict=True):
            segment = Segment(path, 0, path.stat().st_size // 2, len(wanted))
            reference = [plain(word) for word in clip.text.split()]
            if right := sphinx(reference, segment):
                wanted.append((segment, reference, right))
        say(f"alignment, {title}: PocketSphinx knows all words of {len(wanted)} of {len(clips)} clips")
        rows = []
        for name in MODELS:
            by_path = {
                one.segment.path: one for one in heard(name, [segment for segment, _, _ in wanted], plan.threads)
            }
            found: dict[str, list[tuple[float, float]]] = {"decoder": [], "aligned": []}
            for segment, reference, right in wanted:
                if one := by_path.get(segment.path):
                    [aligned] = by_us(model, metadata, [one])
                    if aligned:
                        found["decoder"] += errors(reference, right, one.words, one.times)
                        found["aligned"] += errors(reference, right, one.words, aligned)
            say(f"alignment, {title}: {name} judged by {len(found['decoder'])} words")
            rows += [{"set": title, "words": name, "times": times, "errors_s": e} for times, e in found.items()]
        return rows


def measure(plan: Plan) -> Report:
    import torch

    from tests.stand_ins.sitecustomize import load_stand_in, models_shared_dir

    os.environ.setdefault("NLTK_DATA", str(models_shared_dir() / "alignment" / "nltk_data"))
    os.environ.setdefault("ALIGNMENT_WHISPER_DIR", str(weights_folder("base")))
    torch.set_num_threads(plan.threads)
    stand_in, metadata = load_stand_in()
    speech = SpeechSet(speech_dir())
    with tempfile.TemporaryDirectory(prefix="stenogate-alignment-") as folder:
        paths = asyncio.run(decoded([speech.long()], Path(folder)))
        [segments] = asyncio.run(cut(paths, CuttingRule()))
        longest_s = QUICK_S if plan.quick else LONGEST_S
        say("alignment: hearing the long file's words")
        recording = heard(MODELS[0], [s for s in segments if s.start_s + s.duration_s <= longest_s], plan.threads)
        known = remembered(stand_in)
        for warm in (by_us, by_whisperx):
            warm(known, metadata, recording)
        passes, ours, theirs = raced("none: its answers remembered", known, metadata, recording, plan.repeats)

        start = [one for one in recording if one.segment.start_s + one.segment.duration_s <= START_S]
        for name, model in (("stand-in", stand_in), ("wav2vec2-base's size", remembered(known, wav2vec2_base()))):
            passes += raced(name, model, metadata, start, plan.repeats)[0]

    count = QUICK_UTTERANCES if plan.quick else UTTERANCES
    libri = [clip for clip in speech.english() if clip.name.startswith("librispeech")]
    other = [clip for clip in speech.english() if clip.name.startswith("en/")]
    judgements = []
    for title, clips in (("LibriSpeech", libri), ("other English", other)):
        usable = [clip for clip in clips if clip.text and 2 <= clip.duration_s <= 28]
        chosen = usable[:: max(1, len(usable) // count)][:count]
        judgements += judged(title, chosen, plan, stand_in, metadata)
    return report(passes, ours, theirs, judgements, plan.repeats)


def report(
    passes: Sequence[Pass], ours: Times, theirs: Times, judgements: Sequence[dict[str, Any]], repeats: int
) -> Report:
    """Three tables: seconds, agreement, errors."""
    speed, ratios = [], {}
    for name in dict.fromkeys(each.model for each in passes):
        lines = {}
        for system in ("stenogate", "whisperx"):
            of = [each for each in passes if (each.system, each.model) == (system, name)]
            lines[system] = [median(getattr(each, part) for each in of) for part in ("wall_s", "model_s", "rest_s")]
            speed.append([name, system, f"{of[0].audio_s:.0f}", *(f"{seconds:.2f}" for seconds in lines[system])])
        ratios[name] = [theirs / ours for ours, theirs in zip(lines["stenogate"], lines["whisperx"], strict=True)]
    apart = [[abs(mine[edge] - other[edge]) for mine, other in zip(ours, theirs, strict=True)] for edge in (0, 1)]
    shares = [[sum(one <= near for one in edge) / len(edge) for near in NEAR_S] for edge in apart]
    agreement = [
        [name, *(percent(share) for share in row), f"{1000 * max(edge):.1f}"]
        for name, row, edge in zip(("starts", "ends"), shares, apart, strict=True)
    ]
    right = []
    medians = {}
    for one in judgements:
        edges = [sorted(pair[edge] for pair in one["errors_s"]) for edge in (0, 1)]
        figures = [f"{1000 * percentile(edge, share):.0f}" for edge in edges for share in (0.5, 0.9)]
        right.append([one["set"], one["words"], one["times"], str(len(one["errors_s"])), *figures])
        medians[one["set"], one["words"], one["times"]] = percentile(edges[0] + edges[1], 0.5)
    halves = [medians[aligned] / medians[decoder] for decoder, aligned in pairwise(medians) if aligned[2] == "aligned"]
    return Report(
        "Forced alignment beside whisperx.align",
        [
            markdown(["acoustic model", "", "audio s", "all s", "in the model s", "the rest s"], speed),
            f"Medians of {repeats}, in turn; batches of {BATCH_SIZE} segments.",
            markdown(["words'", *(f"within {1000 * near:.0f} ms" for near in NEAR_S), "furthest ms"], agreement),
            f"{len(ours)} words; the stand-in's times, ours against WhisperX's.",
            markdown(
                [
                    "recordings",
                    "words of",
                    "times",
                    "words",
                    *(f"{edge} {s} ms" for edge in ("start", "end") for s in ("median", "p90")),
                ],
                right,
            ),
            "Errors against PocketSphinx's alignment of the reference text, of words that were heard right.",
        ],
        [
            *(Aim(f"whisperx's seconds over ours, {name}", ratio[0], least=4) for name, ratio in ratios.items()),
            *(Aim(f"the same but for the model, {name}", ratio[2], least=4) for name, ratio in ratios.items()),
            Aim("starts within 20 ms", shares[0][1], least=0.98, unit=""),
            Aim("ends within 20 ms", shares[1][1], least=0.98, unit=""),
            Aim("aligned times' median error over the decoder's, worst row", max(halves), most=1),
        ],
        {
            "passes": [asdict(each) for each in passes],
            "apart_s": apart,
            "judgements": [dict(one) for one in judgements],
        },
    )
