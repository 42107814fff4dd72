"""Whose job is next. `place` is SQLite here; tests/integration runs the same on PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.leases import UNKNOWN_SIZE
from jobs.turns import Shares, Waiting, in_order
from reservation import Work
from tests.databases import ALL, Place, at_once, jobs_on, sqlite_in
from turns import LOWER_CLASS_EVERY

LAST_FIRST = LOWER_CLASS_EVERY - 1
"""Rounds after which the lowest class has its turn."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with jobs_on(sqlite_in(tmp_path)) as place:
        yield place


def started(place: Place, number: int) -> list[str]:
    """The keys of so many jobs, in the order in which one owner claims them."""
    owner = place.owner()
    jobs = [owner.claim(ALL) for _ in range(number)]
    return [job.key if job else "" for job in jobs]


# --- the decision ----------------------------------------------------------------------------------------------------


def test_the_higher_class_comes_first_but_for_every_eighth_turn() -> None:
    low, high = Waiting(1, "low", 1.0), Waiting(0, "high", 2.0)
    first = [in_order([low, high], {}, rounds)[0].key for rounds in range(2 * LOWER_CLASS_EVERY)]
    assert first == (["high"] * LAST_FIRST + ["low"]) * 2


def test_within_a_class_the_key_that_has_had_least_comes_first() -> None:
    """In either kind of turn, and only this class's account counts."""
    waiting = [Waiting(0, "much", 1.0), Waiting(0, "little", 2.0)]
    shares = {0: Shares(0.0, {"much": 100.0, "little": 10.0}), 1: Shares(0.0, {"little": 1000.0})}
    for rounds in (0, LAST_FIRST):
        assert [line.key for line in in_order(waiting, shares, rounds)] == ["little", "much"]


def test_equals_come_as_their_oldest_jobs_came() -> None:
    waiting = [Waiting(0, "b", 2.0), Waiting(0, "a", 3.0), Waiting(0, "c", 1.0)]
    assert [line.key for line in in_order(waiting, {0: Shares(5.0, {"c": 5.0})}, 0)] == ["c", "b", "a"]


def test_who_stayed_away_starts_where_the_class_has_come_to() -> None:
    shares = Shares(50.0, {"behind": 10.0, "ahead": 70.0})
    assert [shares.start_of(key) for key in ("behind", "new", "ahead")] == [50.0, 50.0, 70.0]


# --- as the store makes it -------------------------------------------------------------------------------------------


def test_one_keys_jobs_start_as_they_came(place: Place) -> None:
    came = [place.submit_later().id for _ in range(4)]
    owner = place.owner()
    claimed = [owner.claim(ALL) for _ in range(4)]
    assert [job.id for job in claimed if job] == came


def test_a_key_with_many_jobs_does_not_hold_up_another(place: Place) -> None:
    for _ in range(6):
        place.submit_later("many", size=10.0)
    for _ in range(2):
        place.submit_later("few", size=10.0)
    assert started(place, 6) == ["many", "few", "many", "few", "many", "many"]


def test_keys_take_turns_by_the_length_of_their_recordings(place: Place) -> None:
    """Nobody gains by sending long ones."""
    for _ in range(3):
        place.submit_later("long", size=100.0)
    for _ in range(12):
        place.submit_later("short", size=25.0)
    assert Counter(started(place, 10)) == {"long": 2, "short": 8}


def test_a_recording_of_unknown_length_counts_as_a_minute(place: Place) -> None:
    for _ in range(3):
        place.submit_later("unknown")
    for _ in range(6):
        place.submit_later("known", size=UNKNOWN_SIZE / 2)
    assert Counter(started(place, 6)) == {"unknown": 2, "known": 4}


def test_a_key_that_was_away_has_saved_nothing_up(place: Place) -> None:
    for _ in range(8):
        place.submit_later("there", size=10.0)
    started(place, 4)
    for _ in range(4):
        place.submit_later("back", size=10.0)
    assert Counter(started(place, 4)) == {"back": 2, "there": 2}


def test_classes_have_accounts_of_their_own(place: Place) -> None:
    """What a key had in one class is not held against it in another."""
    for _ in range(4):
        place.submit_later("a", 0, size=100.0)
    assert started(place, 4) == ["a"] * 4
    place.submit_later("a", 1, size=10.0)
    place.submit_later("b", 1, size=10.0)
    assert started(place, 2) == ["a", "b"]


def test_the_lowest_class_is_put_back_but_not_starved(place: Place) -> None:
    for _ in range(2):
        place.submit_later("low", 2)
    for _ in range(2):
        place.submit_later("middle", 1)
    for _ in range(16):
        place.submit_later("high", 0)
    assert started(place, 16) == (["high"] * LAST_FIRST + ["low"]) * 2
    assert started(place, 4) == ["high", "high", "middle", "middle"]


def test_each_kind_of_work_is_claimed_by_who_does_it(place: Place) -> None:
    place.submit_later("k", work=Work.DOWNLOAD)
    place.submit_later("k", work=Work.TRANSCRIPTION)
    owner = place.owner()
    assert owner.claim([]) is None
    assert owner.claim([Work.EXTRACTION]) is None
    job = owner.claim([Work.TRANSCRIPTION, Work.EXTRACTION])
    assert job is not None
    assert job.work is Work.TRANSCRIPTION
    assert owner.claim([Work.TRANSCRIPTION]) is None


def test_owners_that_claim_at_once_get_each_job_once(place: Place) -> None:
    jobs = {place.submit_later(key).id for key in "ab" for _ in range(10)}

    def claim_all(number: int) -> list[str]:
        owner, claimed = place.owner(f"owner {number}"), []
        while job := owner.claim(ALL):
            claimed.append(job.id)
        return claimed

    claimed = [job_id for each in at_once(4, claim_all) for job_id in each]
    assert len(claimed) == 20
    assert set(claimed) == jobs


def test_owners_that_claim_at_once_take_turns_as_one_would(place: Place) -> None:
    """Every turn is counted, and every second is on somebody's account: else the lowest class starves on a fleet."""
    for _ in range(30):
        place.submit_later("high", 0, size=10.0)
        place.submit_later("other", 0, size=10.0)
    for _ in range(5):
        place.submit_later("low", 1, size=10.0)
    at_once(4, lambda number: [place.owner(f"owner {number}").claim(ALL) for _ in range(10)])
    running = [job.key for job in place.store.listed(limit=100) if job.attempt]
    assert Counter(running) == {"low": 5, "high": 18, "other": 17}
