"""Ten times what the server can do: what is still answered, how fast it refuses, and who comes back."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from benchmarks.callers import Callers, Reply
from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.plots import Panel, draw
from benchmarks.processes import MemoryWatch
from benchmarks.results import percentile
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, mebibytes

TIMES = 10
LASTS_S, QUICK_LASTS_S = 600.0, 20.0
SUSTAINED_S, QUICK_SUSTAINED_S = 60.0, 10.0
SUSTAINED_AT_ONCE = 16
OBEDIENT_SHARE = 0.25
"""Of what the server can do, the obedient key sends so much: within its half."""
MOST_TRIES = 5
LIMIT_MB = 1024
HEALTH_EVERY_S = 0.5
FLOOD, OBEDIENT = "a" * 32, "b" * 32


@dataclass(frozen=True, slots=True)
class Visit:
    """One obedient request with all its tries; the last one's answer counts."""

    tries: tuple[Reply, ...]

    @property
    def admitted_at(self) -> int | None:
        """The number of the try that was answered with a transcript; None where none was."""
        return len(self.tries) if self.tries[-1].status == 200 else None


async def sustained(callers: Callers, clips: Sequence[Clip], lasts_s: float) -> list[Reply]:
    """Callers that each send their next clip when the last one is answered."""
    until_s = callers.now_s + lasts_s
    replies: list[Reply] = []

    async def caller(number: int) -> None:
        at = number * 5
        while callers.now_s < until_s:
            replies.append(await callers.transcribe(clips[at % len(clips)], (FLOOD, OBEDIENT)[number % 2]))
            at += 1

    await asyncio.gather(*(caller(number) for number in range(SUSTAINED_AT_ONCE)))
    return replies


async def flood(callers: Callers, clips: Sequence[Clip], per_s: float, lasts_s: float) -> list[Reply]:
    """Requests at random times, *per_s* on average, whatever becomes of them. Nobody comes back."""
    chance = random.Random(4)
    tasks = []
    until_s = callers.now_s + lasts_s
    while callers.now_s < until_s:
        tasks.append(asyncio.create_task(callers.transcribe(chance.choice(clips), FLOOD)))
        await asyncio.sleep(chance.expovariate(per_s))
    return await asyncio.gather(*tasks)


async def obedient(callers: Callers, clips: Sequence[Clip], per_s: float, lasts_s: float) -> list[Visit]:
    """Requests at random times by callers who wait as long as they are told and come back."""
    chance = random.Random(5)

    async def visit(clip: Clip) -> Visit:
        tries = [await callers.transcribe(clip, OBEDIENT)]
        while tries[-1].retry_after_s is not None and len(tries) < MOST_TRIES:
            await asyncio.sleep(tries[-1].retry_after_s)
            tries.append(await callers.transcribe(clip, OBEDIENT))
        return Visit(tuple(tries))

    tasks = []
    until_s = callers.now_s + lasts_s
    while callers.now_s < until_s:
        tasks.append(asyncio.create_task(visit(chance.choice(clips))))
        await asyncio.sleep(chance.expovariate(per_s))
    return await asyncio.gather(*tasks)


def watch_health(port: int, done: Event, seconds: Connection) -> None:
    """Ask for the server's health until *done* and send how long each answer took. A process of its own: the flood's
    callers must not be in its seconds."""
    callers, took_s = Callers(port), []
    while not done.wait(HEALTH_EVERY_S):
        took_s.append(asyncio.run(callers.health()).seconds)
    seconds.send(took_s)


@contextlib.contextmanager
def health_watched(port: int) -> Iterator[list[float]]:
    """Seconds of each answer, there when the block has ended."""
    processes = multiprocessing.get_context("spawn")
    done, (here, there) = processes.Event(), processes.Pipe()
    watcher = processes.Process(target=watch_health, args=(port, done, there))
    watcher.start()
    took_s: list[float] = []
    try:
        yield took_s
    finally:
        done.set()
        took_s += here.recv()
        watcher.join()


def goodput(replies: Sequence[Reply], from_s: float, to_s: float) -> float:
    """Seconds of audio answered with a transcript a second, by the time of the answer."""
    answered = (r.audio_s for r in replies if r.status == 200 and from_s <= r.begun_s + r.seconds < to_s)
    return sum(answered) / (to_s - from_s)


def measure(plan: Plan) -> Report:
    clips = SpeechSet(speech_dir()).short()
    mean_s = sum(clip.duration_s for clip in clips) / len(clips)
    lasts_s = QUICK_LASTS_S if plan.quick else LASTS_S
    settings = {"API_KEYS": f"{FLOOD},{OBEDIENT}", "MEMORY_LIMIT_MB": str(LIMIT_MB)}
    with Server(MODEL, settings=settings) as server, MemoryWatch(server.pid, 0.5) as watch:
        callers = Callers(server.port)

        async def both() -> tuple[float, list[Reply], list[Visit], list[float], float]:
            await callers.transcribe(clips[0], FLOOD)
            say("overload: what it can sustain")
            begun_s = callers.now_s
            calm = await sustained(callers, clips, QUICK_SUSTAINED_S if plan.quick else SUSTAINED_S)
            best = goodput(calm, begun_s, callers.now_s)
            say(f"overload: {TIMES} times {best:.1f} audio seconds a second")
            begun_s = callers.now_s
            with health_watched(server.port) as beat_s:
                flooded, visits = await asyncio.gather(
                    flood(callers, clips, TIMES * best / mean_s, lasts_s),
                    obedient(callers, clips, OBEDIENT_SHARE * best / mean_s, lasts_s),
                )
            return best, flooded, visits, beat_s, begun_s

        best, flooded, visits, beat_s, begun_s = asyncio.run(both())
    last_tries = [visit.tries[-1] for visit in visits]
    served = goodput([*flooded, *last_tries], begun_s, begun_s + lasts_s)
    refused = [reply.seconds for reply in (*flooded, *(t for v in visits for t in v.tries)) if reply.status == 429]
    by_second_try = sum(visit.admitted_at in (1, 2) for visit in visits)
    counts = Counter(str(reply.status) for reply in flooded)
    rows = [
        ["sustained by 16 callers", f"{best:.1f}", "", ""],
        [
            f"{TIMES} times that for {lasts_s:.0f} s",
            f"{served:.1f}",
            ", ".join(f"{count} × {status}" for status, count in sorted(counts.items())),
            f"{by_second_try} of {len(visits)}",
        ],
    ]
    title = f"{TIMES} times the sustainable rate for {lasts_s:.0f} s, limit {LIMIT_MB} MiB"
    return Report(
        title,
        [
            markdown(["", "goodput, audio s / s", "answers to the flood", "obedient, by the second try"], rows),
            markdown(
                ["", "p50 ms", "p99 ms", "slowest ms"],
                [["a refusal", *_milliseconds(refused)], ["health", *_milliseconds(beat_s)]],
            ),
            f"Peak memory of the process tree: {mebibytes(watch.peak.rss)} MiB RSS, {mebibytes(watch.peak.pss)} PSS.",
        ],
        [
            Aim("goodput over the best sustained", served / best, least=0.95),
            Aim("refusals, p99", percentile(refused, 0.99) * 1000 if refused else None, most=100, unit="ms"),
            Aim("health, slowest", max(beat_s) * 1000, most=50, unit="ms"),
            Aim("peak memory (PSS) over the limit", watch.peak.pss / (LIMIT_MB * 2**20), most=1.0),
            Aim("obedient callers admitted by their second try", by_second_try / max(1, len(visits)), least=0.9),
        ],
        {
            "flood": [asdict(reply) for reply in flooded],
            "obedient": [asdict(visit) for visit in visits],
            "health": beat_s,
            "best": best,
        },
        draw(
            plan.plots,
            "overload",
            title,
            "seconds",
            [
                Panel(
                    "audio s answered / s",
                    {"goodput": _curve([*flooded, *last_tries], begun_s, lasts_s)},
                    {"sustained": best},
                    marked=False,
                )
            ],
        ),
    )


def _curve(replies: Sequence[Reply], begun_s: float, lasts_s: float, step_s: float = 10.0) -> list[tuple[float, float]]:
    steps = range(max(1, int(lasts_s // step_s)))
    return [(s * step_s, goodput(replies, begun_s + s * step_s, begun_s + (s + 1) * step_s)) for s in steps]


def _milliseconds(seconds: Sequence[float]) -> list[str]:
    if not seconds:
        return ["", "", ""]
    return [f"{value * 1000:.1f}" for value in (percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds))]
