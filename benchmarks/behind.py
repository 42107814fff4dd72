"""A short clip behind a long file: what each costs the other, and what a caller who hangs up leaves running."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

from benchmarks.engine_log import Busy, busy
from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.load import ask
from benchmarks.processes import cpu_until_quiet, tree_cpu_s
from benchmarks.results import percentile
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown

CLIP_S = 5.0
CLIPS = 6
QUICK_CLIPS = 4
MOST_RESTARTS = 5
LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Alone:
    """The long file with nothing beside it."""

    worked: Busy
    cpu_s: float

    @property
    def wall_s(self) -> float:
        return self.worked.wall_s

    @property
    def batch_cpu_s(self) -> float:
        """CPU-seconds of a mean batch, with its share of reading and cutting the file."""
        return self.cpu_s / max(self.worked.batches, 1)


@dataclass(frozen=True, slots=True)
class Beside:
    """The long file with clips sent meanwhile."""

    wall_s: float
    latencies_s: tuple[float, ...]
    """Of the clips that were sent and answered while the file was running."""


@dataclass(frozen=True, slots=True)
class HungUp:
    """What was worked on after the caller of the long file had left in its middle."""

    cpu_s: float
    batches: int


@dataclass(frozen=True, slots=True)
class Repeat:
    idle_s: tuple[float, ...]
    alone: Alone
    beside: tuple[Beside, ...]
    hung_up: HungUp


def long_alone(server: Server, long: Clip) -> Alone:
    mark, before_s = server.log_end(), tree_cpu_s(server.pid)
    wall_s = ask(server.hear, long).seconds
    worked = busy(server.events("batch decoded", mark), len(server.engines()), wall_s)
    return Alone(worked, tree_cpu_s(server.pid) - before_s)


def long_beside(server: Server, long: Clip, clip: Clip, every_s: float) -> Beside:
    """Send *clip* every *every_s*, or as soon as its last answer is there, from the file's first batch to its end."""
    within = []
    mark = server.log_end()
    with ThreadPoolExecutor(1) as caller:
        running = caller.submit(ask, server.hear, long)
        while not server.events("batch decoded", mark) and not running.done():
            wait([running], timeout=LOOK_EVERY_S)
        while not running.done():
            sent = time.monotonic()
            latency_s = ask(server.hear, clip).seconds
            if not running.done():
                within.append(latency_s)
            wait([running], timeout=max(sent + every_s - time.monotonic(), 0))
        return Beside(running.result().seconds, tuple(within))


def hang_up(server: Server, long: Clip, after_s: float) -> HungUp:
    mark = server.log_end()
    server.client.hang_up(long, MODEL, after_s)
    before = len(server.events("batch decoded", mark))
    cpu_s = cpu_until_quiet(server.pid)
    return HungUp(cpu_s, len(server.events("batch decoded", mark)) - before)


def one_repeat(server: Server, long: Clip, clip: Clip, count: int, every_s: float, alone_first: bool) -> Repeat:
    """Idle, then the file alone and with clips beside it, in the order asked for; again until enough clips counted."""
    idle_s = tuple(ask(server.hear, clip).seconds for _ in range(count))
    alone = long_alone(server, long) if alone_first else None
    beside: list[Beside] = []
    while sum(len(each.latencies_s) for each in beside) < count and len(beside) <= MOST_RESTARTS:
        beside.append(long_beside(server, long, clip, every_s))
    alone = alone or long_alone(server, long)
    return Repeat(idle_s, alone, tuple(beside), hang_up(server, long, alone.wall_s / 2))


def aims(repeats: Sequence[Repeat]) -> list[Aim]:
    idle_s = [latency for repeat in repeats for latency in repeat.idle_s]
    behind_s = [latency for repeat in repeats for beside in repeat.beside for latency in beside.latencies_s]
    quotients = [percentile(behind_s, share) / percentile(idle_s, share) if behind_s else None for share in (0.5, 0.95)]
    slower = median(mean(beside.wall_s for beside in repeat.beside) / repeat.alone.wall_s for repeat in repeats)
    left = median(repeat.hung_up.cpu_s / (repeat.alone.batch_cpu_s * repeat.alone.worked.streams) for repeat in repeats)
    return [
        Aim("p50 of the clip behind the file, over the idle server's p50", quotients[0]),
        Aim("p95 of the clip behind the file, over the idle server's p95", quotients[1], most=3.0),
        Aim("wall time of the file with clips beside it, over alone", slower, most=1.10),
        Aim("CPU time after a hang-up, in mean batches a stream", left, most=1.0, unit="batches"),
    ]


def table(repeats: Sequence[Repeat]) -> str:
    cells = []
    for number, repeat in enumerate(repeats, 1):
        behind_s = [latency for beside in repeat.beside for latency in beside.latencies_s]
        row = [str(number)]
        for latencies_s in (repeat.idle_s, behind_s):
            row += [f"{percentile(latencies_s, share):.2f}" if latencies_s else "" for share in (0.5, 0.95)]
        walls = ", ".join(f"{beside.wall_s:.1f}" for beside in repeat.beside)
        row += [str(len(behind_s)), f"{repeat.alone.wall_s:.1f}", walls]
        row += [f"{repeat.hung_up.cpu_s:.2f}", f"{repeat.alone.batch_cpu_s:.2f}", str(repeat.hung_up.batches)]
        cells.append(row)
    header = [
        "repeat",
        "idle p50 s",
        "idle p95 s",
        "behind p50 s",
        "behind p95 s",
        "clips counted",
        "file alone, wall s",
    ]
    header += ["with clips, wall s", "CPU s after hang-up", "CPU s a mean batch", "batches after hang-up"]
    return markdown(header, cells)


def measure(plan: Plan) -> Report:
    speech = SpeechSet(speech_dir())
    clip, count = speech.near(CLIP_S), QUICK_CLIPS if plan.quick else CLIPS
    repeats: list[Repeat] = []
    with tempfile.TemporaryDirectory(prefix="stenogate-behind-") as folder, Server(MODEL, log_level="debug") as server:
        long = plan.long_clip(speech, Path(folder))
        server.hear(clip)
        # How long the file takes tells how far apart the clips must be to last as long.
        every_s = long_alone(server, long).wall_s / count
        for number in range(plan.repeats):
            say(f"behind, repeat {number + 1}")
            repeats.append(one_repeat(server, long, clip, count, every_s, alone_first=number % 2 == 0))
    added = count * clip.duration_s / long.duration_s
    return Report(
        f"A clip of {clip.duration_s:.1f} s behind a file of {long.duration_s / 60:.1f} min",
        [
            table(repeats),
            f"The clip is sent {count} times while the file is running, which is {100 * added:.0f} % more to be heard. "
            "Latencies of all repeats count together; the wall times' quotient is the median of the repeats'.",
        ],
        aims(repeats),
        {"every_s": every_s, "repeats": [asdict(repeat) for repeat in repeats]},
    )
