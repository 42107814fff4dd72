"""A few slots that callers take in turns, for steps that come before a request's price is known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from waiting import Line


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """Each counts alike, whatever it will cost later."""

    key: str
    priority: int
    turn: asyncio.Future[None]
    amount: float = 1.0
    short: bool = False


class FairSlots:
    """At most so many at once: by class of priority, then by key in turns, then as they came. Lives on one loop."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._line: Line[_Waiter] = Line()

    def __repr__(self) -> str:
        return f"<FairSlots free={self._free} waiting={len(self._line)}>"

    @contextlib.asynccontextmanager
    async def slot(self, key: str = "", priority: int = 0) -> AsyncIterator[None]:
        """Held inside the block. Who is cancelled while it waits leaves no trace."""
        waiter = _Waiter(key, priority, asyncio.get_running_loop().create_future())
        self._line.add(waiter)
        self._call_next()
        try:
            await waiter.turn
            yield
        finally:
            # NOTE: the turn may have come in the moment of the cancellation: then the slot was taken already.
            if waiter.turn.done() and not waiter.turn.cancelled():
                self._free += 1
            self._line.remove(waiter)
            self._call_next()

    def _call_next(self) -> None:
        while self._free and (waiter := self._line.take()):
            if not waiter.turn.done():  # who was cancelled just now stands in the line until its task runs
                self._free -= 1
                waiter.turn.set_result(None)
