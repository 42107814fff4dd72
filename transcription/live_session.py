"""One who speaks, heard: sound in, and what it means out, in the order in which it was said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np
import structlog

from errors import AudioTooLong, ServiceError, ShuttingDown, UnsupportedMedia
from ffmpeg import Pipe
from transcription.core import BYTES_PER_SAMPLE, SAMPLE_RATE, TranscriptSegment
from transcription.live_cutting import LiveCutter, Stretch
from transcription.live_work import LiveWork
from transcription.protocol import Language
from transcription.service import first_of
from transcription.speech import FRAME_SAMPLES

log = structlog.get_logger(__name__)

FRAME_BYTES = FRAME_SAMPLES * BYTES_PER_SAMPLE
LEAST_FRAMES = 4
"""Heard at once: 128 ms, which nobody notices. Each run of the network has its price."""
MOST_FRAMES = 32

READ_BYTES = 32 * 1024
"""A second of samples."""

WAITING_STRETCHES = 2
"""Ended and not yet decoded: past these, whoever speaks faster than is decoded has to wait."""


@dataclass(frozen=True, slots=True)
class Partial:
    """What a stretch of speech that goes on sounds like so far; it replaces the one before. Seconds of the session."""

    start: float
    end: float
    text: str
    """Empty: there was nothing in it after all."""


Heard = Language | TranscriptSegment | Partial
Tell = Callable[[Heard], Awaitable[None]]


class LiveSession:
    """One who speaks, heard. Made by `LiveText.session`.

    Each method returns when there is room for more. Invariant: what is told of a stretch comes after all that was told
    of those before it.
    """

    def __init__(
        self, work: LiveWork, cutter: LiveCutter, tell: Tell, count: Callable[[float], None], most_samples: int
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
