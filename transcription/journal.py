"""What one recording's work tells on its way, and what an earlier attempt at it has left behind."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace

from transcription.core import Segment, Transcript, TranscriptSegment
from transcription.protocol import Language

Span = tuple[int, int]
"""First sample and samples: the same recording is cut into the same segments each time."""


class Journal:
    """Tells nobody, and knows of nothing: for work that is done once. Jobs have one that remembers."""

    keeps = False
    """Whether it wants to know the samples' digest."""

    reuses = False
    """Whether `known` is to be asked before anything is transcribed."""

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

    async def known(self, digest: str) -> Transcript | None:
        """The transcript of these very samples, with the same options, where there is one."""
        return None


SILENT = Journal()


class Unheard:
    """Iterates over those of *segments* that are not in *heard*, numbered anew."""

    def __init__(self, segments: AsyncIterator[Segment], heard: Mapping[Span, TranscriptSegment]) -> None:
        self._segments = segments
        self._heard = heard
        self.known: list[TranscriptSegment] = []
        """The results of those that were passed over."""
        self.taken: deque[Segment] = deque()
        """Those that were handed out, in order; whoever has the result of one takes it from here."""

    async def __aiter__(self) -> AsyncGenerator[Segment]:
        number = 0
        async for segment in self._segments:
            if result := self._heard.get((segment.first_sample, segment.samples)):
                self.known.append(result)
                continue
            self.taken.append(segment)
            yield replace(segment, index=number)
            number += 1
