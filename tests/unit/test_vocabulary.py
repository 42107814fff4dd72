"""Each key's vocabulary: written, read, forgotten, and heard with."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from access.keyring import Keys
from jobs.vocabulary import KNOWN_FOR_S, Vocabularies
from tests.fakes import KEY, Parts, make_database, make_parts

OTHER = "another-key"


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path, keys=Keys([KEY, OTHER]))


async def written(client: httpx.AsyncClient, text: str | bytes, **headers: str) -> httpx.Response:
    content = text if isinstance(text, bytes) else text.encode()
    return await client.put("/vocabulary", content=content, headers={"Content-Type": "text/plain", **headers})


async def heard_with(client: httpx.AsyncClient, parts: Parts, **parameters: str) -> str | None:
    answer = await client.post("/transcribe", params=parameters, files={"file": b"sound"})
    assert answer.status_code == 200, answer.text
    return parts.transcriber.runs[-1][1].hotwords


async def test_what_was_written_is_heard_with(client: httpx.AsyncClient, parts: Parts) -> None:
    """After what the caller names for this recording, which goes first where there is no room for all."""
    assert await heard_with(client, parts) is None
    assert (await written(client, "Stenogate\n# people\n\n Dr. Grünwald \n")).status_code == 204
    assert await heard_with(client, parts) == "Stenogate, Dr. Grünwald"
    assert await heard_with(client, parts, hotwords="Yankee") == "Yankee, Stenogate, Dr. Grünwald"
    assert (await client.get("/vocabulary")).text.startswith("Stenogate\n# people")
    assert (await client.delete("/vocabulary")).status_code == 204
    assert await heard_with(client, parts) is None


async def test_nobody_elses_words_are_read_or_heard_with(client: httpx.AsyncClient, parts: Parts) -> None:
    """They name people."""
    await written(client, "Grünwald")
    other = {"X-API-Key": OTHER}
    assert (await client.get("/vocabulary", headers=other)).status_code == 404
    assert (await client.delete("/vocabulary", headers=other)).json()["code"] == "VOCABULARY_NOT_FOUND"
    await client.post("/transcribe", files={"file": b"sound"}, headers=other)
    assert parts.transcriber.runs[-1][1].hotwords is None


@pytest.mark.parametrize(
    ("text", "status"),
    [(b"", 422), (b"# only this\n", 422), (b"\xff\xfe", 422), (b"a\x00b", 422), (b"word\n" * 4_000, 413)],
)
async def test_what_is_no_vocabulary_is_refused(client: httpx.AsyncClient, text: bytes, status: int) -> None:
    assert (await written(client, text)).status_code == status
    assert (await client.get("/vocabulary")).status_code == 404


def test_what_another_process_writes_is_seen_soon(tmp_path: Path) -> None:
    """Several servers share a database, and none asks it for each request."""
    now = 0.0
    database = make_database(tmp_path)
    here, there = Vocabularies(database, clock=lambda: now), Vocabularies(database)
    assert here.text("key") == ""
    there.write("key", "word")
    assert here.text("key") == ""
    now = KNOWN_FOR_S + 1
    assert here.text("key") == "word"
