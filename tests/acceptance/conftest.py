"""One server for most acceptance tests: starting one costs seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.server import KEY, MAX_DURATION_S, MAX_UPLOAD_MB, Server, running
from tests.media_server import MediaServer, media_server


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MediaServer]:
    """The internet, as far as these tests go."""
    with media_server() as server:
        yield server


@pytest.fixture(scope="session")
def allowed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that MEDIA_ROOTS holds."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, web: MediaServer, allowed_folder: Path) -> Iterator[Server]:
    """The real server, with limits that tests can reach."""
    with running(
        tmp_path_factory.mktemp("server"),
        API_KEYS=f"{KEY},another-key",
        MEDIA_ROOTS=str(allowed_folder),
        MAX_UPLOAD_MB=str(MAX_UPLOAD_MB),
        MAX_DURATION_S=str(MAX_DURATION_S),
        PRIVATE_HOSTS_ALLOWED=web.authority,
    ) as server:
        server.key = KEY
        yield server


@pytest.fixture
def clean(server: Server) -> Iterator[Server]:
    """The server, which must have nothing in flight when the test is over, and still be well."""
    yield server
    server.wait_until(lambda: server.in_flight() == [])
    with server.client() as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 200
