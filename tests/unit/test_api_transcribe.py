"""POST /transcribe: one audio in, one transcript out, nothing left behind."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.schemas import TranscriptionSchema, VerboseTranscriptionSchema
from errors import AudioTooLong, DownloadFailed, NotReady, ServiceError, WorkerCrashed
from tests.fakes import AUTH, OWNER, Caller, Parts
from transcription.core import Priority

WAV = {"Content-Type": "audio/wav"}
FILE = {"file": ("a.wav", b"hello")}


def left_behind(parts: Parts) -> list[Path]:
    return list(parts.work_folder.rglob("*"))


async def test_an_uploaded_file_is_transcribed(client: httpx.AsyncClient, parts: Parts) -> None:
    """The main thing."""
    answer = await client.post("/transcribe", files=FILE)
    assert answer.status_code == 200
    assert answer.json()["text"] == "hello"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert left_behind(parts) == []


async def test_whose_request_it_is_and_how_urgent_reaches_the_work(client: httpx.AsyncClient, parts: Parts) -> None:
    """Keys take turns, under a name that tells nothing of the key."""
    await client.post("/transcribe", files=FILE)
    await client.post("/transcribe", files=FILE, headers={"X-Priority": "batch"})
    first, second = parts.transcriber.places
    assert (first.priority, second.priority) == (Priority.INTERACTIVE, Priority.BATCH)
    assert first.key == second.key != ""
    assert AUTH["X-API-Key"] not in first.key


async def test_a_stored_file_is_transcribed_where_it_lies(
    client: httpx.AsyncClient, parts: Parts, tmp_path: Path
) -> None:
    """What /download returned is read, not copied and not removed."""
    (source := tmp_path / "stored.mp3").write_bytes(b"stored words")
    stored = parts.services.media.add(source, owner=OWNER, name="stored.mp3", media_type="audio/mpeg")
    for reference in (stored.id, str(stored.path)):
        answer = await client.post("/transcribe", params={"audio_file": reference})
        assert answer.json()["text"] == "stored words"
    assert parts.transcriber.runs[0][0] == stored.path
    assert stored.path.exists()


async def test_a_link_that_is_refused_is_written_down_nowhere(client: httpx.AsyncClient, parts: Parts) -> None:
    """Whoever sends a megabyte as a link must not have it kept."""
    for link in ("http://127.0.0.1/a.mp3", "http://host.example/" + "a" * 5_000):
        assert (await client.post("/transcribe", json={"url": link})).status_code in (403, 422)
    assert parts.services.desk.store.listed(limit=10) == []


async def test_a_link_is_fetched_and_transcribed(client: httpx.AsyncClient, parts: Parts) -> None:
    """Download and transcription run as one, and the download is seen in the timings."""
    answer = await client.post("/transcribe", json={"url": "http://host.example/a.mp3"})
    assert answer.json()["text"] == "http://host.example/a.mp3"
    timings = answer.json()["timings"]
    assert timings["download"] >= 0
    assert timings["total"] >= 0.6
    assert parts.fetcher.asked[0]["kind"] == "audio"
    assert left_behind(parts) == []


async def test_no_audio_is_an_error(client: httpx.AsyncClient) -> None:
    """Nothing given, in each of the ways to give nothing."""
    for send in ({}, {"data": {"url": ""}}, {"json": {}}):
        answer = await client.post("/transcribe", **send)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (422, "NO_AUDIO"), send


async def test_two_audios_are_an_error(client: httpx.AsyncClient, parts: Parts) -> None:
    """Which one was meant is not ours to guess."""
    for send in ({"params": {"url": "http://x"}}, {"data": {"audio_file": "x"}}):
        answer = await client.post("/transcribe", files=FILE, **send)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (422, "AMBIGUOUS_AUDIO")
    assert parts.transcriber.runs == []
    assert left_behind(parts) == []


async def test_an_empty_file_is_an_error(client: httpx.AsyncClient, parts: Parts) -> None:
    """It is not silence."""
    answer = await client.post("/transcribe", files={"file": ("a.wav", b"")})
    assert (answer.status_code, answer.json()["code"]) == (422, "EMPTY_FILE")
    assert left_behind(parts) == []


async def test_an_unknown_id_is_an_error(client: httpx.AsyncClient) -> None:
    """Ids are given by this server."""
    answer = await client.post("/transcribe", params={"audio_file": "5e0d7c1b9a3f4e21"})
    assert (answer.status_code, answer.json()["code"]) == (404, "FILE_NOT_FOUND")


@pytest.mark.parametrize("error", [AudioTooLong(), WorkerCrashed(), NotReady(), ServiceError()])
async def test_errors_of_the_work_are_told_and_leave_nothing(
    client: httpx.AsyncClient, parts: Parts, error: ServiceError
) -> None:
    """Each with its own status and code."""
    parts.transcriber.error = error
    answer = await client.post("/transcribe", files=FILE)
    assert answer.status_code == error.status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == error.code
    assert answer.json()["detail"] == error.message
    assert left_behind(parts) == []


async def test_a_full_disk_is_told_as_such(client: httpx.AsyncClient, parts: Parts) -> None:
    """507 tells the operator what to do; 500 does not."""
    parts.transcriber.error = OSError(28, "No space left on device")
    answer = await client.post("/transcribe", files=FILE)
    assert (answer.status_code, answer.json()["code"]) == (507, "STORAGE_FULL")


async def test_a_failed_download_starts_no_transcription(client: httpx.AsyncClient, parts: Parts) -> None:
    """Nothing half is transcribed."""
    parts.fetcher.error = DownloadFailed()
    answer = await client.post("/transcribe", params={"url": "http://host.example/a.mp3"})
    assert (answer.status_code, answer.json()["code"]) == (502, "DOWNLOAD_FAILED")
    assert parts.transcriber.runs == []
    assert left_behind(parts) == []


@pytest.mark.parametrize(
    ("response_format", "media_type", "has"),
    [
        ("json", "application/json", '"text":"hello"'),
        ("verbose_json", "application/json", '"language":"english"'),
        ("text", "text/plain; charset=utf-8", "hello\n"),
        ("srt", "application/x-subrip; charset=utf-8", "-->"),
        ("vtt", "text/vtt; charset=utf-8", "WEBVTT"),
        ("tsv", "text/tab-separated-values; charset=utf-8", "start\tend\ttext"),
    ],
)
async def test_each_format_comes_as_its_own_type(
    client: httpx.AsyncClient, response_format: str, media_type: str, has: str
) -> None:
    """Players and programs go by the type."""
    answer = await client.post("/transcribe", params={"response_format": response_format}, files=FILE)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    assert has in answer.text


@pytest.mark.parametrize("response_format", ["srt", "vtt"])
async def test_subtitles_ask_for_words(client: httpx.AsyncClient, parts: Parts, response_format: str) -> None:
    """Cues are cut by word times."""
    await client.post("/transcribe", params={"response_format": response_format}, files=FILE)
    assert parts.transcriber.runs[0][1].word_timestamps is True


@pytest.mark.parametrize("words", ["true", "false"])
async def test_json_is_as_documented(client: httpx.AsyncClient, words: str) -> None:
    """The schemas forbid what they do not name, so that the docs page tells all."""
    query = {"word_timestamps": words}
    plain = await client.post("/transcribe", params=query, files=FILE)
    TranscriptionSchema.model_validate(plain.json())
    verbose = await client.post("/transcribe", params=query | {"response_format": "verbose_json"}, files=FILE)
    VerboseTranscriptionSchema.model_validate(verbose.json())


async def hang_up(app: FastAPI, started: asyncio.Event, **request: Any) -> Caller:
    caller = Caller("/transcribe", headers=AUTH | request.pop("headers", {}), **request)
    call = asyncio.create_task(caller.call(app))
    await started.wait()
    caller.gone.set()
    return await call


async def test_a_hang_up_stops_the_transcription(app: FastAPI, parts: Parts) -> None:
    """Nobody waits for it, and others wait for its place."""
    parts.transcriber.release.clear()
    caller = await hang_up(app, parts.transcriber.started, pieces=[b"hello"], headers=WAV | {"Content-Length": "5"})
    assert parts.transcriber.cancelled
    assert caller.messages == []
    assert left_behind(parts) == []


async def test_a_hang_up_stops_the_download(app: FastAPI, parts: Parts) -> None:
    """The same while the link is still being fetched."""
    parts.fetcher.release.clear()
    caller = await hang_up(app, parts.fetcher.started, query="url=http://host.example/a.mp3")
    assert caller.messages == []
    assert parts.transcriber.runs == []
    assert left_behind(parts) == []


async def test_a_hang_up_in_mid_upload_leaves_nothing(app: FastAPI, parts: Parts) -> None:
    """Half a file is no file."""
    headers = AUTH | WAV | {"Content-Length": str(2**20)}
    caller = Caller("/transcribe", [b"x" * 2**19], headers=headers, ends=False)
    caller.gone.set()
    await caller.call(app)
    assert caller.messages == []
    assert parts.transcriber.runs == []
    assert left_behind(parts) == []


async def test_a_stopping_server_tells_those_who_still_wait(app: FastAPI, parts: Parts) -> None:
    """When the grace period is over the server cancels; a closed connection alone would be no answer."""
    parts.transcriber.release.clear()
    caller = Caller("/transcribe", [b"hello"], headers=AUTH | WAV | {"Content-Length": "5"})
    call = asyncio.create_task(caller.call(app))
    await parts.transcriber.started.wait()
    call.cancel()
    await call
    assert caller.status == 503
    assert json.loads(caller.body)["code"] == "SHUTTING_DOWN"
    assert parts.transcriber.cancelled
    assert left_behind(parts) == []
