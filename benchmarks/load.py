"""Clips sent by several callers at once, and what came back."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from benchmarks.processes import MemoryWatch
from benchmarks.results import Run
from benchmarks.scoring import score, total
from benchmarks.server import Refused
from benchmarks.speech_set import Clip, total_s

Hear = Callable[[Clip], str]
"""A system, asked for a clip's text."""

AFTER_A_FAILURE_S = 0.1
MOST_ASKED = 2_000
"""By one caller: a server that fails at once must not be asked for ever."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip's answer as its caller saw it."""

    clip: Clip
    text: str
    seconds: float
    failure: str | None = None
    """The code of the problem that came in place of a text, or the name of what went wrong on the way."""


def ask(hear: Hear, clip: Clip) -> Heard:
    """Hear one clip. Raises what the system raises."""
    started = time.perf_counter()
    text = hear(clip)
    return Heard(clip, text, time.perf_counter() - started)


def attempt(hear: Hear, clip: Clip) -> Heard:
    """Hear one clip; a problem is an answer, too."""
    started = time.perf_counter()
    try:
        return ask(hear, clip)
    except Refused as problem:
        failure = problem.code
    except httpx.TransportError as error:
        failure = type(error).__name__
    return Heard(clip, "", time.perf_counter() - started, failure)


def ask_all(hear: Hear, clips: Sequence[Clip], at_once: int, way: Callable[[Hear, Clip], Heard] = ask) -> list[Heard]:
    """Every clip once, *at_once* at any time, in their order. *way* is `ask` or `attempt`."""
    with ThreadPoolExecutor(at_once) as callers:
        return list(callers.map(lambda clip: way(hear, clip), clips))


def ask_until(done: threading.Event, hear: Hear, clips: Sequence[Clip], at_once: int) -> list[Heard]:
    """The clips again and again by *at_once* callers, each from another place in the list, until *done* is set."""

    def caller(number: int) -> list[Heard]:
        first = number * len(clips) // at_once
        heard: list[Heard] = []
        for clip in itertools.islice(itertools.cycle(clips), first, first + MOST_ASKED):
            if done.is_set():
                break
            heard.append(attempt(hear, clip))
            if heard[-1].failure:
                done.wait(AFTER_A_FAILURE_S)
        return heard

    with ThreadPoolExecutor(at_once) as callers:
        return [heard for each in callers.map(caller, range(at_once)) for heard in each]


def run(system: str, workload: str, pid: int, hear: Hear, clips: Sequence[Clip], at_once: int = 1) -> Run:
    """Hear all the clips once and measure it."""
    with MemoryWatch(pid) as watch:
        started = time.perf_counter()
        answers = ask_all(hear, clips, at_once)
        wall_s = time.perf_counter() - started
    scored = total(score(heard.clip.text, heard.text, heard.clip.language) for heard in answers)
    latencies_s = tuple(heard.seconds for heard in answers)
    return Run(system, workload, wall_s, total_s(clips), scored.error_rate, watch.peak, latencies_s)
