"""How long a caller is waited for, on a clock of the test's own."""

from __future__ import annotations

import math

import pytest

from api.pace import Pace, Wait


class Sender:
    """Sends pieces after pauses, until patience ends."""

    def __init__(self, pace: Pace) -> None:
        self.now = 0.0
        self.wait = Wait(pace, lambda: self.now)

    def sends(self, size: int, after_s: float) -> bool:
        """Whether it was still waited for."""
        allowed = self.wait.begin()
        self.now += min(after_s, allowed)
        if after_s > allowed:
            return False
        self.wait.end(size)
        return True

    def lasts(self, size: int, after_s: float) -> float:
        """How long it can go on like this."""
        begun = self.now
        while self.sends(size, after_s):
            if self.now - begun > 100_000:
                return math.inf
        return self.now - begun


def test_a_silence_is_borne_so_long_and_no_longer() -> None:
    """A caller whose line has died looks like this."""
    assert Sender(Pace(30, 1024)).lasts(0, 10_000) == 30
    assert Sender(Pace(30, 1024)).sends(1, 30)


def test_one_byte_a_second_is_a_silence() -> None:
    """Else a place is held for weeks at no cost."""
    assert Sender(Pace(30, 1024)).lasts(1, 1) == pytest.approx(30, abs=1)


@pytest.mark.parametrize(("size", "after_s"), [(1024, 1), (64 * 1024, 20), (2 * 1024 * 29, 29)])
def test_a_slow_line_that_goes_on_is_borne(size: int, after_s: float) -> None:
    """Bursts and pauses of a telephone in a train, at the least rate or above it."""
    assert Sender(Pace(30, 1024)).lasts(size, after_s) == math.inf


def test_a_quick_beginning_buys_no_long_drip() -> None:
    """An average over all of it would give who sent 100 MiB a day of dripping."""
    sender = Sender(Pace(30, 1024))
    assert sender.sends(100 * 2**20, 1)
    assert sender.lasts(1, 1) == pytest.approx(30, abs=1)


def test_without_a_least_rate_any_byte_will_do() -> None:
    """For operators whose callers have very slow lines; silence is still bounded."""
    sender = Sender(Pace(30, 0))
    assert sender.lasts(1, 29) == math.inf
    assert sender.lasts(0, 1) == pytest.approx(30, abs=1)


def test_time_that_passes_between_waits_is_the_servers_own() -> None:
    """A disk that stalls for a minute must not throw out who has sent all that was asked for."""
    sender = Sender(Pace(30, 1024))
    for _ in range(100):
        sender.now += 60
        assert sender.sends(1024, 1)
