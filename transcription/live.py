"""Text while somebody speaks: a session's sound in, segments out as pauses end them, and what is known until then.

Only speech is decoded: voice activity hears everything, silence goes no further. Stretches of speech share the batches
of all other work; a look at a stretch that goes on (`Partial`) comes after all that somebody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog

from errors import AudioTooLong, ServiceError, ShuttingDown, UnsupportedMedia
from ffmpeg import FFmpeg, Pipe
from recording import MEMORY_BYTES
from transcription.core import (
    BYTES_PER_SAMPLE,
    NOBODY,
    SAMPLE_RATE,
    Caller,
    Priority,
    Segment,
    TranscriptionOptions,
    TranscriptSegment,
)
from transcription.live_cutting import LiveCutter, LiveRule, Stretch
from transcription.live_sound import LiveSound
from transcription.pcm import Samples
from transcription.protocol import Language
from transcription.replicas import Replicas
from transcription.scheduler import SegmentScheduler
from transcription.service import first_of, written
from transcription.speech import FRAME_SAMPLES, Memory, Silero
from workfolder import private_folder

log = structlog.get_logger(__name__)

FRAME_BYTES = FRAME_SAMPLES * BYTES_PER_SAMPLE
LEAST_FRAMES = 4
"""Heard at once: 128 ms, which nobody notices. Each run of the network has its price."""
MOST_FRAMES = 32

READ_BYTES = 32 * 1024
"""A second of samples."""

WAITING_STRETCHES = 2
"""Ended and not yet decoded: past these, whoever speaks faster than is decoded has to wait."""

LANGUAGE_S = 5.0
"""So much speech settles the language of a session; before, each stretch is heard for it anew."""
PARTIAL_LANGUAGE_S = 2.0
"""In less, the language of a stretch that goes on is not looked for."""


@dataclass(frozen=True, slots=True)
class Partial:
    """What a stretch of speech that goes on sounds like so far; it replaces the one before. Seconds of the session."""

    start: float
    end: float
    text: str
    """Empty: there was nothing in it after all."""


Heard = Language | TranscriptSegment | Partial
Tell = Callable[[Heard], Awaitable[None]]


def nobody_counts(_: float) -> None:
    """For sessions whose seconds nobody counts."""


class LiveText:
    """Makes sessions of live text. Holds nothing of them but their number."""

    def __init__(
        self,
        ffmpeg: FFmpeg,
        engines: Replicas,
        scheduler: SegmentScheduler,
        *,
        work_dir: Path,
        max_duration_s: float,
        idle_s: float = 30.0,
        rule: LiveRule | None = None,
    ) -> None:
        """*work_dir*: where stretches lie while they are decoded. *idle_s*: how long a session may stand still, for
        those who read from its caller and write to it."""
        self._ffmpeg = ffmpeg
        self._engines = engines
        self._scheduler = scheduler
        self._work_dir = work_dir
        self._rule = rule or LiveRule()
        self._silero: Silero | None = None
        self._closing = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()
        self._sessions = 0
        self.max_duration_s = max_duration_s
        self.idle_s = idle_s

    def __repr__(self) -> str:
        return f"<LiveText sessions={self._sessions}>"

    def close(self) -> None:
        """End all sessions with ShuttingDown; no other begins."""
        self._closing.set()

    async def closed(self, limit_s: float) -> None:
        """Returns when no session is under way any more, or after *limit_s*."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), limit_s)

    async def prepare(self, model: str) -> None:
        """Have *model* on disk. Raises ModelUnavailable, ShuttingDown."""
        if self._closing.is_set():
            raise ShuttingDown
        await self._engines.find_weights(model)

    @contextlib.asynccontextmanager
    async def session(
        self,
        sound: LiveSound,
        options: TranscriptionOptions,
        tell: Tell,
        caller: Caller = NOBODY,
        *,
        partials: bool = True,
        count: Callable[[float], None] = nobody_counts,
    ) -> AsyncIterator[LiveSession]:
        """A session for as long as the context lasts; nothing of it is left after that.

        *tell* gets what is heard, in order. *count* is told of each piece of sound, in seconds, and may refuse more by
        raising. Raises what these raise, ShuttingDown, UnsupportedMedia, AudioTooLong, and what the scheduler raises.
        """
        if self._silero is None:
            self._silero = await asyncio.to_thread(Silero)
        self._sessions += 1
        self._over.clear()
        try:
            async with contextlib.AsyncExitStack() as stack:
                folder = stack.enter_context(private_folder(self._work_dir))
                pipe = None if sound.is_ready else await stack.enter_async_context(self._converter(sound))
                work = _Work(self._scheduler, self._silero, folder, options, caller)
                session = LiveSession(work, LiveCutter(self._rule), tell, count, int(self.max_duration_s * SAMPLE_RATE))
                yield await stack.enter_async_context(session.running(pipe, self._closing, partials=partials))
        finally:
            self._sessions -= 1
            if not self._sessions:
                self._over.set()

    def _converter(self, sound: LiveSound) -> contextlib.AbstractAsyncContextManager[Pipe]:
        # As for recordings: a twentieth of the sound's length.
        cpu_s = 30 + self.max_duration_s / 20
        return self._ffmpeg.piped(sound.ffmpeg_arguments(), cpu_s=cpu_s, memory_bytes=MEMORY_BYTES)


class _Work:
    """What a session has done by others: voices found, languages heard, stretches decoded."""

    def __init__(
        self, scheduler: SegmentScheduler, silero: Silero, folder: Path, options: TranscriptionOptions, caller: Caller
    ) -> None:
        self._scheduler = scheduler
        self._silero = silero
        self._folder = folder
        self._options = options
        self._caller = caller
        self._memory = Memory()
        self._files = 0
        self._language_heard_s = 0.0
        self.language = Language(options.language, 1.0) if options.language else None

    async def voices(self, sound: Samples) -> list[float]:
        """The probability of speech in each frame of *sound*."""
        # NOTE: the network lets go of the interpreter's lock, so a thread keeps the event loop free.
        probabilities, self._memory = await asyncio.to_thread(self._silero.hear, sound, self._memory)
        return probabilities

    async def hear_language(self, stretch: Stretch, *, final: bool) -> Language | None:
        """Hear *stretch* for its language, unless the session's is settled; None where it is the one before."""
        settled = self._options.language is not None or self._language_heard_s >= LANGUAGE_S
        if settled or (not final and (self.language is not None or stretch.duration_s < PARTIAL_LANGUAGE_S)):
            return None
        async with self._written(stretch) as segment:
            heard = await self._scheduler.detect_language([segment], self._options.decoding, self._caller)
        if final:
            self._language_heard_s += stretch.duration_s
        before, self.language = self.language, heard
        return heard if before is None or before.code != heard.code else None

    async def text(self, stretch: Stretch) -> TranscriptSegment:
        """What is said in *stretch*, as it was asked for."""
        return await self._decoded(stretch, self._spoken(), self._caller)

    async def glance(self, stretch: Stretch) -> str:
        """What is likely said in *stretch*, or nothing where that is no use: decoded greedily and once, without word
        times, after all that somebody waits for."""
        options = replace(self._spoken(), beam_size=1, word_timestamps=False, logprobs=False, once=True)
        return (await self._decoded(stretch, options, replace(self._caller, priority=Priority.BATCH))).text

    def _spoken(self) -> TranscriptionOptions:
        return replace(self._options, language=self.language.code if self.language else None)

    async def _decoded(self, stretch: Stretch, options: TranscriptionOptions, caller: Caller) -> TranscriptSegment:
        async with self._written(stretch) as segment:
            submitted = self._scheduler.submit(only(segment), options.decoding, caller)
            async with contextlib.aclosing(submitted) as results:
                result = await anext(results)
        return placed(written(result, options), stretch.start_s)

    @contextlib.asynccontextmanager
    async def _written(self, stretch: Stretch) -> AsyncIterator[Segment]:
        """*stretch* in a file, where engines read it."""
        self._files += 1
        path = self._folder / f"{self._files}.pcm"
        try:
            await asyncio.to_thread(stretch.sound.tofile, path)
            yield Segment(path, 0, len(stretch.sound), 0)
        finally:
            path.unlink(missing_ok=True)


class LiveSession:
    """One who speaks, heard. Made by `LiveText.session`.

    Each method returns when there is room for more. Invariant: what is told of a stretch comes after all that was told
    of those before it.
    """

    def __init__(
        self, work: _Work, cutter: LiveCutter, tell: Tell, count: Callable[[float], None], most_samples: int
    ) -> None:
        self._work = work
        self._cutter = cutter
        self._tell = tell
        self._count = count
        self._most_samples = most_samples
        self._partials = True
        self._pipe: Pipe | None = None
        self._pumping: asyncio.Task[None] | None = None
        self._group = asyncio.TaskGroup()
        self._hearing = asyncio.Lock()
        self._rest = b""
        self._fed = self._stopped = False
        self._ended: asyncio.Queue[Stretch] = asyncio.Queue(WAITING_STRETCHES)
        self._undone = 0
        """Stretches that have ended and are not told of yet."""
        self._looking: asyncio.Task[None] | None = None
        self._shown = False
        """Whether a partial text was told of the stretch that comes next."""
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(self._texts).strip()

    @property
    def segments(self) -> int:
        return len(self._texts)

    @property
    def duration_s(self) -> float:
        """Of the sound that was heard."""
        return self._cutter.heard / SAMPLE_RATE

    @property
    def quiet(self) -> bool:
        """Whether nothing of what was heard is being decoded."""
        return not self._undone and (self._looking is None or self._looking.done())

    @property
    def language(self) -> str | None:
        return self._work.language.code if self._work.language else None

    @contextlib.asynccontextmanager
    async def running(self, pipe: Pipe | None, closing: asyncio.Event, *, partials: bool) -> AsyncIterator[LiveSession]:
        """The session at work. Whatever fails in it ends the context's body, and is raised as it is."""
        self._pipe, self._partials = pipe, partials
        try:
            async with self._group as group:
                background = [group.create_task(self._decode()), group.create_task(ended_by(closing))]
                if pipe is not None:
                    self._pumping = group.create_task(self._pump(pipe))
                    background.append(self._pumping)
                yield self
                self._drop_look()
                for task in background:
                    task.cancel()
        except ExceptionGroup as failed:
            error = first_of(failed)
            raise error from error.__cause__

    # --- what the caller says ----------------------------------------------------------------------------------------

    async def feed(self, data: bytes) -> None:
        """More sound, as it was announced; a sample may be cut anywhere."""
        if self._pipe is None:
            await self._hear(data)
        else:
            self._fed = self._fed or bool(data)
            await self._pipe.write(data)

    async def flush(self) -> None:
        """End the stretch under way. NOTE: of a container, what has been decoded of it by now."""
        await self._hear(b"", least_frames=1)
        async with self._hearing:
            await self._end(self._cutter.flush())

    async def stop(self) -> None:
        """There is no more sound. Returns when all of it was heard and told."""
        self._stopped = True
        if self._pipe is not None and self._pumping is not None:
            self._pipe.end()
            await asyncio.wait({self._pumping})
        await self._hear(bytes(-len(self._rest) % FRAME_BYTES) if self._rest else b"", least_frames=1)
        async with self._hearing:
            await self._finish()

    # --- hearing -----------------------------------------------------------------------------------------------------

    async def _pump(self, pipe: Pipe) -> None:
        """Hear what ffmpeg makes of what is fed to it."""
        while data := await pipe.read(READ_BYTES):
            await self._hear(data)
        if self._stopped and not self._fed:
            return
        finished = await pipe.finished()
        if finished.returncode != 0 or not self._cutter.heard + len(self._rest):
            raise UnsupportedMedia("What was sent is no sound in the encoding that was announced.")
        if not self._stopped:
            raise UnsupportedMedia("What was sent goes on after its container has ended.")

    async def _hear(self, data: bytes, *, least_frames: int = LEAST_FRAMES) -> None:
        async with self._hearing:
            data = self._rest + data
            frames = len(data) // FRAME_BYTES // least_frames * least_frames
            self._rest = data[frames * FRAME_BYTES :]
            for first in range(0, frames, MOST_FRAMES):
                last = min(frames, first + MOST_FRAMES)
                await self._hear_frames(data[first * FRAME_BYTES : last * FRAME_BYTES])

    async def _hear_frames(self, data: bytes) -> None:
        sound = np.frombuffer(data, np.dtype("<i2"))
        self._count(len(sound) / SAMPLE_RATE)
        await self._end(self._cutter.add(sound, await self._work.voices(sound)))
        if self._partials:
            self._look()
        if self._cutter.heard >= self._most_samples:
            await self._finish()
            raise AudioTooLong(f"A session lasts {self._most_samples / SAMPLE_RATE:.0f} s at most on this server.")

    async def _end(self, stretches: list[Stretch]) -> None:
        if stretches:
            self._drop_look()
        for stretch in stretches:
            self._undone += 1
            await self._ended.put(stretch)

    async def _finish(self) -> None:
        await self._end(self._cutter.flush())
        self._drop_look()
        await self._ended.join()

    # --- telling -----------------------------------------------------------------------------------------------------

    async def _decode(self) -> None:
        """Stretches that have ended, one after another, for ever."""
        while True:
            stretch = await self._ended.get()
            if news := await self._work.hear_language(stretch, final=True):
                await self._tell(news)
            result = await self._work.text(stretch)
            if result.text:
                self._texts.append(result.text)
                await self._tell(replace(result, id=len(self._texts) - 1))
            elif self._shown:
                await self._tell(Partial(stretch.start_s, stretch.end_s, ""))
            self._shown = False
            self._undone -= 1
            self._ended.task_done()

    def _look(self) -> None:
        """See what the stretch under way sounds like so far: one look at a time, and not before what has ended."""
        if self.quiet and (stretch := self._cutter.partial()):
            self._looking = self._group.create_task(self._look_at(stretch))

    async def _look_at(self, stretch: Stretch) -> None:
        try:
            news = await self._work.hear_language(stretch, final=False)
            text = await self._work.glance(stretch) if self._work.language else ""
        except ServiceError as error:
            # Its segment is still to come, and is tried again where an engine has died.
            log.debug("a look at live speech failed", code=error.code)
            return
        finally:
            self._cutter.looked()
        if news:
            await self._tell(news)
        if text:
            self._shown = True
            await self._tell(Partial(stretch.start_s, stretch.end_s, text))

    def _drop_look(self) -> None:
        if self._looking is not None:
            self._looking.cancel()


async def ended_by(closing: asyncio.Event) -> None:
    """Raises ShuttingDown when the server stops."""
    await closing.wait()
    raise ShuttingDown


async def only(segment: Segment) -> AsyncGenerator[Segment]:
    yield segment


def placed(result: TranscriptSegment, from_s: float) -> TranscriptSegment:
    """*result*, whose stretch begins after *from_s* seconds of the session."""
    words = result.words and tuple(
        replace(word, start=word.start + from_s, end=word.end + from_s) for word in result.words
    )
    return replace(result, start=result.start + from_s, end=result.end + from_s, words=words)
