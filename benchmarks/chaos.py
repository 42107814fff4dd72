"""The engine killed again and again under load: every answer is right, or says that the engine died."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.load import Heard, ask_all, ask_until
from benchmarks.processes import tree_memory
from benchmarks.results import percentile
from benchmarks.scoring import score
from benchmarks.server import Server
from benchmarks.speech_set import SpeechSet, speech_dir, total_s
from benchmarks.tables import markdown, mebibytes

CALLERS = 8
CLIPS = 24
FEWEST_WORDS = 5
"""In a shorter clip one word that is heard otherwise is a wrong answer, with or without a crash."""
FOR_S, QUICK_FOR_S = 120.0, 25.0
EVERY_S = 10.0
LOOK_EVERY_S = 0.05
ANSWER_WITHIN_S = 60.0
NEAR = 0.3
"""Word error rate against the clip's own undisturbed answer: what batches of other company do to a text."""

EQUAL, NEARLY, WRONG, CRASHED = "equal", "near", "wrong", "WORKER_CRASHED"


@dataclass(frozen=True, slots=True)
class Counts:
    """Answers by what they were worth."""

    equal: int
    near: int
    wrong: int
    crashed: int
    others: dict[str, int]
    """By their codes."""


def outcome(heard: Heard, undisturbed: str) -> str:
    """EQUAL, NEARLY or WRONG beside the text that was heard with nothing in the way; else the problem's code."""
    if heard.failure:
        return heard.failure
    if heard.text == undisturbed:
        return EQUAL
    return NEARLY if score(undisturbed, heard.text, heard.clip.language).error_rate <= NEAR else WRONG


def counted(outcomes: Counter[str]) -> Counts:
    known = (EQUAL, NEARLY, WRONG, CRASHED)
    others = {code: count for code, count in outcomes.items() if code not in known}
    return Counts(outcomes[EQUAL], outcomes[NEARLY], outcomes[WRONG], outcomes[CRASHED], others)


def live(server: Server) -> dict[int, psutil.Process]:
    """Engines that neither have ended nor stand still."""
    found = {}
    for process in server.engines():
        try:
            if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED):
                found[process.pid] = process
        except psutil.NoSuchProcess:
            continue
    return found


def strike(server: Server, name: str, number: int, until: float) -> float | None:
    """Send one engine the signal. Seconds until it is replaced and /ready is 200; None where it was not by *until*."""
    engines = live(server)
    if not engines:
        return None
    victim = list(engines.values())[number % len(engines)]
    struck = time.monotonic()
    victim.send_signal(getattr(signal, f"SIG{name}"))
    while time.monotonic() < until:
        now = live(server)
        if victim.pid not in now and len(now) >= len(engines) and server.client.is_ready():
            return time.monotonic() - struck
        time.sleep(LOOK_EVERY_S)
    return None


def strike_on(server: Server, name: str, for_s: float) -> list[float | None]:
    """Strike every EVERY_S; one after the other, the last early enough to be recovered from."""
    began = time.monotonic()
    ready_s = []
    for number in range(int(for_s / EVERY_S)):
        at = began + (number + 0.5) * EVERY_S
        time.sleep(max(at - time.monotonic(), 0))
        ready_s.append(strike(server, name, number, until=at + EVERY_S))
        say(f"chaos: {number + 1} struck")
    return ready_s


def aims(counts: Counts, calm_speed: float, speed: float) -> list[Aim]:
    answers = counts.equal + counts.near + counts.wrong + counts.crashed + sum(counts.others.values())
    return [
        Aim("wrong answers", counts.wrong, most=0, unit=""),
        Aim("answers that are neither a text nor WORKER_CRASHED", sum(counts.others.values()), most=0, unit=""),
        Aim("right answers, of all", (counts.equal + counts.near) / max(answers, 1), unit=""),
        Aim("audio heard a second, over the undisturbed server's", speed / calm_speed),
    ]


def table(counts: Counts, ready_s: list[float | None], memory: Mapping[str, int]) -> str:
    again_s = [seconds for seconds in ready_s if seconds is not None]
    codes = ", ".join(f"{code}: {count}" for code, count in counts.others.items()) or "0"
    rows = [
        ["right: equal to the undisturbed text", str(counts.equal)],
        ["right: near it", str(counts.near)],
        ["wrong", str(counts.wrong)],
        ["503 WORKER_CRASHED", str(counts.crashed)],
        ["anything else", codes],
        ["engines struck, and replaced in time", f"{len(ready_s)}, {len(again_s)}"],
    ]
    if again_s:
        rows.append(["ready again, s: p50, longest", f"{percentile(again_s, 0.5):.1f}, {max(again_s):.1f}"])
    rows += [[f"RSS MiB {when}", mebibytes(rss)] for when, rss in memory.items()]
    return markdown(["", ""], rows)


def measure(plan: Plan) -> Report:
    clips = [clip for clip in SpeechSet(speech_dir()).short() if len(clip.text.split()) >= FEWEST_WORDS][:CLIPS]
    for_s = QUICK_FOR_S if plan.quick else FOR_S
    done = threading.Event()
    with Server(MODEL, answer_within_s=ANSWER_WITHIN_S) as server:
        began = time.monotonic()
        calm = {heard.clip.name: heard.text for heard in ask_all(server.hear, clips, CALLERS)}
        calm_speed = total_s(clips) / (time.monotonic() - began)
        memory = {"before": tree_memory(server.pid).rss}
        with ThreadPoolExecutor(1) as load:
            began = time.monotonic()
            loaded = load.submit(ask_until, done, server.hear, clips, CALLERS)
            try:
                ready_s = strike_on(server, plan.signal, for_s)
            finally:
                done.set()
            answers = loaded.result()
        speed = total_s([heard.clip for heard in answers if not heard.failure]) / (time.monotonic() - began)
        memory["at the end"] = tree_memory(server.pid).rss
    counts = counted(Counter(outcome(heard, calm[heard.clip.name]) for heard in answers))
    return Report(
        f"SIG{plan.signal} to an engine every {EVERY_S:.0f} s under {CALLERS} callers",
        [table(counts, ready_s, memory)],
        aims(counts, calm_speed, speed),
        {
            "ready_s": ready_s,
            "rss_bytes": memory,
            "answers": [
                {"clip": heard.clip.name, "s": heard.seconds, "was": outcome(heard, calm[heard.clip.name])}
                | ({"text": heard.text, "undisturbed": calm[heard.clip.name]} if not heard.failure else {})
                for heard in answers
            ],
        },
    )
