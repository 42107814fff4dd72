"""How many connections there may be: who counts with whom, and who is not counted."""

from __future__ import annotations

import pytest

from api.connection_bounds import ConnectionBounds
from errors import TooManyConnections

Others = list[str | None]


def refuses(bounds: ConnectionBounds, address: str | None, others: Others) -> bool:
    try:
        bounds.check(address, others)
    except TooManyConnections:
        return True
    return False


def test_nobody_comes_in_past_the_bound_in_all() -> None:
    """A process has so many files and no more; a trusted proxy's are files, too."""
    bounds = ConnectionBounds(most=3, trusted=["10.0.0.1"])
    assert not refuses(bounds, "10.0.0.1", ["192.0.2.1", None])
    assert refuses(bounds, "10.0.0.1", ["192.0.2.1", None, "192.0.2.2"])
    assert refuses(bounds, None, ["192.0.2.1", None, "192.0.2.2"])


@pytest.mark.parametrize(
    ("address", "others", "refused"),
    [
        ("192.0.2.1", ["192.0.2.1", "192.0.2.2", "192.0.2.3"], False),
        ("192.0.2.1", ["192.0.2.1", "192.0.2.1"], True),
        ("192.0.2.1", ["192.0.2.1", "::ffff:192.0.2.1"], True),
        ("2001:db8::1", ["2001:db8::2", "2001:db8::ffff:3"], True),
        ("2001:db8::1", ["2001:db8:0:1::2", "2001:db8:0:2::3"], False),
        ("fe80::1%eth0", ["fe80::2%eth0", "fe80::3%eth1"], True),
        (None, [None, None, None], False),
    ],
)
def test_an_address_has_so_many_and_no_more(address: str | None, others: Others, refused: bool) -> None:
    """An IPv6 customer has a whole network of them, and counts as one."""
    assert refuses(ConnectionBounds(most_per_address=2), address, others) == refused


@pytest.mark.parametrize("trusted", ["*", "10.0.0.1", "10.0.0.0/24", "::1,10.0.0.1"])
def test_a_trusted_proxy_has_as_many_as_it_needs(trusted: str) -> None:
    """All callers come from its address."""
    others: Others = ["10.0.0.1"] * 5
    assert not refuses(ConnectionBounds(most_per_address=2, trusted=trusted.split(",")), "10.0.0.1", others)
    assert refuses(ConnectionBounds(most_per_address=2, trusted=["10.1.0.0/16"]), "10.0.0.1", others)


def test_nought_is_no_bound() -> None:
    assert not refuses(ConnectionBounds(), "192.0.2.1", ["192.0.2.1"] * 5_000)
