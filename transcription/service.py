"""One recording's whole way, from a file to a transcript. Synchronous requests, jobs and workers all take it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from errors import AudioTooLong
from ffmpeg import FFmpeg
from transcription import audio
from transcription.core import Segment, Transcript, TranscriptionOptions, TranscriptSegment
from transcription.engine import Engine
from transcription.scheduler import SegmentScheduler
from transcription.speech import SpeechCutter

log = structlog.get_logger(__name__)

DETECTION_SEGMENTS = 4
"""Language is heard in the first segments of speech, at most so many and at most DETECTION_S of them."""
DETECTION_S = 30.0


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
        """The stages so far and the total."""
        return self._stages_s | {"total": self._clock() - self._begun}


class Transcriber:
    """Turns recordings into transcripts. Holds nothing of a request; any number may run at once."""

    def __init__(
        self,
        ffmpeg: FFmpeg,
        cutter: SpeechCutter,
        engine: Engine,
        scheduler: SegmentScheduler,
        *,
        work_dir: Path,
        max_duration_s: float,
        max_decodes: int,
    ) -> None:
        """*work_dir*: where PCM lies while it is needed. *max_decodes*: ffmpeg children at once."""
        self._ffmpeg = ffmpeg
        self._cutter = cutter
        self._engine = engine
        self._scheduler = scheduler
        self._work_dir = work_dir
        self._max_duration_s = max_duration_s
        self._decodes = asyncio.Semaphore(max_decodes)

    async def run(self, source: Path, options: TranscriptionOptions) -> Transcript:
        """Transcribe the recording at *source*. Cancelling stops the work within a batch and leaves no file.

        Silence gives a transcript without segments. Raises the errors of `audio.probe` and `audio.decode`,
        AudioTooLong, ModelUnavailable, VoiceActivityUnavailable, WorkerCrashed, EngineFailed.
        """
        watch = Stopwatch()
        info = await audio.probe(self._ffmpeg, source)
        if info.duration_s is not None and info.duration_s > self._max_duration_s:
            raise AudioTooLong(
                f"The recording lasts {info.duration_s:.0f} s; this server accepts {self._max_duration_s:.0f} s."
            )
        await self._engine.find_weights(options.model)
        pcm = self._work_dir / f"{secrets.token_hex(8)}.pcm"
        try:
            with watch.stage("decode"):
                async with self._decodes:
                    duration_s = await audio.decode(self._ffmpeg, source, pcm, max_duration_s=self._max_duration_s)
            transcript = await self._transcribed(pcm, duration_s, options, watch)
        finally:
            pcm.unlink(missing_ok=True)
        log.info(
            "transcribed",
            audio_s=round(duration_s, 2),
            segments=len(transcript.segments),
            model=options.model,
            language=transcript.language,
            real_time_factor=round(transcript.real_time_factor, 2),
        )
        return transcript

    async def _transcribed(
        self, pcm: Path, duration_s: float, options: TranscriptionOptions, watch: Stopwatch
    ) -> Transcript:
        spoken: list[TranscriptSegment] = []
        certainty = 1.0
        async with contextlib.aclosing(self._cut(pcm, options, watch)) as segments:
            first = await first_speech(segments)
            if options.language is None and first:
                with watch.stage("language"):
                    heard = await self._engine.detect_language(first, options.model)
                options, certainty = replace(options, language=heard.code), heard.probability
            if first:
                with watch.stage("transcribe"):
                    results = self._scheduler.submit(chained(first, segments), options)
                    async with contextlib.aclosing(results):
                        spoken = [result async for result in results if result.text]
        return Transcript(
            segments=tuple(replace(segment, id=number) for number, segment in enumerate(spoken)),
            language=options.language,
            language_probability=certainty if options.language else 0.0,
            duration_s=duration_s,
            task=options.task,
            model=options.model,
            device=self._engine.device,
            compute_type=self._engine.compute_type,
            timings_s=watch.timings_s(),
        )

    async def _cut(self, pcm: Path, options: TranscriptionOptions, watch: Stopwatch) -> AsyncGenerator[Segment]:
        async with contextlib.aclosing(self._cutter.segments(pcm, options.vad)) as segments:
            while True:
                with watch.stage("voice_activity"):
                    segment = await anext(segments, None)
                if segment is None:
                    return
                yield segment


async def first_speech(segments: AsyncIterator[Segment]) -> list[Segment]:
    """The segments in which the language is heard; empty where nobody speaks."""
    first: list[Segment] = []
    while len(first) < DETECTION_SEGMENTS and sum(segment.duration_s for segment in first) < DETECTION_S:
        segment = await anext(segments, None)
        if segment is None:
            break
        first.append(segment)
    return first


async def chained(first: Sequence[Segment], rest: AsyncIterator[Segment]) -> AsyncIterator[Segment]:
    for segment in first:
        yield segment
    async for segment in rest:
        yield segment
