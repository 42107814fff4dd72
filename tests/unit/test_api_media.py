"""Downloads, extraction, and the files they leave."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from downloads.media import MediaStore
from downloads.stored_files import MediaFile
from errors import LinkNotAllowed
from tests.fakes import AUTH, OWNER, Caller, Parts

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def stored(parts: Parts, tmp_path: Path) -> MediaFile:
    (source := tmp_path / "a.mp3").write_bytes(CONTENT)
    return parts.services.media.add(source, owner=OWNER, name='Ein "Ärger"\r\n.mp3', media_type="audio/mpeg")


async def test_a_download_becomes_a_file_that_can_be_transcribed(client: httpx.AsyncClient, parts: Parts) -> None:
    """Its id is all that the next call needs."""
    answer = await client.post(
        "/download", json={"url": "http://host.example/a.mp3", "kind": "video", "max_height": 480}
    )
    assert answer.status_code == 200
    got = answer.json()
    assert got["title"] == "A talk"
    assert got["extractor"] == "generic"
    assert got["media_type"] == "audio/mpeg"
    assert got["bytes"] == len("http://host.example/a.mp3")
    assert parts.services.media.resolve(got["path"], OWNER).read_bytes() == b"http://host.example/a.mp3"
    assert parts.fetcher.asked[0] == {
        "url": "http://host.example/a.mp3",
        "kind": "video",
        "format": None,
        "max_height": 480,
    }
    assert list(parts.work_folder.iterdir()) == []
    transcript = await client.post("/transcribe", params={"audio_file": got["audio_file"]})
    assert transcript.json()["text"] == "http://host.example/a.mp3"


async def test_a_download_without_a_link_is_refused(client: httpx.AsyncClient) -> None:
    """The missing parameter is named."""
    answer = await client.post("/download", params={"kind": "audio"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["name"] == "url"


async def test_a_download_takes_no_file(client: httpx.AsyncClient) -> None:
    """An ignored upload would surprise its sender."""
    answer = await client.post("/download", params={"url": "http://x"}, files={"file": ("a.mp3", b"x")})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["name"] == "file"


async def test_a_refused_link_leaves_nothing(client: httpx.AsyncClient, parts: Parts) -> None:
    """Neither in the store nor in the work folder."""
    parts.fetcher.error = LinkNotAllowed()
    answer = await client.post("/download", params={"url": "http://10.0.0.1/"})
    assert (answer.status_code, answer.json()["code"]) == (403, "URL_NOT_ALLOWED")
    assert list(parts.work_folder.iterdir()) == []
    assert (await client.get("/files")).json() == {"files": []}


async def test_a_hang_up_stops_a_download(app: FastAPI, parts: Parts) -> None:
    """Nobody waits for it."""
    parts.fetcher.release.clear()
    caller = Caller("/download", query="url=http://host.example/a.mp3", headers=AUTH)
    call = asyncio.create_task(caller.call(app))
    await parts.fetcher.started.wait()
    caller.gone.set()
    await call
    assert caller.messages == []
    assert list(parts.work_folder.iterdir()) == []


async def test_extraction_wants_exactly_one_video(client: httpx.AsyncClient) -> None:
    """As /transcribe does."""
    file = {"file": ("a.mp4", b"x")}
    none = await client.post("/extract-audio")
    two = await client.post("/extract-audio", params={"video_file": "x"}, files=file)
    empty = await client.post("/extract-audio", files={"file": ("a.mp4", b"")})
    assert [answer.json()["code"] for answer in (none, two, empty)] == ["NO_AUDIO", "AMBIGUOUS_AUDIO", "EMPTY_FILE"]


@pytest.mark.parametrize(
    ("name", "value"), [("format", "exe"), ("sample_rate", "1"), ("channels", "3"), ("bit_rate", "1")]
)
async def test_extraction_names_what_is_wrong(client: httpx.AsyncClient, name: str, value: str) -> None:
    """Before the video is read."""
    answer = await client.post("/extract-audio", params={name: value}, files={"file": ("a.mp4", b"x")})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["name"] == name


async def test_stored_files_are_listed(client: httpx.AsyncClient, stored: MediaFile) -> None:
    """With what is needed to choose one."""
    (file,) = (await client.get("/files")).json()["files"]
    assert file["id"] == stored.id
    assert file["path"] == stored.path.name, "callers are not told this machine's folders"
    assert file["bytes"] == len(CONTENT)


async def test_a_stored_file_is_sent_under_a_safe_name(client: httpx.AsyncClient, stored: MediaFile) -> None:
    """Titles come from strangers: a quote or a newline must not become a header."""
    answer = await client.get(f"/files/{stored.id}")
    assert answer.content == CONTENT
    assert answer.headers["content-type"] == "audio/mpeg"
    assert answer.headers["x-content-type-options"] == "nosniff"
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; filename")
    assert "\n" not in disposition
    assert disposition.count('"') in (0, 2)


@pytest.mark.parametrize(
    ("asked", "got"),
    [("bytes=0-9", CONTENT[:10]), ("bytes=1000-", CONTENT[1000:]), ("bytes=-4", CONTENT[-4:])],
)
async def test_a_range_of_a_file_is_sent(client: httpx.AsyncClient, stored: MediaFile, asked: str, got: bytes) -> None:
    """Players seek, and broken downloads go on."""
    answer = await client.get(f"/files/{stored.id}", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == got
    assert answer.headers["content-range"].endswith(f"/{len(CONTENT)}")


@pytest.mark.parametrize("asked", ["bytes=5000-", "bytes=x", "lines=1-2"])
async def test_a_range_outside_is_a_problem_like_others(
    client: httpx.AsyncClient, stored: MediaFile, asked: str
) -> None:
    """The framework would answer in plain text."""
    answer = await client.get(f"/files/{stored.id}", headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.json()["code"] == "RANGE_NOT_SATISFIABLE"
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


async def test_a_deleted_file_is_gone(client: httpx.AsyncClient, stored: MediaFile) -> None:
    """From the disk too."""
    answer = await client.delete(f"/files/{stored.id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not stored.path.exists()
    for again in (client.get(f"/files/{stored.id}"), client.delete(f"/files/{stored.id}")):
        assert (await again).json()["code"] == "FILE_NOT_FOUND"


async def test_a_file_that_vanished_is_not_found(client: httpx.AsyncClient, stored: MediaFile) -> None:
    """People tidy up folders by hand."""
    stored.path.unlink()
    assert (await client.get(f"/files/{stored.id}")).status_code == 404


@pytest.mark.parametrize("id", ["..", "%2e%2e%2fapi-key", "x" * 5000, "a%00b"])
async def test_an_odd_id_is_not_found(client: httpx.AsyncClient, id: str) -> None:
    """An id is never a path."""
    assert (await client.get(f"/files/{id}")).status_code == 404


class _Vanishing(MediaStore):
    def get(self, media_id: str, owner: str) -> MediaFile:
        media = super().get(media_id, owner)
        media.path.unlink()
        return media


async def test_a_file_deleted_between_two_looks_is_not_found(
    app: FastAPI, client: httpx.AsyncClient, parts: Parts, stored: MediaFile
) -> None:
    """Another caller may delete it just now: that is no error of the server."""
    app.state.services = dataclasses.replace(parts.services, media=_Vanishing(parts.services.media.root))
    answer = await client.get(f"/files/{stored.id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "FILE_NOT_FOUND")
