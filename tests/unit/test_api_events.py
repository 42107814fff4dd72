"""GET /jobs/{id}/events: everything that happens to a job, once, in order, however often the connection breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from access.keyring import Keys
from access.keys import configured
from api.events import HEARTBEAT_S, LINE_LOOK_S, PAGE, EventStream, followed
from errors import DownloadFailed, Unauthorized, told_of
from jobs.journal import SEGMENT_RESULT
from jobs.leases import Leases
from jobs.model import LANGUAGE, SEGMENT, Event, Job, NewJob, Stage, State
from jobs.store import JobStore
from reservation import Work
from tests import fakes
from tests.fakes import AUTH, KEY, Caller, Parts, make_parts
from transcription.core import TranscriptSegment, Word

OTHER_KEY = "another-key-4567"
NEVER_S = 3600.0
"""Between two looks at the store, where only a bell is to bring news."""


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path, keys=Keys([KEY, OTHER_KEY]))


@dataclass(frozen=True)
class Message:
    id: str | None
    event: str | None
    data: Any
    other: str = ""
    """Where it is no event: the line as it came."""


def messages(text: str) -> list[Message]:
    assert text.endswith("\n\n")
    return [message(block) for block in text.removesuffix("\n\n").split("\n\n")]


def message(block: str) -> Message:
    fields = dict(line.split(": ", 1) for line in block.rstrip("\n").splitlines() if not line.startswith(":"))
    if "event" not in fields:
        return Message(None, None, None, block.rstrip("\n"))
    return Message(fields.get("id"), fields["event"], json.loads(fields["data"]))


class Worker:
    """Somebody else who does the jobs of a store."""

    def __init__(self, parts: Parts) -> None:
        self.store = parts.services.desk.store
        self.leases = Leases(fakes.OPENED[-1], "elsewhere")

    def new(self, key: str = KEY, **changes: Any) -> Job:
        name = configured(key).owner
        assert name
        new = NewJob(Work.TRANSCRIPTION, name, 0, {"file": "a.mp3", "response_format": "json"}, {}, size=60.0)
        return self.store.submit(replace(new, **changes))[0]

    def claim(self) -> Job:
        job = self.leases.claim(list(Work))
        assert job
        return job

    def done(self, segments: int = 2) -> Job:
        """A job that has succeeded, with six events where it has two segments."""
        self.new()
        job = self.claim()
        self.leases.advance(job, [(LANGUAGE, {"code": "en", "probability": 0.98765})])
        self.leases.advance(job, [segment(n) for n in range(segments)])
        self.leases.end(job, State.SUCCEEDED, result="{}")
        return self.store.get(job.id)


def segment(number: int, *words: Word) -> tuple[str, dict[str, Any]]:
    heard = TranscriptSegment(0, number, number + 0.5, f" said {number}", -0.1, 0.0, 1.0, 0.0, words or None)
    return SEGMENT, {"span": [number * 16_000, 8_000], "segment": SEGMENT_RESULT.dump_python(heard, mode="json")}


@pytest.fixture
def worker(parts: Parts) -> Worker:
    return Worker(parts)


def stream(parts: Parts, job: Job, after: int = 0, **how: Any) -> AsyncGenerator[str]:
    return followed(parts.services, job.id, after, opens, **{"look_s": NEVER_S} | how)


async def opens() -> None:
    """The key does."""


async def next_of(stream: AsyncGenerator[str]) -> Message:
    return message(await anext(stream))


class Listener(Caller):
    """Takes a stream as it comes; can be told to take nothing more."""

    def __init__(self, job: Job, **how: Any) -> None:
        super().__init__(f"/jobs/{job.id}/events", headers=AUTH, method="GET", **how)
        self.came: asyncio.Queue[str] = asyncio.Queue()
        self.takes = asyncio.Event()
        self.takes.set()
        self.is_full = asyncio.Event()

    async def send(self, message: dict[str, Any]) -> None:
        await super().send(message)
        if text := message.get("body", b"").decode():
            await self.came.put(text)
        if not self.takes.is_set():
            self.is_full.set()
            await self.takes.wait()


# --- what is told --------------------------------------------------------------------------------------------------


async def test_a_finished_job_is_told_from_its_beginning_to_its_end(client: httpx.AsyncClient, worker: Worker) -> None:
    """Whoever comes late misses nothing, and the stream ends by itself."""
    job = worker.done()
    answer = await client.get(f"/jobs/{job.id}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    retry, *told = messages(answer.text)
    assert retry.other == "retry: 2000"
    assert answer.text.count("retry:") == 1
    assert [(one.id, one.event) for one in told] == [
        ("1", "queued"),
        ("2", "running"),
        ("3", "language"),
        ("4", "segment"),
        ("5", "segment"),
        ("6", "succeeded"),
    ]
    assert told[1].data == {"attempt": 1}
    assert told[2].data == {"language": "en", "language_probability": 0.9877}
    assert told[4].data.items() >= {"start": 1.0, "end": 1.5, "text": "said 1"}.items()


async def test_a_segments_words_are_told_as_a_transcript_spells_them(parts: Parts, worker: Worker) -> None:
    """One reader for both."""
    worker.new()
    job = worker.claim()
    worker.leases.advance(job, [segment(0, Word(0.12345, 0.4, " said", float("nan")))])
    worker.leases.end(job, State.CANCELLED)
    told = [message(block) async for block in stream(parts, job)]
    assert told[3].data["words"] == [{"word": "said", "start": 0.123, "end": 0.4, "probability": None}]


async def test_a_failure_is_told_with_its_code(client: httpx.AsyncClient, worker: Worker) -> None:
    """As the job's description has it."""
    worker.new()
    job = worker.claim()
    worker.leases.end(job, State.FAILED, error=told_of(DownloadFailed()))
    last = messages((await client.get(f"/jobs/{job.id}/events")).text)[-1]
    assert last.event == "failed"
    assert last.data["error"] == {"code": "DOWNLOAD_FAILED", "status": 502, "message": DownloadFailed().message}


async def test_letters_of_all_scripts_arrive(client: httpx.AsyncClient, worker: Worker) -> None:
    """And a line's end within a text ends no message."""
    worker.new()
    job = worker.claim()
    kind, body = segment(0)
    body["segment"]["text"] = "你好\n\nid: 99\u2028"
    worker.leases.advance(job, [(kind, body)])
    worker.leases.end(job, State.SUCCEEDED, result="{}")
    text = (await client.get(f"/jobs/{job.id}/events")).text
    assert "你好" in text
    block = next(block for block in text.split("\n\n") if "segment" in block)
    assert json.loads(block.partition("data: ")[2])["text"] == "你好\n\nid: 99"


# --- resumed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "query"),
    [({"Last-Event-ID": "4"}, {}), ({}, {"last_event_id": "4"}), ({"Last-Event-ID": "4"}, {"last_event_id": "1"})],
    ids=["header", "query", "both"],
)
async def test_a_stream_that_broke_off_goes_on_where_it_was(
    client: httpx.AsyncClient, worker: Worker, headers: dict[str, str], query: dict[str, str]
) -> None:
    """A browser that comes back sends its header, and the query that it began with."""
    job = worker.done()
    answer = await client.get(f"/jobs/{job.id}/events", headers=headers, params=query)
    assert [one.id for one in messages(answer.text)[1:]] == ["5", "6"]


async def test_who_has_had_the_end_is_sent_away(client: httpx.AsyncClient, worker: Worker) -> None:
    """An EventSource would come back for ever; 204 is what stops it."""
    job = worker.done()
    for number in (job.events, job.events + 1):
        answer = await client.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": str(number)})
        assert (answer.status_code, answer.content) == (204, b"")
    answer = await client.get(f"/jobs/{job.id}/events", params={"last_event_id": job.events})
    assert answer.status_code == 204


async def test_who_has_had_all_of_a_job_that_goes_on_is_not_sent_away(
    client: httpx.AsyncClient, worker: Worker
) -> None:
    """A job that was tried again has a new end."""
    worker.new()
    job = worker.claim()
    worker.leases.end(job, State.FAILED, error=told_of(DownloadFailed()))
    number = worker.store.get(job.id).events
    worker.store.retry(job.id)
    worker.leases.end(worker.claim(), State.SUCCEEDED, result="{}")
    answer = await client.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": str(number)})
    assert answer.status_code == 200
    assert [one.event for one in messages(answer.text)[1:]] == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("number", ["x", "-1", "99999999999", "1.5"])
async def test_a_number_that_is_none_is_refused(client: httpx.AsyncClient, worker: Worker, number: str) -> None:
    """No database sees it."""
    job = worker.done()
    answer = await client.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": number})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")


# --- whose ---------------------------------------------------------------------------------------------------------


async def test_a_token_opens_the_events_of_its_own_job_without_a_key(
    client: httpx.AsyncClient, app: Any, worker: Worker
) -> None:
    """A browser's EventSource cannot send a header; a token that opened more would be a key in an address."""
    job, other = worker.done(), worker.done()
    url = (await client.get(f"/jobs/{job.id}")).json()["events_url"]
    token = url.partition("token=")[2]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as anybody:
        assert (await anybody.get(url)).text.endswith("event: succeeded\ndata: {}\n\n")
        for refused in (
            f"/jobs/{other.id}/events?token={token}",
            f"/jobs/{job.id}/events?token=x",
            f"/jobs/{job.id}?token={token}",
        ):
            answer = await anybody.get(refused)
            assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED"), refused


async def test_a_stream_ends_with_the_key_that_opened_it(parts: Parts, worker: Worker) -> None:
    """Whoever has lost a key must not go on reading what is said."""
    job = worker.new()
    is_open = [True]

    async def still_open() -> None:
        if not is_open[0]:
            raise Unauthorized

    events = followed(parts.services, job.id, 0, still_open, look_s=0.01)
    assert (await anext(events)).startswith("retry:")
    # As it was handed in, and its place in the line.
    assert [(await next_of(events)).event for _ in range(2)] == ["queued"] * 2
    is_open[0] = False
    assert [told async for told in events] == []


async def test_a_token_ends_with_its_owners_last_key(
    client: httpx.AsyncClient, app: Any, parts: Parts, worker: Worker
) -> None:
    """Nobody can revoke the token itself."""
    job = worker.done()
    url = (await client.get(f"/jobs/{job.id}")).json()["events_url"]
    parts.services.keys._own.clear()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as anybody:
        answer = await anybody.get(url)
    assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")


async def test_another_keys_job_is_not_there(client: httpx.AsyncClient, worker: Worker) -> None:
    """And an end that was had is told to its owner alone."""
    worker.new()
    theirs = worker.done()
    answer = await client.get(
        f"/jobs/{theirs.id}/events",
        headers={"X-API-Key": OTHER_KEY, "Last-Event-ID": str(theirs.events)},
    )
    assert (answer.status_code, answer.json()["code"]) == (404, "JOB_NOT_FOUND")
    answer = await client.get(f"/jobs/{'0' * 32}/events")
    assert (answer.status_code, answer.json()["code"]) == (404, "JOB_NOT_FOUND")


async def test_a_stream_needs_a_key(app: FastAPI, worker: Worker) -> None:
    """As everything does."""
    job = worker.new()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get(f"/jobs/{job.id}/events")).status_code == 401


# --- while it happens ----------------------------------------------------------------------------------------------


async def test_news_of_this_process_come_when_its_bell_rings(parts: Parts, worker: Worker) -> None:
    """Not with the next look."""
    job = worker.new()
    async with contextlib.aclosing(stream(parts, job)) as told:
        assert (await next_of(told)).other == "retry: 2000"
        assert await next_of(told) == Message("1", "queued", {})
        assert await next_of(told) == Message(None, "queued", {"position": 0})

        mine = worker.claim()
        parts.services.desk.bells.ring(job.id)
        assert await next_of(told) == Message("2", "running", {"attempt": 1})
        waiting = {"stage": "waiting", "audio_seconds": 0.0, "of_audio_seconds": 60.0}
        assert await next_of(told) == Message(None, "progress", waiting)

        worker.leases.advance(mine, [segment(0)], {"stage": Stage.TRANSCRIBING, "done": 20.0})
        parts.services.desk.bells.ring(job.id)
        assert (await next_of(told)).id == "3"
        at_work = {"stage": "transcribing", "audio_seconds": 20.0, "of_audio_seconds": 60.0}
        assert await next_of(told) == Message(None, "progress", at_work)

        worker.leases.end(mine, State.SUCCEEDED, result="{}")
        parts.services.desk.bells.ring(job.id)
        assert await next_of(told) == Message("4", "succeeded", {})
        with pytest.raises(StopAsyncIteration):
            await next_of(told)


async def test_news_of_others_come_with_the_next_look(parts: Parts, worker: Worker) -> None:
    """Another machine rings no bell here."""
    job = worker.new()
    async with contextlib.aclosing(stream(parts, job, look_s=0.0)) as told:
        for _ in range(3):
            await anext(told)
        worker.leases.end(worker.claim(), State.SUCCEEDED, result="{}")
        assert [(await next_of(told)).event for _ in range(2)] == ["running", "succeeded"]


async def test_how_a_job_stands_is_told_only_where_it_has_changed(parts: Parts, worker: Worker) -> None:
    """A bell that rings for nothing is not heard outside."""
    worker.new()
    job = worker.claim()
    async with contextlib.aclosing(stream(parts, job, after=2, look_s=0.0)) as told:
        assert [(await next_of(told)).event for _ in range(2)] == [None, "progress"]
        coming = asyncio.ensure_future(next_of(told))
        for _ in range(5):
            parts.services.desk.bells.ring(job.id)
            await asyncio.to_thread(worker.store.get, job.id)
        worker.leases.advance(job, (), {"stage": Stage.DOWNLOADING, "stage_done": 0.5})
        assert (await coming).data == {
            "stage": "downloading",
            "stage_done": 0.5,
            "audio_seconds": 0.0,
            "of_audio_seconds": 60.0,
        }


class Clock:
    """Goes on by *step_s* whenever it is looked at."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


async def test_a_queued_job_that_moves_up_is_told_so(parts: Parts, worker: Worker) -> None:
    """The line is counted now and then, not at each look."""
    worker.new()
    job = worker.new()
    clock = Clock()
    async with contextlib.aclosing(stream(parts, job, after=1, look_s=0.0, clock=clock)) as told:
        await anext(told)
        assert await next_of(told) == Message(None, "queued", {"position": 1})
        worker.claim()
        clock.now_s = LINE_LOOK_S
        assert await next_of(told) == Message(None, "queued", {"position": 0})


async def test_a_job_that_was_queued_again_is_told_so(parts: Parts, worker: Worker) -> None:
    """Its owner has stopped; somebody else goes on with it."""
    job = worker.new()
    async with contextlib.aclosing(stream(parts, job, clock=Clock())) as told:
        for _ in range(3):
            await anext(told)
        mine = worker.claim()
        parts.services.desk.bells.ring(job.id)
        assert [(await next_of(told)).event for _ in range(2)] == ["running", "progress"]
        worker.leases.give_back(mine)
        parts.services.desk.bells.ring(job.id)
        assert await next_of(told) == Message("3", "queued", {})
        assert await next_of(told) == Message(None, "queued", {"position": 0})


async def test_a_silent_stream_is_kept_alive(parts: Parts, worker: Worker) -> None:
    """Proxies close what is silent."""
    worker.new()
    job = worker.claim()
    clock = Clock(step_s=1.0)
    async with contextlib.aclosing(stream(parts, job, after=2, look_s=0.0, clock=clock)) as told:
        for _ in range(2):
            await anext(told)
        last_s = clock.now_s
        for _ in range(3):
            assert await anext(told) == ": \n\n"
            assert HEARTBEAT_S <= clock.now_s - last_s <= HEARTBEAT_S + 4
            last_s = clock.now_s


# --- slow readers, lost readers, stops -----------------------------------------------------------------------------


class ReadStore(JobStore):
    """Notes from where it was read."""

    read_after: list[int]

    def events_of(self, job_id: str, after: int = 0, limit: int = 100) -> Sequence[Event]:
        self.read_after.append(after)
        return super().events_of(job_id, after, limit)


async def test_a_page_is_read_when_the_one_before_has_been_taken(parts: Parts, worker: Worker) -> None:
    """A reader that stalls holds a page of a long job, not the job."""
    job = worker.done(segments=250)
    store = parts.services.desk.store = ReadStore(fakes.OPENED[-1], lease_s=60.0)
    store.read_after = []
    told = stream(parts, job)
    numbers = []
    async with contextlib.aclosing(told):
        await anext(told)
        for _ in range(PAGE):
            numbers.append((await next_of(told)).id)
            assert store.read_after == [0]
        numbers += [message(block).id async for block in told]
    assert store.read_after == [0, PAGE, 2 * PAGE]
    assert numbers == [str(number) for number in range(1, job.events + 1)]


@contextlib.contextmanager
def listened_to(parts: Parts) -> Iterator[None]:
    """All bells that are hung up are taken down again."""
    yield
    assert not parts.services.desk.bells._listening


async def test_a_listener_that_leaves_leaves_nothing_behind(app: FastAPI, parts: Parts, worker: Worker) -> None:
    """While nothing comes."""
    with listened_to(parts):
        listener = Listener(worker.new())
        streaming = asyncio.create_task(listener.call(app))
        for _ in range(3):
            await listener.came.get()
        listener.gone.set()
        await streaming
    assert listener.status == 200


async def test_a_listener_that_leaves_without_having_taken_leaves_nothing_behind(
    app: FastAPI, parts: Parts, worker: Worker
) -> None:
    """Its stream stands at a message that nobody takes."""
    with listened_to(parts):
        listener = Listener(worker.done())
        listener.takes.clear()
        streaming = asyncio.create_task(listener.call(app))
        # Its first message is the answer's head.
        await listener.is_full.wait()
        listener.takes.set()
        await listener.came.get()
        listener.takes.clear()
        listener.is_full.clear()
        await listener.is_full.wait()
        assert parts.services.desk.bells._listening
        listener.gone.set()
        await streaming


async def test_a_stream_is_closed_with_its_answer(parts: Parts, worker: Worker) -> None:
    """Not when the garbage is collected: the reference that is held here would keep it for ever."""
    with listened_to(parts):
        told = stream(parts, worker.done())

        async def fail(sent: Any) -> None:
            if b"queued" in sent.get("body", b""):
                raise ConnectionError

        with pytest.raises(ConnectionError):
            await EventStream(told).stream_response(fail)
    with pytest.raises(StopAsyncIteration):
        await anext(told)


async def test_streams_end_when_the_server_stops(parts: Parts, worker: Worker) -> None:
    """They would hold up the stop for as long as their jobs last."""
    job = worker.new()
    with listened_to(parts):
        told = stream(parts, job, look_s=0.0)
        for _ in range(3):
            await anext(told)
        parts.services.admission.close()
        assert [block async for block in told] == []


async def test_a_job_that_is_forgotten_ends_its_stream(parts: Parts, worker: Worker) -> None:
    """There is nothing more to be told of it."""
    with listened_to(parts):
        worker.new()
        job = worker.claim()
        told = stream(parts, job, look_s=0.0)
        for _ in range(4):
            await anext(told)
        with fakes.OPENED[-1].writing() as connection:
            connection.execute(sa.text("DELETE FROM jobs"))
        assert [block async for block in told] == []


async def test_a_stream_outlives_a_database_that_is_away(parts: Parts, worker: Worker) -> None:
    """A browser that came back meanwhile would be refused, and not try again."""

    def rename(table: str, to: str) -> None:
        with fakes.OPENED[-1].writing() as connection:
            connection.execute(sa.text(f"ALTER TABLE {table} RENAME TO {to}"))

    job = worker.new()
    async with contextlib.aclosing(stream(parts, job, look_s=0.0, clock=Clock(step_s=1.0))) as told:
        for _ in range(3):
            await anext(told)
        rename("jobs", "jobs_away")
        assert await anext(told) == ": \n\n"
        rename("jobs_away", "jobs")
        worker.store.cancel(job.id)
        assert (await next_of(told)).event == "cancelled"
