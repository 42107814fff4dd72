"""Who waits for whom: twenty requests against room for five, and two keys of which one sends forty times as much."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import TypeVar

from benchmarks.callers import Callers, Reply
from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir, spread
from benchmarks.tables import markdown

AT_ONCE, ROOM = 20, 5
MANY, SOME, FEW = 200, 20, 5
"""Requests of a key that floods, of one that has enough to do for as long as the other waits, and of that other."""
QUICK_MANY = 30
ROUNDS = 3
"""Of each burst: five latencies alone make a poor median."""
LOOK_EVERY_S = 0.05

T = TypeVar("T")


async def all_at_once(server: Server, clips: Sequence[tuple[Clip, str]]) -> tuple[list[Reply], int]:
    """Each clip by its key's caller, in this order; and the most that the server had at work at one time."""
    callers, done = Callers(server.port), asyncio.Event()

    async def watch() -> int:
        most = 0
        while not done.is_set():
            told = await callers.capacity(clips[0][1])
            most = max(most, told["work"]["transcription"]["active"])
            await asyncio.sleep(LOOK_EVERY_S)
        return most

    watching = asyncio.create_task(watch())
    replies = await asyncio.gather(*(callers.transcribe(clip, key) for clip, key in clips))
    done.set()
    return replies, await watching


def mixed(theirs: Sequence[T], own: Sequence[T]) -> list[T]:
    """*own* spread evenly among *theirs*, a multiple as many: one after each so many of theirs."""
    share = len(theirs) // len(own)
    return [one for number, last in enumerate(own) for one in (*theirs[number * share : (number + 1) * share], last)]


def timeline(replies: Sequence[Reply], across: int = 60) -> str:
    """A line a request: dots where it waits, hashes where it is worked on."""
    end_s = max(reply.begun_s + reply.seconds for reply in replies)
    lines = []
    for number, reply in enumerate(replies, 1):
        ended_s = reply.begun_s + reply.seconds
        marks = [round(at / end_s * across) for at in (reply.begun_s, ended_s - reply.worked_s, ended_s)]
        line = " " * marks[0] + "." * (marks[1] - marks[0]) + "#" * max(1, marks[2] - marks[1])
        lines.append(f"{number:3} {line:<{across + 1}} {reply.status} {reply.seconds:5.2f} s")
    return "```\n" + "\n".join(lines) + "\n```"


def measure(plan: Plan) -> Report:
    clips = SpeechSet(speech_dir()).short()
    say(f"turns: {AT_ONCE} against {ROOM}")
    with Server(MODEL, settings={"MAX_CONCURRENT_TRANSCRIPTIONS": str(ROOM)}) as server:
        server.hear(clips[0])
        twenty, at_work = asyncio.run(all_at_once(server, [(clip, server.key) for clip in spread(clips, AT_ONCE)]))
    bursts = {"beside another key's": FEW, "among another key's": SOME, "behind another key's": MANY}
    if plan.quick:
        bursts["behind another key's"] = QUICK_MANY
    few: dict[str, list[Reply]] = {burst: [] for burst in bursts}
    many: list[Reply] = []
    first, second = "a" * 32, "b" * 32
    keys = {"API_KEYS": f"{first},{second}", "MAX_QUEUE_LENGTH": str(2 * MANY)}
    own = [(clip, second) for clip in clips[:FEW]]
    with Server(MODEL, settings=keys) as server:
        asyncio.run(all_at_once(server, own))
        for _ in range(1 if plan.quick else ROUNDS):
            for burst, others in bursts.items():
                say(f"turns: {FEW} requests {burst} {others}")
                theirs = [(clips[number % len(clips)], first) for number in range(others)]
                replies, _ = asyncio.run(all_at_once(server, mixed(theirs, own)))
                few[burst] += replies[others // FEW :: others // FEW + 1]
                many = [reply for number, reply in enumerate(replies, 1) if number % (others // FEW + 1)]
    answered = sum(reply.status == 200 for reply in twenty)
    medians_s = {others: median(reply.seconds for reply in few[burst]) for burst, others in bursts.items()}
    flood = bursts["behind another key's"]
    rows = [[f"{FEW} requests {burst} {others}", *_latencies(few[burst])] for burst, others in bursts.items()]
    rows.append([f"those {flood}", *_latencies(many)])
    return Report(
        "Turns at the gate",
        [
            f"{AT_ONCE} clips of 2 to 15 s at once, room for {ROOM} (waiting dotted, at work hashed):",
            timeline(twenty),
            markdown(["clips of 2 to 15 s", "answered", "median s", "slowest s"], rows),
        ],
        [
            Aim(f"of {AT_ONCE} at once, answered", answered, least=AT_ONCE, unit=""),
            Aim("most at work at one time", at_work, least=ROOM, most=ROOM, unit=""),
            Aim(
                f"{FEW} requests behind another key's {flood}, over {FEW} among another key's {SOME}",
                medians_s[flood] / medians_s[SOME],
                most=1.5,
            ),
            Aim(f"of the {flood}, answered", sum(reply.status == 200 for reply in many), least=flood, unit=""),
        ],
        {"twenty": [asdict(reply) for reply in twenty]}
        | {burst: [asdict(reply) for reply in replies] for burst, replies in few.items()},
    )


def _latencies(replies: Sequence[Reply]) -> list[str]:
    answered = sum(reply.status == 200 for reply in replies)
    seconds = [reply.seconds for reply in replies]
    return [f"{answered} of {len(replies)}", f"{median(seconds):.2f}", f"{max(seconds):.2f}"]
