"""/jobs/batch: all of a batch is handed in or none of it, and it is looked at and cancelled as one."""

from __future__ import annotations

import asyncio
import itertools
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from fastapi import FastAPI

from access.keyring import Keys
from api.batch import MOST_ENTRIES
from api.uploads import MAX_PARTS
from errors import DownloadFailed, UnsupportedMedia, told_of
from jobs.leases import Leases
from jobs.model import Job, Stage, State
from jobs.store import JobStore
from reservation import Work
from tests import fakes
from tests.fakes import KEY, OWNER, Parts, make_parts
from transcription.core import Priority

OTHER_KEY = "another-key-4567"
LINKS = ["https://example.com/one.mp3", "https://example.com/two.mp3"]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path, keys=Keys([KEY, OTHER_KEY], batch_keys=[OTHER_KEY]), max_queued=5)


@pytest.fixture
def store(parts: Parts) -> JobStore:
    return parts.services.desk.store


@pytest.fixture
def leases(parts: Parts) -> Leases:
    """Somebody else who does jobs."""
    return Leases(fakes.OPENED[-1], "elsewhere")


async def handed_in(client: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    answer = await client.post("/jobs/batch", json={"urls": LINKS} | asked)
    assert answer.status_code == 202, answer.text
    answered: dict[str, Any] = answer.json()
    return answered


def claimed(leases: Leases) -> Job:
    job = leases.claim([Work.TRANSCRIPTION])
    assert job
    return job


# --- handed in -----------------------------------------------------------------------------------------------------


async def test_each_entry_becomes_a_job_of_one_batch(
    client: httpx.AsyncClient, parts: Parts, store: JobStore, tmp_path: Path
) -> None:
    """Links first, then files, each list in its order."""
    (source := tmp_path / "stored.mp3").write_bytes(b"stored words")
    stored = parts.services.media.add(source, owner=OWNER, name="stored.mp3", media_type="audio/mpeg")
    answer = await client.post(
        "/jobs/batch",
        json={
            "urls": LINKS,
            "files": [stored.id, str(stored.path)],
            "options": {"model_size": "small", "language": "English", "response_format": "srt", "reuse": True},
            "callback_url": "https://example.com/told",
        },
    )
    assert answer.status_code == 202
    batch_id, ids = answer.json()["batch_id"], answer.json()["jobs"]
    assert answer.json()["status_url"] == answer.headers["location"] == f"/jobs/batch/{batch_id}"
    jobs = [store.get(id) for id in ids]
    assert [job.source.get("url") for job in jobs] == [*LINKS, None, None]
    assert [job.source.get("file") for job in jobs] == [None, None, stored.id, str(stored.path)]
    assert [job.size for job in jobs] == [None, None, 10.0, 10.0]
    for job in jobs:
        assert (job.batch_id, job.state, job.work) == (batch_id, State.QUEUED, Work.TRANSCRIPTION)
        assert (job.options["model"], job.options["language"]) == ("small", "en")
        assert job.source["response_format"] == "srt"
        assert job.callback_url == "https://example.com/told"
        assert job.reuse


async def test_a_batch_is_done_like_any_other_jobs(client: httpx.AsyncClient, parts: Parts) -> None:
    """From the request to the transcripts."""
    async with parts.runner:
        made = await handed_in(client)
        await asyncio.gather(*(parts.services.desk.finished(id) for id in made["jobs"]))
        texts = [(await client.get(f"/jobs/{id}/result")).json()["text"] for id in made["jobs"]]
    assert texts == LINKS


async def test_nobody_who_waits_for_an_answer_is_held_up_by_a_batch(client: httpx.AsyncClient, store: JobStore) -> None:
    """Unless it says so, where its key may."""

    async def priority(**headers: str) -> int:
        answer = await client.post("/jobs/batch", json={"urls": LINKS[:1]}, headers=headers)
        return store.get(answer.json()["jobs"][0]).priority

    assert await priority() == Priority.BATCH
    assert await priority(**{"X-Priority": "interactive"}) == Priority.INTERACTIVE
    assert await priority(**{"X-Priority": "interactive", "X-API-Key": OTHER_KEY}) == Priority.BATCH


async def test_the_same_idempotency_key_gives_the_same_batch(client: httpx.AsyncClient, store: JobStore) -> None:
    """A caller that never had the answer asks again, and makes no second batch."""
    headers = {"Idempotency-Key": "monday"}
    first, again = [await client.post("/jobs/batch", json={"urls": LINKS}, headers=headers) for _ in range(2)]
    assert again.json() == first.json()
    assert len(store.listed()) == 2
    other = await client.post("/jobs/batch", json={"urls": LINKS[::-1]}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert len(store.listed()) == 2


# --- refused -------------------------------------------------------------------------------------------------------


async def refusal(client: httpx.AsyncClient, store: JobStore, **how: Any) -> dict[str, Any]:
    """What was answered; nothing may have been written."""
    answer = await client.post("/jobs/batch", **how)
    assert store.listed() == []
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    return problem


async def test_every_wrong_entry_is_named_and_none_is_made(
    client: httpx.AsyncClient, store: JobStore, parts: Parts
) -> None:
    """Whoever mends a list of a thousand wants to do so once."""
    urls = [LINKS[0], "ftp://example.com/a.mp3", "http://127.0.0.1/a.mp3"]
    problem = await refusal(client, store, json={"urls": urls, "files": ["5e0d7c1b9a3f4e21", "/etc/passwd"]})
    assert (problem["status"], problem["code"]) == (422, "INVALID_REQUEST")
    assert [(one["name"], one["detail"].partition(":")[0]) for one in problem["errors"]] == [
        ("urls.1", "INVALID_URL"),
        ("urls.2", "URL_NOT_ALLOWED"),
        ("files.0", "FILE_NOT_FOUND"),
        ("files.1", "PATH_NOT_ALLOWED"),
    ]


async def test_a_file_that_is_no_recording_is_refused_at_once(
    client: httpx.AsyncClient, store: JobStore, parts: Parts, tmp_path: Path
) -> None:
    """Not an hour later, by a failed job."""
    (source := tmp_path / "stored.txt").write_bytes(b"no sound")
    stored = parts.services.media.add(source, owner=OWNER, name="stored.txt", media_type="audio/mpeg")
    parts.transcriber.error = UnsupportedMedia()
    problem = await refusal(client, store, json={"urls": LINKS, "files": [stored.id]})
    assert [(one["name"], one["detail"].partition(":")[0]) for one in problem["errors"]] == [
        ("files.0", "UNSUPPORTED_MEDIA")
    ]


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({}, "NO_AUDIO", "urls"),
        ({"urls": []}, "NO_AUDIO", "urls"),
        ({"urls": "https://example.com/a.mp3"}, "INVALID_REQUEST", "urls: "),
        ({"urls": [LINKS[0], 3]}, "INVALID_REQUEST", "urls.1: "),
        ({"url": LINKS[0]}, "INVALID_REQUEST", "did you mean urls?"),
        ({"urls": LINKS * 500, "files": ["a"]}, "INVALID_REQUEST", f"{MOST_ENTRIES}"),
        ({"urls": LINKS, "options": {"beam_size": 99}}, "INVALID_REQUEST", "options.beam_size: "),
        ({"urls": LINKS, "options": {"languge": "en"}}, "INVALID_REQUEST", "did you mean language?"),
        ({"urls": LINKS, "options": {"url": LINKS[0]}}, "INVALID_REQUEST", "options.url: "),
        ({"urls": LINKS, "options": {"mode": "sync"}}, "INVALID_REQUEST", "options.mode: "),
        ({"urls": LINKS, "options": {"callback_url": "https://a/"}}, "INVALID_REQUEST", "options.callback_url: "),
        ({"urls": LINKS, "options": "language=en"}, "INVALID_REQUEST", "options: "),
        ({"urls": LINKS, "options": [["language", "en"]]}, "INVALID_REQUEST", "options: "),
        ({"urls": LINKS, "options": {"model_size": "giant"}}, "UNKNOWN_MODEL", ""),
        ({"urls": LINKS, "options": {"model_size": "tiny.en", "language": "de"}}, "UNSUPPORTED_LANGUAGE", ""),
        ({"urls": LINKS, "callback_url": "http://10.0.0.1/"}, "URL_NOT_ALLOWED", ""),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    client: httpx.AsyncClient, store: JobStore, body: dict[str, Any], code: str, says: str
) -> None:
    """In a sentence that says where it stands."""
    problem = await refusal(client, store, json=body)
    assert problem["code"] == code
    assert says in problem["detail"]


async def test_all_wrong_entries_of_a_whole_batch_are_named(client: httpx.AsyncClient, store: JobStore) -> None:
    """More than other answers tell: they are mended in one go."""
    problem = await refusal(client, store, json={"files": ["/etc/passwd"] * 100})
    assert [one["name"] for one in problem["errors"]] == [f"files.{n}" for n in range(100)]


async def test_links_are_looked_at_beside_the_event_loop(client: httpx.AsyncClient, parts: Parts) -> None:
    """One of many accents takes 40 ms: all of a batch would stop everybody for seconds."""
    threads: list[threading.Thread] = []
    with patch.object(parts.fetcher, "check", lambda url: threads.append(threading.current_thread())):
        assert (await client.post("/jobs/batch", json={"urls": LINKS})).status_code == 202
    assert len(threads) == len(LINKS)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("field", ["urls", "files"])
async def test_a_batch_that_is_far_too_long_is_refused_as_one(
    client: httpx.AsyncClient, store: JobStore, field: str
) -> None:
    """Not entry by entry: 200,000 wrong ones were told in 22 MB."""
    problem = await refusal(client, store, json={field: [1] * (MOST_ENTRIES + 1)})
    assert [one["name"] for one in problem["errors"]] == [field]
    assert str(MOST_ENTRIES) in problem["detail"]


async def test_options_are_no_more_than_a_form_holds(client: httpx.AsyncClient, store: JobStore) -> None:
    """Refused as one, also where each is one that a batch does not take."""
    pairs = ", ".join(['"url": 1'] * (MAX_PARTS + 1))
    content = f'{{"urls": ["https://example.com/a.mp3"], "options": {{{pairs}}}}}'
    problem = await refusal(client, store, content=content, headers={"Content-Type": "application/json"})
    assert [one["name"] for one in problem["errors"]] == ["options"]


async def test_an_option_whose_name_is_no_text_is_refused(client: httpx.AsyncClient, store: JobStore) -> None:
    """JSON can write half of a character, which no answer can hold."""
    content = rb'{"urls": ["https://example.com/a.mp3"], "options": {"\ud800": 1}}'
    problem = await refusal(client, store, content=content, headers={"Content-Type": "application/json"})
    assert [one["name"] for one in problem["errors"]] == [r"options.\ud800"]


async def test_an_option_that_is_given_twice_is_refused(client: httpx.AsyncClient, store: JobStore) -> None:
    """Which one was meant is not ours to guess."""
    content = b'{"urls": ["https://example.com/a.mp3"], "options": {"language": "en", "language": "de"}}'
    problem = await refusal(client, store, content=content, headers={"Content-Type": "application/json"})
    assert [one["name"] for one in problem["errors"]] == ["options.language"]


@pytest.mark.parametrize("how", [{"files": {"file": ("a.wav", b"hello")}}, {"data": {"urls": LINKS[0]}}, {}])
async def test_a_batch_is_json(client: httpx.AsyncClient, store: JobStore, parts: Parts, how: dict[str, Any]) -> None:
    """An upload is not read at all."""
    problem = await refusal(client, store, **how)
    assert problem["code"] == "INVALID_REQUEST"
    assert "JSON" in problem["detail"]
    assert list(parts.work_folder.iterdir()) == []


async def test_a_batch_larger_than_the_room_in_the_queue_is_refused_whole(
    client: httpx.AsyncClient, store: JobStore
) -> None:
    """Half a batch would be done twice by whoever tries again."""
    problem = await refusal(client, store, json={"urls": LINKS * 3})
    assert (problem["status"], problem["code"]) == (429, "QUEUE_FULL")
    await handed_in(client, urls=[*LINKS * 2, LINKS[0]])


async def test_a_model_that_no_engine_can_hold_is_refused(tmp_path: Path) -> None:
    """As by /transcribe."""
    from api.application import assemble

    app = assemble()
    (tmp_path / "small").mkdir()
    app.state.services = (small := make_parts(tmp_path / "small", memory_bytes=1024 * fakes.MIB)).services
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=fakes.AUTH) as client:
        body = {"urls": LINKS, "options": {"model_size": "large-v3"}}
        problem = await refusal(client, small.services.desk.store, json=body)
    assert (problem["status"], problem["code"]) == (413, "TOO_LARGE")


async def test_a_server_that_stops_takes_no_batch(client: httpx.AsyncClient, store: JobStore, parts: Parts) -> None:
    """The next one will."""
    parts.services.admission.close()
    problem = await refusal(client, store, json={"urls": LINKS})
    assert problem["code"] == "SHUTTING_DOWN"


async def test_a_key_that_has_had_its_audio_hands_no_batch_in(tmp_path: Path) -> None:
    """The lengths of all its files count together."""
    from api.application import assemble

    app = assemble()
    (tmp_path / "a").mkdir()
    made = make_parts(tmp_path / "a", max_audio_s_a_day=25.0)
    app.state.services = made.services
    (source := tmp_path / "stored.mp3").write_bytes(b"stored words")
    stored = made.services.media.add(source, owner=OWNER, name="stored.mp3", media_type="audio/mpeg")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=fakes.AUTH) as client:
        problem = await refusal(client, made.services.desk.store, json={"files": [stored.id] * 3})
        assert (problem["status"], problem["code"]) == (429, "QUOTA_USED")
        await handed_in(client, urls=[], files=[stored.id] * 2)


# --- looked at -----------------------------------------------------------------------------------------------------


async def test_a_batch_is_summed_up(client: httpx.AsyncClient, store: JobStore, leases: Leases) -> None:
    """One request tells what a thousand would."""
    made = await handed_in(client, urls=[*LINKS, *LINKS])
    await handed_in(client, urls=LINKS[:1])
    done, failed, running = (claimed(leases) for _ in range(3))
    leases.end(done, State.SUCCEEDED, values={"size": 60.0, "done": 58.5}, result="{}")
    leases.end(failed, State.FAILED, error=told_of(DownloadFailed()))
    leases.advance(running, (), {"size": 30.0, "done": 12.25, "stage": Stage.TRANSCRIBING})
    answer = await client.get(f"/jobs/batch/{made['batch_id']}")
    assert answer.status_code == 200
    states = ["succeeded", "failed", "running", "queued"]
    assert answer.json() == {
        "batch_id": made["batch_id"],
        "states": dict.fromkeys(states, 1) | {"cancelled": 0},
        "audio_seconds": 72.25,
        "of_audio_seconds": 90.0,
        "expected_end": None,
        "jobs": [{"id": id, "state": state} for id, state in zip(made["jobs"], states, strict=True)],
    }


async def test_the_end_of_a_batch_is_expected_by_what_is_left_of_it(
    client: httpx.AsyncClient, parts: Parts, leases: Leases
) -> None:
    """A link that is not fetched yet counts as long as the others are."""
    made = await handed_in(client, urls=[*LINKS, *LINKS])
    done, running = claimed(leases), claimed(leases)
    leases.end(done, State.SUCCEEDED, values={"size": 60_000.0, "done": 60_000.0}, result="{}")
    leases.advance(running, (), {"size": 40_000.0, "done": 10_000.0, "stage": Stage.TRANSCRIBING})
    speed = parts.services.admission.lanes[Work.TRANSCRIPTION].speed
    seconds = itertools.count()
    speed._clock = lambda: float(next(seconds))
    speed.at_work(True)
    speed.add(10.0)
    speed.at_work(False)
    summary = (await client.get(f"/jobs/batch/{made['batch_id']}")).json()
    left_s = (datetime.fromisoformat(summary["expected_end"]) - datetime.now(UTC)).total_seconds()
    per_s = speed.per_s
    assert per_s
    assert left_s * per_s == pytest.approx(30_000.0 + 50_000.0 + 50_000.0, rel=0.05)


async def test_another_keys_batch_is_not_there(client: httpx.AsyncClient, store: JobStore) -> None:
    """Neither to be seen nor to be cancelled."""
    made = await handed_in(client)
    for method, batch_id, key in (
        ("GET", made["batch_id"], OTHER_KEY),
        ("DELETE", made["batch_id"], OTHER_KEY),
        ("GET", "0" * 32, KEY),
        ("DELETE", "0" * 32, KEY),
    ):
        answer = await client.request(method, f"/jobs/batch/{batch_id}", headers={"X-API-Key": key})
        assert (answer.status_code, answer.json()["code"]) == (404, "JOB_NOT_FOUND")
    assert {job.state for job in store.listed()} == {State.QUEUED}


async def test_a_batch_needs_a_key(app: FastAPI) -> None:
    """As everything does."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        for method, path in (("POST", "/jobs/batch"), ("GET", "/jobs/batch/x"), ("DELETE", "/jobs/batch/x")):
            assert (await client.request(method, path)).status_code == 401


# --- cancelled -----------------------------------------------------------------------------------------------------


async def test_all_of_a_batch_that_is_not_over_is_cancelled(
    client: httpx.AsyncClient, store: JobStore, leases: Leases
) -> None:
    """What is done stays done, and other batches are left alone."""
    made = await handed_in(client, urls=[*LINKS, *LINKS])
    other = await handed_in(client, urls=LINKS[:1])
    done, running = claimed(leases), claimed(leases)
    leases.end(done, State.SUCCEEDED, result="{}")
    answer = await client.delete(f"/jobs/batch/{made['batch_id']}")
    assert answer.status_code == 200
    assert [job["state"] for job in answer.json()["jobs"]] == ["succeeded", "running", "cancelled", "cancelled"]
    assert leases.cancelled() == {running.id}
    assert store.get(other["jobs"][0]).state is State.QUEUED


async def test_a_batch_that_is_over_can_be_cancelled_again(client: httpx.AsyncClient) -> None:
    """Nothing happens."""
    made = await handed_in(client)
    for _ in range(2):
        answer = await client.delete(f"/jobs/batch/{made['batch_id']}")
        assert answer.json()["states"]["cancelled"] == 2


# --- documented ----------------------------------------------------------------------------------------------------


def test_a_batchs_options_are_documented_as_those_of_transcribe(app: FastAPI) -> None:
    """But for what a batch says elsewhere."""
    body = app.openapi()["paths"]["/jobs/batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    options = body["properties"]["options"]["properties"]
    transcribe = app.openapi()["paths"]["/transcribe"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(transcribe["properties"]) - set(options) == {"audio_file", "url", "mode", "callback_url"}
