"""Who waits for whom: twenty requests against room for five, and two keys of which one sends forty times as much."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from benchmarks.callers import Callers, Reply
from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir, spread
from benchmarks.tables import markdown

AT_ONCE, ROOM = 20, 5
MANY, FEW = 200, 5
QUICK_MANY = 30
LOOK_EVERY_S = 0.05


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
    many = QUICK_MANY if plan.quick else MANY
    say(f"turns: {many} of one key, {FEW} of another")
    first, second = "a" * 32, "b" * 32
    keys = {"API_KEYS": f"{first},{second}", "MAX_QUEUE_LENGTH": str(2 * many)}
    asked = [(clips[number % len(clips)], first) for number in range(many)]
    own = [(clips[number % len(clips)], second) for number in range(FEW)]
    with Server(MODEL, settings=keys) as server:
        asyncio.run(all_at_once(server, own))
        shared, _ = asyncio.run(all_at_once(server, own + [(clip, first) for clip, _ in own]))
        behind, _ = asyncio.run(all_at_once(server, asked + own))
    flood, few = behind[:many], behind[many:]
    answered = sum(reply.status == 200 for reply in twenty)
    ratio = median(reply.seconds for reply in few) / median(reply.seconds for reply in shared[:FEW])
    rows = [
        ["5 requests beside another key's 5", *_latencies(shared[:FEW])],
        [f"5 requests behind another key's {many}", *_latencies(few)],
        [f"those {many}", *_latencies(flood)],
    ]
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
            Aim(f"5 requests behind another key's {many}, over 5 beside another key's 5", ratio, most=1.5),
            Aim(f"of the {many}, answered", sum(reply.status == 200 for reply in flood), least=many, unit=""),
        ],
        {"twenty": [asdict(reply) for reply in twenty], "behind": [asdict(reply) for reply in behind]},
    )


def _latencies(replies: Sequence[Reply]) -> list[str]:
    answered = sum(reply.status == 200 for reply in replies)
    seconds = [reply.seconds for reply in replies]
    return [f"{answered} of {len(replies)}", f"{median(seconds):.2f}", f"{max(seconds):.2f}"]
