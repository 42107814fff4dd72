"""Segments of all requests in, results in each request's own order out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol, Self

import structlog

import telemetry
from errors import ServiceError, WorkerCrashed
from transcription.core import Segment, TranscriptionOptions, TranscriptSegment
from transcription.planner import BatchPlanner, Pending

log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 3
"""Engines that may die with a segment before its request is given up."""


class Decoder(Protocol):
    """What the scheduler needs of an engine."""

    async def transcribe(
        self, segments: Sequence[Segment], options: TranscriptionOptions, *, request_ids: Sequence[str] = ()
    ) -> list[TranscriptSegment]: ...


class _Request:
    """One caller's segments: how many were handed in, and the results that wait for their turn."""

    def __init__(self) -> None:
        self.submitted = 0
        self.all_submitted = False
        self.results: dict[int, TranscriptSegment] = {}
        self.failure: BaseException | None = None
        self.changed = asyncio.Event()

    def fail(self, failure: BaseException) -> None:
        self.failure = self.failure or failure
        self.changed.set()


class SegmentScheduler:
    """Feeds one engine with batches from all requests. Lives on one event loop; use as an async context manager."""

    def __init__(self, engine: Decoder, *, batch_size: int) -> None:
        self._engine = engine
        self._planner = BatchPlanner(batch_size)
        self._requests: dict[int, _Request] = {}
        self._numbers = itertools.count()
        self._work = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<SegmentScheduler requests={len(self._requests)} waiting={len(self._planner)}>"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._decode_batches(), name="scheduler")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._loop:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop

    async def submit(
        self, segments: AsyncIterator[Segment], options: TranscriptionOptions
    ) -> AsyncGenerator[TranscriptSegment]:
        """Results in the order of *segments*, each as soon as it and those before it are done.

        *segments* are numbered 0, 1, 2 … Close the iterator to cancel: nothing of the request is decoded after the
        batch under way. Raises WorkerCrashed when a segment was lost with MAX_ATTEMPTS engines, or what the engine
        raises.
        """
        number, request = next(self._numbers), _Request()
        self._requests[number] = request
        feeder = asyncio.create_task(self._feed(number, request, segments, options))
        try:
            done = 0
            while not (request.all_submitted and done == request.submitted):
                await request.changed.wait()
                request.changed.clear()
                while done in request.results:
                    yield request.results.pop(done)
                    done += 1
                if request.failure:
                    raise request.failure
        finally:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeder
            del self._requests[number]
            self._planner.cancel(number)

    async def _feed(
        self, number: int, request: _Request, segments: AsyncIterator[Segment], options: TranscriptionOptions
    ) -> None:
        name = telemetry.current_request_id()
        try:
            async for segment in segments:
                request.submitted += 1
                self._planner.add(Pending(number, segment, options, name))
                self._work.set()
            request.all_submitted = True
            request.changed.set()
        except Exception as error:
            request.fail(error)

    async def _decode_batches(self) -> None:
        while True:
            await self._work.wait()
            batch = self._planner.next_batch()
            if not batch:
                self._work.clear()
                continue
            try:
                names = sorted({pending.name for pending in batch if pending.name})
                results = await self._engine.transcribe(
                    [pending.segment for pending in batch], batch[0].options, request_ids=names
                )
            except WorkerCrashed as error:
                self._try_again(batch, error)
            except Exception as error:
                # NOTE: whatever it was, those who wait must hear of it; a lost exception would let them wait for ever.
                if not isinstance(error, ServiceError):
                    log.exception("batch failed")
                for pending in batch:
                    if request := self._requests.get(pending.request):
                        request.fail(error)
            else:
                for pending, result in zip(batch, results, strict=True):
                    if request := self._requests.get(pending.request):
                        request.results[pending.segment.index] = result
                        request.changed.set()

    def _try_again(self, batch: list[Pending], error: WorkerCrashed) -> None:
        """The engine died with *batch*: what was tried often enough fails its request, the rest goes back."""
        live = [pending for pending in batch if pending.request in self._requests]
        spent = {pending.request for pending in live if pending.attempts + 1 >= MAX_ATTEMPTS}
        for number in spent:
            self._planner.cancel(number)
            self._requests[number].fail(error)
        self._planner.put_back(pending for pending in live if pending.request not in spent)
        log.warning("engine died with a batch", segments=len(batch), requests_failed=len(spent))
