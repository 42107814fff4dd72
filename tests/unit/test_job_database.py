"""The jobs' database. `place` is SQLite here; tests/integration runs what asks for it on PostgreSQL as well."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from errors import ConfigurationError, StorageFull, StoreUnavailable
from jobs.database import Database
from jobs.store import JobStore
from jobs.tables import events, jobs, metadata, results
from tests.databases import LEASE_S, Place, at_once, commit, jobs_on, new_job, sqlite_in
from tests.gates import Clock

MIGRATING = "import sys; from jobs.database import Database; Database(sys.argv[1]).migrate()"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with jobs_on(sqlite_in(tmp_path)) as place:
        yield place


class Broken(Exception):
    """What goes wrong inside a transaction."""


def start_without_tables(place: Place) -> None:
    with place.database.writing() as connection:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")


def migrate_on_its_own(url: str) -> None:
    """As a process that starts does."""
    database = Database(url)
    try:
        database.migrate()
    finally:
        database.close()


def differences(connection: sa.Connection) -> list[object]:
    """Between the tables as they were made, and as they are written down."""
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


def has_its_tables(place: Place) -> bool:
    with place.database.reading() as connection:
        return differences(connection) == []


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_are_written_down(place: Place) -> None:
    assert has_its_tables(place)

    def change() -> None:
        with place.database.writing() as connection:
            connection.exec_driver_sql("DROP INDEX ix_deliveries_due_at")
            assert len(differences(connection)) == 1, "this test would see it"
            raise Broken

    with pytest.raises(Broken):
        change()
    assert has_its_tables(place)


def test_a_second_migration_changes_nothing(place: Place) -> None:
    job = place.submit()
    place.database.migrate()
    assert place.store.get(job.id) == job


def test_servers_that_start_at_once_make_the_tables_once(place: Place) -> None:
    start_without_tables(place)
    at_once(4, lambda _: migrate_on_its_own(place.url))
    assert has_its_tables(place)
    assert place.store.get(place.submit().id)


def test_processes_that_start_at_once_make_the_tables_once(place: Place) -> None:
    start_without_tables(place)
    command = [sys.executable, "-c", MIGRATING, place.url]
    root = Path(__file__).parents[2]
    starting = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in starting:
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    assert has_its_tables(place)


def test_what_belongs_to_a_job_needs_its_job(place: Place) -> None:
    """SQLite looks at that only where it is told to."""
    with pytest.raises(sa.exc.IntegrityError), place.database.writing() as connection:
        connection.execute(sa.insert(results).values(job_id="0" * 32, attempt=1, body="{}"))


def test_the_database_itself_refuses_a_second_result(place: Place) -> None:
    job = place.submit(owner="a")
    commit(place.owner("a"), job)
    with pytest.raises(sa.exc.IntegrityError), place.database.writing() as connection:
        connection.execute(sa.insert(results).values(job_id=job.id, attempt=2, body="{}"))


# --- transactions ----------------------------------------------------------------------------------------------------


def test_what_fails_leaves_nothing_behind(place: Place) -> None:
    """More often than there are connections: each of them is given back."""
    job = place.submit()
    before = place.all_rows()

    def write() -> None:
        with place.database.writing() as connection:
            connection.execute(sa.update(jobs).values(done=99.0))
            connection.execute(sa.delete(events))
            raise Broken

    for _ in range(20):
        with pytest.raises(Broken):
            write()
        with pytest.raises(Broken), place.database.reading():
            raise Broken
    assert place.all_rows() == before
    assert place.store.get(job.id) == job


def test_what_is_read_belongs_together(place: Place) -> None:
    """One view from the first look on, whatever others write meanwhile."""
    count = sa.select(sa.func.count()).select_from(jobs)
    with place.database.reading() as connection:
        assert connection.scalar(count) == 0
        place.submit()
        assert connection.scalar(count) == 0
    with place.database.reading() as connection:
        assert connection.scalar(count) == 1


def test_writers_wait_for_each_other_and_lose_nothing(place: Place) -> None:
    """All of them look before they write."""
    ids = at_once(6, lambda index: [place.store.submit(new_job(f"k{index}"))[0].id for _ in range(5)])
    assert {row["id"] for row in place.rows(jobs)} == {job_id for each in ids for job_id in each}
    job = place.submit()

    def count_up(_: int) -> None:
        for _ in range(5):
            with place.database.writing() as connection:
                one = sa.select(jobs.c.done).where(jobs.c.id == job.id).with_for_update()
                done = connection.scalar(one)
                connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(done=done + 1.0))

    at_once(4, count_up)
    assert place.store.get(job.id).done == 20.0


def test_the_clock_can_be_another(place: Place) -> None:
    place.clock.now_s = 12345.5
    with place.database.reading() as connection:
        assert place.database.now(connection) == 12345.5
    assert place.submit().created_at == 12345.5


# --- SQLite ----------------------------------------------------------------------------------------------------------


def test_without_another_clock_it_is_this_machines(tmp_path: Path) -> None:
    database = Database(sqlite_in(tmp_path))
    before = time.time()
    with database.reading() as connection:
        now = database.now(connection)
    assert before <= now <= time.time()
    database.close()


def test_what_is_committed_is_on_the_disk(tmp_path: Path) -> None:
    """In every connection: SQLite forgets these settings with each."""
    with jobs_on(sqlite_in(tmp_path)) as place:

        def settings(_: int) -> list[object]:
            with place.database.reading() as connection:
                return [
                    connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                    for name in ("journal_mode", "synchronous", "foreign_keys")
                ]

        full = 2
        assert at_once(3, settings) == [["wal", full, 1]] * 3


def test_a_new_file_can_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """The first one to come makes it a file that many can write to; the others wait."""
    for attempt in range(10):
        folder = tmp_path / f"{attempt}"
        folder.mkdir()
        at_once(4, lambda _, folder=folder: migrate_on_its_own(sqlite_in(folder)))


def test_a_database_that_cannot_be_opened_does_not_answer(tmp_path: Path) -> None:
    store = JobStore(Database(sqlite_in(tmp_path / "nowhere")), lease_s=LEASE_S)
    for ask in (store.counts, lambda: store.submit(new_job()), lambda: store.get("0" * 32)):
        with pytest.raises(StoreUnavailable):
            ask()


def test_a_full_disk_is_told_and_what_was_there_is_safe(tmp_path: Path) -> None:
    with jobs_on(sqlite_in(tmp_path)) as place:
        job = place.submit(owner="a")
        with place.database.writing() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        before = place.all_rows()
        long = "x" * 100_000
        with pytest.raises(StorageFull):
            place.store.submit(new_job(source={"file": long}))
        with pytest.raises(StorageFull):
            commit_long(place, job.id, long)
        assert place.all_rows() == before
        with place.database.writing() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        commit_long(place, job.id, long)
        assert place.store.result(job.id)[1] == long


def commit_long(place: Place, job_id: str, body: str) -> None:
    job = place.store.get(job_id)
    place.owner("a").end(job, job.state.SUCCEEDED, result=body)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "mysql://user@host/name",
        "redis://host",
        "nothing+known://host/name",
        "postgresql://user:secret@host:99secret/name",
        "postgresql://host:secret/name",
    ],
)
def test_an_address_of_no_database_is_refused(url: str) -> None:
    """In words that do not repeat it: there may be a password in it."""
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as refused:
        Database(url)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_postgresql_needs_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is not among the slim requirements."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match="psycopg"):
        Database("postgresql://user@host/name")


@pytest.mark.parametrize(
    "url", ["postgresql://user:secret@host/name", "postgresql://user@host/name?password=secret&sslmode=require"]
)
def test_a_password_is_not_shown(url: str) -> None:
    pytest.importorskip("psycopg")
    database = Database(url)
    assert "secret" not in repr(database)
    assert "host/name" in repr(database)
    assert database.is_shared


def test_a_database_says_which_it_is(tmp_path: Path) -> None:
    database = Database(sqlite_in(tmp_path), Clock())
    assert repr(database) == f"Database('sqlite:///{tmp_path}/jobs.db')"
    assert not database.is_shared
