"""A thousand mixed jobs in machines of several sizes: nothing is killed, nothing overruns, and nothing lies idle.

Each size is a real control group where this machine lets one be made, and MEMORY_LIMIT_MB with a watch on the process
tree where it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.callers import Callers, Reply
from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.processes import MemoryWatch
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, mebibytes

LIMITS_MB = (1024, 2048, 4096, 8192)
JOBS, QUICK_JOBS = 1_000, 40
AT_ONCE = 32
HANG_UP_EVERY = 25
LOOK_EVERY_S = 0.25
V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
QUERIES = (
    "",
    "?word_timestamps=true",
    "?response_format=srt",
    "?model_size=base",
    "?model_size=base&response_format=verbose_json",
    "?beam_size=1",
)


@dataclass(frozen=True, slots=True)
class Size:
    """What came of all jobs in one size."""

    limit_mb: int
    real_group: bool
    statuses: dict[str, int]
    hung_up: int
    peak_pss: int
    kills: int | None
    """By the kernel; None where there was no group."""
    used_share: float
    """Median over the run, of the resource that was most in use: slots, or the memory for requests."""
    healthy: bool
    wall_s: float


@contextlib.contextmanager
def group(limit_mb: int) -> Iterator[Path | None]:
    """A memory control group with that limit; None where none can be made here."""
    version_2 = (V2 / "cgroup.controllers").exists()
    folder = (V2 if version_2 else V1) / f"stenogate-bench-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(limit_mb * 2**20))
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        yield None
        return
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


async def all_jobs(
    callers: Callers, key: str, clips: Sequence[Clip], jobs: int
) -> tuple[list[Reply], int, list[float]]:
    """Replies, how many hung up, and how much of the scarcest resource was in use at each look."""
    chance = random.Random(6)
    todo = [(number, chance.choice(clips), chance.choice(QUERIES)) for number in range(jobs)]
    left: Iterator[tuple[int, Clip, str]] = iter(todo)
    replies: list[Reply] = []
    shares: list[float] = []
    hung_up = 0

    async def caller() -> None:
        nonlocal hung_up
        for number, clip, query in left:
            asked = callers.transcribe(clip, key, query=query)
            if number % HANG_UP_EVERY == HANG_UP_EVERY - 1:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asked, chance.uniform(0.05, 1.0))
                hung_up += 1
            else:
                replies.append(await asked)

    async def watch() -> None:
        while True:
            told = await callers.capacity(key)
            lane = told["work"]["transcription"]
            [memory] = (device for device in told["devices"] if device["device"] == "memory")
            shares.append(max(lane["active"] / lane["slots"], memory["reserved_bytes"] / memory["budget_bytes"]))
            await asyncio.sleep(LOOK_EVERY_S)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    return replies, hung_up, shares


def run(limit_mb: int, clips: Sequence[Clip], jobs: int) -> Size:
    say(f"bounded: {jobs} jobs in {limit_mb} MiB")
    with group(limit_mb) as folder:
        settings = {} if folder else {"MEMORY_LIMIT_MB": str(limit_mb)}
        with Server(MODEL, settings=settings, cgroup=folder) as server, MemoryWatch(server.pid, 0.5) as watch:
            callers = Callers(server.port)
            replies, hung_up, shares = asyncio.run(all_jobs(callers, server.key, clips, jobs))
            healthy = asyncio.run(callers.health()).status == 200
            wall_s = callers.now_s
        kills = _kills(folder) if folder else None
    return Size(
        limit_mb=limit_mb,
        real_group=folder is not None,
        statuses=dict(Counter(str(reply.code or reply.status) for reply in replies)),
        hung_up=hung_up,
        peak_pss=watch.peak.pss,
        kills=kills,
        used_share=median(shares),
        healthy=healthy,
        wall_s=wall_s,
    )


def _kills(folder: Path) -> int:
    text = "".join(
        (folder / name).read_text() for name in ("memory.events", "memory.oom_control") if (folder / name).exists()
    )
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)


def measure(plan: Plan) -> Report:
    clips = SpeechSet(speech_dir()).english()
    jobs = QUICK_JOBS if plan.quick else JOBS
    sizes = [run(limit_mb, clips, jobs) for limit_mb in (LIMITS_MB[:1] if plan.quick else LIMITS_MB)]
    rows = [
        [
            f"{size.limit_mb}{'' if size.real_group else ' (setting)'}",
            ", ".join(f"{count} × {name}" for name, count in sorted(size.statuses.items())),
            str(size.hung_up),
            mebibytes(size.peak_pss),
            "" if size.kills is None else str(size.kills),
            f"{size.used_share:.0%}",
            f"{size.wall_s:.0f}",
        ]
        for size in sizes
    ]
    return Report(
        f"{jobs} mixed jobs, {AT_ONCE} at once, by memory limit",
        [
            markdown(
                ["limit MiB", "answers", "hung up", "peak PSS MiB", "kernel's kills", "in use, median", "wall s"], rows
            )
        ],
        [
            Aim("kills and dead servers", sum((s.kills or 0) + (not s.healthy) for s in sizes), most=0, unit=""),
            Aim("largest peak over its limit", max(s.peak_pss / (s.limit_mb * 2**20) for s in sizes), most=1.0),
            Aim("least in use, of slots or memory", min(s.used_share for s in sizes), least=0.7, unit=""),
            Aim(
                "jobs answered with a transcript, of those that stayed",
                min(s.statuses.get("200", 0) / sum(s.statuses.values()) for s in sizes),
                least=0.99,
                unit="",
            ),
        ],
        {"sizes": [asdict(size) for size in sizes]},
    )
