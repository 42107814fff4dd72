"""Real engines on the packaged weights, the segments that they are given, and how to wait for what they do."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transcription.core import SAMPLE_RATE, Segment, SegmentRequest, TranscriptionOptions
from transcription.engine import Engine
from transcription.models import ModelLibrary
from transcription.placement import Placement, Weights
from transcription.replicas import Replicas, WeightsFinder

OPTIONS = TranscriptionOptions("tiny.en", "en")

TWO_STREAMS = Placement(streams=2)

FOR_TORCH = {"OMP_NUM_THREADS": "1"}
"""Environment of processes with torch. Beside another test, more threads take longer."""


def weights_in(folder: Path) -> Callable[[str], Weights]:
    """Finds packaged weights; those that come in parts are joined in *folder*."""
    library = ModelLibrary(folder, downloads=False, hf_token=None)

    def find(model: str) -> Weights:
        path = library.ensure(model)
        return Weights(path, (path / "model.bin").stat().st_size)

    return find


def made_engine(models_dir: Path, model: str = "tiny.en", placement: Placement = TWO_STREAMS, **more: Any) -> Engine:
    find = WeightsFinder(weights_in(models_dir))
    return Engine(find, model=model, placement=placement, log_level="warning", **more)


def made_replicas(models_dir: Path, model: str = "tiny.en", placement: Placement = TWO_STREAMS) -> Replicas:
    return Replicas(weights_in(models_dir), [placement], model=model, log_level="warning")


def pcm(source: Path, target: Path, ffmpeg: Path, start_s: float = 0.0, duration_s: float | None = None) -> Segment:
    subprocess.run([ffmpeg, "-v", "error", "-i", source, "-ac", "1", "-ar", "16000", "-f", "s16le", target], check=True)
    samples = target.stat().st_size // 2 if duration_s is None else int(duration_s * SAMPLE_RATE)
    return Segment(target, int(start_s * SAMPLE_RATE), samples, 0)


def parts(whole: Segment, count: int) -> list[Segment]:
    """*whole* in segments of equal length."""
    samples = whole.samples // count
    return [Segment(whole.path, whole.first_sample + index * samples, samples, index) for index in range(count)]


def asked(*segments: Segment, options: TranscriptionOptions = OPTIONS) -> list[SegmentRequest]:
    return [SegmentRequest(segment, options) for segment in segments]


async def until(reached: Callable[[], bool]) -> None:
    """Let the loop run until it is so. A process sends no events; what does not come in a minute never does."""
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0)
