"""Guesses by address: what counts as one caller, and that the books cannot be made to grow."""

from __future__ import annotations

import pytest

from access.failures import MOST_ADDRESSES, Failures
from errors import TooManyFailures


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def failed(failures: Failures, address: str) -> bool:
    """Whether *address* has to wait."""
    try:
        failures.check(address)
    except TooManyFailures:
        return True
    return False


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "", True),
    ],
)
def test_what_one_caller_has_counts_as_one(one: str, other: str, same: bool) -> None:
    """A network of IPv6 is what a household is given: its addresses are not so many callers."""
    failures = Failures(1, Clock())
    failures.note(one)
    assert failed(failures, one)
    assert failed(failures, other) is same


def test_time_heals() -> None:
    """One guess comes back every so many seconds, and never more than the bucket holds."""
    clock = Clock()
    failures = Failures(2, clock)
    for _ in range(2):
        failures.note("192.0.2.1")
    clock.now = 29.9
    assert failed(failures, "192.0.2.1")
    clock.now = 30.0
    assert not failed(failures, "192.0.2.1")
    clock.now = 10_000.0
    for _ in range(2):
        assert not failed(failures, "192.0.2.1")
        failures.note("192.0.2.1")
    assert failed(failures, "192.0.2.1")


def test_addresses_are_forgotten() -> None:
    """Memory is not for strangers to fill."""
    failures = Failures(1, Clock())
    for number in range(MOST_ADDRESSES + 10):
        failures.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(failures) == MOST_ADDRESSES
    assert not failed(failures, "10.0.0.0")


def test_none_is_held_up_where_there_is_no_bound() -> None:
    """0 is off."""
    failures = Failures(0, Clock())
    for _ in range(100):
        failures.note("192.0.2.1")
    assert not failed(failures, "192.0.2.1")
