"""One request's place at the gate, as its caller holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

from limits import MemorySemaphore, SharedMemory


class Work(StrEnum):
    """What is admitted; each kind has slots and a line of its own, and all share the memory."""

    TRANSCRIPTION = "transcription"
    DOWNLOAD = "download"
    EXTRACTION = "extraction"
    LIVE = "live"
    """A session of live text, which lasts as long as somebody speaks; no job is one."""
    UPSTREAM = "upstream"
    """A transcription that another server does: it takes no engine here."""


OF_AUDIO = (Work.TRANSCRIPTION, Work.UPSTREAM)
"""What counts against a key's audio of the day."""


class Gate(Protocol):
    """What a reservation needs of the gate that made it."""

    @property
    def memory(self) -> Mapping[str, MemorySemaphore]:
        """By device."""

    @property
    def shared(self) -> SharedMemory:
        """Of main memory, what several requests hold together."""

    async def wait_for_turn(
        self, reservation: Reservation, costs: Mapping[str, int], shared: Mapping[str, int]
    ) -> None: ...

    async def extend(
        self, reservation: Reservation, amount: float, costs: Mapping[str, int], *, short: bool
    ) -> None: ...

    def count(self, reservation: Reservation, amount: float) -> None:
        """So much of its work was done."""

    def leave(self, reservation: Reservation) -> None:
        """It is over. NOTE: its bytes go back by its own hand."""


@dataclass(eq=False)
class Reservation:
    """One request's place: at the door, in the line, then at work. Use as a context manager.

    Invariant: what it holds (its place, its slot, its bytes) goes back exactly once: when it is not let in, or when the
    context ends.
    """

    gate: Gate
    work: Work
    key: str
    priority: int
    deadline: float | None
    """By the gate's clock; None: it may take as long as it takes."""
    no_wait: bool
    counted: bool
    """Whether it counts among its key's requests; not, where it is a part of one."""
    accepted: bool = False
    """Its caller was told that it will be done: it is neither refused nor sent home, however long the line is."""
    charged: float = 0.0
    """Of its audio, what counts for its key's day already: a job's does from when it was accepted."""
    on_granted: Callable[[], None] | None = None
    at_work: bool = False
    """Whether it has been granted."""
    amount: float = 0.0
    """Of work: seconds of audio, or 1 for a download or an extraction."""
    done: float = 0.0
    short: bool = False
    wait_s: float = 0.0
    peak_bytes: int = 0
    """The most that the service held while this was at work."""
    turn: asyncio.Future[None] | None = None
    """None until it comes to the line."""
    line_entered: float | None = None
    patience: asyncio.Timeout | None = None
    """How long it may wait yet, while it waits."""
    _bytes: dict[str, int] = field(default_factory=dict)
    _shared: list[str] = field(default_factory=list)
    _over: bool = False

    def __repr__(self) -> str:
        return f"<Reservation {self.work} amount={self.amount:g} holds={self._bytes}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self._over:
            self.advance(self.amount)
        self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        try:
            self.gate.leave(self)
        finally:
            self.give_back()

    def leave(self) -> None:
        """Give it up before the context ends."""
        self._end()

    async def granted(
        self,
        costs: Mapping[str, int],
        *,
        shared: Mapping[str, int] | None = None,
        amount: float = 1.0,
        short: bool = False,
    ) -> None:
        """Wait for a turn and for *costs*, bytes by device. *shared*: bytes by the name of what all who want it hold
        together. *short*: it may have one of the slots kept for clips.

        Raises TooLarge, QueueFull, QueueTimeout, DeadlineTooNear, QuotaUsed, ShuttingDown.
        """
        self.amount, self.short = amount, short
        try:
            await self.gate.wait_for_turn(self, costs, shared or {})
        except BaseException:
            # Now, not when the context ends: its caller may have a folder to remove before that.
            self._end()
            raise

    async def extend(self, amount: float, costs: Mapping[str, int], *, short: bool) -> None:
        """Its work has turned out to be larger than was said when it was granted: *amount* in all, for *costs* more,
        at once or not at all. Raises TooLarge, QuotaUsed."""
        await self.gate.extend(self, amount, costs, short=short)

    async def take(self, device: str, amount_bytes: int) -> None:
        await self.gate.memory[device].acquire(amount_bytes)
        self._bytes[device] = self._bytes.get(device, 0) + amount_bytes

    async def take_shared(self, name: str, amount_bytes: int) -> None:
        await self.gate.shared.acquire(name, amount_bytes)
        self._shared.append(name)

    def give_back(self, device: str | None = None, amount_bytes: int | None = None) -> None:
        """Return some of the bytes early, such as a child's that has ended; without arguments, all that it holds."""
        while device is None and self._shared:
            self.gate.shared.release(self._shared.pop())
        for name in [device] if device else list(self._bytes):
            held = self._bytes.pop(name, 0)
            returned = held if amount_bytes is None else min(held, amount_bytes)
            if held > returned:
                self._bytes[name] = held - returned
            self.gate.memory[name].release(returned)

    @property
    def remaining(self) -> float:
        """Of the work, what is still to be done."""
        return max(0.0, self.amount - self.done)

    def advance(self, done: float) -> None:
        """So much of the work is done: seconds of the recording heard. Nothing is done twice."""
        done = max(self.done, min(done, self.amount))
        self.gate.count(self, done - self.done)
        self.done = done
