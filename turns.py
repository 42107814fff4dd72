"""Whose turn it is: fair shares of a service among names, and among callers in classes of priority. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Generic, TypeVar

LOWER_CLASS_EVERY = 8
"""Every so many rounds the lowest priority class that waits comes first: put back, not starved."""

Name = TypeVar("Name")


class Turns(Generic[Name]):
    """Who has been served how much (in audio-seconds, or in pieces); the least served comes next.

    Who joins starts at the level that an even share would have reached, so that nobody gains by waiting or by coming
    back, and a crowd of newcomers cannot hold up those who were there before. Who is served alone is at that level,
    and of equals a newcomer goes first: a clip goes before the next batch of a file that had all to itself. Source:
    weighted fair queueing's virtual time (Demers, Keshav, Shenker 1989), with equal weights.
    """

    def __init__(self) -> None:
        self._served: dict[Name, tuple[float, bool]] = {}
        """How much each has had, and whether it has had anything since it came: these pairs order the turns."""
        self._even = 0.0

    def __repr__(self) -> str:
        return f"<Turns { ({name: round(had - self._even, 1) for name, (had, _) in self._served.items()}) }>"

    def __len__(self) -> int:
        return len(self._served)

    def __iter__(self) -> Iterator[Name]:
        """The least served first; among equals those who had nothing yet, in the order in which they came."""
        return iter(sorted(self._served, key=self._served.__getitem__))

    def first(self, among: Collection[Name] | None = None) -> Name:
        """The least served (of *among*, all of whom have joined). Raises ValueError where there is nobody."""
        return min(self._served if among is None else among, key=self._served.__getitem__)

    def join(self, name: Name) -> None:
        self._served.setdefault(name, (self._even, False))

    def leave(self, name: Name) -> None:
        self._served.pop(name, None)

    def charge(self, name: Name, amount: float) -> None:
        had = self._served[name][0] + amount
        self._served[name] = (had, True)
        self._even = had if len(self._served) == 1 else self._even + amount / len(self._served)


class Classes(Generic[Name]):
    """Turns within each class of priority; the lower number's class goes first, but for every LOWER_CLASS_EVERY-th
    round."""

    def __init__(self) -> None:
        self._turns: dict[int, Turns[Name]] = {}
        self._rounds = 0

    def __repr__(self) -> str:
        return f"<Classes {self._turns}>"

    def __iter__(self) -> Iterator[tuple[int, Turns[Name]]]:
        """The classes in which somebody waits, in the order of this round."""
        last_first = self._rounds % LOWER_CLASS_EVERY == LOWER_CLASS_EVERY - 1
        return iter([(number, self._turns[number]) for number in sorted(self._turns, reverse=last_first)])

    def of(self, number: int) -> Turns[Name]:
        return self._turns[number]

    def join(self, number: int, name: Name) -> None:
        self._turns.setdefault(number, Turns()).join(name)

    def leave(self, number: int, name: Name) -> None:
        """NOTE: a class that nobody waits in keeps what an even share has reached."""
        self._turns[number].leave(name)

    def next_round(self) -> None:
        self._rounds += 1
