"""POST /subtitle: what it makes of a request, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from api import subtitle
from jobs.model import NewJob
from reservation import Reservation, Work
from tests.fakes import AUTH, OWNER, Parts
from transcription.core import TranscriptionOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from downloads.stored_files import Media, MediaFile

FILE = {"file": ("A talk.mp4", b"pictures", "video/mp4")}


@dataclass
class FakeDesk:
    """Says that the work is done, and what it was."""

    media: Media
    handed_in: list[NewJob] = field(default_factory=list)

    async def attend(self, new: NewJob, upload: Path | None, folder: Path, place: Reservation) -> MediaFile:
        self.handed_in.append(new)
        path = folder / "made.mp4"
        path.write_bytes(upload.read_bytes() if upload else b"stored")
        return self.media.add(path, owner=new.key, name="A talk.mp4", duration_s=2.0)


@pytest.fixture
def desk(parts: Parts) -> FakeDesk:
    return FakeDesk(parts.services.media)


@pytest.fixture
async def client(app: FastAPI, parts: Parts, desk: FakeDesk) -> AsyncIterator[httpx.AsyncClient]:
    app.state.services = replace(parts.services, desk=desk)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=AUTH) as client:
        yield client


def options_of(new: NewJob) -> TranscriptionOptions:
    return subtitle.OPTIONS.validate_python(new.options)


async def test_a_video_is_transcribed_for_its_subtitles(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    """Cues are cut by word times; the rest is as in /transcribe."""
    query = {"language": "german", "burn": "true", "diarize": "true", "max_speakers": "3", "filter_fillers": "1"}
    answer = await client.post("/subtitle", params=query | {"model_size": "tiny"}, files=FILE)
    assert answer.status_code == 200
    (new,) = desk.handed_in
    assert (new.work, new.source) == (Work.TRANSCRIPTION, {"name": "A talk.mp4", "video": True, "burn": True})
    options = options_of(new)
    assert (options.model, options.language, options.word_timestamps) == ("tiny", "de", True)
    assert (options.diarize, options.max_speakers, options.drop_fillers) == (True, 3, True)


async def test_the_answer_is_a_stored_file(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    answer = (await client.post("/subtitle", files=FILE)).json()
    stored = desk.media.get(answer["id"], OWNER)
    assert answer["video_file"] == answer["id"]
    assert (answer["media_type"], answer["bytes"], answer["duration"]) == ("video/mp4", 8, 2.0)
    assert stored.path.read_bytes() == b"pictures"


async def test_a_stored_video_is_named(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    answer = await client.post("/subtitle", json={"video_file": "0" * 32, "task": "translate"})
    assert answer.status_code == 200
    (new,) = desk.handed_in
    assert new.source == {"file": "0" * 32, "video": True, "burn": False}
    assert options_of(new).task == "translate"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({}, 422, "NO_AUDIO"),
        ({"files": FILE, "params": {"video_file": "0" * 32}}, 422, "AMBIGUOUS_AUDIO"),
        ({"files": {"file": ("a.mp4", b"", "video/mp4")}}, 422, "EMPTY_FILE"),
        ({"files": FILE, "params": {"beam_size": "17"}}, 422, "INVALID_REQUEST"),
        ({"files": FILE, "params": {"num_speakers": "2"}}, 422, "INVALID_REQUEST"),
        ({"files": FILE, "params": {"model_size": "giant"}}, 422, "UNKNOWN_MODEL"),
        ({"files": FILE, "params": {"language": "klingon"}}, 422, "UNSUPPORTED_LANGUAGE"),
        ({"files": FILE, "params": {"response_format": "srt"}}, 422, "INVALID_REQUEST"),
        ({"files": FILE, "params": {"url": "http://host/a.mp4"}}, 422, "INVALID_REQUEST"),
    ],
)
async def test_what_transcribe_refuses_is_refused(
    client: httpx.AsyncClient, desk: FakeDesk, request_: dict[str, Any], status: int, code: str
) -> None:
    """And what makes no sense here: one format, no link."""
    answer = await client.post("/subtitle", **request_)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert desk.handed_in == []


async def test_the_refusal_names_the_parameter(client: httpx.AsyncClient) -> None:
    answer = await client.post("/subtitle", params={"beam_size": "17"}, files=FILE)
    assert "beam_size" in answer.text


async def test_a_key_is_needed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/subtitle", files=FILE, headers={"X-API-Key": "wrong"})
    assert answer.status_code == 401


def test_the_parameters_are_those_of_transcribe() -> None:
    """One that is renamed there would be refused here."""
    own = {"video_file", "burn"}
    assert set(subtitle.SubtitleParameters.model_fields) - own <= set(subtitle.TranscribeParameters.model_fields)
