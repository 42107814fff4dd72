"""Text while somebody speaks: a session's sound in, segments out as pauses end them, and what is known until then.

Only speech is decoded: voice activity hears everything, silence goes no further. Stretches of speech share the batches
of all other work; a look at a stretch that goes on (`Partial`) comes after all that somebody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from errors import ShuttingDown
from ffmpeg import FFmpeg, Pipe
from recording import MEMORY_BYTES
from transcription.core import NOBODY, SAMPLE_RATE, Caller, TranscriptionOptions
from transcription.live_cutting import LiveCutter, LiveRule
from transcription.live_session import LiveSession, Tell
from transcription.live_sound import LiveSound
from transcription.live_work import LiveWork
from transcription.replicas import Replicas
from transcription.scheduler import SegmentScheduler
from transcription.speech import Silero
from workfolder import private_folder


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
                work = LiveWork(self._scheduler, self._silero, folder, options, caller)
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
