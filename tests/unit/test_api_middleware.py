"""Around every request: id, log line, shared headers, the last net."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from fastapi import FastAPI

from api.application import assemble
from api.pace import Pace
from api.safe_headers import ALWAYS
from errors import ConfigurationError
from tests.fakes import AUTH, Caller, Parts


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as entries:
        yield entries


async def test_every_answer_carries_a_request_id(app: FastAPI) -> None:
    """It is what a person quotes when something went wrong."""
    for path in ("/health", "/files", "/nowhere"):
        caller = await Caller(path, method="GET").call(app)
        assert re.fullmatch("[0-9a-f]{8}", caller.headers["x-request-id"])


async def test_the_callers_own_id_is_used(app: FastAPI, logged: list[dict[str, Any]]) -> None:
    """Header, body and log must tell the same id."""
    caller = await Caller("/nowhere", method="GET", headers={"X-Request-ID": "job-17"}).call(app)
    assert caller.headers["x-request-id"] == "job-17"
    assert json.loads(caller.body)["request_id"] == "job-17"
    assert logged[-1]["request_id"] == "job-17"


async def test_a_request_id_sent_twice_is_not_used(app: FastAPI) -> None:
    """Nobody could say which one was meant."""
    headers = [(b"X-Request-ID", b"one"), (b"X-Request-ID", b"two")]
    caller = await Caller("/health", method="GET", headers=headers).call(app)
    assert caller.headers["x-request-id"] not in ("one", "two")


async def test_answers_are_neither_sniffed_nor_cached_nor_shared(app: FastAPI) -> None:
    """Transcripts are private; a browser page of another origin has no business here."""
    caller = await Caller("/files", method="GET", headers=AUTH | {"Origin": "https://evil.example"}).call(app)
    assert caller.headers["x-content-type-options"] == "nosniff"
    assert caller.headers["cache-control"] == "no-store"
    assert not [name for name in caller.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health", 200), ("/nowhere", 404), ("/files", 401), ("/docs", 200), ("/openapi.json", 200), ("/v1/models", 401)],
)
async def test_no_answer_can_be_framed_sniffed_or_embedded(app: FastAPI, path: str, status: int) -> None:
    """Errors and pages included; the page at /docs has a policy of its own, as strict as it can be."""
    caller = await Caller(path, method="GET").call(app)
    assert caller.status == status
    told = {name: caller.headers[name] for name in (one.lower() for one in ALWAYS)}
    policy = told.pop("content-security-policy")
    assert told == {name.lower(): value for name, value in ALWAYS.items() if name != "Content-Security-Policy"}
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert ("script-src" in policy) == (path == "/docs")
    assert "strict-transport-security" not in caller.headers


async def test_who_came_by_https_is_told_to_come_so_again(app: FastAPI) -> None:
    """uvicorn puts there what a trusted proxy says; over plain HTTP browsers must not heed the header."""
    caller = Caller("/health", method="GET")
    caller.scope["scheme"] = "https"
    assert (await caller.call(app)).headers["strict-transport-security"] == "max-age=31536000"


async def test_the_last_nets_answer_is_as_safe_as_all_others(app: FastAPI, parts: Parts) -> None:
    """It is written outside all routes."""
    parts.transcriber.error = ZeroDivisionError()
    headers = AUTH | {"Content-Type": "audio/wav", "Content-Length": "5"}
    caller = await Caller("/transcribe", [b"hello"], headers=headers).call(app)
    assert caller.status == 500
    assert caller.headers["x-frame-options"] == "DENY"


async def test_one_line_a_request_without_its_query(app: FastAPI, logged: list[dict[str, Any]]) -> None:
    """Queries hold links with tokens in them."""
    await Caller("/files", method="GET", query="url=https://x/?token=abc", headers=AUTH).call(app)
    (line,) = [entry for entry in logged if "duration_ms" in entry]
    assert line["method"] == "GET"
    assert line["path"] == "/files"
    assert line["status"] == 200
    assert "abc" not in str(logged)


async def test_a_long_path_is_cut_in_the_log(app: FastAPI, logged: list[dict[str, Any]]) -> None:
    """A stranger must not fill the log's disk thousands of characters at a time."""
    await Caller("/" + "a" * 60_000, method="GET").call(app)
    (line,) = [entry for entry in logged if "duration_ms" in entry]
    assert len(str(line)) < 2_000


async def test_an_unexpected_exception_is_told_to_the_log_alone(
    app: FastAPI, parts: Parts, logged: list[dict[str, Any]]
) -> None:
    """A trace shows paths and values; the caller gets the id to ask with."""
    parts.transcriber.error = ZeroDivisionError("secret detail")
    caller = await Caller(
        "/transcribe", [b"hello"], headers=AUTH | {"Content-Type": "audio/wav", "Content-Length": "5"}
    ).call(app)
    assert caller.status == 500
    assert json.loads(caller.body)["code"] == "INTERNAL_ERROR"
    assert b"secret detail" not in caller.body
    assert any(isinstance(entry.get("exc_info"), ZeroDivisionError) for entry in logged)
    assert logged[-1]["status"] == 500


async def test_a_refused_body_is_thrown_away_only_so_far(app: FastAPI) -> None:
    """The answer comes first; what still arrives is dropped within bounds, and the connection closes."""
    pieces = [b"x" * 2**20] * 64
    headers = {"Content-Type": "audio/wav", "Content-Length": str(64 * 2**20)}
    caller = await Caller("/transcribe", pieces, headers=headers).call(app)
    assert caller.status == 401
    assert caller.headers["connection"] == "close"
    assert caller.taken <= 5
    assert caller.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert int(caller.headers["content-length"]) == len(caller.body)


async def test_a_caller_that_waits_for_leave_to_send_is_not_waited_for(app: FastAPI) -> None:
    """With Expect: 100-continue no body ever comes; the answer must be complete all the same."""
    caller = Caller("/transcribe", headers={"Content-Length": "1000", "Expect": "100-continue"}, ends=False)
    caller.gone.set()
    await caller.call(app)
    assert caller.status == 401
    assert caller.messages[-1]["more_body"] is False


async def test_an_answer_to_a_read_body_keeps_the_connection(app: FastAPI) -> None:
    """Closing each time would cost every client a handshake a request."""
    body = b"url=&audio_file="
    headers = AUTH | {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(body))}
    caller = await Caller("/transcribe", [body], headers=headers).call(app)
    assert caller.status == 422
    assert "connection" not in caller.headers


async def test_a_body_with_two_ends_is_not_read(app: FastAPI) -> None:
    """A proxy in front may believe the length, and this server the chunks: what lies between would be a request."""
    headers = AUTH | {"Content-Type": "audio/wav", "Content-Length": "3", "Transfer-Encoding": "chunked"}
    caller = await Caller("/transcribe", [b"one", b"two"], headers=headers).call(app)
    assert (caller.status, json.loads(caller.body)["code"]) == (400, "MALFORMED_REQUEST")
    assert caller.headers["connection"] == "close"


HURRIED = Pace(idle_s=0.01)


class Stalled(Caller):
    """Sends nothing more, and hangs up when it is answered."""

    async def send(self, message: dict[str, Any]) -> None:
        await super().send(message)
        self.gone.set()


@pytest.mark.parametrize(
    ("path", "method", "kind", "pieces"),
    [
        ("/transcribe", "POST", "audio/wav", [b"RIFF"]),
        (
            "/transcribe",
            "POST",
            "multipart/form-data; boundary=b",
            [b"--b\r\nContent-Disposition: form-data"],
        ),
        ("/transcribe", "POST", "application/json", [b'{"url": ']),
        ("/transcribe", "POST", "application/x-www-form-urlencoded", []),
        ("/jobs/batch", "POST", "application/json", [b"{"]),
        ("/vocabulary", "PUT", "text/plain", [b"Steno"]),
    ],
)
async def test_a_body_that_stops_coming_is_not_waited_for(
    parts: Parts, app: FastAPI, path: str, method: str, kind: str, pieces: list[bytes]
) -> None:
    """It would hold its place and its file for ever; whoever reads it and in whatever form it comes."""
    app.state.services = dataclasses.replace(parts.services, pace=HURRIED)
    headers = AUTH | {"Content-Type": kind, "Content-Length": "1000"}
    caller = await Stalled(path, pieces, headers=headers, method=method, ends=False).call(app)
    assert caller.status == 408
    assert json.loads(caller.body)["code"] == "CLIENT_STALLED"
    assert caller.headers["connection"] == "close"
    assert list(parts.work_folder.iterdir()) == []
    assert not any(lane.active for lane in parts.services.admission.lanes.values())


async def test_who_has_sent_all_is_waited_for(parts: Parts, app: FastAPI) -> None:
    """A long transcription must not count as a caller's silence."""
    app.state.services = dataclasses.replace(parts.services, pace=Pace(idle_s=0.0))
    headers = AUTH | {"Content-Type": "audio/wav", "Content-Length": "5"}
    caller = await Caller("/transcribe", [b"hello"], headers=headers).call(app)
    assert caller.status == 200


async def test_settings_that_cannot_work_end_the_start_with_a_sentence() -> None:
    """A traceback buries what to do."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise ConfigurationError("Set API_KEYS.")
        yield

    assert await _start(assemble(lifespan)) == [{"type": "lifespan.startup.failed", "message": "Set API_KEYS."}]


async def test_any_other_failure_to_start_keeps_its_trace() -> None:
    """That one is a bug, and the trace is what mends it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    sent: list[dict[str, Any]] = []
    with pytest.raises(ZeroDivisionError):
        await _start(assemble(lifespan), sent)
    assert "ZeroDivisionError" in sent[0]["message"]


async def _start(app: FastAPI, sent: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    sent = [] if sent is None else sent

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return sent
