"""The jobs' database: SQLite on one machine, PostgreSQL for several. One schema, one way to use it."""

from __future__ import annotations

import contextlib
import enum
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from errors import ConfigurationError, StorageFull, StoreUnavailable

BUSY_S = 30
"""How long a writer waits for the one before it. SQLite has one at a time; each is done within milliseconds."""
OPEN_AGAIN_S = 0.01
"""How often whoever opens a new file looks whether another has done so."""

_NOTICING = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}
"""A database whose machine is gone says nothing more: known within half a minute, where the system's defaults would
have threads wait for hours. Seconds, and milliseconds."""

_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""As JSON spells it: after an even number of backslashes."""

_MIGRATIONS = Path(__file__).parent / "migrations"


class Lock(enum.IntEnum):
    """What only one transaction may be at. PostgreSQL knows these by numbers, which no other program takes."""

    MIGRATION = 0x57E206A7E
    TURNS = enum.auto()
    """Finding out whose turn it is, and noting that it was."""
    QUEUE = enum.auto()
    """Finding room in the queue, and taking it."""


class Database:
    """Transactions on one database. Synchronous: coroutines call it in a thread. Threads may share it."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        """*url*: as SQLAlchemy reads it, `postgresql://…` meaning psycopg 3. *clock*: seconds since 1970; None: the
        database's own, so that machines need not agree. Raises ConfigurationError for a URL of neither kind."""
        try:
            address = sa.make_url(url)
        except (sa.exc.ArgumentError, ValueError):
            # NOTE: what is no port may be half a password.
            raise ConfigurationError(
                "DATABASE_URL is no database's address, such as postgresql://user@host/name."
            ) from None
        self._clock = clock
        self.is_shared = address.get_backend_name() == "postgresql"
        if self.is_shared:
            address = address.set(drivername="postgresql+psycopg")
            self._engine = _postgresql(address)
        elif address.get_backend_name() == "sqlite":
            self._engine = sa.create_engine(
                address, json_serializer=as_json, connect_args={"timeout": BUSY_S, "check_same_thread": False}
            )
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        else:
            raise ConfigurationError("DATABASE_URL must begin with postgresql:// or sqlite:///.")
        self._writer = self._engine.execution_options(writes=True)
        # Of threads that wait for each other inside SQLite, each sleeps longer the longer it has waited.
        self._one_writer = None if self.is_shared else threading.Lock()
        # A SQLite transaction sees one state of the database anyway.
        self._reader = self._engine.execution_options(
            **{"isolation_level": "REPEATABLE READ"} if self.is_shared else {}
        )

    def __repr__(self) -> str:
        # Without the password, which may also be among the parameters.
        return f"Database({self._engine.url.set(query={}).render_as_string()!r})"

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view. Raises StoreUnavailable."""
        with _told(), self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """All or nothing, on disk when it ends. Raises StoreUnavailable, StorageFull."""
        with _told(), self._turn(), self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Raises StoreUnavailable: while another program holds the file, those behind each other give up together."""
        if self._one_writer is None:
            yield
            return
        if not self._one_writer.acquire(timeout=BUSY_S):
            raise StoreUnavailable
        try:
            yield
        finally:
            self._one_writer.release()

    def insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        """An insert that knows what to do where the row is there already."""
        return postgresql.insert(table) if self.is_shared else sqlite.insert(table)

    def alone(self, connection: sa.Connection, lock: Lock) -> None:
        """Wait until no other transaction has *lock*; this one has it to its end. SQLite has one writer at a time."""
        if self.is_shared:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(int(lock))))

    def now(self, connection: sa.Connection) -> float:
        """Seconds since 1970, by the clock that all who use this database share."""
        if self._clock is not None:
            return self._clock()
        if self.is_shared:
            return float(connection.scalar(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))) or 0.0)
        return time.time()

    def migrate(self) -> None:
        """Bring the tables to what this version needs. Any number of processes may do so at once."""
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.writing() as connection:
            self.alone(connection, Lock.MIGRATION)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        self._engine.dispose()


def _postgresql(address: sa.URL) -> sa.Engine:
    try:
        return sa.create_engine(
            address,
            json_serializer=as_json,
            # A connection that a restart of the database has broken is found out before it is used.
            pool_pre_ping=True,
            # Whatever the server's own default: who waited for a row looks at it as it is now, as leases need it.
            isolation_level="READ COMMITTED",
            connect_args={"connect_timeout": 5, **_NOTICING},
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"DATABASE_URL is PostgreSQL's, but {error.name} is not installed here.") from error


def as_json(value: object) -> str:
    """What is stored of *value*. PostgreSQL stores a NUL, and fails whenever it looks into what holds one: for all."""
    return _NUL.sub(r"\1\\ufffd", json.dumps(value))


def _prepare_sqlite(connection: object, _: object) -> None:
    # The driver must not begin transactions by itself: it would begin them as readers, and two readers that both want
    # to write cannot wait for each other.
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    _write_ahead(cursor)
    # What is committed is on the disk, also after a power cut.
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Readers and a writer beside each other; the file remembers it. NOTE: of several who are the first to open a file,
    SQLite lets none wait for another here, whatever its timeout."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(OPEN_AGAIN_S)


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The database's failures as callers know them."""
    try:
        yield
    except DBAPIError as error:
        if _is_full(error):
            raise StorageFull from error
        if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) or _is_copy(error):
            raise StoreUnavailable from error
        raise
    except sa.exc.TimeoutError as error:
        # All connections are in use, and stay so.
        raise StoreUnavailable from error


def _is_full(error: DBAPIError) -> bool:
    return "disk is full" in str(error.orig) or getattr(error.orig, "sqlstate", None) == "53100"


def _is_copy(error: DBAPIError) -> bool:
    """Whether the server takes no writes: after a failover, until connections go to the new one."""
    return getattr(error.orig, "sqlstate", None) == "25006"
