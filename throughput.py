"""How fast work is done, measured over about its last minute. Pure, with an injected clock."""

from __future__ import annotations

from collections.abc import Callable

HALF_LIFE_S = 60.0
"""Of working time: what lies so far back counts half."""

LEAST_WORK_S = 1.0
"""Of working time, before a speed is told."""


class Throughput:
    """Amount of work done a second, while anything is at work: idle time does not count.

    What is told of comes in lumps, a download only when it has ended: the time since the last lump counts in full, and
    fades with it when the next one is there. How often the speed is asked for changes nothing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._amount = 0.0
        self._seconds = 0.0
        self._seconds_since = 0.0
        """Of working time, since the last amount."""
        self._working_since: float | None = None

    def __repr__(self) -> str:
        return f"<Throughput {self.per_s}>"

    @property
    def per_s(self) -> float | None:
        """None until there is something to tell."""
        self._pass_time()
        seconds = self._seconds + self._seconds_since
        return self._amount / seconds if self._amount and seconds >= LEAST_WORK_S else None

    def seconds_for(self, amount: float) -> float | None:
        """How long *amount* takes; None where no speed is known."""
        per_s = self.per_s
        return None if per_s is None else amount / per_s

    def at_work(self, working: bool) -> None:
        """From now on something is at work, or nothing is."""
        self._pass_time()
        self._working_since = self._clock() if working else None

    def add(self, amount: float) -> None:
        self._pass_time()
        if amount <= 0:
            return
        kept = 0.5 ** (self._seconds_since / HALF_LIFE_S)
        self._amount = self._amount * kept + amount
        self._seconds = self._seconds * kept + self._seconds_since
        self._seconds_since = 0.0

    def _pass_time(self) -> None:
        if self._working_since is None:
            return
        now = self._clock()
        self._seconds_since += now - self._working_since
        self._working_since = now
