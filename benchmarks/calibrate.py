"""What loading, batches and ffmpeg take, held against the prices that plans and the gate are made of. Linux only.

Each model whose weights are here is loaded by a real engine on the CPU and given the worst batches that the planner
makes: the long recording in pieces that fill the window, then in as many as may share a batch, without word times and
with them. At last one stream does full segments again as after a failed safeguard, while the others go on. Seen is the
process's peak resident memory (VmHWM), which misses nothing between two looks.

Exit status 1 where a prediction is more than a quarter off, or more than a tenth too low.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

import prices
import telemetry
from benchmarks.experiment import say
from benchmarks.machine import description
from benchmarks.speech_set import ROOT, SpeechSet, speech_dir
from benchmarks.tables import markdown, mebibytes
from benchmarks.weights import MODEL_DIR, weights_folder
from cores import available_cores
from ffmpeg import FFmpeg
from limits import Footprint, plan
from memory import read_ram
from transcription import audio
from transcription.core import (
    BYTES_PER_SAMPLE,
    SAMPLE_RATE,
    Segment,
    SegmentRequest,
    TranscriptionOptions,
)
from transcription.engine import Engine
from transcription.footprint import CPU_BATCH_S, footprint, longest_s
from transcription.models import ModelLibrary, spec
from transcription.placement import Placement, Weights
from transcription.planner import BatchPlanner, Pending

COMPUTE_TYPE = "int8"

MOST_OFF = 0.25
MOST_UNDER = 0.10
"""A price that is too low kills a container; one that is too high only wastes some of it."""

RETRIES = 4
RETRY_TEMPERATURE = 0.2
"""The first that is tried where a safeguard fails."""

JUST_BELOW_S = 0.1
"""Of the longest that a segment can be: its neighbours must still be of its length's class."""

VIDEO_S = 20
LOOK_EVERY_S = 0.002

PAGE = ROOT / "docs" / "capacity.md"
BEGIN, END = "<!-- what scripts/calibrate wrote -->", "<!-- its end -->"

Batch = Sequence[SegmentRequest]


@dataclass(frozen=True, slots=True)
class Shape:
    """How many batches at a time, and how large."""

    name: str
    streams: int
    """The stream for clips included."""
    threads: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Line:
    """One price, and what was seen of it, step by step: each figure is the peak until then."""

    model: str
    what: str
    predicted_bytes: int
    seen_bytes: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """Predicted over seen."""
        return self.predicted_bytes / max(self.seen_bytes)

    @property
    def verdict(self) -> str:
        if self.ratio < 1 - MOST_UNDER:
            return "too low"
        return "too high" if self.ratio > 1 + MOST_OFF else ""

    def row(self) -> list[str]:
        return [
            *filter(None, (self.model, self.what)),
            mebibytes(self.predicted_bytes),
            *map(mebibytes, self.seen_bytes),
            f"{self.ratio:.2f} {self.verdict}".strip(),
        ]


# --- a model ---------------------------------------------------------------------------------------------------------


def resident_bytes(pid: int) -> tuple[int, int]:
    """What the process holds now, and the most that it ever held. Raises OSError where there is none."""
    told = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", told, re.MULTILINE))
    return 1024 * int(found.get("VmRSS", 0)), 1024 * int(found.get("VmHWM", 0))


def shapes(cost: Footprint) -> list[Shape]:
    """The least there is, and what this machine's plan would be."""
    chosen = plan(read_ram(), available_cores(), "cpu", cost)
    own = Shape(
        f"{chosen.streams} × {chosen.batch_size}{'+' * chosen.express}",
        chosen.streams + chosen.express,
        chosen.threads,
        chosen.batch_size,
    )
    least = Shape("1 × 1", 1, 1, 1)
    return list(dict.fromkeys([least, own]))


def worst_batches(heard: Segment, options: TranscriptionOptions, batch_size: int) -> Iterator[Batch]:
    """*heard* alone in pieces of a full window, then by twos, threes and so on, as the planner joins them.

    In each batch one piece is as long as can be, since all others are encoded and timed as widely.
    """
    for count in range(1, batch_size + 1):
        long_s = longest_s(count) - (count > 1) * JUST_BELOW_S
        others_s = (CPU_BATCH_S - long_s) / max(1, count - 1)
        planner = BatchPlanner(batch_size, CPU_BATCH_S)
        for segment in pieces(heard, itertools.cycle([long_s, *[others_s] * (count - 1)])):
            planner.add(Pending(0, segment, options))
        while batch := planner.next_batch():
            yield [pending.asked for pending in batch]


def pieces(heard: Segment, lengths_s: Iterable[float]) -> Iterator[Segment]:
    """*heard* from its start, a piece of each length, as far as it goes."""
    first = 0
    for index, length_s in enumerate(lengths_s):
        samples = int(length_s * SAMPLE_RATE)
        if first + samples > heard.samples:
            return
        yield Segment(heard.path, first, samples, index)
        first += samples


async def decode_all(engine: Engine, batches: Iterable[Batch], streams: int) -> None:
    """*streams* at a time, each the next one as soon as it is free."""
    left = iter(batches)

    async def stream() -> None:
        for batch in left:
            await engine.transcribe(batch)

    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(stream())


async def decode_beside(engine: Engine, again: Iterable[Batch], batches: Iterable[Batch], streams: int) -> None:
    """*again*, one after another in one stream, while all others have *batches*."""
    ended = False

    def until_ended() -> Iterator[Batch]:
        for batch in batches:
            if ended:
                return
            yield batch

    async with asyncio.TaskGroup() as group:
        beside = group.create_task(decode_all(engine, until_ended(), streams - 1))
        await decode_all(engine, again, 1)
        ended = True
        await beside


async def measured(model: str, shape: Shape, heard: Segment) -> tuple[Line, Line, Line]:
    """An engine after its model was loaded, while it was, and at work."""
    cost = footprint(spec(model), COMPUTE_TYPE, "cpu")
    path = weights_folder(model)

    async def weights(_: str) -> Weights:
        return Weights(path, cost.weights_bytes)

    placement = Placement("cpu", COMPUTE_TYPE, streams=shape.streams, threads=shape.threads)
    async with Engine(weights, model=model, placement=placement, log_level="error") as engine:
        await engine.load(model)
        assert engine.pid is not None
        loaded, loading = resident_bytes(engine.pid)
        plain = TranscriptionOptions(model, "en")
        words = replace(plain, word_timestamps=True)
        hot = replace(words, temperature=RETRY_TEMPERATURE)
        seen = []
        for options in (plain, words):
            await decode_all(engine, worst_batches(heard, options, shape.batch_size), shape.streams)
            seen.append(resident_bytes(engine.pid)[1])
        again = itertools.islice(worst_batches(heard, hot, 1), RETRIES)
        await decode_beside(engine, again, worst_batches(heard, words, shape.batch_size), shape.streams)
        seen.append(resident_bytes(engine.pid)[1])
    return (
        Line(model, "loaded", cost.process_bytes + cost.weights_bytes, (loaded,)),
        Line(model, "while it loads", cost.process_bytes + cost.loading_bytes, (loading,)),
        Line(model, shape.name, cost.total_bytes(shape.streams, shape.batch_size), tuple(seen)),
    )


# --- ffmpeg ----------------------------------------------------------------------------------------------------------


async def ffmpeg_peak(work: Coroutine[Any, Any, object]) -> int:
    """The most that an ffmpeg held which *work* started.

    NOTE: what the system counts for a child that has ended (getrusage) begins with the memory of the process that it
    was forked from, so it is looked at while it runs. Its own peak misses nothing between two looks.
    """
    own, most = psutil.Process(), 0
    done = asyncio.ensure_future(work)
    while not done.done():
        for child in own.children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if child.name().startswith("ffmpeg"):
                    most = max(most, resident_bytes(child.pid)[1])
        await asyncio.sleep(LOOK_EVERY_S)
    await done
    return most


def video(ffmpeg: FFmpeg, folder: Path) -> Path:
    """A test picture in 1080p with a tone."""
    path = folder / "video.mp4"
    picture, tone = f"testsrc=size=1920x1080:rate=25:duration={VIDEO_S}", f"sine=duration={VIDEO_S}"
    sources = ("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone)
    subprocess.run([ffmpeg.path, "-v", "error", *sources, "-shortest", path], check=True)
    return path


async def requests_line(ffmpeg: FFmpeg, recording: Path, folder: Path) -> Line:
    """An ffmpeg at work for a request: on a long recording, on a video, on its header."""
    film = video(ffmpeg, folder)

    def decoded(source: Path, name: str) -> Coroutine[Any, Any, object]:
        return audio.decode(ffmpeg, source, folder / name, max_duration_s=86_400)

    seen = (
        await ffmpeg_peak(decoded(recording, "recording.pcm")),
        await ffmpeg_peak(decoded(film, "video.pcm")),
        await ffmpeg_peak(audio.probe(ffmpeg, film)),
    )
    return Line("", "ffmpeg", prices.FFMPEG_BYTES, seen)


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that one run found."""

    models: Sequence[Line]
    """After loading, and while it loads."""
    work: Sequence[Line]
    requests: Line

    @property
    def lines(self) -> list[Line]:
        return [*self.models, *self.work, self.requests]

    def markdown(self, command: str) -> str:
        tables = [
            markdown(["model", "", "predicted", "seen", "predicted / seen"], [line.row() for line in self.models]),
            markdown(
                ["model", "streams × segments", "predicted", "no word times", "word times", "done again", RATIO],
                [line.row() for line in self.work],
            ),
            markdown(["", "price", "recording", "1080p", "its header", RATIO], [self.requests.row()]),
        ]
        facts = [f"`{command}`", *description(), f"{COMPUTE_TYPE}, beam 5; MiB; peaks of one process"]
        return "\n\n".join(["\n".join(f"- {fact}" for fact in facts), *tables])


RATIO = "predicted / seen"


def written(page: str, table: str) -> str:
    """*page* with *table* in place of what was written there before. Raises ValueError where it has no such place."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


async def calibrated(models: Sequence[str]) -> Calibration:
    ffmpeg = FFmpeg.locate("")
    recording = SpeechSet(speech_dir()).long().path
    loading: list[Line] = []
    work: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="stenogate-calibrate-") as name:
        folder = Path(name)
        requests = await requests_line(ffmpeg, recording, folder)
        pcm = folder / "recording.pcm"
        heard = Segment(pcm, 0, pcm.stat().st_size // BYTES_PER_SAMPLE, 0)
        for model in models:
            for shape in shapes(footprint(spec(model), COMPUTE_TYPE, "cpu")):
                say(f"{model}, {shape.name}")
                *loaded, at_work = await measured(model, shape, heard)
                work.append(at_work)
            loading += loaded
    return Calibration(loading, work, requests)


def parser() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(
        prog="scripts/calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--model", nargs="+", metavar="NAME", help="these alone; default: all whose weights are here")
    asked.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file, too")
    asked.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    return asked


def main() -> int:
    arguments = parser().parse_args()
    if sys.platform != "linux":
        sys.exit("Only Linux tells a process's peak.")
    telemetry.configure("error")
    # Ended from outside, the engine that was started is stopped all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    here = [model.name for model in ModelLibrary(MODEL_DIR, downloads=False, hf_token=None).available()]
    found = asyncio.run(calibrated([spec(name).name for name in arguments.model or here]))
    tables = found.markdown(shlex.join(["scripts/calibrate", *sys.argv[1:]]))
    print(tables)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        lines = [asdict(line) | {"ratio": line.ratio, "verdict": line.verdict} for line in found.lines]
        arguments.json.write_text(json.dumps(lines, indent=2), "utf-8")
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text("utf-8"), tables), "utf-8")
    return int(any(line.verdict for line in found.lines))


if __name__ == "__main__":
    sys.exit(main())
