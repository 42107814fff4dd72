"""Requests whose engine dies or is too small: each gets its whole transcript, or an error of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errors import GpuOutOfMemory, ServiceError
from tests.engines import OPTIONS, TWO_STREAMS, made_engine, parts, until, weights_in
from tests.faulty_engine_child import MOST_SEGMENTS, WIDEST_BEAM
from transcription.core import Segment, SegmentRequest, TranscriptionOptions, TranscriptSegment
from transcription.engine import Engine
from transcription.planner import BatchPlanner
from transcription.replicas import WeightsFinder
from transcription.scheduler import SegmentScheduler

FAULTY = (sys.executable, "-m", "tests.faulty_engine_child")

TOO_WIDE = replace(OPTIONS, beam_size=WIDEST_BEAM + 1)


class NotingEngine(Engine):
    """An engine that notes how large its batches are."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sizes: list[int] = []

    async def transcribe(
        self, requests: Sequence[SegmentRequest], *, request_ids: Sequence[str] = ()
    ) -> list[TranscriptSegment | ServiceError]:
        self.sizes.append(len(requests))
        return await super().transcribe(requests, request_ids=request_ids)


def cramped(models_dir: Path) -> NotingEngine:
    find = WeightsFinder(weights_in(models_dir))
    return NotingEngine(find, model="tiny.en", placement=TWO_STREAMS, log_level="error", command=FAULTY)


async def each(segments: Iterable[Segment]) -> AsyncIterator[Segment]:
    for segment in segments:
        yield segment


async def transcript(
    scheduler: SegmentScheduler, segments: Iterable[Segment], options: TranscriptionOptions = OPTIONS
) -> list[str]:
    async with contextlib.aclosing(scheduler.submit(each(segments), options)) as results:
        return [result.text async for result in results]


@pytest.fixture
def segments(speech: Segment) -> list[Segment]:
    return parts(speech, 8)


async def test_a_transcript_is_whole_though_its_engine_was_killed(models_dir: Path, segments: list[Segment]) -> None:
    """In the middle of it, with some segments done, some under way and some waiting."""
    async with made_engine(models_dir) as engine, SegmentScheduler([engine], BatchPlanner(1)) as scheduler:
        undisturbed = await transcript(scheduler, segments)
        first = engine.pid
        assert first is not None
        heard: list[str] = []
        async with contextlib.aclosing(scheduler.submit(each(segments), OPTIONS)) as results:
            async for result in results:
                if not heard:
                    await until(lambda: engine.calls > 0)
                    os.kill(first, signal.SIGKILL)
                heard.append(result.text)
        assert heard == undisturbed
        assert any(heard)
        assert engine.pid != first


async def test_a_gpu_that_is_too_small_for_a_batch_gets_smaller_ones(models_dir: Path, segments: list[Segment]) -> None:
    """Nothing is lost by finding out; and it is found out once, not with every batch."""
    async with made_engine(models_dir) as engine, SegmentScheduler([engine], BatchPlanner(1)) as scheduler:
        expected = await transcript(scheduler, segments)
    async with cramped(models_dir) as engine, SegmentScheduler([engine], BatchPlanner(8)) as scheduler:
        assert await transcript(scheduler, segments) == expected
        assert engine.sizes[0] == 8
        assert engine.sizes[-4:] == [MOST_SEGMENTS] * 4
        engine.sizes.clear()
        assert await transcript(scheduler, segments) == expected
        assert engine.sizes == [MOST_SEGMENTS] * 4


async def test_a_segment_that_does_not_fit_alone_fails_its_request_alone(
    models_dir: Path, segments: list[Segment]
) -> None:
    """The engine lives on, and so do those who are served beside it and after it."""
    async with cramped(models_dir) as engine, SegmentScheduler([engine], BatchPlanner(2)) as scheduler:
        expected = await transcript(scheduler, segments)
        pid = engine.pid
        beside, failed = await asyncio.gather(
            transcript(scheduler, segments),
            transcript(scheduler, segments, TOO_WIDE),
            return_exceptions=True,
        )
        assert isinstance(failed, GpuOutOfMemory)
        assert beside == expected
        assert await transcript(scheduler, segments) == expected
        assert engine.pid == pid
    assert any(expected)
