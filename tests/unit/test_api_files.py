"""Stored files over HTTP: each key sees its own alone, whatever it asks, and cannot tell others' from none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from access.keyring import Keys
from downloads.extract import ExtractOptions
from downloads.stored_files import MediaFile
from jobs.crew import EXTRACT_OPTIONS, OPTIONS
from jobs.leases import Leases
from jobs.model import Job, NewJob, State
from reservation import Work
from tests import fakes
from tests.fakes import KEY, OWNER, Parts, make_parts, owner_of
from transcription.core import TranscriptionOptions

OTHER_KEY = "another-api-key-456"
OTHER = owner_of(OTHER_KEY)
THEIRS = {"X-API-Key": OTHER_KEY}
UNKNOWN = "0" * 32


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path, keys=Keys([KEY, OTHER_KEY]))


@pytest.fixture
def stored(parts: Parts, tmp_path: Path) -> MediaFile:
    (source := tmp_path / "a.mp3").write_bytes(b"what was said")
    return parts.services.media.add(source, owner=OWNER, name="a.mp3")


async def told(client: httpx.AsyncClient, method: str, path: str, **asked: Any) -> tuple[int, dict[str, Any]]:
    """What the other key is answered, but for what differs in every answer."""
    answer = await client.request(method, path, headers=THEIRS, **asked)
    problem: dict[str, Any] = answer.json()
    del problem["request_id"]
    return answer.status_code, problem


def references(media_id: str, folder: Path) -> list[str]:
    return [media_id, f"{media_id}.mp3", str(folder / f"{media_id}.mp3")]


async def test_what_is_anothers_is_as_if_it_were_not_there(client: httpx.AsyncClient, stored: MediaFile) -> None:
    """Neither sent nor deleted, and the answer is the one to an id that nobody has."""
    for method in ("GET", "DELETE"):
        seen = await told(client, method, f"/files/{stored.id}")
        assert seen == await told(client, method, f"/files/{UNKNOWN}")
        assert (seen[0], seen[1]["code"]) == (404, "FILE_NOT_FOUND")
    assert (await client.get("/files", headers=THEIRS)).json() == {"files": []}
    assert [file["id"] for file in (await client.get("/files")).json()["files"]] == [stored.id]
    assert stored.path.exists()


@pytest.mark.parametrize(
    ("path", "name", "query"),
    [
        ("/transcribe", "audio_file", {}),
        ("/transcribe", "audio_file", {"mode": "async"}),
        ("/transcribe", "audio_file", {"stream": "true"}),
        ("/extract-audio", "video_file", {}),
        ("/extract-audio", "video_file", {"mode": "async"}),
        ("/subtitle", "video_file", {}),
        ("/subtitle", "video_file", {"mode": "async"}),
    ],
)
async def test_no_work_is_done_on_anothers_file(
    client: httpx.AsyncClient, parts: Parts, stored: MediaFile, path: str, name: str, query: dict[str, str]
) -> None:
    """By none of its names, and no job waits that could be."""
    folder = stored.path.parent
    for ours, nobodys in zip(references(stored.id, folder), references(UNKNOWN, folder), strict=True):
        seen = await told(client, "POST", path, params=query | {name: ours})
        assert seen == await told(client, "POST", path, params=query | {name: nobodys})
        assert (seen[0], seen[1]["code"]) == (404, "FILE_NOT_FOUND")
    assert parts.transcriber.runs == []
    assert [job for job in parts.services.desk.store.listed() if not job.state.is_over] == []


async def test_no_batch_takes_anothers_file(client: httpx.AsyncClient, parts: Parts, stored: MediaFile) -> None:
    folder = stored.path.parent
    for ours, nobodys in zip(references(stored.id, folder), references(UNKNOWN, folder), strict=True):
        seen = await told(client, "POST", "/jobs/batch", json={"files": [ours]})
        assert seen == await told(client, "POST", "/jobs/batch", json={"files": [nobodys]})
        assert (seen[0], seen[1]["errors"][0]["detail"].partition(":")[0]) == (422, "FILE_NOT_FOUND")
    assert parts.services.desk.store.listed() == []


async def test_what_a_key_has_had_made_is_its_own(client: httpx.AsyncClient, parts: Parts) -> None:
    """As what its other calls take and list."""
    made = (await client.post("/download", json={"url": "http://host.example/a.mp3"}, headers=THEIRS)).json()
    assert parts.services.media.get(made["id"], OTHER).name == "A talk.mp3"
    answer = await client.post("/transcribe", params={"audio_file": made["path"]}, headers=THEIRS)
    assert answer.json()["text"] == "http://host.example/a.mp3"
    assert (await client.get(f"/files/{made['id']}")).status_code == 404


def handed_in(parts: Parts, work: Work, media_id: str) -> Job:
    """A job that names a file, and has come past the door."""
    options = {
        Work.TRANSCRIPTION: OPTIONS.dump_python(TranscriptionOptions("base", "en"), mode="json"),
        Work.EXTRACTION: EXTRACT_OPTIONS.dump_python(ExtractOptions(), mode="json"),
    }
    job, _ = parts.services.desk.store.submit(NewJob(work, OTHER, 0, {"file": media_id}, options.get(work, {})))
    return job


@pytest.mark.parametrize("work", [Work.TRANSCRIPTION, Work.EXTRACTION])
async def test_a_job_that_names_anothers_file_fails_and_fails_again(
    client: httpx.AsyncClient, parts: Parts, stored: MediaFile, work: Work
) -> None:
    """Whoever does it, here or on another machine, goes by the job's own key; so does a second try."""
    job = handed_in(parts, work, stored.id)
    async with parts.runner:
        for _ in range(2):
            done = await parts.services.desk.finished(job.id)
            assert (done.state, (done.error or {})["code"]) == (State.FAILED, "FILE_NOT_FOUND")
            assert (await client.post(f"/jobs/{job.id}/retry", headers=THEIRS)).status_code == 200
    assert parts.transcriber.runs == []


async def test_a_retried_job_finds_its_own_keys_file(client: httpx.AsyncClient, parts: Parts, tmp_path: Path) -> None:
    (source := tmp_path / "b.mp3").write_bytes(b"theirs")
    own = parts.services.media.add(source, owner=OTHER, name="b.mp3")
    job = handed_in(parts, Work.TRANSCRIPTION, own.id)
    parts.services.desk.store.cancel(job.id)
    await client.post(f"/jobs/{job.id}/retry", headers=THEIRS)
    async with parts.runner:
        assert (await parts.services.desk.finished(job.id)).state is State.SUCCEEDED


async def test_a_jobs_result_is_a_file_of_its_key_or_none(
    client: httpx.AsyncClient, parts: Parts, stored: MediaFile, tmp_path: Path
) -> None:
    (source := tmp_path / "b.mp3").write_bytes(b"theirs")
    own = parts.services.media.add(source, owner=OTHER, name="b.mp3")
    leases = Leases(fakes.OPENED[-1], "elsewhere")
    for media_id, status in ((own.id, 200), (stored.id, 404)):
        job = handed_in(parts, Work.DOWNLOAD, media_id)
        claimed = leases.claim([Work.DOWNLOAD])
        assert claimed
        leases.end(claimed, State.SUCCEEDED, result=f'{{"file": "{media_id}"}}')
        answer = await client.get(f"/jobs/{job.id}/result", headers=THEIRS)
        assert answer.status_code == status
    assert answer.json()["code"] == "FILE_NOT_FOUND"
