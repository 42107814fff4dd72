"""Who speaks: memory over hours in blocks beside the pipeline at once, speed, and how well speakers are told apart.

Memory is a process's own peak, models included. The recording repeats its first minute, and what the networks say of a
sound is remembered, so that hours can be measured in minutes: all else is done as ever, each block anew.
Needs the models of MODELS_SHARED_DIR (diarization/), and Linux.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiment import Aim, Plan, Report, say
from benchmarks.processes import environment
from benchmarks.speech_set import LONG_SEGMENTS, ROOT, SAMPLE_RATE, SpeechSet, speech_dir
from benchmarks.tables import markdown, mebibytes
from ffmpeg import FFmpeg
from transcription.speakers import BLOCK_S

PERIOD_S = 60
"""Of the recording that repeats itself."""

AT_ONCE_MINUTES = (10, 20, 40, 120)
IN_BLOCKS_MINUTES = (10, 20, 40, 120)
QUICK_MINUTES = (2, 4)
SPEED_S = 30
LINK_BLOCKS_S = (60.0, 120.0, 300.0)
CALL_BLOCKS_S = (BLOCK_S, 15.0, 10.0)
WINDOWS, QUICK_WINDOWS = 24, 4


class ModelsMissing(Exception):
    """There are no diarization models; set MODELS_SHARED_DIR to the folder that has diarization/ in it."""


def offline_models(folder: Path) -> Path:
    """Diarization models copied into *folder* and made ready there; the folder that must be on PYTHONPATH."""
    shared = Path(os.environ.get("MODELS_SHARED_DIR") or ROOT.parent / "shared" / "models").expanduser().resolve()
    if not (shared / "diarization").is_dir():
        raise ModelsMissing(f"No diarization models in {shared}: set MODELS_SHARED_DIR to the folder of models.")
    target = folder / "diarization"
    shutil.copytree(shared / "diarization", target, copy_function=shutil.copyfile)
    command = [sys.executable, "-W", "ignore", str(target / "write_config.py")]
    subprocess.run(command, check=True, capture_output=True)
    return target


class Child:
    """Asks `benchmarks.speakers_child`, a process a question: a peak is of one piece of work."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._threads = threads
        self._models = offline_models(folder)

    def ask(self, what: str, *, model: bool = True, **more: Any) -> Any:
        say(f"speakers: {what} {', '.join(f'{name} {value}' for name, value in more.items() if len(str(value)) < 20)}")
        if model:
            more["model"] = str(self._models / "config.yaml")
        path = os.pathsep.join([str(self._models), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.speakers_child", json.dumps({"what": what, **more})],
            cwd=ROOT,
            env=environment(self._folder, self._threads) | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])


def pcm_of(source: Path, target: Path) -> int:
    """*source* as samples in *target*; how many."""
    sound = ("-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le")
    subprocess.run([FFmpeg.locate().path, "-nostdin", "-v", "error", "-i", source, *sound, target], check=True)
    return target.stat().st_size // 2


def repeated(source: Path, minutes: int, target: Path) -> None:
    """The first minute of *source* again and again in *target*, for that many minutes."""
    period = source.read_bytes()[: 2 * PERIOD_S * SAMPLE_RATE]
    with target.open("wb") as file:
        for _ in range(minutes * 60 // PERIOD_S):
            file.write(period)


def measure(plan: Plan) -> Report:
    speech = SpeechSet(speech_dir())
    reference = speech_dir() / "ref" / "pyannote_sample.rttm"
    utterances = json.loads((speech_dir() / LONG_SEGMENTS).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="stenogate-speakers-") as name:
        folder = Path(name)
        long, call, work = folder / "long.pcm", folder / "call.pcm", folder / "work.pcm"
        pcm_of(speech.long().path, long)
        call_samples = pcm_of(speech_dir() / "conv" / "pyannote_sample.wav", call)
        child = Child(folder, plan.threads)
        errors = child.ask(
            "errors", pcm=str(call), samples=call_samples, reference=str(reference), block_lengths=CALL_BLOCKS_S
        )
        links = child.ask(
            "links",
            pcm=str(long),
            utterances=[(each["start"], each["end"], each["speaker"]) for each in utterances],
            block_lengths=LINK_BLOCKS_S,
        )
        speeds = child.ask("speed", pcm=str(call), samples=SPEED_S * SAMPLE_RATE)
        voices = child.ask("voices", model=False, windows=QUICK_WINDOWS if plan.quick else WINDOWS)
        in_blocks, at_once = (QUICK_MINUTES, QUICK_MINUTES) if plan.quick else (IN_BLOCKS_MINUTES, AT_ONCE_MINUTES)
        repeated(long, max(*in_blocks, *at_once), work)
        memory = child.ask(
            "memory",
            pcm=str(work),
            in_blocks=[minutes * 60 * SAMPLE_RATE for minutes in in_blocks],
            at_once=[minutes * 60 * SAMPLE_RATE for minutes in at_once],
        )
    return Report(
        "Who speaks",
        [memory_table(memory), speed_table(speeds, voices), error_table(errors), link_table(links)],
        aims(memory, speeds, voices, errors),
        {"memory": memory, "speed": speeds, "voices": voices, "errors": errors, "links": links},
    )


def memory_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            f"blocks of {BLOCK_S / 60:.0f} min" if row["in_blocks"] else "all at once",
            f"{row['samples'] / SAMPLE_RATE / 60:.0f}",
            mebibytes(row["before"]),
            mebibytes(row["peak"]),
        ]
        for row in rows
    ]
    return markdown(["heard", "audio min", "RSS MiB before", "peak"], cells)


def speed_table(speeds: Mapping[str, Any], voices: Mapping[str, Any]) -> str:
    cells = [
        ["offline models, whole pipeline", *seconds_cells(speeds)],
        ["pyannote's own network of voices, made-up weights", *seconds_cells(voices)],
    ]
    table = markdown(["CPU-seconds a second of audio", "WhisperX's pipeline", "ours", "factor"], cells)
    return (
        f"{table}\n\n{speeds['threads']} threads. Voices: one window of 10 s a second, two speakers in each; the two "
        f"answers differ by {voices['apart']:.1e} of the largest value. Its peak: {mebibytes(voices['peak'])} MiB."
    )


def seconds_cells(row: Mapping[str, Any]) -> list[str]:
    theirs, ours = row["theirs"] / row["audio"], row["ours"] / row["audio"]
    return [f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f}"]


def error_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[f"{row['block_s']:.0f}", f"{row['rate']:.3f}", f"{row['speakers']}"] for row in rows]
    return markdown(["the 30 s call, blocks of s", "diarization error rate", "speakers (2)"], cells)


def link_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [f"{row['block_s']:.0f}", f"{row['blocks']}", f"{row['true']}", f"{row['speakers']}", f"{row['mixed']}"]
        for row in rows
    ]
    return markdown(
        ["the long file, true turns, blocks of s", "blocks", "speakers", "found", "utterances told wrongly"],
        cells,
    )


def aims(
    memory: Sequence[Mapping[str, Any]],
    speeds: Mapping[str, Any],
    voices: Mapping[str, Any],
    errors: Sequence[Mapping[str, Any]],
) -> list[Aim]:
    in_blocks = [row["peak"] for row in memory if row["in_blocks"]]
    at_once = [row["peak"] for row in memory if not row["in_blocks"]]
    return [
        Aim("peak over the longest recording, in blocks, to the shortest", in_blocks[-1] / in_blocks[0], most=1.1),
        Aim("the same all at once", at_once[-1] / at_once[0]),
        Aim("work of the pipeline as it comes to ours", speeds["theirs"] / speeds["ours"]),
        Aim("the same for pyannote's own network of voices", voices["theirs"] / voices["ours"], least=2.0),
        Aim("error rate of the call in one block", errors[0]["rate"], most=0.10, unit=""),
    ]
