"""A gate on a clock of its own, and requests that come to it, wait, work and leave when they are told to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from admission import AdmissionController, Bounds
from errors import ServiceError
from limits import MemorySemaphore
from reservation import Reservation, Work

MB = 2**20
DEVICE = "memory"
WIDTH = 40
"""Rounds of the loop after which everything that can happen without a clock has happened."""
LOW, HIGH = 1, 0
"""Classes of priority."""


def names(letter: str, number: int) -> list[str]:
    return [f"{letter}{index}" for index in range(number)]


class Clock:
    """Stands still until it is told to go."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Broken(Exception):
    """What goes wrong inside a request's block."""


async def rounds(number: int = WIDTH) -> None:
    """Let the loop go round: nothing waits for a real clock."""
    for _ in range(number):
        await asyncio.sleep(0)


@dataclass(eq=False)
class Request:
    """One request: at the door, then in the line as soon as its body is read, then at work until it is finished."""

    gate: Gate
    name: str
    costs: dict[str, int]
    amount: float
    short: bool
    asked: dict[str, Any]
    link_mb: int = 0
    """Of a request for a link: what its download holds, in a line of its own, in place of a body."""
    body_read: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    """Raised inside the block."""
    place: Reservation | None = None
    part: Reservation | None = None
    """The download's."""
    grants: int = 0
    granted_on: float | None = None
    """By the wall clock."""
    cancelled: bool = False
    task: asyncio.Task[None] = field(init=False)

    def __repr__(self) -> str:
        return f"<Request {self.name} {self.state}>"

    async def run(self) -> None:
        with self.gate.controller.reserve(**self.asked) as self.place:
            if self.link_mb:
                await self.download(self.place)
            else:
                await self.body_read.wait()
            await self.place.granted(self.costs, amount=self.amount, short=self.short)
            self.grants += 1
            self.granted_on = self.gate.wall()
            self.gate.granted.append(self.name)
            await self.ended.wait()
            if self.error is not None:
                raise self.error

    async def download(self, whole: Reservation) -> None:
        reserve = self.gate.controller.reserve
        with reserve(Work.DOWNLOAD, whole.key, whole.priority, no_wait=whole.no_wait, counted=False) as self.part:
            await self.part.granted({DEVICE: self.link_mb * MB})
            await self.body_read.wait()

    def finish(self, error: Exception | None = None) -> None:
        self.error = error
        self.ended.set()

    def cancel(self) -> None:
        self.cancelled = True
        self.task.cancel()

    @property
    def over(self) -> bool:
        return self.task.done()

    @property
    def failure(self) -> BaseException | None:
        """Why it ended; None where it ended well or has not ended."""
        if not self.task.done():
            return None
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()

    @property
    def refusal(self) -> ServiceError:
        assert isinstance(self.failure, ServiceError), self
        return self.failure

    @property
    def state(self) -> str:
        if self.task.done():
            return "done" if self.failure is None else type(self.failure).__name__
        if self.grants:
            return "at work"
        return "at the door" if self.place is None or self.place.turn is None else "waiting"


class Gate:
    """The controller under test; its clock is the running loop's, too."""

    def __init__(
        self,
        slots: int = 5,
        *,
        memory_mb: int = 1000,
        downloads: int = 2,
        live: int = 2,
        several_keys: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        **bounds: Any,
    ) -> None:
        self.clock, self.wall = Clock(), Clock(86_400 * 20_000.0)
        self.loop = loop or asyncio.get_running_loop()
        self.loop.time = self.clock  # type: ignore[method-assign]
        self.memory = MemorySemaphore(memory_mb * MB)
        slots_of = {Work.TRANSCRIPTION: slots, Work.DOWNLOAD: downloads, Work.EXTRACTION: 2}
        slots_of |= {Work.LIVE: live, Work.UPSTREAM: 2}
        self.controller = AdmissionController(
            {DEVICE: self.memory},
            Bounds(slots_of, **bounds),
            several_keys=lambda: several_keys,
            clock=self.clock,
            wall_clock=self.wall,
        )
        self.granted: list[str] = []
        """Names, in the order in which they were let in."""
        self.requests: list[Request] = []

    def come(
        self,
        name: str = "",
        key: str = "",
        work: Work = Work.TRANSCRIPTION,
        *,
        mb: int = 1,
        amount: float = 10.0,
        short: bool = True,
        body_read: bool = True,
        link_mb: int = 0,
        **asked: Any,
    ) -> Request:
        """A request that comes to the door when the loop next goes round."""
        asked |= {"work": work, "key": key}
        made = Request(self, name or str(len(self.requests)), {DEVICE: mb * MB}, amount, short, asked, link_mb)
        if body_read:
            made.body_read.set()
        made.task = self.loop.create_task(made.run())
        # Asked for in every case: a refusal that a test does not look at is no complaint of the loop's.
        made.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.requests.append(made)
        return made

    async def arrive(self, *asked: Any, **more: Any) -> Request:
        """A request that has come as far as it can for now."""
        made = self.come(*asked, **more)
        await rounds()
        return made

    async def pass_s(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.wall.now_s += seconds
        await rounds()

    async def learn_speed(self, per_s: float) -> None:
        """Ten seconds of work, so that the transcriptions' speed is known."""
        worker = await self.arrive("worker", amount=10.0 * per_s)
        await self.pass_s(10.0)
        worker.finish()
        await rounds()
        self.granted.clear()

    def at_work(self) -> list[str]:
        return [one.name for one in self.requests if one.state == "at work"]

    def waiting(self) -> list[str]:
        return [one.name for one in self.requests if one.state == "waiting"]

    async def serve_all(self) -> list[str]:
        """Finish one after another, the oldest grant first, until nobody is left; the names in the order of grants."""
        for _ in range(10_000):
            await rounds(6)
            working = [one for one in self.requests if one.state == "at work"]
            if not working:
                break
            min(working, key=lambda one: self.granted.index(one.name)).finish()
        return self.granted

    def traces(self) -> dict[str, Any]:
        """Everything that the controller still holds of somebody: empty where nobody is there."""
        found: dict[str, Any] = {"in flight": self.controller.keys.in_flight, "lent": self.memory.lent_bytes}
        found["audio"] = self.controller.keys.audio_today_s()
        found["waiting for memory"] = self.memory.waiting
        for work, lane in self.controller.lanes.items():
            line = lane.line
            found[work] = [lane.arriving, dict(lane.active), lane.called, len(line), list(line)]
            found[f"{work} line"] = [line._callers, line._amounts, *line._with_short.values()]
            found[f"{work} turns"] = [name for _, turns in line._classes for name in turns]
        return {name: held for name, held in found.items() if (any(held) if isinstance(held, list) else held)}
