"""A long recording done by several workers: its tail is cut into parts, each a job; its holder does the rest.

Nobody waits for a part that nobody does: when the holder comes to one that still waits, it takes it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from jobs.bells import Bells, heard_within
from jobs.crew import OPTIONS
from jobs.journal import segments_in
from jobs.model import Job, NewJob, State
from jobs.store import JobStore
from transcription.core import SAMPLE_RATE, Segment, TranscriptionOptions, TranscriptSegment
from transcription.journal import Span

PARTS_A_WORKER = 2
"""Of each other worker: one that is slower, or busy with other jobs, leaves its second part to somebody else."""
LEAST_PART_S = 120.0
"""A part costs its worker the reading of the whole file up to its end: some 1/250 of that in time."""
LOOK_S = 1.0

log = structlog.get_logger(__name__)


def tail_in_parts(spans: Sequence[Span], others: int) -> list[list[Span]]:
    """The spans that *others* workers should do, in parts of like length, in order; the holder does what comes before.

    Each of the workers, the holder among them, has the same share of the speech.
    """
    total_s = sum(samples for _, samples in spans) / SAMPLE_RATE
    number = min(others * PARTS_A_WORKER, int(total_s * others / (others + 1) / LEAST_PART_S))
    if number < 1:
        return []
    part_s = total_s * others / (others + 1) / number
    parts: list[list[Span]] = []
    part: list[Span] = []
    part_so_far_s = 0.0
    # From the end: what is left over at the head is the holder's.
    for span in reversed(spans):
        part.insert(0, span)
        part_so_far_s += span[1] / SAMPLE_RATE
        if part_so_far_s >= part_s:
            parts.insert(0, part)
            part, part_so_far_s = [], 0.0
        if len(parts) == number:
            break
    return parts


class Sharing:
    """One attempt at one recording, and the parts of it that are handed out. Lives on the event loop."""

    def __init__(
        self,
        job: Job,
        store: JobStore,
        bells: Bells,
        others: Callable[[], int],
        tell: Callable[[Sequence[Job]], None],
    ) -> None:
        """*others*: how many workers there are besides this one, asked in a thread. *tell*: hears of new jobs."""
        self._job = job
        self._store = store
        self._bells = bells
        self._others = others
        self._tell = tell
        self._parts: dict[Span, str] = {}
        """The part that each span is in, by its id."""
        self._heard: dict[Span, TranscriptSegment] = {}

    async def hand_out(self, segments: Sequence[Segment], options: TranscriptionOptions) -> None:
        """Make jobs of the recording's tail, or take over an earlier attempt's."""
        spans = [(segment.first_sample, segment.samples) for segment in segments]
        parts = await asyncio.to_thread(self._handed_out, spans, options)
        for part in parts:
            for first, samples in part.source["spans"]:
                self._parts[first, samples] = part.id
        log.info("shared", job=self._job.id, parts=len(parts), segments=len(self._parts), of_segments=len(spans))
        self._tell(parts)

    def _handed_out(self, spans: Sequence[Span], options: TranscriptionOptions) -> list[Job]:
        if earlier := self._store.parts_of(self._job.id):
            return earlier
        others = self._others()
        return [
            self._store.submit(
                NewJob(
                    work=self._job.work,
                    key=self._job.key,
                    priority=self._job.priority,
                    source=self._job.source | {"spans": part},
                    options=OPTIONS.dump_python(options, mode="json"),
                    size=sum(samples for _, samples in part) / SAMPLE_RATE,
                    parent_id=self._job.id,
                    not_for=self._job.owner,
                )
            )[0]
            for part in (tail_in_parts(spans, others) if others else [])
        ]

    def has(self, span: Span) -> bool:
        """Whether *span* lies in a part, of whomever by now."""
        return span in self._parts

    async def elsewhere(self, span: Span) -> TranscriptSegment | None:
        """The result of *span* where it lies in a part that somebody does; None where the holder must do it."""
        part_id = self._parts.get(span)
        if part_id is None:
            return None
        if span not in self._heard:
            await self._take(part_id)
        return self._heard.get(span)

    async def _take(self, part_id: str) -> None:
        """What that part has come to, when it is over; it is over at once where it still waits."""
        job = await asyncio.to_thread(self._store.get, part_id)
        if job.state is State.QUEUED:
            job = await asyncio.to_thread(self._store.cancel, part_id)
        with self._bells.listening(part_id) as news:
            while not job.state.is_over:
                await heard_within(news, LOOK_S)
                job = await asyncio.to_thread(self._store.get, part_id)
        self._heard |= await asyncio.to_thread(self._results, part_id)
        # What the part has not done is the holder's.
        self._parts = {span: part for span, part in self._parts.items() if part != part_id or span in self._heard}

    def _results(self, part_id: str) -> dict[Span, TranscriptSegment]:
        """Also of a part that was given up: what was finished of it need not be done again."""
        return segments_in(self._store.history_of(part_id))
