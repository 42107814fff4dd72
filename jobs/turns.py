"""Whose job is next, over all machines: classes of priority, then fair turns among keys, then as they came. Pure.

Start-time fair queueing (Goyal, Vin, Cheng 1996): its whole state is one number for each key and one for the class, so
that it can lie in a table which any number of machines share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from turns import LOWER_CLASS_EVERY


@dataclass(frozen=True, slots=True)
class Waiting:
    """One key's jobs in one class."""

    priority: int
    key: str
    oldest_at: float


@dataclass(frozen=True, slots=True)
class Shares:
    """One class's account. A key starts where the class has come to, and gains nothing by staying away."""

    now: float
    """The class's virtual time: where the job that was started last began."""
    ends: Mapping[str, float]
    """Where each key's last job ends in virtual time."""

    def start_of(self, key: str) -> float:
        return max(self.now, self.ends.get(key, 0.0))


NOTHING = Shares(0.0, {})


def in_order(waiting: Iterable[Waiting], shares: Mapping[int, Shares], rounds: int) -> list[Waiting]:
    """The next one first. *rounds*: jobs that were started before; every LOWER_CLASS_EVERY-th goes to the lowest."""
    last_first = rounds % LOWER_CLASS_EVERY == LOWER_CLASS_EVERY - 1

    def place(line: Waiting) -> tuple[int, float, float]:
        start = shares.get(line.priority, NOTHING).start_of(line.key)
        return (-line.priority if last_first else line.priority, start, line.oldest_at)

    return sorted(waiting, key=place)
