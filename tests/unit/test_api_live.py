"""The connection of WS /transcribe/live before and beside its conversation: who may open it, and the last net."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest
import structlog
from fastapi import FastAPI

from tests.fakes import AUTH, Caller, Parts


class Broken:
    """In live text's place: every look at it fails."""

    idle_s = 30.0

    async def prepare(self, model: str) -> None:
        raise ZeroDivisionError("secret detail")


async def said(app: FastAPI, headers: dict[str, str], *messages: str) -> list[dict[str, Any]]:
    """What the server sends to a caller that connects and says *messages*."""
    sent: list[dict[str, Any]] = []
    coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    coming.put_nowait({"type": "websocket.connect"})
    for message in messages:
        coming.put_nowait({"type": "websocket.receive", "text": message})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = Caller("/transcribe/live", method="GET", headers=headers).scope
    scope |= {"type": "websocket", "scheme": "ws", "subprotocols": [], "extensions": {"websocket.http.response": {}}}
    await app(scope, coming.get, send)
    return sent


@pytest.mark.parametrize("origin", ["https://evil.example", "http://["])
async def test_a_foreign_page_gets_no_live_text(app: FastAPI, origin: str) -> None:
    """It is refused before the connection is one, with the reason that all refusals have."""
    sent = await said(app, AUTH | {"Host": "here", "Origin": origin})
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 403
    told = json.loads(sent[1]["body"])
    assert told["code"] == "ORIGIN_NOT_ALLOWED"
    assert dict(sent[0]["headers"])[b"x-request-id"].decode() == told["request_id"]


async def test_this_servers_own_page_is_let_in(app: FastAPI) -> None:
    """Its origin is what the Host header names; here it only learns that there is no engine."""
    for headers in ({"Host": "here:8000", "Origin": "http://here:8000"}, {}):
        assert (await said(app, AUTH | headers))[0]["type"] == "websocket.accept"


async def test_an_unexpected_exception_is_told_to_the_log_alone(app: FastAPI, parts: Parts) -> None:
    """A trace shows paths and values; the caller gets the id to ask with, and nothing escapes to uvicorn."""
    app.state.services = dataclasses.replace(parts.services, live=Broken())  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logged:
        sent = await said(app, AUTH | {"X-Request-ID": "live-17"})
    told = json.loads(sent[1]["text"])
    assert (told["code"], told["status"], told["request_id"]) == ("INTERNAL_ERROR", 500, "live-17")
    assert (sent[-1]["type"], sent[-1]["code"]) == ("websocket.close", 1011)
    assert "secret detail" not in str(sent)
    assert any(isinstance(entry.get("exc_info"), ZeroDivisionError) for entry in logged)


@pytest.mark.parametrize(
    ("message", "code", "closed"),
    [
        ("[" * 200_000, "INVALID_REQUEST", 4422),
        ('{"type":' + "9" * 5_000 + "}", "INVALID_REQUEST", 4422),
        ('{"type":"start","key":"\\ud800"}', "UNAUTHORIZED", 4401),
    ],
    ids=["depth", "number", "half a character"],
)
async def test_a_strange_message_is_a_callers_fault(app: FastAPI, message: str, code: str, closed: int) -> None:
    """Whoever may connect may send it, and could fill the log with traces."""
    with structlog.testing.capture_logs() as logged:
        told, end = (await said(app, {}, message))[1:]
    assert (json.loads(told["text"])["code"], end["code"]) == (code, closed)
    assert not any("exc_info" in entry for entry in logged)
