"""Segments of all requests in, results in each request's own order out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, Self

import structlog

import telemetry
from errors import NotReady, OutOfMemory, ServiceError, WorkerCrashed
from transcription.core import NOBODY, Caller, Segment, SegmentRequest, TranscriptionOptions, TranscriptSegment
from transcription.planner import BatchPlanner, Pending
from transcription.protocol import Language

log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 3
"""Engines that may die with a piece of work before its request is given up."""

LOOK_AHEAD = 24
"""Segments of one request that may be found and not yet handed over: enough to fill batches with segments of like
length, and no more. A ten-hour recording takes no more memory than a short one, and its voice activity does not crowd
out a clip that comes in with it (with 64, a clip sent in the file's first second took twice as long)."""


class Decoder(Protocol):
    """What the scheduler needs of an engine."""

    @property
    def device(self) -> str: ...

    @property
    def streams(self) -> int:
        """Batches that it decodes at the same time."""

    @property
    def express(self) -> bool:
        """Whether it decodes one more, of clips alone."""

    @property
    def up(self) -> bool:
        """Whether it takes work."""

    async def wait_until_up(self) -> None:
        """Raises NotReady where that takes too long."""

    async def transcribe(
        self, requests: Sequence[SegmentRequest], *, request_ids: Sequence[str] = ()
    ) -> list[TranscriptSegment | ServiceError]: ...

    async def detect_language(self, segments: Sequence[Segment], model: str) -> Language: ...


class _Request:
    """One caller's segments: how many were handed in, and the results that wait for their turn."""

    def __init__(self) -> None:
        self.room = asyncio.Semaphore(LOOK_AHEAD)
        self.submitted = 0
        self.all_submitted = False
        self.results: dict[int, TranscriptSegment] = {}
        self.language: Language | None = None
        self.failure: BaseException | None = None
        self.changed = asyncio.Event()

    def fail(self, failure: BaseException) -> None:
        self.failure = self.failure or failure
        self.changed.set()


class SegmentScheduler:
    """Feeds all streams of all engines with batches from all requests. Lives on one event loop; a context manager."""

    def __init__(
        self, engines: Sequence[Decoder], planner: BatchPlanner, on_batch: Callable[[int, int], None] | None = None
    ) -> None:
        """*on_batch* is told of each batch that goes to an engine: its segments, and how many may share one there."""
        self._engines = engines
        self._planner = planner
        self._on_batch = on_batch
        self._requests: dict[int, _Request] = {}
        self._numbers = itertools.count()
        self._streams: list[asyncio.Task[None]] = []
        self._work: list[asyncio.Event] = []
        """One for each stream: something may be there for it."""

    def __repr__(self) -> str:
        return f"<SegmentScheduler requests={len(self._requests)} waiting={len(self._planner)}>"

    async def __aenter__(self) -> Self:
        for engine in self._engines:
            for number in range(engine.streams + engine.express):
                work = asyncio.Event()
                stream = self._decode_batches(engine, work, clips_only=number == engine.streams)
                self._work.append(work)
                self._streams.append(asyncio.create_task(stream, name="scheduler"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)

    async def submit(
        self, segments: AsyncIterator[Segment], options: TranscriptionOptions, caller: Caller = NOBODY
    ) -> AsyncGenerator[TranscriptSegment]:
        """Results in the order of *segments*, each as soon as it and those before it are done.

        *segments* are numbered 0, 1, 2 … and asked for LOOK_AHEAD of them ahead of the results that were taken. Close
        the iterator to cancel: nothing of the request is decoded after the batches under way. Raises WorkerCrashed
        when a segment was lost with MAX_ATTEMPTS engines, OutOfMemory where not even one fits, NotReady where no
        engine comes up, or what the engine raises.
        """
        number, request = next(self._numbers), _Request()
        self._requests[number] = request
        feeder = asyncio.create_task(self._feed(number, request, segments, options, caller))
        try:
            done = 0
            while not (request.all_submitted and done == request.submitted):
                await request.changed.wait()
                request.changed.clear()
                while done in request.results:
                    yield request.results.pop(done)
                    request.room.release()
                    done += 1
                if request.failure:
                    raise request.failure
        finally:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeder
            del self._requests[number]
            self._planner.cancel(number)

    async def detect_language(
        self, segments: Sequence[Segment], options: TranscriptionOptions, caller: Caller = NOBODY
    ) -> Language:
        """The language of the speech in *segments*, in turn with all other work. Raises as `submit` does."""
        number, request = next(self._numbers), _Request()
        self._requests[number] = request
        try:
            name = telemetry.current_request_id()
            self._planner.add(Pending(number, segments[0], options, caller, name, detects=tuple(segments)))
            self._wake()
            await request.changed.wait()
            if request.failure:
                raise request.failure
            assert request.language is not None
            return request.language
        finally:
            del self._requests[number]
            self._planner.cancel(number)

    async def _feed(
        self,
        number: int,
        request: _Request,
        segments: AsyncIterator[Segment],
        options: TranscriptionOptions,
        caller: Caller,
    ) -> None:
        name = telemetry.current_request_id()
        try:
            async for segment in segments:
                if request.failure:
                    return
                request.submitted += 1
                self._planner.add(Pending(number, segment, options, caller, name))
                self._wake()
                await request.room.acquire()
            request.all_submitted = True
            request.changed.set()
        except Exception as error:
            request.fail(error)

    def _wake(self) -> None:
        for work in self._work:
            work.set()

    async def _decode_batches(self, engine: Decoder, work: asyncio.Event, *, clips_only: bool) -> None:
        """One stream of *engine*: a batch after another, for ever."""
        while True:
            await work.wait()
            try:
                await engine.wait_until_up()
            except NotReady as error:
                if not any(other.up for other in self._engines):
                    self._fail(self._requests, error)
                continue
            batch = self._planner.next_batch(engine.device, clips_only=clips_only)
            if batch:
                await self._decode(engine, batch)
            else:
                work.clear()

    async def _decode(self, engine: Decoder, batch: list[Pending]) -> None:
        """Have *batch* decoded; each of its segments ends with its result, in the planner again, or with an error."""
        if self._on_batch and not batch[0].detects:
            self._on_batch(len(batch), self._planner.batch_size(engine.device, batch[0].options.model))
        try:
            results = await self._results(engine, batch)
        except WorkerCrashed as error:
            self._try_again(batch, error)
        except OutOfMemory as error:
            self._try_fewer(batch, error, engine.device)
        except Exception as error:
            # NOTE: whatever it was, those who wait must hear of it; a lost exception would let them wait for ever.
            if not isinstance(error, ServiceError):
                log.exception("batch failed")
            self._fail((pending.request for pending in batch), error)
        else:
            for pending, result in zip(batch, results, strict=True):
                if isinstance(result, ServiceError):
                    self._fail([pending.request], result)
                elif request := self._requests.get(pending.request):
                    if isinstance(result, Language):
                        request.language = result
                    else:
                        request.results[pending.segment.index] = result
                    request.changed.set()

    @staticmethod
    async def _results(
        engine: Decoder, batch: list[Pending]
    ) -> Sequence[TranscriptSegment | ServiceError] | Sequence[Language]:
        """What *engine* makes of *batch*: one result or error a segment, or one language."""
        if batch[0].detects:
            return [await engine.detect_language(batch[0].detects, batch[0].options.model)]
        names = sorted({pending.name for pending in batch if pending.name})
        return await engine.transcribe([pending.asked for pending in batch], request_ids=names)

    def _fail(self, numbers: Iterable[int], error: Exception) -> None:
        for number in list(numbers):
            if request := self._requests.get(number):
                self._planner.cancel(number)
                request.fail(error)

    def _try_again(self, batch: list[Pending], error: WorkerCrashed) -> None:
        """The engine died with *batch*: what was tried often enough fails its request, the rest goes back."""
        spent = {pending.request for pending in batch if pending.attempts + 1 >= MAX_ATTEMPTS}
        self._fail(spent, error)
        self._put_back(replace(pending, attempts=pending.attempts + 1) for pending in batch)
        log.warning("engine died with a batch", segments=len(batch), requests_failed=len(spent))

    def _try_fewer(self, batch: list[Pending], error: OutOfMemory, device: str) -> None:
        """*batch* did not fit into the device's memory: half as many from now on; one alone fails its request."""
        if len(batch) == 1:
            self._fail([batch[0].request], error)
        else:
            self._planner.limit(device, batch[0].options.model, len(batch) // 2)
            self._put_back(batch)
        log.warning("out of memory", segments=len(batch), device=device)

    def _put_back(self, batch: Iterable[Pending]) -> None:
        """Back to the planner with what somebody still waits for."""
        self._planner.put_back([pending for pending in batch if self._waits(pending.request)])
        self._wake()

    def _waits(self, number: int) -> bool:
        request = self._requests.get(number)
        return request is not None and request.failure is None
