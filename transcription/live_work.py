"""What a live session has done by others: voices found, languages heard, stretches decoded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

from transcription.core import Caller, Priority, Segment, TranscriptionOptions, TranscriptSegment
from transcription.live_cutting import Stretch
from transcription.pcm import Samples
from transcription.protocol import Language
from transcription.scheduler import SegmentScheduler
from transcription.service import written
from transcription.speech import Memory, Silero

LANGUAGE_S = 5.0
"""So much speech settles the language of a session; before, each stretch is heard for it anew."""
PARTIAL_LANGUAGE_S = 2.0
"""In less, the language of a stretch that goes on is not looked for."""


class LiveWork:
    """One session's work, in turn with all other."""

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


async def only(segment: Segment) -> AsyncGenerator[Segment]:
    yield segment


def placed(result: TranscriptSegment, from_s: float) -> TranscriptSegment:
    """*result*, whose stretch begins after *from_s* seconds of the session."""
    words = result.words and tuple(
        replace(word, start=word.start + from_s, end=word.end + from_s) for word in result.words
    )
    return replace(result, start=result.start + from_s, end=result.end + from_s, words=words)
