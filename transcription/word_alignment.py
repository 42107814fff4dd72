"""Words timed by forced alignment: what was decoded goes in, segment by segment, and comes out with better times.

The way is the one on which segments are decoded: a scheduler fills batches from all requests in fair turns, and what
this module has is one more engine for it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from errors import AlignmentUnavailable, ServiceError
from transcription import protocol
from transcription.alignment_models import AlignmentModels
from transcription.core import (
    NOBODY,
    Caller,
    Segment,
    SegmentRequest,
    TranscriptionOptions,
    TranscriptSegment,
)
from transcription.planner import BatchPlanner
from transcription.protocol import Language
from transcription.scheduler import SegmentScheduler
from transcription.torch_process import TorchProcess

log = structlog.get_logger(__name__)

BATCH_SIZE = 8
BATCH_S = 30.0
"""Segments, and seconds of audio, that are aligned together: a clip that comes in waits for no more. A CPU, which hears
30 s in some 4 s, gains nothing from more at once."""

ANSWER_S = 300.0
"""A batch takes no longer, a model's download included: some hundred megabytes, once."""

ASK_AGAIN_S = 600.0
"""A model that could not be had is tried again after so long."""


@dataclass(frozen=True, slots=True)
class Decoded(Segment):
    """A segment with what was heard in it."""

    result: TranscriptSegment


class AlignmentEngine:
    """The process that aligns, as the scheduler sees an engine: *decoded* segments in, the same with new times out."""

    device = "torch"
    streams = 1
    express = False
    up = True

    def __init__(
        self, process: TorchProcess, models: AlignmentModels, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._process = process
        self._models = models
        self._clock = clock
        self._missing: dict[tuple[str, str | None], tuple[str, float]] = {}
        """Why there is no model for that language, and when that was found."""

    async def wait_until_up(self) -> None:
        """The process is started by the first call."""

    async def detect_language(self, segments: Sequence[Segment], model: str) -> Language:
        raise NotImplementedError("the decoder hears the language")

    async def transcribe(
        self, requests: Sequence[SegmentRequest], *, request_ids: Sequence[str] = ()
    ) -> list[TranscriptSegment | ServiceError]:
        """The words of each request's segment with new times; with the old ones, marked so, where that cannot be.

        Raises WorkerCrashed, OutOfMemory, EngineFailed.
        """
        results: list[TranscriptSegment | ServiceError] = [heard(request.segment).result for request in requests]
        by_model: dict[tuple[str, str | None], list[int]] = {}
        for place, request in enumerate(requests):
            result = heard(request.segment).result
            if result.words:
                language = result.language or request.options.language or ""
                name = self._models.name_for(language, request.options.align_model)
                by_model.setdefault((language, name), []).append(place)
        for (language, name), places in by_model.items():
            segments = [heard(requests[place].segment) for place in places]
            for place, result in zip(places, await self._aligned(segments, language, name), strict=True):
                results[place] = result
        return results

    def missing(self, language: str, asked: str | None) -> str | None:
        """Why words in *language* could not be aligned; None where they could, as far as is known."""
        found = self._missing.get((language, self._models.name_for(language, asked)))
        return found[0] if found else None

    async def _aligned(
        self, segments: Sequence[Decoded], language: str, name: str | None
    ) -> Sequence[TranscriptSegment]:
        """Of one language and model."""
        which = language, name
        if which in self._missing and self._clock() - self._missing[which][1] < ASK_AGAIN_S:
            return [replace(segment.result, aligned=False) for segment in segments]
        if name is None:
            self._note_missing(which, f"There is no alignment model for the language {language!r}")
            return [replace(segment.result, aligned=False) for segment in segments]
        begun = self._clock()
        reply = await self._process.call(
            ANSWER_S,
            language=language,
            name=name,
            requests=[
                {
                    "segment": protocol.plain(
                        Segment(segment.path, segment.first_sample, segment.samples, segment.index)
                    ),
                    "words": [word.text for word in segment.result.words or ()],
                }
                for segment in segments
            ],
        )
        if "unavailable" in reply:
            log.warning("no alignment", language=language, model=name, reason=reply["unavailable"])
            self._note_missing(which, f"The alignment model for the language {language!r} cannot be had here")
            return [replace(segment.result, aligned=False) for segment in segments]
        self._missing.pop(which, None)
        log.debug("batch aligned", segments=len(segments), busy_s=round(self._clock() - begun, 4))
        return [retimed(segment, times) for segment, times in zip(segments, reply["results"], strict=True)]

    def _note_missing(self, which: tuple[str, str | None], why: str) -> None:
        self._missing[which] = (f"{why}: words have the decoder's times.", self._clock())


def heard(segment: Segment) -> Decoded:
    assert isinstance(segment, Decoded)
    return segment


def retimed(segment: Decoded, times: Sequence[dict[str, Any]] | None) -> TranscriptSegment:
    """*segment*'s result with its words at *times*, seconds from its start; with the old ones where there are none."""
    result = segment.result
    if times is None:
        return replace(result, aligned=False)
    words = tuple(
        replace(word, start=segment.start_s + time["start"], end=segment.start_s + time["end"], score=time["score"])
        for word, time in zip(result.words or (), times, strict=True)
    )
    return replace(result, words=words, start=words[0].start, end=words[-1].end, aligned=True)


class WordAlignment:
    """Forced alignment for all requests. An async context manager."""

    def __init__(self, process: TorchProcess, models: AlignmentModels) -> None:
        self.models = models
        self.process = process
        self._engine = AlignmentEngine(process, models)
        self._scheduler = SegmentScheduler([self._engine], BatchPlanner(BATCH_SIZE, BATCH_S))

    async def __aenter__(self) -> WordAlignment:
        await self.process.__aenter__()
        await self._scheduler.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._scheduler.__aexit__()
        await self.process.__aexit__()

    def check(self) -> None:
        """Raises AlignmentUnavailable where nothing can be aligned here."""
        if not self.process.is_possible():
            raise AlignmentUnavailable

    def aligned(
        self, decoded: AsyncIterator[Decoded], options: TranscriptionOptions, caller: Caller = NOBODY
    ) -> AsyncGenerator[TranscriptSegment]:
        """Results in the order of *decoded*, each as soon as it and those before it are aligned.

        Close the iterator to cancel. Raises what `SegmentScheduler.submit` does.
        """
        asked = TranscriptionOptions(
            # NOTE: segments of one batch agree in this; the language may differ.
            model=options.align_model or "",
            language=options.language,
            align_model=options.align_model,
        )
        return self._scheduler.submit(decoded, asked, caller)

    def warnings(self, segments: Sequence[TranscriptSegment], options: TranscriptionOptions) -> list[str]:
        """What could not be aligned of *segments*, in sentences."""
        unaligned = [segment for segment in segments if segment.aligned is False]
        if not unaligned:
            return []
        languages = sorted({segment.language or options.language or "" for segment in unaligned})
        known = [why for language in languages if (why := self._engine.missing(language, options.align_model))]
        return known or [
            f"{len(unaligned)} of {len(segments)} segments could not be aligned (numbers, or another script): "
            "their words have the decoder's times."
        ]
