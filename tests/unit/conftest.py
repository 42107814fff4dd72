"""An application on fakes, and a client for it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import structlog

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tests.fakes import Parts


@pytest.fixture(autouse=True, scope="session")
def _plain_logs() -> None:
    """structlog's default prints the local variables of each frame, at seconds a trace."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer(key_order=["event"])])


@pytest.fixture(autouse=True)
def _databases_closed() -> Iterator[None]:
    yield
    if fakes := sys.modules.get("tests.fakes"):
        while fakes.OPENED:
            fakes.OPENED.pop().close()


# Imported where they are used: most tests beside these need no application.


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    from tests.fakes import make_parts

    return make_parts(tmp_path)


@pytest.fixture(scope="session")
def assembled() -> FastAPI:
    """Holds nothing of a request: the first one builds its routes, which costs as much as most tests do."""
    from api.application import assemble

    return assemble()


@pytest.fixture
def app(assembled: FastAPI, parts: Parts) -> FastAPI:
    assembled.state.services = parts.services
    return assembled


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    from tests.fakes import AUTH

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=AUTH) as client:
        yield client
