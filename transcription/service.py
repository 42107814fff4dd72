"""One recording's whole way, from a file to a transcript. Synchronous requests, jobs and workers all take it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

import prices
from errors import AudioTooLong, InvalidRequest
from fair_slots import FairSlots
from ffmpeg import FFmpeg
from reservation import Reservation
from transcription import audio, speakers
from transcription.alignment_models import weights_bytes
from transcription.core import (
    BYTES_PER_SAMPLE,
    NOBODY,
    SAMPLE_RATE,
    AudioInfo,
    Caller,
    Channels,
    Priority,
    Segment,
    Task,
    Transcript,
    TranscriptionOptions,
    TranscriptSegment,
)
from transcription.journal import SILENT, Journal, Unheard
from transcription.passing import chained, decoded, first_speech, given, noted
from transcription.pcm import GrowingPcm, seconds_in
from transcription.replicas import Replicas
from transcription.scheduler import SegmentScheduler
from transcription.speaker_finder import SpeakerFinder
from transcription.speech import SpeechCutter
from transcription.stretches import PAUSE_S, Layout, only
from transcription.text_filters import filtered
from transcription.word_alignment import WordAlignment
from undisturbed import undisturbed

log = structlog.get_logger(__name__)


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


LOOK_S = 0.25
"""How often it is looked whether a recording goes on past its price."""
MORE = 1.25
"""Past its price a recording pays for so many times what there is of it: seldom again, and not for much more."""

MOST_CHANNELS = 8
"""Of a recording whose channels are split: meetings have a few microphones, and each channel is heard whole."""


@dataclass
class _Run:
    """One recording on its way."""

    source: Path
    path: Path
    """Where its PCM lies while it is needed."""
    options: TranscriptionOptions
    info: AudioInfo
    reservation: Reservation | None
    journal: Journal
    watch: Stopwatch
    certainty: float = 1.0
    """That it is in the language of its options."""
    warnings: list[str] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Its turn to be decoded has come."""

    @property
    def caller(self) -> Caller:
        place = self.reservation
        return Caller(place.key, Priority(place.priority)) if place else NOBODY

    @property
    def channels(self) -> int:
        """That are heard apart."""
        return max(1, self.info.channels) if self.options.channels is Channels.SPLIT else 1


class Transcriber:
    """Turns recordings into transcripts. Holds nothing of a request; any number may run at once."""

    def __init__(
        self,
        ffmpeg: FFmpeg,
        cutter: SpeechCutter,
        engines: Replicas,
        scheduler: SegmentScheduler,
        alignment: WordAlignment,
        finder: SpeakerFinder,
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
        self._alignment = alignment
        self._finder = finder
        self._work_dir = work_dir
        self._max_duration_s = max_duration_s
        self._probes = FairSlots(max_decodes)
        self._decodes = asyncio.Semaphore(max_decodes)

    async def measure(self, source: Path, key: str = "", priority: int = 0) -> float:
        """Seconds of the recording at *source*, as far as can be told before it is decoded: what its header says, or a
        guess by its size. Raises AudioTooLong, and the errors of `audio.probe`."""
        return self._seconds(source, await self._probed(source, key, priority))

    async def _probed(self, source: Path, key: str, priority: int) -> AudioInfo:
        async with self._probes.slot(key, priority):
            return await audio.probe(self._ffmpeg, source)

    def _seconds(self, source: Path, info: AudioInfo) -> float:
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
        `Reservation.granted`, ModelUnavailable, VoiceActivityUnavailable, AlignmentUnavailable, DiarizationUnavailable,
        InvalidRequest (too many channels to split), WorkerCrashed, EngineFailed.
        """
        watch = Stopwatch()
        options, warnings = feasible(options, journal)
        if options.align:
            self._alignment.check()
        if options.diarize:
            self._finder.check()
        with watch.stage("probe"):
            who = (reservation.key, reservation.priority) if reservation else ("", 0)
            info = await self._probed(source, *who)
            audio_s = self._seconds(source, info)
        run = _Run(
            source,
            self._work_dir / f"{secrets.token_hex(8)}.pcm",
            options,
            info,
            reservation,
            journal,
            watch,
            warnings=warnings,
        )
        if run.channels > MOST_CHANNELS:
            raise InvalidRequest(f"channels: {run.channels} channels cannot be split; {MOST_CHANNELS} can.")
        if options.channels is Channels.SPLIT and run.channels == 1:
            run.warnings.append("The recording has one channel: there was nothing to split.")
        await self._engines.find_weights(options.model)
        if reservation is not None:
            with watch.stage("queue"):
                await reservation.granted(
                    {prices.MEMORY: prices.transcription_bytes(audio_s * run.channels)},
                    shared=self._processes(options),
                    amount=audio_s * run.channels,
                    short=audio_s <= prices.SHORT_S,
                )
        journal.begun(audio_s)
        try:
            # NOTE: whichever fails first ends the other: nobody waits for the text of a file that cannot be read.
            async with asyncio.TaskGroup() as group:
                decoding = group.create_task(self._decode(run))
                await run.begun.wait()
                transcript = await self._reused(run, decoding) if journal.reuses else None
                if transcript is None:
                    transcript = await self._transcribed(run, decoding)
        except ExceptionGroup as failed:
            error = first_of(failed)
            raise error from error.__cause__
        finally:
            run.path.unlink(missing_ok=True)
        log.info(
            "transcribed",
            audio_s=round(transcript.duration_s, 2),
            segments=len(transcript.segments),
            model=options.model,
            language=transcript.language,
            real_time_factor=round(transcript.real_time_factor, 2),
        )
        return transcript

    def _processes(self, options: TranscriptionOptions) -> dict[str, int]:
        """Bytes of the processes that it needs besides the engine, and shares with all who need them."""
        needed = {}
        if options.align:
            name = self._alignment.models.name_for(options.language or "", options.align_model)
            needed[f"alignment {name}"] = prices.alignment_bytes(weights_bytes(name))
        if options.diarize:
            needed["diarization"] = prices.DIARIZATION_BYTES
        return needed

    async def _decode(self, run: _Run) -> float:
        """Say when it is this recording's turn, then decode it; return its seconds."""
        with run.watch.stage("decode"):
            async with self._decodes:
                run.begun.set()
                duration_s = await self._decoded(run)
        if run.reservation is not None:
            run.reservation.give_back(prices.MEMORY, prices.FFMPEG_BYTES)
        return duration_s

    async def _decoded(self, run: _Run) -> float:
        if run.channels == 1:
            return await self._as_priced(run, run.path)
        duration_s = 0.0
        part = run.path.with_suffix(".channel")
        for channel in range(run.channels):
            try:
                duration_s = await self._as_priced(run, part, channel)
                await asyncio.to_thread(append, part, run.path, PAUSE_S if channel else 0.0)
            finally:
                part.unlink(missing_ok=True)
        return duration_s

    async def _as_priced(self, run: _Run, target: Path, channel: int | None = None) -> float:
        """Decode to *target*; return its seconds. Headers lie: what goes on past its price pays for more, or ends.

        Raises what `audio.decode` and `Reservation.extend` raise.
        """
        limit_s = self._max_duration_s
        decoding = asyncio.ensure_future(
            audio.decode(self._ffmpeg, run.source, target, max_duration_s=limit_s, channel=channel)
        )
        try:
            while not decoding.done():
                await asyncio.wait({decoding}, timeout=LOOK_S)
                decoded_s = decoding.result() if decoding.done() else seconds_in(target)
                if run.reservation is not None and decoded_s > prices.within_price_s(
                    run.reservation.amount / run.channels
                ):
                    audio_s = min(MORE * decoded_s, limit_s)
                    more = prices.TEXT_BYTES_A_SECOND * round(audio_s * run.channels - run.reservation.amount)
                    await run.reservation.extend(
                        audio_s * run.channels, {prices.MEMORY: max(0, more)}, short=audio_s <= prices.SHORT_S
                    )
            return decoding.result()
        except BaseException:
            decoding.cancel()
            await undisturbed(asyncio.ensure_future(asyncio.gather(decoding, return_exceptions=True)))
            raise

    @staticmethod
    async def _reused(run: _Run, decoding: asyncio.Task[float]) -> Transcript | None:
        """The transcript that is there already for these very samples."""
        await decoding
        with run.watch.stage("reuse"):
            known = await run.journal.known(await asyncio.to_thread(digest, run.path))
        return None if known is None else replace(known, timings_s=run.watch.timings_s())

    async def _transcribed(self, run: _Run, decoding: asyncio.Task[float]) -> Transcript:
        journal, watch = run.journal, run.watch
        pcm = GrowingPcm(run.path, decoding)
        layout = Layout(clips=run.options.clips)
        if run.channels > 1:
            await decoding
            layout = replace(layout, channels=run.channels, channel_samples=channel_samples(run.path, run.channels))
        results: list[TranscriptSegment] = []
        async with asyncio.TaskGroup() as group:
            finding: asyncio.Task[list[speakers.Turn]] | None = None
            async with contextlib.aclosing(self._cut(run, pcm, layout)) as segments:
                if first := await first_speech(segments):
                    await self._hear_language(run, first)
                    if run.options.diarize:
                        finding = group.create_task(self._speakers(run, decoding))
                    if journal.shares:
                        first += [segment async for segment in segments]
                        await journal.share(first, run.options)
                    results = await self._results(run, chained(first, segments), layout)
        spoken = tuple(sorted((result for result in results if result.text), key=lambda result: result.start))
        if run.options.align:
            run.warnings += self._alignment.warnings(spoken, run.options)
        if finding is not None:
            spoken = await asyncio.to_thread(speakers.told, spoken, finding.result())
        duration_s = await decoding
        if journal.keeps and not journal.reuses:
            journal.samples_known(await asyncio.to_thread(digest, run.path))
        options = run.options
        return Transcript(
            segments=tuple(replace(segment, id=number) for number, segment in enumerate(spoken)),
            language=options.language,
            language_probability=run.certainty if options.language else 0.0,
            duration_s=duration_s,
            task=options.task,
            model=options.model,
            device=self._engines.device,
            compute_type=self._engines.compute_type,
            timings_s=watch.timings_s(),
            warnings=tuple(run.warnings),
        )

    def _cut(self, run: _Run, pcm: GrowingPcm, layout: Layout) -> AsyncGenerator[Segment]:
        """The segments with speech, as they are found; of a part of a recording, those that belong to it."""
        if run.journal.only is not None:
            return given(pcm, run.journal.only)
        at_work = functools.partial(run.watch.stage, "voice_activity")
        return only(self._cutter.segments(pcm, run.options.vad, at_work=at_work), layout)

    async def _hear_language(self, run: _Run, first: Sequence[Segment]) -> None:
        if run.options.language is not None:
            return
        with run.watch.stage("language"):
            heard = run.journal.language or await self._scheduler.detect_language(
                first, run.options.decoding, run.caller
            )
        run.journal.language_heard(heard)
        run.options, run.certainty = replace(run.options, language=heard.code), heard.probability

    async def _speakers(self, run: _Run, decoding: asyncio.Task[float]) -> list[speakers.Turn]:
        await decoding
        with run.watch.stage("diarization"):
            samples = size_of(run.path) // BYTES_PER_SAMPLE
            return await self._finder.turns(run.path, samples, run.options, run.caller)

    async def _results(self, run: _Run, segments: AsyncIterator[Segment], layout: Layout) -> list[TranscriptSegment]:
        """What was said in *segments*, told to the journal as it is finished; what it knew already included."""
        options, results = run.options, []
        new = Unheard(segments, run.journal)
        under_way: dict[int, Segment] = {}
        with run.watch.stage("transcribe"):
            async with contextlib.AsyncExitStack() as stack:
                speech = await stack.enter_async_context(contextlib.aclosing(aiter(new)))
                if options.align:
                    speech = await stack.enter_async_context(contextlib.aclosing(noted(speech, under_way)))
                submitted = self._scheduler.submit(speech, options.decoding, run.caller)
                finished = await stack.enter_async_context(contextlib.aclosing(submitted))
                if options.align:
                    heard = await stack.enter_async_context(contextlib.aclosing(decoded(finished, under_way)))
                    aligned = self._alignment.aligned(heard, options, run.caller)
                    finished = await stack.enter_async_context(contextlib.aclosing(aligned))
                async for result in finished:
                    if run.reservation is not None:
                        run.reservation.advance(result.end)
                    told = layout.placed(written(result, options))
                    run.journal.segment_heard(new.done(), told)
                    results.append(told)
        return results + new.known


def feasible(options: TranscriptionOptions, journal: Journal) -> tuple[TranscriptionOptions, list[str]]:
    """*options* without what cannot be done together, and why, in sentences."""
    warnings = []
    if options.align and options.task is Task.TRANSLATE:
        warnings.append("A translation cannot be aligned with what was said: words have the decoder's times.")
        options = replace(options, align=False)
    if options.diarize and options.channels is Channels.SPLIT:
        warnings.append("Channels were split: each is taken for one speaker, and nobody was told apart in it.")
        options = replace(options, diarize=False)
    if journal.only is not None:
        # A part of a recording: its holder tells the speakers, who are heard in all of it.
        options = replace(options, diarize=False)
    return options, warnings


def written(result: TranscriptSegment, options: TranscriptionOptions) -> TranscriptSegment:
    """*result* without what its caller does not want to read."""
    if not (options.drop_fillers or options.mask_profanity):
        return result
    language = result.language or options.language
    kept = filtered(
        [result],
        fillers=options.drop_fillers,
        profanity=options.mask_profanity,
        language=language,
        translated=options.task is Task.TRANSLATE,
    )
    return (
        replace(kept[0], id=result.id) if kept else replace(result, text="", words=None if result.words is None else ())
    )


def append(part: Path, whole: Path, pause_s: float) -> None:
    """Write *part*'s samples to the end of *whole*, after a pause."""
    descriptor = os.open(whole, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    with part.open("rb") as source, os.fdopen(descriptor, "wb") as target:
        target.write(bytes(round(pause_s * SAMPLE_RATE) * BYTES_PER_SAMPLE))
        shutil.copyfileobj(source, target)


def channel_samples(path: Path, channels: int) -> int:
    """Of each of the channels that lie in the PCM at *path*."""
    pause = round(PAUSE_S * SAMPLE_RATE)
    return (size_of(path) // BYTES_PER_SAMPLE + pause) // channels - pause


def first_of(failed: ExceptionGroup[Exception]) -> Exception:
    """The first of the errors that ended a group of tasks, which may have groups in it."""
    error: Exception = failed
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def size_of(source: Path) -> int:
    return source.stat().st_size


def digest(pcm: Path) -> str:
    """What tells these samples from all others, whatever file they came in."""
    with pcm.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
