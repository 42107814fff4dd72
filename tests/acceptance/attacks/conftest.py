"""One server for the whole table, in a network of its own, and what must be true after every row of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.attacks.canary import Canary
from tests.acceptance.attacks.places import Places
from tests.acceptance.attacks.receiver import Receiver
from tests.acceptance.attacks.table import (
    KEY,
    MAX_DURATION_S,
    MAX_UPLOAD_MB,
    OTHER_KEY,
    WEBHOOK_SECRET,
    is_surprise,
    uploads,
)
from tests.acceptance.server import ROOT, Server, running
from tests.media_server import MediaServer, media_server


@pytest.fixture(scope="package")
def web() -> Iterator[MediaServer]:
    """What may be reached: it stands for all public hosts."""
    with media_server() as server:
        yield server


@pytest.fixture(scope="package")
def receiver() -> Iterator[Receiver]:
    """What may be told: it stands for all callers' servers."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="package")
def canary() -> Iterator[Canary]:
    """What may not be reached: it stands for all that is private."""
    canary = Canary()
    yield canary
    canary.close()


@pytest.fixture(scope="package")
def allowed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that MEDIA_ROOTS holds."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="package")
def server(
    tmp_path_factory: pytest.TempPathFactory, web: MediaServer, receiver: Receiver, allowed_folder: Path
) -> Iterator[Server]:
    """The real server, with limits that a row can reach. Its log tells of no surprise, and no secret."""
    with running(
        tmp_path_factory.mktemp("attacked"),
        *("-m", "tests.acceptance.attacks.invented_network"),
        PYTHONPATH=str(ROOT),
        API_KEYS=f"{KEY},{OTHER_KEY}",
        WEBHOOK_SECRET=WEBHOOK_SECRET,
        MEDIA_ROOTS=str(allowed_folder),
        MAX_UPLOAD_MB=str(MAX_UPLOAD_MB),
        MAX_DURATION_S=str(MAX_DURATION_S),
        BODY_IDLE_S="2",
        HEAD_TIMEOUT_S="2",
        DOWNLOAD_TIMEOUT_S="60",
        PRIVATE_HOSTS_ALLOWED=f"{web.authority},{receiver.authority}",
        LINK_HOSTS_DENIED="denied.example.com",
    ) as server:
        server.key = KEY
        before = len(server.log.read_text())  # while it is not ready it says so, with a traceback
        yield server
    log = server.log.read_text()
    assert "GET /health 200" in log, "this is not the server's log"
    assert [secret for secret in (KEY, OTHER_KEY, WEBHOOK_SECRET) if secret in log] == []
    assert [line for line in log[before:].splitlines() if is_surprise(line)] == []


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[httpx.Client]:
    """A caller with a key. Making one costs more than most rows."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="package")
def places(server: Server, canary: Canary, web: MediaServer) -> Places:
    return Places.of(server, canary, web)


@pytest.fixture(autouse=True)
def unharmed(server: Server, client: httpx.Client, canary: Canary) -> Iterator[None]:
    """Nothing private was reached, nothing is left in DATA_DIR/work, and the server is there."""
    yield
    server.wait_until(lambda: server.in_flight() == [])
    assert canary.heard() == []
    assert client.get("/health").status_code == 200


@pytest.fixture
def nothing_kept(server: Server) -> Iterator[None]:
    """Of what was refused no upload is kept."""
    before = uploads(server)
    yield
    server.wait_until(lambda: uploads(server) <= before)
