"""PostgreSQL gone and back: what callers see meanwhile, and that nothing of theirs is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.database import Database
from tests.acceptance import sounds
from tests.acceptance.server import Server, running
from tests.acceptance.test_faults import turns_of_speech
from tests.acceptance.test_jobs import SLOWLY, done, handed_in, state
from tests.databases import _binary, _unprivileged, database_of_its_own, postgresql_server


class PostgreSQL:
    """A server that can be stopped and started, and one database on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        database = Database(url)
        with database.reading() as connection:
            self._data = Path(str(connection.scalar(sa.text("SHOW data_directory"))))
            raw = connection.connection.driver_connection
            assert raw is not None
            self.parameters: dict[str, str] = raw.info.get_parameters()
        database.close()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Gone without a word to those who are connected, as after a crash; back when the context ends."""
        options = (self._data / "postmaster.opts").read_text().split(" ", 1)[1].replace('"', "")
        self._control("-m", "immediate", "stop")
        try:
            yield
        finally:
            self._control("-w", "-l", str(self._data.parent / "log"), "-o", options.strip(), "start")

    def _control(self, *arguments: str) -> None:
        user = _unprivileged() if os.geteuid() == 0 else None
        subprocess.run(
            [_binary("pg_ctl"), "-D", str(self._data), *arguments],
            cwd=self._data.parent,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    if os.environ.get("TEST_DATABASE_URL"):
        pytest.skip("TEST_DATABASE_URL is not ours to stop.")
    with postgresql_server() as server, database_of_its_own(server) as url:
        yield PostgreSQL(url)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("gone"), DATABASE_URL=postgresql.url, **SLOWLY) as server:
        yield server


def unwritten(server: Server) -> bool:
    return any(str(line.get("event")).endswith("end cannot be written down") for line in server.lines())


def test_what_runs_ends_when_the_database_is_back_and_nothing_else_begins(
    server: Server, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    """A restart of the database costs callers seconds. Whoever comes meanwhile is told to come again; health is the
    process's own. A restart of the server is not needed."""
    recording = {"file": ("a.wav", sounds.silence(1))}
    with server.client() as client, ThreadPoolExecutor() as callers:
        speech = turns_of_speech(3, tmp_path)
        waiting = callers.submit(client.post, "/transcribe", files={"file": speech.read_bytes()})
        server.wait_until(lambda: client.get("/jobs").json()["jobs"] != [])
        jobs = [handed_in(client, speech), handed_in(client, turns_of_speech(1, tmp_path))]
        server.wait_until(lambda: state(client, jobs[0])["state"] == "running")
        with postgresql.away():
            for asked in ({}, {"mode": "async"}):
                answer = client.post("/transcribe", files=recording, params=asked)
                assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE")
            assert client.get(f"/jobs/{jobs[0]}").json()["code"] == "STORE_UNAVAILABLE"
            assert client.get("/health").status_code == 200
            server.wait_until(lambda: unwritten(server))
            assert not waiting.done()
        assert (waiting.result().status_code, waiting.result().json()["text"].count("Yankee")) == (200, 3)
        assert [done(server, client, job)["attempt"] for job in jobs] == [1, 1]
        assert client.post("/transcribe", files=recording).status_code == 200
    server.wait_until(lambda: server.in_flight() == [])


def test_a_machine_that_is_gone_is_given_up_within_half_a_minute(postgresql: PostgreSQL) -> None:
    """It sends no more than silence: by the system's own terms threads would wait on it for hours."""
    asked = {name: int(postgresql.parameters[name]) for name in postgresql.parameters if name in TERMS}
    assert asked["keepalives_idle"] + asked["keepalives_interval"] * asked["keepalives_count"] <= 30
    assert 0 < asked["tcp_user_timeout"] <= 30_000


TERMS = ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
