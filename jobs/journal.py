"""What happens to a running job, gathered until it is written down: events, and how far it has come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pydantic import TypeAdapter

from jobs.model import LANGUAGE, SEGMENT, Event, Stage
from transcription.core import Segment, Transcript, TranscriptionOptions, TranscriptSegment
from transcription.journal import Journal, Span
from transcription.protocol import Language

SEGMENT_RESULT = TypeAdapter(TranscriptSegment)

Told = Language | TranscriptSegment
"""What a caller may hear of while it waits."""

Notes = list[tuple[str, dict[str, Any]]]


class Sharing(Protocol):
    """Hands parts of a recording to other workers."""

    async def hand_out(self, segments: Sequence[Segment], options: TranscriptionOptions) -> None: ...

    def has(self, span: Span) -> bool: ...

    async def elsewhere(self, span: Span) -> TranscriptSegment | None: ...


class JobJournal(Journal):
    """One attempt's notes. Lives on the event loop; whoever flushes it takes what is new, and writes it in a thread."""

    keeps = True

    def __init__(
        self,
        past: Sequence[Event] = (),
        *,
        only: Sequence[Sequence[int]] | None = None,
        reuse: Callable[[str], Awaitable[Transcript | None]] | None = None,
        sharing: Sharing | None = None,
        split_above_s: float = 0.0,
        on_told: Callable[[Told], None] = lambda told: None,
    ) -> None:
        """*past*: what earlier attempts have told. *only*: the spans that are wanted. *reuse*: asked for the transcript
        of samples by their digest. *sharing*: with whom recordings above *split_above_s* are shared.
        *on_told*: hears of what is new, as it comes."""
        self.only = None if only is None else [(first, samples) for first, samples in only]
        self._sharing = sharing
        self._split_above_s = split_above_s
        self._audio_s = 0.0
        self._told: Notes = []
        self._values: dict[str, Any] = {}
        self._reuse = reuse
        self._on_told = on_told
        self.reuses = reuse is not None
        self.heard: Mapping[Span, TranscriptSegment] = segments_in(past)
        for event in past:
            if event.kind == LANGUAGE:
                self.language = Language(**event.body)

    def take(self) -> tuple[Notes, dict[str, Any]]:
        """What is new since the last time."""
        taken = self._told, self._values
        self._told, self._values = [], {}
        return taken

    def put_back(self, told: Notes, values: dict[str, Any]) -> None:
        """What was taken could not be written: it is still new."""
        self._told, self._values = [*told, *self._told], values | self._values

    def note(self, **values: Any) -> None:
        """Columns of the job that have changed."""
        self._values |= values

    def at(self, stage: Stage, done: float | None = None) -> None:
        """*done*: of the stage, from 0 to 1."""
        self.note(stage=stage, stage_done=done)

    def begun(self, audio_s: float) -> None:
        self._audio_s = audio_s
        self.at(Stage.DECODING)
        self.note(size=audio_s)

    def language_heard(self, language: Language) -> None:
        if self.language is None:
            self.language = language
            self._told.append((LANGUAGE, dataclasses.asdict(language)))
            self._on_told(language)

    def segment_heard(self, segment: Segment, result: TranscriptSegment) -> None:
        self.at(Stage.TRANSCRIBING)
        self.note(done=result.end)
        body = {
            "span": [segment.first_sample, segment.samples],
            "segment": json.loads(SEGMENT_RESULT.dump_json(result)),
        }
        self._told.append((SEGMENT, body))
        self._on_told(result)

    @property
    def shares(self) -> bool:
        return self._sharing is not None and self._audio_s > self._split_above_s

    async def share(self, segments: Sequence[Segment], options: TranscriptionOptions) -> None:
        if self._sharing:
            await self._sharing.hand_out(segments, options)

    def is_elsewhere(self, span: Span) -> bool:
        return self._sharing is not None and self._sharing.has(span)

    async def elsewhere(self, span: Span) -> TranscriptSegment | None:
        return await self._sharing.elsewhere(span) if self._sharing else None

    def samples_known(self, digest: str) -> None:
        self.note(content_hash=digest)

    async def known(self, digest: str) -> Transcript | None:
        return await self._reuse(digest) if self._reuse else None


def segments_in(past: Iterable[Event]) -> dict[Span, TranscriptSegment]:
    """The finished segments that *past* tells of, by where they lie."""
    found: dict[Span, TranscriptSegment] = {}
    for event in past:
        if event.kind == SEGMENT:
            first, samples = event.body["span"]
            found[first, samples] = SEGMENT_RESULT.validate_python(event.body["segment"])
    return found


def told_by(event: Event) -> Told | None:
    """What *event* lets a caller hear; None where it says nothing of the recording."""
    if event.kind == SEGMENT:
        return SEGMENT_RESULT.validate_python(event.body["segment"])
    return Language(**event.body) if event.kind == LANGUAGE else None
