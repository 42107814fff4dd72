"""A clock that is set, and a database or a process that was away: nobody who lives loses a job, nothing stands still.

`place` is SQLite, where leases run by this machine's own clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from errors import StoreUnavailable
from jobs import database as databases
from jobs.deliveries import Outbox
from jobs.fleet import EVERY_S as REPORTED_EVERY_S
from jobs.fleet import Fleet
from jobs.leases import HEARTBEATS
from jobs.model import Job, State
from jobs.reaper import EVERY_S, Interruptions, reap, taken
from jobs.tables import jobs
from tests.databases import LEASE_S, Place, commit, jobs_on, sqlite_in
from tests.unit.test_fleet import FACTS

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with jobs_on(sqlite_in(tmp_path)) as place:
        yield place


class Reaper:
    """One that looks every few seconds, on the clock of *place*."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._leases = place.owner("reaper")
        self._interruptions = Interruptions(EVERY_S, LEASE_S)

    def looks(self) -> list[str]:
        return [job.id for job in taken(self._leases, self._interruptions)]

    def looks_for(self, seconds: float) -> list[str]:
        found = []
        for _ in range(int(seconds / EVERY_S)):
            self._place.clock.now_s += EVERY_S
            found += self.looks()
        return found


@pytest.mark.parametrize("jump_s", [LEASE_S, HOUR_S, DAY_S, -HOUR_S, -DAY_S])
def test_an_owner_that_lives_keeps_its_job_when_the_clock_is_set(place: Place, jump_s: float) -> None:
    """Its lease seems to be over at once, though it missed no beat. Another attempt would be a second engine's time,
    and a caller who waits would be sent away."""
    reaper, job = Reaper(place), place.submit(owner="a")
    assert reaper.looks() == []
    place.clock.now_s += jump_s
    assert reaper.looks() == []
    # Its next beat, in time by its own count.
    place.clock.now_s += LEASE_S / HEARTBEATS
    assert place.owner("a").beat() == {job.id: 1}
    assert reaper.looks_for(LEASE_S / 2) == []
    commit(place.owner("a"), job)
    assert place.store.get(job.id).state is State.SUCCEEDED


@pytest.mark.parametrize("jump_s", [HOUR_S, DAY_S, -HOUR_S, -DAY_S])
def test_a_dead_owners_job_is_taken_within_minutes_however_the_clock_was_set(place: Place, jump_s: float) -> None:
    """Set back by a day, its lease would last for a day."""
    reaper, job = Reaper(place), place.claimed(place.owner("dead"), place.submit())
    assert reaper.looks() == []
    place.clock.now_s += jump_s
    assert reaper.looks() == []
    # The lease that was lent for nothing, and two that it may have left.
    assert reaper.looks_for(3 * LEASE_S + 2 * EVERY_S) == [job.id]


def test_a_clock_that_is_never_set_delays_nothing(place: Place) -> None:
    """A machine's death costs a lease, and no second one."""
    reaper, job = Reaper(place), place.claimed(place.owner("dead"), place.submit())
    assert reaper.looks() == []
    assert reaper.looks_for(LEASE_S) == []
    assert reaper.looks_for(EVERY_S) == [job.id]


def test_after_a_database_that_was_away_owners_have_a_lease_to_be_heard(place: Place) -> None:
    """None of them could write; whoever looks first would take all they have."""
    reaper, job = Reaper(place), place.submit(owner="a")
    assert reaper.looks() == []
    place.clock.now_s += 10 * LEASE_S
    assert reaper.looks() == []
    assert place.owner("a").beat() == {job.id: 1}


async def test_the_loop_itself_waits_for_owners_that_live(place: Place) -> None:
    """From round to round: the clock is set while it sleeps."""
    job, rounds, ended = place.submit(owner="a"), 0, asyncio.Event()

    def tell(lost: Sequence[Job]) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            place.clock.now_s += HOUR_S
        elif rounds == 3:
            ended.set()

    reaping = asyncio.create_task(reap(place.owner("reaper"), tell, republishes=False, every_s=0.0))
    await asyncio.wait({reaping, asyncio.ensure_future(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
    reaping.cancel()
    await asyncio.gather(reaping, return_exceptions=True)
    assert place.store.get(job.id).state is State.RUNNING


def test_longer_leases_of_others_are_left_to_them(place: Place) -> None:
    """While JOB_LEASE_S is being changed, servers with both values run beside each other."""
    job = place.claimed(place.owner("a"), place.submit())
    with place.database.writing() as connection:
        connection.execute(jobs.update().values(lease_until=place.clock() + 4 * LEASE_S))
    assert place.owner("short").expire() == []
    # It beats four times in each of its leases.
    place.clock.now_s += LEASE_S
    assert place.owner("short").expire() == []
    assert place.owner("a").beat() == {job.id: 1}


def test_the_dead_do_not_live_on_in_a_clock_that_was_set_back(place: Place) -> None:
    """A server would count on workers that are gone, for as long as it was set back."""
    fleet = Fleet(place.database)
    fleet.report("dead", FACTS)
    fleet.report("lives", FACTS)
    place.clock.now_s += REPORTED_EVERY_S - HOUR_S
    fleet.report("lives", FACTS)
    assert [member.id for member in fleet.members()] == ["lives"]


@pytest.mark.parametrize(("jump_s", "tried"), [(-HOUR_S, False), (-DAY_S, False), (-DAY_S, True)])
def test_a_clock_that_was_set_back_holds_no_webhook_up(place: Place, jump_s: float, tried: bool) -> None:
    """A receiver that waits for news would wait for a day."""
    outbox, job = Outbox(place.database), place.submit(owner="a", callback_url="https://a.example/hook")
    commit(place.owner("a"), job)
    if tried:
        assert outbox.claim()
        assert outbox.claim() is None
    place.clock.now_s += jump_s
    delivery = outbox.claim()
    assert delivery is not None
    assert (delivery.job_id, delivery.attempt) == (job.id, 2 if tried else 1)
    assert outbox.claim() is None


def test_writers_behind_a_held_file_give_up_together(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would wait for all before it to give up: the tenth caller for five minutes."""
    monkeypatch.setattr(databases, "BUSY_S", 0.01)
    with place.database.writing(), pytest.raises(StoreUnavailable), place.database.writing():
        pass
    assert place.submit()


def test_a_file_that_another_program_holds_is_given_up_in_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers hear that they may come again, and those who only read notice nothing."""
    monkeypatch.setattr(databases, "BUSY_S", 0.01)
    hurried = Place(place.url)
    with contextlib.closing(sqlite3.connect(place.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable):
            hurried.submit()
        assert hurried.store.listed() == []
        other.execute("ROLLBACK")
    job = hurried.submit()
    assert hurried.store.listed() == [job]
    hurried.database.close()
