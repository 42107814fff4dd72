"""The job store on PostgreSQL: all that holds on SQLite, and what only a database with many writers can get wrong."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from errors import StorageFull, StoreUnavailable
from jobs.database import Database
from jobs.leases import LeaseLost
from jobs.model import State
from jobs.rows import changed
from jobs.store import JobStore
from jobs.tables import jobs
from tests.databases import (
    ALL,
    LEASE_S,
    Place,
    commit,
    database_of_its_own,
    jobs_on,
    new_job,
    postgresql_server,
)
from tests.unit import (
    test_job_database,
    test_job_leases,
    test_job_store,
    test_job_turns,
    test_jobs_any_order,
    test_key_store,
)

# What asks for a place is run once more, with this module's.
for _module in (
    test_job_database,
    test_job_leases,
    test_job_store,
    test_job_turns,
    test_jobs_any_order,
    test_key_store,
):
    for _name, _test in vars(_module).items():
        if _name.startswith("test_") and "place" in inspect.signature(_test).parameters:
            assert _name not in globals(), f"Two tests have the name {_name}."
            globals()[_name] = _test


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    """A database that nobody else uses: to make one for each test would take most of the time."""
    with postgresql_server() as server, database_of_its_own(server) as ours:
        yield ours


@pytest.fixture
def place(ours: str) -> Iterator[Place]:
    with jobs_on(ours) as place:
        place.empty()
        yield place


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """Another machine, as far as the database can tell."""
    with ThreadPoolExecutor(1) as beside:
        yield beside


def wait_until_it_waits(place: Place, answer: Future[Any]) -> None:
    """Until what is asked beside us stands at a lock of ours; or has its answer, where it need not wait."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    while not answer.done():
        with place.database.reading() as connection:
            if connection.scalar(waiting):
                return


def end_all_connections(place: Place) -> None:
    """As a restart of the database does."""
    database = Database(place.url)
    with database.writing() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    database.close()


# --- many writers ----------------------------------------------------------------------------------------------------


def test_a_request_that_another_machine_is_just_writing_down_makes_no_second_job(
    place: Place, beside: ThreadPoolExecutor
) -> None:
    """Neither sees the other's job before it is there: the database refuses the later one."""
    new = new_job(idempotency_key="once", fingerprint="f")
    with place.database.writing() as connection:
        first = place.store._written(connection, new, None)
        answer = beside.submit(place.store.submit, new)
        wait_until_it_waits(place, answer)
    assert answer.result() == (first, False)


def test_a_job_that_is_just_tried_again_is_not_forgotten(place: Place, beside: ThreadPoolExecutor) -> None:
    """It was long over when forgetting began."""
    job = place.store.cancel(place.submit().id)
    place.clock.now_s += 100.0
    with place.database.writing() as connection:
        changed(connection, jobs.c.id == job.id, state=State.QUEUED, finished_at=None)
        answer = beside.submit(place.store.forget, 10.0)
        wait_until_it_waits(place, answer)
    assert answer.result() == []
    assert place.store.get(job.id).state is State.QUEUED


def test_the_broker_is_not_told_of_a_job_that_is_just_claimed(place: Place, beside: ThreadPoolExecutor) -> None:
    job = place.submit()
    with place.database.writing() as connection:
        changed(connection, jobs.c.id == job.id, state=State.RUNNING)
        answer = beside.submit(place.owner().to_be_sent, 60.0)
        wait_until_it_waits(place, answer)
    assert answer.result() == []


def test_a_claim_does_not_wait_for_a_job_that_is_just_cancelled(place: Place) -> None:
    """It takes the next one."""
    first, second = place.submit_later(), place.submit_later()
    with place.database.writing() as connection:
        changed(connection, jobs.c.id == first.id, state=State.CANCELLED)
        claimed = place.owner().claim(ALL)
    assert claimed is not None
    assert claimed.id == second.id


def test_an_owner_that_writes_while_its_job_is_taken_changes_nothing(place: Place, beside: ThreadPoolExecutor) -> None:
    """The write waits for whoever takes the job, and is looked at again then."""
    job = place.claimed(place.owner("a"), place.submit())
    with place.database.writing() as connection:
        changed(connection, jobs.c.id == job.id, attempt=2, owner="b")
        answer = beside.submit(commit, place.owner("a"), job)
        wait_until_it_waits(place, answer)
    with pytest.raises(LeaseLost):
        answer.result()
    assert place.store.get(job.id).state is State.RUNNING


def test_a_job_that_is_just_held_on_to_is_not_lost(place: Place) -> None:
    job = place.claimed(place.owner("a"), place.submit())
    place.clock.now_s += LEASE_S + 1
    with place.database.writing() as connection:
        changed(connection, jobs.c.id == job.id, lease_until=place.clock() + LEASE_S)
        assert place.owner("b").expire() == []
    assert place.owner("b").expire() == []


# --- a database that fails -------------------------------------------------------------------------------------------


def test_a_database_that_is_away_does_not_answer() -> None:
    """Nothing listens at that port."""
    database = Database("postgresql://user:secret@127.0.0.1:1/name")
    store = JobStore(database, lease_s=LEASE_S)
    for ask in (store.counts, lambda: store.submit(new_job()), database.migrate):
        with pytest.raises(StoreUnavailable) as away:
            ask()
        assert "secret" not in str(away.value.__cause__)


def test_a_restart_of_the_database_is_not_noticed_between_two_questions(place: Place) -> None:
    job = place.submit()
    end_all_connections(place)
    assert place.store.get(job.id) == job


def test_a_restart_in_the_middle_leaves_nothing_half_done(place: Place) -> None:
    job = place.submit()

    def write() -> None:
        with place.database.writing() as connection:
            changed(connection, jobs.c.id == job.id, done=99.0)
            end_all_connections(place)
            changed(connection, jobs.c.id == job.id, done=100.0)

    with pytest.raises(StoreUnavailable):
        write()
    assert place.store.get(job.id) == job


def test_a_database_that_has_just_become_a_copy_does_not_answer(place: Place) -> None:
    """After a failover the old one takes no writes for a while."""

    def write() -> None:
        with place.database.writing() as connection:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            place.store._written(connection, new_job(), None)

    with pytest.raises(StoreUnavailable):
        write()


def test_a_databases_full_disk_is_told(place: Place) -> None:
    def write() -> None:
        with place.database.writing() as connection:
            connection.exec_driver_sql(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
            )
            connection.exec_driver_sql("CREATE TRIGGER full_disk BEFORE INSERT ON events EXECUTE FUNCTION full_disk()")
            place.store._written(connection, new_job(), None)

    with pytest.raises(StorageFull):
        write()
    assert place.rows(jobs) == []


def test_without_another_clock_it_is_the_databases(place: Place) -> None:
    """Machines need not agree on the time; and it goes on within a transaction."""
    database = Database(place.url)
    asked = sa.text("SELECT extract(epoch FROM clock_timestamp())")
    with database.reading() as connection:
        before = float(connection.scalar(asked))
        now = database.now(connection)
        after = float(connection.scalar(asked))
    assert before < now < after
    database.close()
