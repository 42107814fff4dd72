"""A long recording shared among workers: who does what, and what becomes of parts that nobody does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.bells import Bells
from jobs.database import Database
from jobs.journal import SEGMENT_RESULT, JobJournal
from jobs.leases import LEASE_S, Leases
from jobs.model import SEGMENT, Job, NewJob, State
from jobs.sharing import LEAST_PART_S, PARTS_A_WORKER, Sharing, tail_in_parts
from jobs.store import JobStore
from reservation import Work
from tests.fakes import make_database
from transcription.core import SAMPLE_RATE, Segment, TranscriptionOptions, TranscriptSegment

S = SAMPLE_RATE
SPANS = [(number * 30 * S, 20 * S) for number in range(60)]
"""Twenty minutes of speech in half an hour."""
OPTIONS = TranscriptionOptions("tiny.en", "en")


def heard(span: tuple[int, int], text: str) -> TranscriptSegment:
    return TranscriptSegment(0, span[0] / S, sum(span) / S, text, -0.1, 0.0, 1.0, 0.0)


# --- the cut ---------------------------------------------------------------------------------------------------------


def test_two_workers_have_half_each() -> None:
    parts = tail_in_parts(SPANS, 1)
    assert len(parts) == PARTS_A_WORKER
    assert [span for part in parts for span in part] == SPANS[30:]


def test_nobody_gets_a_part_that_costs_more_than_it_saves() -> None:
    assert tail_in_parts(SPANS[:5], 3) == []
    assert tail_in_parts([], 3) == []


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=200),
    st.integers(1, 20),
)
def test_parts_are_the_tail_in_order_and_none_is_small(lengths_s: list[int], others: int) -> None:
    """Whatever is not handed out lies before what is: the holder begins at once."""
    spans = [(sum(lengths_s[:number]) * S, length * S) for number, length in enumerate(lengths_s)]
    parts = tail_in_parts(spans, others)
    tail = [span for part in parts for span in part]
    assert tail == spans[len(spans) - len(tail) :]
    assert len(parts) <= others * PARTS_A_WORKER
    assert all(sum(samples for _, samples in part) / S >= LEAST_PART_S for part in parts)
    share = others / (others + 1)
    assert sum(samples for _, samples in tail) / S <= share * sum(lengths_s) + 30 * max(1, len(parts))


# --- the parts -------------------------------------------------------------------------------------------------------


class Room:
    """A holder of one recording, and one more worker, on one store."""

    def __init__(self, database: Database, others: int = 1) -> None:
        self.store = JobStore(database, lease_s=LEASE_S)
        self.holder, self.other = Leases(database, "holder"), Leases(database, "other")
        self.told: list[Job] = []
        self.bells = Bells()
        self.store.submit(NewJob(Work.TRANSCRIPTION, "k", 0, {"upload": "u"}, {"model": "tiny.en"}, size=1800.0))
        job = self.holder.claim([Work.TRANSCRIPTION])
        assert job is not None
        self.job = job
        self.sharing = Sharing(job, self.store, self.bells, lambda: others, self.told.extend)

    async def hand_out(self) -> list[Job]:
        segments = [Segment(Path("x"), first, samples, n) for n, (first, samples) in enumerate(SPANS)]
        await self.sharing.hand_out(segments, OPTIONS)
        return self.store.parts_of(self.job.id)

    def do(self, part: Job, spans: list[tuple[int, int]]) -> None:
        """Somebody has heard so much of it."""
        events = [
            (SEGMENT, {"span": list(span), "segment": json.loads(SEGMENT_RESULT.dump_json(heard(span, " there")))})
            for span in spans
        ]
        self.other.advance(part, events)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(make_database(tmp_path))


def spans_of(part: Job) -> list[tuple[int, int]]:
    return [(first, samples) for first, samples in part.source["spans"]]


async def test_a_part_is_a_job_for_others_with_the_language_that_was_heard(room: Room) -> None:
    parts = await room.hand_out()
    assert room.told == parts
    assert [part.options["language"] for part in parts] == ["en", "en"]
    assert room.holder.claim([Work.TRANSCRIPTION]) is None
    taken = room.other.claim([Work.TRANSCRIPTION])
    assert taken is not None
    assert (taken.id, taken.source["upload"]) == (parts[0].id, "u")
    assert room.store.listed("k") == [room.store.get(room.job.id)]


async def test_what_another_has_heard_is_not_done_again(room: Room) -> None:
    await room.hand_out()
    part = room.other.claim([Work.TRANSCRIPTION])
    assert part is not None
    first, *rest = spans_of(part)
    waiting = asyncio.create_task(room.sharing.elsewhere(first))
    room.do(part, [first, *rest])
    room.other.end(part, State.SUCCEEDED, result="{}")
    room.bells.ring(part.id)
    found = await waiting
    assert found is not None
    assert (found.start, found.text) == (first[0] / S, " there")
    assert await room.sharing.elsewhere(rest[-1]) is not None
    assert await room.sharing.elsewhere(SPANS[0]) is None


async def test_a_part_that_still_waits_is_taken_back(room: Room) -> None:
    """Nobody waits for work that nobody does."""
    first, second = await room.hand_out()
    assert await room.sharing.elsewhere(spans_of(first)[0]) is None
    assert room.store.get(first.id).state is State.CANCELLED
    assert room.store.get(second.id).state is State.QUEUED


async def test_of_a_part_that_failed_the_rest_is_the_holders(room: Room) -> None:
    await room.hand_out()
    part = room.other.claim([Work.TRANSCRIPTION])
    assert part is not None
    first, second, *_ = spans_of(part)
    room.do(part, [first])
    room.other.end(part, State.FAILED, error={"code": "WORKER_CRASHED", "message": "", "status": 503})
    assert await room.sharing.elsewhere(first) is not None
    assert await room.sharing.elsewhere(second) is None


async def test_the_next_holder_takes_over_the_parts_that_there_are(room: Room) -> None:
    """A holder that dies must not have its recording handed out twice."""
    before = await room.hand_out()
    room.sharing = Sharing(room.job, room.store, room.bells, lambda: 1, room.told.extend)
    assert await room.hand_out() == before


async def test_without_other_workers_nothing_is_handed_out(tmp_path: Path) -> None:
    room = Room(make_database(tmp_path), others=0)
    assert await room.hand_out() == []
    assert await room.sharing.elsewhere(SPANS[-1]) is None


async def test_parts_end_with_the_recordings_own_job(room: Room) -> None:
    """Whatever ends it: cancelled, its parts need not be done."""
    first, second = await room.hand_out()
    part = room.other.claim([Work.TRANSCRIPTION])
    assert part is not None
    room.holder.end(room.job, State.CANCELLED)
    assert room.store.get(second.id).state is State.CANCELLED
    assert room.other.cancelled() == {first.id}


async def test_only_long_recordings_are_shared(room: Room) -> None:
    journal = JobJournal(sharing=room.sharing, split_above_s=600.0)
    for audio_s, shares in ((599.0, False), (601.0, True)):
        journal.begun(audio_s)
        assert journal.shares is shares
    assert not JobJournal(split_above_s=600.0).shares
