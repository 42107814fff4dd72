"""What the gate itself costs when ten thousand wait before it: a refusal, and the next grant. No server, no audio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from admission import AdmissionController, Bounds
from benchmarks.experiment import Aim, Plan, Report, say
from benchmarks.results import percentile
from benchmarks.tables import markdown
from errors import QueueFull
from limits import MemorySemaphore
from reservation import Work

WAITING, QUICK_WAITING = 10_000, 1_000
KEYS = (1, 1_000)
COUNTED, QUICK_COUNTED = 1_000, 100
"""Refusals of one repeat, and grants: the line is shorter by so many at its end."""
MOST_US = 1_000
DEVICE = "memory"
REQUEST_BYTES = 48 * 2**20


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one line, each a single measurement."""

    keys: int
    refusals_us: list[float] = field(default_factory=list)
    grants_us: list[float] = field(default_factory=list)
    """From the end of one request's work to the beginning of the next one's: the loop's round between them included."""


class Crowd:
    """One slot, and a line before it. Who is let in ends at once, so that the next one is let in, too."""

    def __init__(self, keys: int, waiting: int, counted: int) -> None:
        self.gate = AdmissionController(
            {DEVICE: MemorySemaphore(REQUEST_BYTES)}, Bounds(dict.fromkeys(Work, 1), max_waiting=waiting)
        )
        self.costs = Costs(keys)
        self.counted = counted
        self.begun, self.done = asyncio.Event(), asyncio.Event()
        self.ended_s = 0.0

    async def request(self, number: int) -> None:
        with self.gate.reserve(Work.TRANSCRIPTION, f"key {number % self.costs.keys}", number % 2) as place:
            await place.granted({DEVICE: REQUEST_BYTES}, amount=30.0)
            if number:
                self.costs.grants_us.append(1e6 * (time.perf_counter() - self.ended_s))
            if len(self.costs.grants_us) == self.counted:
                self.done.set()
                await asyncio.Event().wait()
            await self.begun.wait()
            self.ended_s = time.perf_counter()

    def refuse(self, number: int) -> None:
        begun_s = time.perf_counter()
        try:
            self.gate.reserve(Work.TRANSCRIPTION, f"key {number % self.costs.keys}")
        except QueueFull:
            self.costs.refusals_us.append(1e6 * (time.perf_counter() - begun_s))

    async def pass_by(self, waiting: int) -> Costs:
        """The first request holds the slot until the line is full."""
        requests = [asyncio.create_task(self.request(number)) for number in range(waiting + 1)]
        await asyncio.sleep(0)
        for number in range(self.counted):
            self.refuse(number)
        self.begun.set()
        await self.done.wait()
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        return self.costs


async def line(keys: int, waiting: int, counted: int) -> Costs:
    return await Crowd(keys, waiting, counted).pass_by(waiting)


def together(lines: Sequence[Costs]) -> list[Costs]:
    """One for each number of keys, with the measurements of all repeats."""
    found = {keys: Costs(keys) for keys in KEYS}
    for one in lines:
        found[one.keys].refusals_us.extend(one.refusals_us)
        found[one.keys].grants_us.extend(one.grants_us)
    return list(found.values())


def cells(costs: Costs, waiting: int) -> list[str]:
    figures = [
        figure
        for values in (costs.refusals_us, costs.grants_us)
        for figure in (f"{median(values):.0f}", f"{percentile(values, 0.99):.0f}")
    ]
    return [f"{waiting}", f"{costs.keys}", *figures]


def aims(lines: Sequence[Costs]) -> list[Aim]:
    return [
        Aim(f"{what}, median, {costs.keys} key{'s' * (costs.keys > 1)}", median(values), most=MOST_US, unit="µs")
        for costs in lines
        for what, values in (("a refusal", costs.refusals_us), ("a grant", costs.grants_us))
    ]


def measure(plan: Plan) -> Report:
    waiting, counted = (QUICK_WAITING, QUICK_COUNTED) if plan.quick else (WAITING, COUNTED)
    measured = []
    for repeat in range(plan.repeats):
        for keys in KEYS:
            say(f"gate, repeat {repeat + 1}, {keys} keys")
            measured.append(asyncio.run(line(keys, waiting, counted)))
    lines = together(measured)
    header = ["waiting", "keys", "a refusal, µs: p50", "p99", "a grant, µs: p50", "p99"]
    return Report(
        "What the gate costs",
        [
            markdown(header, [cells(costs, waiting) for costs in lines]),
            f"{counted} of each, {plan.repeats} times, in one process, two classes of priority.",
        ],
        aims(lines),
        {"lines": [asdict(costs) for costs in measured]},
    )
