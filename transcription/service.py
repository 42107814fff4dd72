"""One recording's whole way, from a file to a transcript. Synchronous requests, jobs and workers all take it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

import prices
from errors import AudioTooLong
from fair_slots import FairSlots
from ffmpeg import FFmpeg
from reservation import Reservation
from transcription import audio
from transcription.core import (
    NOBODY,
    Caller,
    Priority,
    Segment,
    Transcript,
    TranscriptionOptions,
    TranscriptSegment,
)
from transcription.journal import SILENT, Journal, Span, Unheard
from transcription.pcm import GrowingPcm
from transcription.replicas import Replicas
from transcription.scheduler import SegmentScheduler
from transcription.speech import SpeechCutter

log = structlog.get_logger(__name__)

DETECTION_SEGMENTS = 4
DETECTION_S = 10.0
"""Language is heard in the first segments of speech, until they last so long together, in so many at most. With `base`
and 36 clips in eight languages, 30 s of them over full windows were right as often, at three times the cost."""


class Stopwatch:
    """Seconds by stage, summed over visits."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begun = clock()
        self._stages_s: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = self._clock()
        try:
            yield
        finally:
            self._stages_s[name] = self._stages_s.get(name, 0.0) + self._clock() - begun

    def timings_s(self) -> dict[str, float]:
        """The stages so far and the total, from the request's body to its transcript, waiting included."""
        return self._stages_s | {"total": self._clock() - self._begun}


class Transcriber:
    """Turns recordings into transcripts. Holds nothing of a request; any number may run at once."""

    def __init__(
        self,
        ffmpeg: FFmpeg,
        cutter: SpeechCutter,
        engines: Replicas,
        scheduler: SegmentScheduler,
        *,
        work_dir: Path,
        max_duration_s: float,
        max_decodes: int,
    ) -> None:
        """*work_dir*: where PCM lies while it is needed. *max_decodes*: ffmpeg children at once, and as many probes."""
        self._ffmpeg = ffmpeg
        self._cutter = cutter
        self._engines = engines
        self._scheduler = scheduler
        self._work_dir = work_dir
        self._max_duration_s = max_duration_s
        self._probes = FairSlots(max_decodes)
        self._decodes = asyncio.Semaphore(max_decodes)

    async def measure(self, source: Path, key: str = "", priority: int = 0) -> float:
        """Seconds of the recording at *source*, as far as can be told before it is decoded: what its header says, or a
        guess by its size. Raises AudioTooLong, and the errors of `audio.probe`."""
        async with self._probes.slot(key, priority):
            info = await audio.probe(self._ffmpeg, source)
        if info.duration_s is None:
            return min(prices.guessed_s(size_of(source)), self._max_duration_s)
        if info.duration_s > self._max_duration_s:
            raise AudioTooLong(
                f"The recording lasts {info.duration_s:.0f} s; this server accepts {self._max_duration_s:.0f} s."
            )
        return info.duration_s

    async def run(
        self,
        source: Path,
        options: TranscriptionOptions,
        reservation: Reservation | None = None,
        journal: Journal = SILENT,
    ) -> Transcript:
        """Transcribe the recording at *source*. Cancelling stops the work within a batch and leaves no file.

        *reservation*: whose work it is, and its place; it waits there for its turn once its price is known. None: it
        starts at once, on nobody's behalf. *journal*: is told what is finished, and tells what was finished before.

        Silence gives a transcript without segments. Raises the errors of `measure`, `audio.decode` and
        `Reservation.granted`, ModelUnavailable, VoiceActivityUnavailable, WorkerCrashed, EngineFailed.
        """
        watch = Stopwatch()
        with watch.stage("probe"):
            audio_s = await self.measure(source, *((reservation.key, reservation.priority) if reservation else ()))
        await self._engines.find_weights(options.model)
        if reservation is not None:
            with watch.stage("queue"):
                await reservation.granted(
                    {prices.MEMORY: prices.transcription_bytes(audio_s)},
                    amount=audio_s,
                    short=audio_s <= prices.SHORT_S,
                )
        journal.begun(audio_s)
        path = self._work_dir / f"{secrets.token_hex(8)}.pcm"
        try:
            # NOTE: whichever fails first ends the other: nobody waits for the text of a file that cannot be read.
            async with asyncio.TaskGroup() as group:
                begun = asyncio.Event()
                decoding = group.create_task(self._decode(source, path, begun, watch, reservation))
                await begun.wait()
                transcript = await self._reused(path, decoding, journal, watch) if journal.reuses else None
                if transcript is None:
                    pcm = GrowingPcm(path, decoding)
                    transcript = await self._transcribed(pcm, decoding, options, reservation, journal, watch)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed.exceptions[0].__cause__
        finally:
            path.unlink(missing_ok=True)
        log.info(
            "transcribed",
            audio_s=round(transcript.duration_s, 2),
            segments=len(transcript.segments),
            model=options.model,
            language=transcript.language,
            real_time_factor=round(transcript.real_time_factor, 2),
        )
        return transcript

    async def _decode(
        self, source: Path, target: Path, begun: asyncio.Event, watch: Stopwatch, reservation: Reservation | None
    ) -> float:
        """Set *begun* when it is this recording's turn, then decode it; return its seconds."""
        with watch.stage("decode"):
            async with self._decodes:
                begun.set()
                duration_s = await audio.decode(self._ffmpeg, source, target, max_duration_s=self._max_duration_s)
        if reservation is not None:
            reservation.give_back(prices.MEMORY, prices.FFMPEG_BYTES)
        return duration_s

    @staticmethod
    async def _reused(
        path: Path, decoding: asyncio.Task[float], journal: Journal, watch: Stopwatch
    ) -> Transcript | None:
        """The transcript that is there already for these very samples."""
        await decoding
        with watch.stage("reuse"):
            known = await journal.known(await asyncio.to_thread(digest, path))
        return None if known is None else replace(known, timings_s=watch.timings_s())

    async def _transcribed(
        self,
        pcm: GrowingPcm,
        decoding: asyncio.Task[float],
        options: TranscriptionOptions,
        reservation: Reservation | None,
        journal: Journal,
        watch: Stopwatch,
    ) -> Transcript:
        caller = Caller(reservation.key, Priority(reservation.priority)) if reservation else NOBODY
        results: list[TranscriptSegment] = []
        certainty = 1.0
        at_work = functools.partial(watch.stage, "voice_activity")
        if journal.only is None:
            cut = self._cutter.segments(pcm, options.vad, at_work=at_work)
        else:
            cut = given(pcm, journal.only)
        async with contextlib.aclosing(cut) as segments:
            first = await first_speech(segments)
            if options.language is None and first:
                with watch.stage("language"):
                    heard = journal.language or await self._scheduler.detect_language(first, options, caller)
                journal.language_heard(heard)
                options, certainty = replace(options, language=heard.code), heard.probability
            if first:
                if journal.shares:
                    first += [segment async for segment in segments]
                    await journal.share(first, options)
                new = Unheard(chained(first, segments), journal)
                with watch.stage("transcribe"):
                    async with (
                        contextlib.aclosing(aiter(new)) as speech,
                        contextlib.aclosing(self._scheduler.submit(speech, options, caller)) as submitted,
                    ):
                        async for result in submitted:
                            if reservation is not None:
                                reservation.advance(result.end)
                            journal.segment_heard(new.done(), result)
                            results.append(result)
                results += new.known
        spoken = sorted((result for result in results if result.text), key=lambda result: result.start)
        duration_s = await decoding
        if journal.keeps and not journal.reuses:
            journal.samples_known(await asyncio.to_thread(digest, pcm.path))
        return Transcript(
            segments=tuple(replace(segment, id=number) for number, segment in enumerate(spoken)),
            language=options.language,
            language_probability=certainty if options.language else 0.0,
            duration_s=duration_s,
            task=options.task,
            model=options.model,
            device=self._engines.device,
            compute_type=self._engines.compute_type,
            timings_s=watch.timings_s(),
        )


def size_of(source: Path) -> int:
    return source.stat().st_size


async def given(pcm: GrowingPcm, spans: Sequence[Span]) -> AsyncGenerator[Segment]:
    """The segments that lie there, as soon as they do."""
    for index, (first_sample, samples) in enumerate(spans):
        await pcm.wait_for(first_sample + samples)
        yield Segment(pcm.path, first_sample, samples, index)


async def first_speech(segments: AsyncIterator[Segment]) -> list[Segment]:
    """The segments in which the language is heard; empty where nobody speaks."""
    first: list[Segment] = []
    while len(first) < DETECTION_SEGMENTS and sum(segment.duration_s for segment in first) < DETECTION_S:
        segment = await anext(segments, None)
        if segment is None:
            break
        first.append(segment)
    return first


async def chained(first: Sequence[Segment], rest: AsyncIterator[Segment]) -> AsyncGenerator[Segment]:
    for segment in first:
        yield segment
    async for segment in rest:
        yield segment


def digest(pcm: Path) -> str:
    """What tells these samples from all others, whatever file they came in."""
    with pcm.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
