"""How many connections there may be, in all and from one address (pure)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from access.addresses import Network, address_of, neighbourhood
from errors import TooManyConnections

RETRY_S = 5
"""Nobody knows when a connection will end."""


class ConnectionBounds:
    """Bounds on open connections; 0 is none. Trusted proxies have the bound in all alone: many callers are behind them.

    NOTE: counted anew for each newcomer, from the connections that there are: a number that is kept beside them would
    go wrong one day, and lock somebody out until the next start.
    """

    def __init__(self, most: int = 0, most_per_address: int = 0, trusted: Sequence[str] = ()) -> None:
        """*trusted*: addresses and networks, or *."""
        self._most = most
        self._most_per_address = most_per_address
        self._trusts_all = "*" in trusted
        self._trusted: list[Network] = [ipaddress.ip_network(one) for one in trusted if one != "*"]

    def check(self, address: str | None, others: Sequence[str | None]) -> None:
        """Raises TooManyConnections where *address* is one too many beside *others*. None: a Unix socket's."""
        if self._most and len(others) >= self._most:
            raise TooManyConnections(retry_after_s=RETRY_S)
        if not self._most_per_address or len(others) < self._most_per_address or self._is_trusted(address):
            return
        own = neighbourhood(address)
        if own is not None and _count(own, others) >= self._most_per_address:
            raise TooManyConnections("There are too many connections from this address.", retry_after_s=RETRY_S)

    def _is_trusted(self, address: str | None) -> bool:
        own = address_of(address)
        return self._trusts_all or (own is not None and any(own in one for one in self._trusted))


def _count(own: Network, others: Iterable[str | None]) -> int:
    return sum(neighbourhood(other) == own for other in others)
