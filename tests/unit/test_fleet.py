"""Who does jobs is known for as long as they say that they do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from errors import NotReady
from jobs.database import Database
from jobs.fleet import FORGOTTEN_AFTER_S, SEEN_WITHIN_S, Backlog, Facts, Fleet, FleetWatch, keep_reporting
from jobs.tables import metadata
from reservation import Work
from tests.databases import Place, sqlite_in

FACTS = Facts(
    host="one",
    devices=["cuda:0"],
    plans=[{"device": "cuda:0", "replicas": 1, "batch_size": 16}],
    slots={"transcription": 33, "download": 2},
    running=3,
    model="base",
    loaded=["base"],
    version="0.1.0",
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(sqlite_in(tmp_path))
    with place.database.writing() as connection:
        metadata.create_all(connection)
    yield place
    place.database.close()


@pytest.fixture
def fleet(place: Place) -> Fleet:
    return Fleet(place.database)


def ids(fleet: Fleet) -> list[str]:
    return [member.id for member in fleet.members()]


def test_a_worker_is_seen_with_all_that_it_says(fleet: Fleet, place: Place) -> None:
    fleet.report("a", FACTS)
    place.clock.now_s += 5.0
    (member,) = fleet.members()
    assert (member.id, member.seen_s_ago, member.facts) == ("a", 5.0, FACTS)


def test_what_a_worker_says_last_counts(fleet: Fleet, place: Place) -> None:
    fleet.report("a", FACTS)
    place.clock.now_s += SEEN_WITHIN_S - 1
    fleet.report("a", replace(FACTS, running=0))
    place.clock.now_s += SEEN_WITHIN_S - 1
    assert [member.facts.running for member in fleet.members()] == [0]


def test_a_silent_worker_is_not_counted(fleet: Fleet, place: Place) -> None:
    """Whoever plans with it would wait for nobody."""
    fleet.report("dead", FACTS)
    place.clock.now_s += SEEN_WITHIN_S + 1
    fleet.report("alive", FACTS)
    assert ids(fleet) == ["alive"]


def test_the_long_dead_are_forgotten(fleet: Fleet, place: Place) -> None:
    """Each start has a name of its own: the table would grow for ever."""
    fleet.report("dead", FACTS)
    place.clock.now_s += FORGOTTEN_AFTER_S - 1
    fleet.report("alive", FACTS)
    assert len(place.all_rows()["workers"]) == 2
    place.clock.now_s += 2
    fleet.report("alive", FACTS)
    assert [row["id"] for row in place.all_rows()["workers"]] == ["alive"]


def test_a_worker_that_stops_is_gone_at_once(fleet: Fleet) -> None:
    fleet.report("a", FACTS)
    fleet.report("b", FACTS)
    fleet.leave("a")
    assert ids(fleet) == ["b"]


async def test_a_process_reports_itself_again_and_again_and_leaves_at_its_end(fleet: Fleet) -> None:
    reported = asyncio.Queue[int]()

    def facts() -> Facts:
        reported.put_nowait(reported.qsize())
        return FACTS

    task = asyncio.create_task(keep_reporting(fleet, "a", facts, every_s=0.0))
    for _ in range(3):
        await reported.get()
    assert ids(fleet) == ["a"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert ids(fleet) == []


async def test_a_server_without_engines_is_as_ready_as_its_workers(fleet: Fleet) -> None:
    watch = FleetWatch(fleet)
    await watch.look()
    with pytest.raises(NotReady, match="No worker was seen"):
        watch.check_ready()
    fleet.report("a", replace(FACTS, loaded=[]))
    await watch.look()
    with pytest.raises(NotReady, match="loaded"):
        watch.check_ready()
    fleet.report("b", FACTS)
    await watch.look()
    watch.check_ready()
    assert watch.loaded() == ["base"]


async def test_workers_count_as_unseen_while_the_database_is_away(tmp_path: Path) -> None:
    """A server that knows nothing must not promise anything."""
    watch = FleetWatch(Fleet(Database(sqlite_in(tmp_path / "absent"))))
    await watch.look()
    assert (watch.members, watch.backlog) == ([], None)


def test_the_backlog_is_that_of_all_machines(fleet: Fleet, place: Place) -> None:
    """By it a platform adds workers: who waits longest says more than how many wait."""
    assert fleet.backlog() == Backlog({}, {}, None)
    place.submit()
    place.submit_later(work=Work.DOWNLOAD)
    place.submit_later()
    assert place.owner().claim([Work.TRANSCRIPTION])
    place.clock.now_s += 10.0
    assert fleet.backlog() == Backlog({Work.DOWNLOAD: 1, Work.TRANSCRIPTION: 1}, {Work.TRANSCRIPTION: 1}, 11.0)
