"""Segments and what was heard in them, on their way from one part of the work to the next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from transcription.core import Segment, TranscriptSegment
from transcription.journal import Span
from transcription.pcm import GrowingPcm
from transcription.word_alignment import Decoded

DETECTION_SEGMENTS = 4
DETECTION_S = 10.0
"""Language is heard in the first segments of speech, until they last so long together, in so many at most. With `base`
and 36 clips in eight languages, 30 s of them over full windows were right as often, at three times the cost."""


async def given(pcm: GrowingPcm, spans: Sequence[Span]) -> AsyncGenerator[Segment]:
    """The segments that lie there, as soon as they do."""
    for index, (first_sample, samples) in enumerate(spans):
        await pcm.wait_for(first_sample + samples)
        yield Segment(pcm.path, first_sample, samples, index)


async def first_speech(segments: AsyncIterator[Segment]) -> list[Segment]:
    """The segments in which the language is heard; empty where nobody speaks."""
    first: list[Segment] = []
    while len(first) < DETECTION_SEGMENTS and sum(segment.duration_s for segment in first) < DETECTION_S:
        segment = await anext(segments, None)
        if segment is None:
            break
        first.append(segment)
    return first


async def chained(first: Sequence[Segment], rest: AsyncIterator[Segment]) -> AsyncGenerator[Segment]:
    for segment in first:
        yield segment
    async for segment in rest:
        yield segment


async def noted(segments: AsyncIterator[Segment], under_way: dict[int, Segment]) -> AsyncGenerator[Segment]:
    """*segments*, each kept in *under_way* by its number."""
    async for segment in segments:
        under_way[segment.index] = segment
        yield segment


async def decoded(results: AsyncIterator[TranscriptSegment], under_way: dict[int, Segment]) -> AsyncGenerator[Decoded]:
    """*results* with their segments, which leave *under_way*."""
    async for result in results:
        segment = under_way.pop(result.id)
        yield Decoded(segment.path, segment.first_sample, segment.samples, segment.index, result)
