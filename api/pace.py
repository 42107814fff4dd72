"""The pace that a body must keep: how long its caller is waited for (pure)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """*idle_s*: the longest pause. *least_bytes_s*: what a body must bring a second over longer stretches; 0: any."""

    idle_s: float = 30.0
    least_bytes_s: int = 1024


class Wait:
    """The patience that is left with one body, in seconds of waiting.

    Waiting uses it up, what arrives gives it back, and it is never more than the longest pause: bytes that came quickly
    buy no long silence later. Only waiting counts. While a disk is slow, the caller is not waited for.
    """

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = pace
        self._clock = clock
        self._since = 0.0
        self.left_s = pace.idle_s

    def begin(self) -> float:
        """The wait begins; it may last for so many seconds."""
        self._since = self._clock()
        return self.left_s

    def end(self, arrived: int) -> None:
        """So many bytes have arrived."""
        rate = self._pace.least_bytes_s
        earned = arrived / rate if rate else self._pace.idle_s * (arrived > 0)
        left = self.left_s - (self._clock() - self._since) + earned
        self.left_s = min(self._pace.idle_s, max(0.0, left))

    def __repr__(self) -> str:
        return f"<Wait {self.left_s:.3g} s left>"
