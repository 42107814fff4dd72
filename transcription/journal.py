"""What one recording's work tells on its way, and what an earlier attempt at it has left behind."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace

from transcription.core import Segment, Transcript, TranscriptionOptions, TranscriptSegment
from transcription.protocol import Language

Span = tuple[int, int]
"""First sample and samples: the same recording is cut into the same segments each time."""


class Journal:
    """Tells nobody, and knows of nothing: for work that is done once. Jobs have one that remembers."""

    keeps = False
    """Whether it wants to know the samples' digest."""

    reuses = False
    """Whether `known` is to be asked before anything is transcribed."""

    only: Sequence[Span] | None = None
    """What is to be transcribed of the recording, where others do the rest of it."""

    heard: Mapping[Span, TranscriptSegment] = {}
    """What was finished before: it is not done again."""

    language: Language | None = None
    """What was detected before."""

    def begun(self, audio_s: float) -> None:
        """Its turn has come; it lasts so long, as far as can be told."""

    def language_heard(self, language: Language) -> None: ...

    def segment_heard(self, segment: Segment, result: TranscriptSegment) -> None:
        """In order, also where nothing was said."""

    def samples_known(self, digest: str) -> None:
        """What tells these samples from all others."""

    @property
    def shares(self) -> bool:
        """Whether others may do some of it: then it is cut to its end before anything is transcribed."""
        return False

    async def share(self, segments: Sequence[Segment], options: TranscriptionOptions) -> None:
        """These are all segments: hand some of them to others."""

    def is_elsewhere(self, span: Span) -> bool:
        """Whether that segment was handed to others."""
        return False

    async def elsewhere(self, span: Span) -> TranscriptSegment | None:
        """What others have made, or are just making, of that segment; None: it is to be done here after all."""
        return None

    async def known(self, digest: str) -> Transcript | None:
        """The transcript of these very samples, with the same options, where there is one."""
        return None


SILENT = Journal()


class Unheard:
    """Iterates over those of *segments* that nobody has heard or will hear elsewhere, numbered anew."""

    def __init__(self, segments: AsyncIterator[Segment], journal: Journal) -> None:
        self._segments = segments
        self._journal = journal
        self.known: list[TranscriptSegment] = []
        """The results of those that were passed over."""
        self._taken: deque[Segment] = deque()
        """Those that were handed out and have no result yet, in order."""
        self._all_done = asyncio.Event()

    def done(self) -> Segment:
        """There is a result of the next one that was handed out: that one."""
        segment = self._taken.popleft()
        if not self._taken:
            self._all_done.set()
        return segment

    async def __aiter__(self) -> AsyncGenerator[Segment]:
        number = 0
        async for segment in self._segments:
            span = (segment.first_sample, segment.samples)
            result = self._journal.heard.get(span)
            if result is None and self._journal.is_elsewhere(span):
                # NOTE: segments are asked for long before those before them are done. What others have not begun by
                # then is taken back, so that they must have that time.
                if self._taken:
                    await self._all_done.wait()
                result = await self._journal.elsewhere(span)
            if result is not None:
                self.known.append(result)
                continue
            self._taken.append(segment)
            self._all_done.clear()
            yield replace(segment, index=number)
            number += 1
