"""Who does jobs: what it claims, what it writes down, and how it lets go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from access.keys import configured
from disk import Disk
from errors import StorageFull, UnsupportedMedia
from jobs.crew import OPTIONS
from jobs.journal import SEGMENT_RESULT
from jobs.leases import Leases
from jobs.model import LANGUAGE, SEGMENT, Job, NewJob, State
from reservation import Work
from tests import fakes
from tests.fakes import KEY, Parts, make_parts
from transcription.core import TranscriptionOptions, TranscriptSegment


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path)


def name() -> str:
    return configured(KEY).owner


async def submitted(parts: Parts, text: str = "words", key: str = "") -> Job:
    folder = parts.work_folder / "incoming"
    folder.mkdir(exist_ok=True)
    upload = folder / "upload"
    upload.write_text(text)
    options = OPTIONS.dump_python(TranscriptionOptions("base", "en"), mode="json")
    new = NewJob(Work.TRANSCRIPTION, key or name(), 0, {"response_format": "json"}, options, size=10.0)
    return await parts.services.desk.submit(new, upload)


async def until(parts: Parts, job: Job, wanted: Callable[[Job], bool]) -> Job:
    for _ in range(400_000):
        found = parts.services.desk.store.get(job.id)
        if wanted(found):
            return found
        await asyncio.sleep(0)
    raise AssertionError(f"never: {found}")


def over(job: Job) -> bool:
    return job.state.is_over


async def test_jobs_are_done_in_the_order_in_which_they_came(parts: Parts) -> None:
    jobs = [await submitted(parts, f"{number}") for number in range(4)]
    async with parts.runner:
        for job in jobs:
            assert (await until(parts, job, over)).state is State.SUCCEEDED
    assert parts.transcriber.cancelled is False
    assert len(parts.transcriber.runs) == 4


async def test_no_more_run_than_there_are_slots(tmp_path: Path) -> None:
    """The rest waits in the store, where another worker may take it."""
    parts = make_parts(tmp_path, slots=dict.fromkeys(Work, 2))
    parts.transcriber.release.clear()
    jobs = [await submitted(parts) for _ in range(5)]
    store = parts.services.desk.store
    async with parts.runner:
        await until(parts, jobs[1], lambda job: job.state is State.RUNNING and job.stage == "decoding")
        parts.runner.wake()
        await asyncio.to_thread(lambda: None)
        assert [store.get(job.id).state for job in jobs].count(State.RUNNING) == 2
        parts.transcriber.release.set()
        for job in jobs:
            await until(parts, job, over)


async def test_a_key_has_no_more_jobs_at_work_than_it_may_send_requests(tmp_path: Path) -> None:
    """The slots that it leaves are for others; when one ends, the next begins."""
    parts = make_parts(tmp_path, slots=dict.fromkeys(Work, 5), max_per_key=2)
    parts.transcriber.release.clear()
    jobs = [await submitted(parts) for _ in range(4)]
    theirs, store = await submitted(parts, key="other"), parts.services.desk.store
    async with parts.runner:
        for job in (*jobs[:2], theirs):
            await until(parts, job, lambda job: job.state is State.RUNNING)
        assert parts.runner._leases.claim([Work.TRANSCRIPTION]) is None
        assert [store.get(job.id).state for job in jobs].count(State.RUNNING) == 2
        parts.transcriber.release.set()
        for job in jobs:
            assert (await until(parts, job, over)).state is State.SUCCEEDED


async def test_a_part_costs_its_key_nothing(tmp_path: Path) -> None:
    """Its whole has been counted; and whoever does it reads the whole recording."""
    parts = make_parts(tmp_path, max_audio_s_a_day=5.0)
    (source := tmp_path / "stored.mp3").write_bytes(b"words")
    file = parts.services.media.add(source, owner=name(), name="stored.mp3").id
    options = OPTIONS.dump_python(TranscriptionOptions("base", "en"), mode="json")
    new = NewJob(Work.TRANSCRIPTION, name(), 0, {"file": file}, options, size=1.0, parent_id="0" * 32)
    part, _ = parts.services.desk.store.submit(new)
    async with parts.runner:
        assert (await until(parts, part, over)).state is State.SUCCEEDED
    assert parts.services.admission.audio_left_s(name()) == 5.0


async def linked(parts: Parts) -> Job:
    options = OPTIONS.dump_python(TranscriptionOptions("base", "en"), mode="json")
    source = {"response_format": "json", "url": "https://example.com/slow.mp3"}
    return await parts.services.desk.submit(NewJob(Work.TRANSCRIPTION, name(), 0, source, options), None)


async def test_links_that_do_not_come_hold_up_links_alone(tmp_path: Path) -> None:
    """Fetched are no more than may be downloaded at once; what lies here is heard meanwhile, however many slots."""
    parts = make_parts(tmp_path, slots=dict.fromkeys(Work, 1))
    parts.fetcher.release.clear()
    links = [await linked(parts) for _ in range(2)]
    job = await submitted(parts)
    store = parts.services.desk.store
    async with parts.runner:
        await until(parts, job, over)
        assert [store.get(link.id).state for link in links] == [State.RUNNING, State.QUEUED]
        parts.fetcher.release.set()
        for link in links:
            assert (await until(parts, link, over)).state is State.SUCCEEDED


async def test_what_it_tells_is_written_down_while_it_runs(parts: Parts) -> None:
    """A crash loses half a second of it at most."""
    job = await submitted(parts)
    async with parts.runner:
        done = await until(parts, job, over)
    kinds = [event.kind for event in parts.services.desk.store.events_of(job.id)]
    assert kinds == ["queued", "running", SEGMENT, "succeeded"]
    assert (done.size, done.done, done.timings["total"]) == (10.0, 1.0, 0.6)


async def test_the_next_attempt_knows_what_the_last_one_has_heard(parts: Parts) -> None:
    """Segments, by where they lie; and the language."""
    job = await submitted(parts)
    dead = Leases(fakes.OPENED[-1], "dead")
    assert dead.claim([Work.TRANSCRIPTION])
    heard = TranscriptSegment(0, 0.0, 1.0, " before", -0.1, 0.0, 1.0, 0.0)
    segment = {"span": [0, 16_000], "segment": json.loads(SEGMENT_RESULT.dump_json(heard))}
    mine = parts.services.desk.store.get(job.id)
    dead.advance(mine, [(LANGUAGE, {"code": "de", "probability": 0.9}), (SEGMENT, segment)])
    dead.expire(all_owners=True)
    parts.transcriber.release.clear()
    async with parts.runner:
        await parts.transcriber.started.wait()
        [journal] = parts.transcriber.journals
        assert [known.text for known in journal.heard.values()] == [" before"]
        assert journal.language is not None
        assert journal.language.code == "de"
        parts.transcriber.release.set()
        assert (await until(parts, job, over)).attempt == 2


async def test_what_was_sent_for_a_job_goes_when_it_has_succeeded(parts: Parts) -> None:
    """Disks fill, and what is gone cannot be stolen. A job that has failed may be tried again: its upload stays."""
    uploads = parts.services.desk._uploads
    async with parts.runner:
        done = await until(parts, await submitted(parts), over)
        assert done.state is State.SUCCEEDED
        await until(parts, done, lambda _: not list(uploads.names()))
        parts.transcriber.error = UnsupportedMedia()
        await until(parts, await submitted(parts), over)
    assert len(list(uploads.names())) == 1


async def test_a_stop_gives_back_what_runs(parts: Parts) -> None:
    """It is nobody's fault, and somebody goes on with it."""
    parts.transcriber.release.clear()
    job = await submitted(parts)
    async with parts.runner:
        await parts.transcriber.started.wait()
    found = parts.services.desk.store.get(job.id)
    assert (found.state, found.owner) == (State.QUEUED, None)
    assert parts.transcriber.cancelled


async def test_a_stop_waits_for_what_is_nearly_done(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, grace_s=60.0)
    parts.transcriber.release.clear()
    job = await submitted(parts)
    async with parts.runner:
        await parts.transcriber.started.wait()
        asyncio.get_running_loop().call_soon(parts.transcriber.release.set)
    assert parts.services.desk.store.get(job.id).state is State.SUCCEEDED


async def test_what_cannot_be_done_fails_and_the_next_is_done(parts: Parts) -> None:
    parts.transcriber.error = UnsupportedMedia()
    first = await submitted(parts)
    async with parts.runner:
        failed = await until(parts, first, over)
        parts.transcriber.error = None
        second = await submitted(parts)
        assert (await until(parts, second, over)).state is State.SUCCEEDED
    assert (failed.state, failed.error and failed.error["code"]) == (State.FAILED, "UNSUPPORTED_MEDIA")


async def test_what_nobody_expected_is_told_without_its_words(parts: Parts) -> None:
    parts.transcriber.error = ValueError("a secret")
    job = await submitted(parts)
    async with parts.runner:
        failed = await until(parts, job, over)
    assert failed.error is not None
    assert failed.error["code"] == "INTERNAL_ERROR"
    assert "secret" not in str(failed.error)


async def test_a_disk_that_fills_up_meanwhile_is_not_the_jobs_fault(parts: Parts) -> None:
    """It is tried again, as often as an owner may die."""
    parts.transcriber.error = StorageFull()
    job = await submitted(parts)
    async with parts.runner:
        failed = await until(parts, job, over)
    assert (failed.attempt, failed.error and failed.error["code"]) == (5, "STORAGE_FULL")


async def test_an_upload_that_is_gone_fails_its_job(parts: Parts, tmp_path: Path) -> None:
    """Whatever goes wrong before the work begins must end it, too."""
    job = await submitted(parts)
    for upload in (tmp_path / "uploads").iterdir():
        upload.unlink()
    async with parts.runner:
        failed = await until(parts, job, over)
    assert failed.error is not None
    assert failed.error["code"] == "UPLOAD_GONE"


async def test_nothing_is_claimed_while_the_disk_is_full(tmp_path: Path) -> None:
    room = [0]
    usage = type("Usage", (), {"free": property(lambda self: room[0])})
    parts = make_parts(tmp_path, disk=Disk(tmp_path, 1, lambda folder: usage()))
    job = await submitted(parts)
    async with parts.runner:
        parts.runner.wake()
        await asyncio.to_thread(lambda: None)
        assert parts.services.desk.store.get(job.id).state is State.QUEUED
        room[0] = 1
        parts.runner.wake()
        await until(parts, job, over)


async def test_an_attempt_that_has_lost_its_job_commits_nothing(parts: Parts) -> None:
    """Another has it by now; this one's result would be the second."""
    parts.transcriber.release.clear()
    job = await submitted(parts)
    async with parts.runner:
        await parts.transcriber.started.wait()
        Leases(fakes.OPENED[-1], "other").expire(all_owners=True)
        parts.runner.drain()
        other = Leases(fakes.OPENED[-1], "other").claim([Work.TRANSCRIPTION])
        assert other is not None
        parts.transcriber.release.set()
    found = parts.services.desk.store.get(job.id)
    assert (found.state, found.owner, found.attempt) == (State.RUNNING, "other", 2)


async def test_a_caller_who_leaves_while_the_end_is_written_leaves_no_job_running(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would ever be at it again: its lease is kept, by an owner who has forgotten it."""
    folder, upload = tmp_path / "folder", tmp_path / "upload"
    folder.mkdir()
    upload.write_text("words")
    options = OPTIONS.dump_python(TranscriptionOptions("base", "en"), mode="json")
    new = NewJob(Work.TRANSCRIPTION, name(), 0, {"response_format": "json"}, options)
    writes, written = asyncio.Event(), parts.runner._write

    async def left_meanwhile(*arguments: object) -> None:
        writes.set()
        # What the journal has told is being written down: the end waits for it.
        for _ in range(10):
            await asyncio.sleep(0)
        await written(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(parts.runner, "_write", left_meanwhile)
    async with parts.runner:
        with parts.services.admission.reserve(Work.TRANSCRIPTION, name()) as place:
            attending = asyncio.create_task(parts.services.desk.attend(new, upload, folder, place))
            await writes.wait()
            attending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attending
    (job,) = parts.services.desk.store.listed(name())
    assert job.state is State.SUCCEEDED


async def test_a_job_cancelled_before_its_first_step_ends_and_leaves_its_slot(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled before it has run never does: its job would be running until its lease is over."""
    job = await submitted(parts)
    begin, begun = parts.runner._begin, asyncio.Event()

    def begun_and_stopped(job: Job) -> None:
        begin(job)
        parts.services.desk.store.cancel(job.id)
        parts.runner.stop(job.id)
        begun.set()

    monkeypatch.setattr(parts.runner, "_begin", begun_and_stopped)
    async with parts.runner:
        await begun.wait()
        ended = await until(parts, job, lambda _: parts.runner.running == [])
        assert ended.state is State.CANCELLED


async def test_a_fault_that_nobody_expected_does_not_end_the_claiming(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs would wait for ever in a server that looks well."""
    claim = parts.runner._leases.claim
    loop, broken = asyncio.get_running_loop(), asyncio.Event()

    def broken_once(works: list[Work], *, links: bool) -> Job | None:
        if not broken.is_set():
            loop.call_soon_threadsafe(broken.set)
            raise RuntimeError("nobody expected this")
        return claim(works, links=links)

    monkeypatch.setattr(parts.runner._leases, "claim", broken_once)
    job = await submitted(parts)
    async with parts.runner:
        await broken.wait()
        parts.runner.wake()
        assert (await until(parts, job, over)).state is State.SUCCEEDED
