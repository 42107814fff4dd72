"""Jobs over HTTP: handed in, asked for, cancelled, tried again; and each key sees its own alone."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from access.keyring import Keys
from api.application import assemble
from disk import Disk
from errors import ServiceError, StorageFull, StoreUnavailable, UnsupportedMedia
from jobs.model import Job, NewJob, State
from reservation import Work
from tests.fakes import AUTH, KEY, OWNER, Parts, make_parts

OTHER = "another-api-key-456"
FILE = {"file": ("talk.mp3", b"what was said")}
UNKNOWN = "0" * 32


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path, keys=Keys([KEY, OTHER]))


def opened(parts: Parts) -> httpx.AsyncClient:
    app = assemble()
    app.state.services = parts.services
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", headers=AUTH)


async def handed_in(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await client.post("/transcribe", files=FILE, params={"mode": "async"} | query)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def state_of(client: httpx.AsyncClient, job: dict[str, Any], *wanted: State) -> dict[str, Any]:
    """The job, when it has come to one of the wanted states."""
    for _ in range(200_000):
        document: dict[str, Any] = (await client.get(f"/jobs/{job['id']}")).json()
        if document["state"] in wanted:
            return document
        await asyncio.sleep(0)
    raise AssertionError(f"never {wanted}: {document}")


# --- handing in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "headers"),
    [({"mode": "async"}, {}), ({}, {"Prefer": "respond-async"}), ({}, {"Prefer": "wait=5, Respond-Async;x=1"})],
)
async def test_a_job_is_told_at_once_and_where_it_is(
    client: httpx.AsyncClient, parts: Parts, query: dict[str, str], headers: dict[str, str]
) -> None:
    """Nobody is at work here: the answer does not wait for that."""
    answer = await client.post("/transcribe", files=FILE, params=query, headers=headers)
    job = answer.json()
    assert (answer.status_code, job["state"]) == (202, "queued")
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert (job["file_name"], job["queue"]["position"]) == ("talk.mp3", 0)
    assert parts.transcriber.runs == []


async def test_mode_may_stand_in_the_form(client: httpx.AsyncClient) -> None:
    """The gate's place that it had before its body was read goes back."""
    answer = await client.post("/transcribe", files=FILE, data={"mode": "async"})
    assert answer.status_code == 202


async def test_a_job_is_done_and_fetched_in_any_format(client: httpx.AsyncClient, parts: Parts) -> None:
    """As the call would have been answered, had it waited."""
    waited = (await client.post("/transcribe", files=FILE)).json()
    job = await handed_in(client, response_format="text")
    async with parts.runner:
        done = await state_of(client, job, State.SUCCEEDED)
    assert done["result_url"] == f"/jobs/{job['id']}/result"
    assert (await client.get(done["result_url"])).text == "what was said\n"
    fetched = (await client.get(done["result_url"], params={"response_format": "json"})).json()
    for document in (waited, fetched):
        del document["request_id"]
    assert fetched == waited
    assert (await client.get(f"/transcribe/{job['id']}/status")).json() == done


async def test_what_cannot_be_transcribed_is_refused_at_submission(client: httpx.AsyncClient, parts: Parts) -> None:
    """A job that must fail is no job."""
    parts.transcriber.error = UnsupportedMedia()
    answer = await client.post("/transcribe", files=FILE, params={"mode": "async"})
    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA")
    assert (await client.get("/jobs")).json()["jobs"] == []


async def test_downloads_and_extractions_are_jobs_too(client: httpx.AsyncClient, parts: Parts) -> None:
    answer = await client.post("/download", json={"url": "http://example.com/a.mp3", "mode": "async"})
    job = answer.json()
    assert (answer.status_code, job["kind"], job["url"]) == (202, "download", "http://example.com/a.mp3")
    async with parts.runner:
        await state_of(client, job, State.SUCCEEDED)
    stored = (await client.get(f"/jobs/{job['id']}/result")).json()
    assert (await client.get("/files")).json()["files"][0]["id"] == stored["audio_file"]
    answer = await client.post("/extract-audio", files=FILE, params={"mode": "async"})
    assert (answer.status_code, answer.json()["kind"]) == (202, "extraction")


async def test_a_link_that_is_none_is_refused_at_submission(client: httpx.AsyncClient) -> None:
    answer = await client.post("/transcribe", json={"url": "file:///etc/passwd", "mode": "async"})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_URL")


async def test_too_many_waiting_jobs_are_refused(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, max_queued=1)
    async with opened(parts) as client:
        await handed_in(client)
        answer = await client.post("/transcribe", files=FILE, params={"mode": "async"})
        assert (answer.status_code, answer.json()["code"]) == (429, "QUEUE_FULL")
    # What was sent for it is not kept.
    assert len(list((tmp_path / "uploads").iterdir())) == 1


async def test_jobs_are_no_way_round_a_keys_audio_of_the_day(tmp_path: Path) -> None:
    """Each has 10 s. What waits counts; calls, jobs, batches and jobs that were done share one day."""
    parts = make_parts(tmp_path, max_audio_s_a_day=35.0)
    async with opened(parts) as client:
        once = {"Idempotency-Key": "once"}
        answers = [
            *(await asyncio.gather(*(client.post("/transcribe?mode=async", files=FILE) for _ in range(4)))),
            await client.post("/transcribe", files=FILE),
        ]
        assert sorted(answer.status_code for answer in answers) == [202, 202, 202, 429, 429]
        for refused in [answer for answer in answers if answer.status_code == 429]:
            assert refused.json()["code"] == "QUOTA_USED"
            assert int(refused.headers["Retry-After"]) > 0
        assert '"audio-seconds";r=5' in answers[-1].headers["RateLimit"]
        assert len(list((tmp_path / "uploads").iterdir())) == 3, "what was refused is not kept"
        async with parts.runner:
            for answer in answers:
                if answer.status_code == 202:
                    await state_of(client, answer.json(), State.SUCCEEDED)
        assert (await client.post("/transcribe?mode=async", files=FILE, headers=once)).status_code == 429
        assert '"audio-seconds";r=5' in (await client.get("/jobs")).headers["RateLimit"], "nothing was counted twice"


async def test_calls_leave_less_to_jobs_and_what_is_sent_again_costs_nothing(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, max_audio_s_a_day=25.0)
    async with opened(parts) as client:
        assert (await client.post("/transcribe", files=FILE)).status_code == 200
        once = {"Idempotency-Key": "once"}
        first = await client.post("/transcribe?mode=async", files=FILE, headers=once)
        again = await client.post("/transcribe?mode=async", files=FILE, headers=once)
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json()["id"] == again.json()["id"]
        assert '"audio-seconds";r=5' in again.headers["RateLimit"]
        assert (await client.post("/transcribe?mode=async", files=FILE)).status_code == 429


@pytest.mark.parametrize("error", [StoreUnavailable, StorageFull])
async def test_what_could_not_be_written_down_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[ServiceError]
) -> None:
    """Whoever tries again while the database is away would have no call left that day."""
    parts = make_parts(tmp_path, max_audio_s_a_day=25.0)

    def failing(*_: object, **__: object) -> None:
        raise error

    async with opened(parts) as client:
        with monkeypatch.context() as patch:
            patch.setattr(parts.services.desk.store, "submit", failing)
            for _ in range(3):
                answer = await client.post("/transcribe?mode=async", files=FILE)
                assert answer.status_code == error.status
        assert '"audio-seconds";r=25' in (await client.get("/jobs")).headers["RateLimit"]
        assert (await client.post("/transcribe?mode=async", files=FILE)).status_code == 202


@pytest.mark.parametrize(("is_written", "left_s"), [(True, 15.0), (False, 25.0)], ids=["written", "not written"])
async def test_a_caller_who_leaves_pays_for_what_is_written_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool, left_s: float
) -> None:
    """The thread that writes goes on without it."""
    services = make_parts(tmp_path, max_audio_s_a_day=25.0).services
    desk, submit = services.desk, services.desk.store.submit
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(new: NewJob, **named: Any) -> tuple[Job, bool]:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(30)
        if not is_written:
            raise StoreUnavailable
        return submit(new, **named)

    monkeypatch.setattr(desk.store, "submit", slow)
    new = NewJob(Work.TRANSCRIPTION, "a", 0, {"file": "f"}, {}, size=10.0)
    handing_in = asyncio.create_task(desk.submit(new, None))
    try:
        await begun.wait()
        handing_in.cancel()
        await asyncio.sleep(0)
    finally:
        go_on.set()
    # Cancelled, or what the database had to say: nobody hears it.
    await asyncio.gather(handing_in, return_exceptions=True)
    assert services.admission.audio_left_s("a") == left_s
    assert len(desk.store.listed()) == is_written


async def test_a_batch_shares_its_keys_audio_of_the_day(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, max_audio_s_a_day=35.0)
    (source := tmp_path / "stored.mp3").write_bytes(b"stored words")
    file = parts.services.media.add(source, owner=OWNER, name="stored.mp3", media_type="audio/mpeg").id
    async with opened(parts) as client:
        first = await client.post("/jobs/batch", json={"files": [file, file]})
        assert first.status_code == 202
        assert '"audio-seconds";r=15' in first.headers["RateLimit"]
        second = await client.post("/jobs/batch", json={"files": [file, file]})
        assert (second.status_code, second.json()["code"]) == (429, "QUOTA_USED")
        assert '"audio-seconds";r=15' in second.headers["RateLimit"]
        assert (await client.post("/jobs/batch", json={"files": [file]})).status_code == 202


async def test_a_link_that_is_longer_than_the_day_ends_as_what_it_is(tmp_path: Path) -> None:
    """Its length is known when it is fetched: the job was accepted, and is not done."""
    parts = make_parts(tmp_path, max_audio_s_a_day=15.0)
    async with opened(parts) as client:
        jobs = [
            (await client.post("/transcribe", json={"url": "https://example.com/a.mp3", "mode": "async"})).json()
            for _ in range(2)
        ]
        async with parts.runner:
            ends = [await state_of(client, job, State.SUCCEEDED, State.FAILED) for job in jobs]
        assert sorted(end["state"] for end in ends) == ["failed", "succeeded"]
        (failed,) = [end for end in ends if end["state"] == "failed"]
        refused = await client.get(f"/jobs/{failed['id']}/result")
        assert (refused.status_code, refused.json()["code"]) == (429, "QUOTA_USED")


async def test_a_retry_finds_no_room_in_a_full_queue(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, max_queued=1)
    async with opened(parts) as client:
        job = await handed_in(client)
        await client.delete(f"/jobs/{job['id']}")
        await handed_in(client)
        refused = await client.post(f"/jobs/{job['id']}/retry")
        assert (refused.status_code, refused.json()["code"]) == (429, "QUEUE_FULL")


async def test_a_full_disk_refuses_work_before_it_begins(tmp_path: Path) -> None:
    """Jobs that were accepted stay, and work begins again when there is room."""
    room = [10_000]
    parts = make_parts(tmp_path)
    usage = type("Usage", (), {"free": property(lambda self: room[0])})
    object.__setattr__(parts.services, "disk", Disk(tmp_path, 5_000, lambda folder: usage()))
    app = assemble()
    app.state.services = parts.services
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", headers=AUTH
    ) as client:
        job = await handed_in(client)
        room[0] = 4_999
        for query in ({}, {"mode": "async"}):
            answer = await client.post("/transcribe", files=FILE, params=query)
            assert (answer.status_code, answer.json()["code"]) == (507, "STORAGE_FULL")
        assert (await client.get(f"/jobs/{job['id']}")).json()["state"] == "queued"
        room[0] = 10_000
        assert (await client.post("/transcribe", files=FILE)).status_code == 200


# --- once ---------------------------------------------------------------------------------------------------------


async def test_the_same_key_and_request_give_the_same_job(client: httpx.AsyncClient) -> None:
    """Who was cut off sends it again and has it once."""
    name = {"Idempotency-Key": "one"}
    first, again = [
        await client.post("/transcribe", files=FILE, params={"mode": "async"}, headers=name) for _ in range(2)
    ]
    assert first.json()["id"] == again.json()["id"]
    other = {"file": ("talk.mp3", b"something else")}
    answer = await client.post("/transcribe", files=other, params={"mode": "async"}, headers=name)
    assert (answer.status_code, answer.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    theirs = await client.post(
        "/transcribe", files=other, params={"mode": "async"}, headers=name | {"X-API-Key": OTHER}
    )
    assert theirs.status_code == 202


async def test_a_call_that_waits_joins_the_job_that_its_key_has_made(client: httpx.AsyncClient, parts: Parts) -> None:
    """Also while it is at work: the work is done once."""
    parts.transcriber.release.clear()
    name = {"Idempotency-Key": "one"}
    first = asyncio.create_task(client.post("/transcribe", files=FILE, headers=name))
    await parts.transcriber.started.wait()
    second = asyncio.create_task(client.post("/transcribe", files=FILE, headers=name))
    parts.transcriber.release.set()
    answers = await asyncio.gather(first, second)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["text"] == answers[1].json()["text"] == "what was said"
    assert len(parts.transcriber.runs) == 1


# --- asking, ending -----------------------------------------------------------------------------------------------


async def test_a_job_belongs_to_its_key(client: httpx.AsyncClient) -> None:
    """Neither seen nor ended by another, who cannot even tell that it is there."""
    job = await handed_in(client)
    theirs = {"X-API-Key": OTHER}
    for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", ""), ("POST", "/retry")):
        seen = await client.request(method, f"/jobs/{job['id']}{path}", headers=theirs)
        none = await client.request(method, f"/jobs/{UNKNOWN}{path}", headers=theirs)
        assert seen.status_code == none.status_code == 404
        assert seen.json()["code"] == none.json()["code"] == "JOB_NOT_FOUND"
    assert (await client.get("/jobs", headers=theirs)).json()["jobs"] == []
    assert (await client.get(f"/jobs/{job['id']}")).json()["state"] == "queued"


async def test_jobs_are_listed_by_pages_and_states(client: httpx.AsyncClient) -> None:
    jobs = [await handed_in(client) for _ in range(3)]
    await client.delete(f"/jobs/{jobs[1]['id']}")
    first = (await client.get("/jobs", params={"limit": 2})).json()
    assert [job["id"] for job in first["jobs"]] == [jobs[2]["id"], jobs[1]["id"]]
    second = (await client.get("/jobs", params={"limit": 2, "after": first["next"]})).json()
    assert ([job["id"] for job in second["jobs"]], second["next"]) == ([jobs[0]["id"]], None)
    cancelled = (await client.get("/jobs", params={"state": "cancelled"})).json()["jobs"]
    assert [job["id"] for job in cancelled] == [jobs[1]["id"]]


async def test_a_job_that_waits_has_no_result_yet(client: httpx.AsyncClient) -> None:
    job = await handed_in(client)
    answer = await client.get(f"/jobs/{job['id']}/result")
    assert (answer.status_code, answer.json()["code"]) == (409, "JOB_NOT_FINISHED")


async def test_a_failed_jobs_result_is_its_error(client: httpx.AsyncClient, parts: Parts) -> None:
    """With the status that the call would have had; and it may be tried again."""
    job = await handed_in(client)
    parts.transcriber.error = UnsupportedMedia()
    async with parts.runner:
        failed = await state_of(client, job, State.FAILED)
        assert failed["error"]["code"] == "UNSUPPORTED_MEDIA"
        answer = await client.get(f"/jobs/{job['id']}/result")
        assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA")
        parts.transcriber.error = None
        assert (await client.post(f"/jobs/{job['id']}/retry")).json()["state"] == "queued"
        done = await state_of(client, job, State.SUCCEEDED)
    assert done["attempt"] == 2
    answer = await client.post(f"/jobs/{job['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "NOT_RETRYABLE")


async def test_a_running_job_is_cancelled_within_a_batch(client: httpx.AsyncClient, parts: Parts) -> None:
    parts.transcriber.release.clear()
    job = await handed_in(client)
    async with parts.runner:
        await parts.transcriber.started.wait()
        await client.delete(f"/jobs/{job['id']}")
        await state_of(client, job, State.CANCELLED)
    assert parts.transcriber.cancelled
    answer = await client.get(f"/jobs/{job['id']}/result")
    assert (answer.status_code, answer.json()["code"]) == (409, "JOB_CANCELLED")


async def test_a_call_that_was_cut_off_cannot_be_tried_again(client: httpx.AsyncClient, parts: Parts) -> None:
    """What it sent was not kept."""
    parts.transcriber.error = UnsupportedMedia()
    assert (await client.post("/transcribe", files=FILE)).status_code == 415
    [job] = (await client.get("/jobs")).json()["jobs"]
    answer = await client.post(f"/jobs/{job['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (410, "UPLOAD_GONE")
