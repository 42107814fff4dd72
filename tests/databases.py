"""The job store for tests, on SQLite or PostgreSQL: on a clock that stands still, with owners that come and go."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.leases import Leases
from jobs.model import Job, NewJob, State
from jobs.store import JobStore
from jobs.tables import metadata
from reservation import Work
from tests.gates import Clock

LEASE_S = 60.0
ALL = tuple(Work)
T = TypeVar("T")


class Place:
    """Jobs on one database, which are looked at from below as well."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.database = Database(url, self.clock)
        self.store = self.store_of()

    def store_of(self, *, max_queued: int = 0, several_keys: bool = False) -> JobStore:
        return JobStore(self.database, lease_s=LEASE_S, max_queued=max_queued, several_keys=lambda: several_keys)

    def owner(self, name: str = "a", max_running: Callable[[str], int] = lambda key: 0) -> Leases:
        return Leases(self.database, name, lease_s=LEASE_S, max_running=max_running)

    def submit(self, key: str = "k", priority: int = 0, owner: str | None = None, **asked: Any) -> Job:
        """A job that nothing is special about but what is *asked*. *owner*: who attends to it."""
        job, created = self.store.submit(new_job(key, priority, attended=owner is not None, **asked), owner)
        assert created
        return job

    def submit_later(self, *args: Any, **asked: Any) -> Job:
        """One that came a second after all before it."""
        self.clock.now_s += 1.0
        return self.submit(*args, **asked)

    def claimed(self, owner: Leases, job: Job) -> Job:
        """*job*, which is the only one that waits."""
        claimed = owner.claim(ALL)
        assert claimed is not None
        assert claimed.id == job.id
        return claimed

    def rows(self, table: sa.Table, **where: Any) -> list[dict[str, Any]]:
        """What lies in *table*, in the order of its key."""
        with self.database.reading() as connection:
            return _rows(connection, table, **where)

    def all_rows(self) -> dict[str, list[dict[str, Any]]]:
        """What lies in each table, by its name."""
        with self.database.reading() as connection:
            return {table.name: _rows(connection, table) for table in metadata.sorted_tables}

    def empty(self) -> None:
        """Forget everything, but the tables."""
        with self.database.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(sa.delete(table))


def _rows(connection: sa.Connection, table: sa.Table, **where: Any) -> list[dict[str, Any]]:
    asked = sa.select(table).filter_by(**where).order_by(*table.primary_key)
    return [dict(row._mapping) for row in connection.execute(asked)]


def new_job(key: str = "k", priority: int = 0, **asked: Any) -> NewJob:
    usual: dict[str, Any] = {
        "work": Work.TRANSCRIPTION,
        "source": {"file": "a.wav", "name": "Küche 📻"},
        "options": {"model": "tiny", "language": None},
    }
    return NewJob(key=key, priority=priority, **usual | asked)


def commit(owner: Leases, job: Job, state: State = State.SUCCEEDED) -> None:
    """End *job* as that owner would."""
    match state:
        case State.SUCCEEDED:
            owner.end(job, state, result='{"text": "yes"}')
        case State.FAILED:
            owner.end(job, state, error={"code": "EMPTY_FILE", "status": 422, "message": "The file is empty."})
        case _:
            owner.end(job, state)


@contextlib.contextmanager
def jobs_on(url: str) -> Iterator[Place]:
    """A place on the database at *url*, with its tables made."""
    place = Place(url)
    try:
        place.database.migrate()
        yield place
    finally:
        place.database.close()


def sqlite_in(folder: Path) -> str:
    """The URL of a database in *folder*."""
    return f"sqlite:///{folder / 'jobs.db'}"


def at_once(number: int, do: Callable[[int], T]) -> list[T]:
    """What *do* returns to each of so many threads, which all begin at the same moment. Raises what it raises."""
    gate = threading.Barrier(number)
    returned: dict[int, T] = {}
    raised: list[BaseException] = []

    def run(index: int) -> None:
        try:
            gate.wait()
            returned[index] = do(index)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return [returned[index] for index in range(number)]


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def postgresql_server() -> Iterator[sa.URL]:
    """The address of a server that databases may be made on: TEST_DATABASE_URL, or one that lives while this does."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield sa.make_url(given).set(drivername="postgresql+psycopg")
        return
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        # PostgreSQL refuses to run as root.
        user = _unprivileged() if os.geteuid() == 0 else None
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data, port = f"{folder}/data", _free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [_binary(program), "-D", data, *arguments],
                cwd=folder,
                user=None if user is None else user.pw_uid,
                group=None if user is None else user.pw_gid,
                extra_groups=None if user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert done.returncode == 0, f"{program}: {done.stderr} {_log(folder)}"

        run("initdb", "-U", "tests", "--auth=trust", "--no-sync", "--encoding=UTF8", "--no-locale")
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield sa.make_url(f"postgresql+psycopg://tests@127.0.0.1:{port}/postgres")
        finally:
            # By the process id that lies among its data.
            run("pg_ctl", "-w", "-m", "immediate", "stop")


@contextlib.contextmanager
def database_of_its_own(server: sa.URL) -> Iterator[str]:
    """The URL of a new, empty database on that server, which is gone afterwards."""
    name = f"stenogate_{secrets.token_hex(6)}"
    _execute(server, f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(address: sa.URL, statement: str) -> None:
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


def _binary(program: str) -> str:
    """Debian keeps it out of the PATH."""
    if found := shutil.which(program):
        return found
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    if not installed:
        pytest.skip(f"There is no {program} here: install PostgreSQL, or name a server in TEST_DATABASE_URL.")
    return str(installed[-1])


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("PostgreSQL does not run as root, and there is no other user here: set TEST_DATABASE_URL.")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _log(folder: str) -> str:
    log = Path(folder, "log")
    return log.read_text() if log.exists() else ""
