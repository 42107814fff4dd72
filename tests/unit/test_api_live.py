"""The connection of WS /transcribe/live before and beside its conversation: who may open it, and the last net."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import structlog
from fastapi import FastAPI

from tests.fakes import AUTH, Caller, Parts


class Broken:
    """In live text's place: every look at it fails."""

    idle_s = 30.0

    async def prepare(self, model: str) -> None:
        raise ZeroDivisionError("secret detail")


async def said(app: FastAPI, headers: dict[str, str]) -> list[dict[str, Any]]:
    """What the server sends to a caller that only connects."""
    sent: list[dict[str, Any]] = []
    coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    coming.put_nowait({"type": "websocket.connect"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = Caller("/transcribe/live", method="GET", headers=AUTH | headers).scope
    scope |= {"type": "websocket", "scheme": "ws", "subprotocols": [], "extensions": {"websocket.http.response": {}}}
    await app(scope, coming.get, send)
    return sent


async def test_a_foreign_page_gets_no_live_text(app: FastAPI) -> None:
    """It is refused before the connection is one, with the reason that all refusals have."""
    sent = await said(app, {"Host": "here", "Origin": "https://evil.example"})
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 403
    told = json.loads(sent[1]["body"])
    assert told["code"] == "ORIGIN_NOT_ALLOWED"
    assert dict(sent[0]["headers"])[b"x-request-id"].decode() == told["request_id"]


async def test_this_servers_own_page_is_let_in(app: FastAPI) -> None:
    """Its origin is what the Host header names; here it only learns that there is no engine."""
    for headers in ({"Host": "here:8000", "Origin": "http://here:8000"}, {}):
        assert (await said(app, headers))[0]["type"] == "websocket.accept"


async def test_an_unexpected_exception_is_told_to_the_log_alone(app: FastAPI, parts: Parts) -> None:
    """A trace shows paths and values; the caller gets the id to ask with, and nothing escapes to uvicorn."""
    app.state.services = dataclasses.replace(parts.services, live=Broken())  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logged:
        sent = await said(app, {"X-Request-ID": "live-17"})
    told = json.loads(sent[1]["text"])
    assert (told["code"], told["status"], told["request_id"]) == ("INTERNAL_ERROR", 500, "live-17")
    assert (sent[-1]["type"], sent[-1]["code"]) == ("websocket.close", 1011)
    assert "secret detail" not in str(sent)
    assert any(isinstance(entry.get("exc_info"), ZeroDivisionError) for entry in logged)
