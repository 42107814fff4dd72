"""Answers that begin before the work is over: what is sent when, what becomes of errors, and of callers who leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import api.streaming
from errors import UnsupportedMedia, WorkerCrashed
from tests.fakes import AUTH, Caller, Parts

QUERY = "stream=true"
RAW = {**AUTH, "Content-Type": "application/octet-stream"}


def events(body: str) -> list[tuple[str, dict[str, Any]]]:
    told = []
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            told.append((fields["event"], json.loads(fields["data"])))
    return told


async def asked(client: httpx.AsyncClient, **parameters: str) -> httpx.Response:
    return await client.post("/transcribe", params={"stream": "true", **parameters}, files={"file": b"so it was"})


async def until_sent(caller: Caller, words: bytes) -> None:
    for _ in range(10_000):
        if any(words in message.get("body", b"") for message in caller.messages):
            return
        await asyncio.sleep(0)
    raise AssertionError("it was never sent")


async def test_what_is_heard_is_sent_and_then_the_whole(client: httpx.AsyncClient) -> None:
    answer = await asked(client)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    assert [kind for kind, _ in told] == ["segment", "transcript"]
    assert (told[0][1]["text"], told[1][1]["text"]) == ("so it was", "so it was")


async def test_the_whole_is_written_as_was_asked(client: httpx.AsyncClient) -> None:
    """Text that is no JSON is told as text."""
    told = events((await asked(client, response_format="srt")).text)
    assert told[-1][1]["text"].startswith("1\n00:00:00,000 --> ")


async def test_what_fails_before_the_first_event_has_a_status_of_its_own(
    client: httpx.AsyncClient, parts: Parts
) -> None:
    async def refuse(*_: object) -> None:
        raise UnsupportedMedia

    parts.transcriber.run = refuse  # type: ignore[method-assign, assignment]
    answer = await asked(client)
    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA")


async def test_what_fails_later_is_told_as_the_last_event(client: httpx.AsyncClient, parts: Parts) -> None:
    """The status has been sent by then."""
    run = parts.transcriber.run

    async def heard_and_failed(*given: Any) -> None:
        await run(*given)
        raise WorkerCrashed

    parts.transcriber.run = heard_and_failed  # type: ignore[method-assign, assignment]
    told = events((await asked(client)).text)
    assert [kind for kind, _ in told] == ["segment", "error"]
    assert (told[1][1]["code"], told[1][1]["status"]) == ("WORKER_CRASHED", 503)


async def test_a_caller_who_waits_long_learns_that_it_was_let_in(
    app: FastAPI, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies close connections on which nothing comes."""
    monkeypatch.setattr(api.streaming, "FIRST_WORD_S", 0.0)
    monkeypatch.setattr(api.streaming, "HEARTBEAT_S", 0.01)
    parts.transcriber.release.clear()
    caller = Caller("/transcribe", [b"so it was"], headers=RAW, query=QUERY)
    calling = asyncio.create_task(caller.call(app))
    await until_sent(caller, b": \n\n")
    assert caller.status == 200
    parts.transcriber.release.set()
    await until_sent(caller, b"event: transcript")
    caller.gone.set()
    await calling


@pytest.mark.parametrize("heard", [False, True], ids=["before the first event", "after it"])
async def test_who_leaves_ends_the_work(
    app: FastAPI, parts: Parts, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """And leaves no file, and no place at the gate."""
    monkeypatch.setattr(api.streaming, "FIRST_WORD_S", 0.0)
    parts.transcriber.release.clear()
    caller = Caller("/transcribe", [b"so it was"], headers=RAW, query=QUERY)
    calling = asyncio.create_task(caller.call(app))
    await parts.transcriber.started.wait()
    if heard:
        await until_status(caller)
    caller.gone.set()
    with contextlib.suppress(Exception):
        await calling
    assert parts.transcriber.cancelled
    assert list(parts.work_folder.iterdir()) == []
    assert parts.services.admission.lanes["transcription"].active == {}  # type: ignore[index]


async def until_status(caller: Caller) -> None:
    for _ in range(10_000):
        if caller.status is not None:
            return
        await asyncio.sleep(0)
    raise AssertionError("nothing was sent")
