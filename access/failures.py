"""How often a stranger may guess: wrong keys are counted by the address that they come from. Pure, with a clock."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from access.addresses import Network, neighbourhood
from errors import TooManyFailures

MOST_ADDRESSES = 10_000
"""Whoever has more than that has many at his command; those that failed longest ago are forgotten."""
MINUTE_S = 60.0


class Failures:
    """A bucket for each address: *per_minute* guesses at once, and as many again each minute. 0: any number."""

    def __init__(self, per_minute: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._used: OrderedDict[Network | None, tuple[float, float]] = OrderedDict()
        """Guesses that have not been made good by time, as of a moment; longest unchanged first."""

    def __len__(self) -> int:
        return len(self._used)

    def check(self, address: str) -> None:
        """Raises TooManyFailures where *address* has to wait before its next guess is looked at."""
        if not self._per_minute:
            return
        over = self._left_of(neighbourhood(address)) + 1 - self._per_minute
        if over > 0:
            raise TooManyFailures(retry_after_s=math.ceil(over * MINUTE_S / self._per_minute))

    def note(self, address: str) -> None:
        """A guess of *address* was wrong."""
        if not self._per_minute:
            return
        network = neighbourhood(address)
        self._used[network] = (self._left_of(network) + 1, self._clock())
        self._used.move_to_end(network)
        if len(self._used) > MOST_ADDRESSES:
            self._used.popitem(last=False)

    def _left_of(self, network: Network | None) -> float:
        count, at = self._used.get(network, (0.0, 0.0))
        return max(0.0, count - (self._clock() - at) * self._per_minute / MINUTE_S)
