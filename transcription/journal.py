"""What one recording's work tells on its way, and what an earlier attempt at it has left behind."""

from __future__ import annotations

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

    async def elsewhere(self, span: Span) -> TranscriptSegment | None:
        """What others have made, or are about to make, of that segment; None: it is nobody's."""
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
        self.taken: deque[Segment] = deque()
        """Those that were handed out, in order; whoever has the result of one takes it from here."""

    async def __aiter__(self) -> AsyncGenerator[Segment]:
        number = 0
        async for segment in self._segments:
            span = (segment.first_sample, segment.samples)
            if result := self._journal.heard.get(span) or await self._journal.elsewhere(span):
                self.known.append(result)
                continue
            self.taken.append(segment)
            yield replace(segment, index=number)
            number += 1
