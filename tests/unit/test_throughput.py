"""The measured speed: amounts over working time."""

from __future__ import annotations

import pytest

from tests.gates import Clock
from throughput import HALF_LIFE_S, LEAST_WORK_S, Throughput


def test_no_speed_is_told_before_there_is_one() -> None:
    """Neither of no work nor of half a second of it."""
    clock = Clock()
    speed = Throughput(clock)
    assert (speed.per_s, speed.seconds_for(10.0)) == (None, None)
    speed.at_work(True)
    speed.add(5.0)
    clock.now_s += LEAST_WORK_S / 2
    assert speed.per_s is None
    clock.now_s += LEAST_WORK_S / 2
    assert speed.per_s == 5.0
    assert repr(speed) == "<Throughput 5.0>"


def test_work_without_an_end_yet_has_no_speed() -> None:
    """Ten seconds in which nothing was finished are not a speed of nothing: nothing would ever be done."""
    clock = Clock()
    speed = Throughput(clock)
    speed.at_work(True)
    clock.now_s += 10.0
    assert speed.per_s is None


def test_time_is_amount_over_speed() -> None:
    """Ten audio seconds a second: a minute takes six."""
    clock = Clock()
    speed = Throughput(clock)
    speed.at_work(True)
    clock.now_s += 20.0
    speed.add(200.0)
    assert speed.per_s == 10.0
    assert (speed.seconds_for(60.0), speed.seconds_for(0.0)) == (6.0, 0.0)


def test_idle_time_does_not_count() -> None:
    """A server that had a quiet night is as fast in the morning."""
    clock = Clock()
    speed = Throughput(clock)
    speed.at_work(True)
    clock.now_s += 10.0
    speed.add(100.0)
    speed.at_work(False)
    before = speed.per_s
    clock.now_s += 8 * 3600.0
    assert speed.per_s == before
    speed.at_work(True)
    assert speed.per_s == before


def test_work_at_the_same_time_passes_time_once() -> None:
    """Two at work for ten seconds are ten seconds."""
    clock = Clock()
    speed = Throughput(clock)
    speed.at_work(True)
    clock.now_s += 5.0
    speed.at_work(True)
    clock.now_s += 5.0
    speed.add(50.0)
    assert speed.per_s == 5.0


def test_what_lies_a_half_life_back_counts_half() -> None:
    """A speed that has changed is noticed within minutes."""
    clock = Clock()
    speed = Throughput(clock)
    speed.at_work(True)
    for _ in range(2000):
        clock.now_s += 1.0
        speed.add(10.0)
    assert speed.per_s == pytest.approx(10.0, rel=0.02)
    for _ in range(int(HALF_LIFE_S)):
        clock.now_s += 1.0
        speed.add(20.0)
    assert speed.per_s == pytest.approx(15.0, rel=0.02)
    for _ in range(int(9 * HALF_LIFE_S)):
        clock.now_s += 1.0
        speed.add(20.0)
    assert speed.per_s == pytest.approx(20.0, rel=0.02)


def test_how_often_it_is_asked_changes_nothing() -> None:
    """A dashboard that looks every second does not make the server faster."""
    clock = Clock()
    quiet, watched = Throughput(clock), Throughput(clock)
    for _ in range(3):
        for speed in (quiet, watched):
            speed.at_work(True)
        for _ in range(600):
            clock.now_s += 1.0
            assert watched.per_s is None or watched.per_s > 0.0
            watched.add(0.0)
        for speed in (quiet, watched):
            speed.add(1.0)
            speed.at_work(False)
    assert quiet.per_s == pytest.approx(1 / 600)
    assert watched.per_s == pytest.approx(1 / 600)


def test_a_speed_without_progress_goes_down() -> None:
    """Where nothing is finished any more, the wait grows."""
    clock = Clock()
    speed = Throughput(clock)
    speed.at_work(True)
    clock.now_s += 10.0
    speed.add(100.0)
    clock.now_s += 10.0
    assert speed.per_s == 5.0
    clock.now_s += 80.0
    assert speed.per_s == 1.0
