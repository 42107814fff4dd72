"""Who waits for one kind of work, and who is next: by class of priority, then callers in fair turns, then as they came.

Pure. Adding, removing and taking cost little however many wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from turns import Classes


class Waiter(Protocol):
    """What the line needs to know of a request."""

    @property
    def key(self) -> str: ...

    @property
    def priority(self) -> int: ...

    @property
    def amount(self) -> float:
        """Of work: its caller is charged so much for its turn."""

    @property
    def short(self) -> bool: ...


W = TypeVar("W", bound=Waiter)


class _Caller(Generic[W]):
    """One key's requests in one class, short ones apart, each with its number in the order of arrival."""

    def __init__(self) -> None:
        self.short: dict[W, int] = {}
        self.long: dict[W, int] = {}
        self.amount = 0.0

    def __len__(self) -> int:
        return len(self.short) + len(self.long)

    def oldest(self, *, short_only: bool) -> W:
        parts = (self.short,) if short_only else (self.short, self.long)
        heads = {part[first]: first for part in parts for first in itertools.islice(part, 1)}
        return heads[min(heads)]


class Line(Generic[W]):
    """The waiting line."""

    def __init__(self) -> None:
        self._classes: Classes[str] = Classes()
        self._callers: dict[tuple[int, str], _Caller[W]] = {}
        self._with_short: dict[int, dict[str, None]] = {}
        """Keys that have something short to do, by class, in the order in which they came."""
        self._numbers = itertools.count()
        self._amounts: dict[int, float] = {}
        self._size = 0
        self._seen = 0
        self._seen_amount = 0.0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[W]:
        for caller in self._callers.values():
            yield from caller.short
            yield from caller.long

    @property
    def mean_amount(self) -> float:
        """Of all that ever waited here: what a newcomer is likely to bring."""
        return self._seen_amount / self._seen if self._seen else 0.0

    def amount_up_to(self, priority: int) -> float:
        """Of work that is served before a newcomer of that class."""
        return sum(amount for number, amount in self._amounts.items() if number <= priority)

    def amount_of(self, key: str, priority: int | None = None) -> float:
        """Of work that *key* waits for, in that class or in all."""
        return sum(caller.amount for caller in self._callers_of(key, priority))

    def count_of(self, key: str) -> int:
        return sum(len(caller) for caller in self._callers_of(key))

    def _callers_of(self, key: str, priority: int | None = None) -> Iterator[_Caller[W]]:
        for number in list(self._amounts) if priority is None else [priority]:
            if caller := self._callers.get((number, key)):
                yield caller

    def add(self, waiter: W) -> None:
        place = (waiter.priority, waiter.key)
        caller = self._callers.setdefault(place, _Caller())
        (caller.short if waiter.short else caller.long)[waiter] = next(self._numbers)
        caller.amount += waiter.amount
        if waiter.short:
            self._with_short.setdefault(waiter.priority, {})[waiter.key] = None
        self._classes.join(*place)
        self._amounts[waiter.priority] = self._amounts.get(waiter.priority, 0.0) + waiter.amount
        self._size += 1
        self._seen += 1
        self._seen_amount += waiter.amount

    def remove(self, waiter: W) -> None:
        """Forget *waiter*; nothing happens where it does not wait here."""
        place = (waiter.priority, waiter.key)
        caller = self._callers.get(place)
        part = (caller.short if waiter.short else caller.long) if caller else {}
        if caller is None or waiter not in part:
            return
        del part[waiter]
        caller.amount -= waiter.amount
        if not caller.short:
            self._with_short.get(waiter.priority, {}).pop(waiter.key, None)
        if not caller:
            del self._callers[place]
            self._classes.leave(*place)
        self._amounts[waiter.priority] -= waiter.amount
        self._size -= 1
        if not self._size:
            # Sums of floats drift; an empty line holds nothing.
            self._amounts.clear()

    def first(self, *, short_only: bool = False) -> W | None:
        """Who is next; None where nobody (nobody with something short to do) waits."""
        for number, turns in self._classes:
            with_short = self._with_short.get(number, {})
            if with_short if short_only else turns:
                key = turns.first(with_short if short_only else None)
                return self._callers[number, key].oldest(short_only=short_only)
        return None

    def take(self, *, short_only: bool = False) -> W | None:
        """The next one, out of the line: its key has had its turn."""
        taken = self.first(short_only=short_only)
        if taken is not None:
            self._classes.of(taken.priority).charge(taken.key, taken.amount)
            self._classes.next_round()
            self.remove(taken)
        return taken
