"""The catalogue's prices against what the real engine takes: plans are made from them before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.calibrate import Shape, ffmpeg_peak, measured
from ffmpeg import FFmpeg
from prices import FFMPEG_BYTES
from tests.engines import pcm
from tests.speech import speech_file
from transcription.audio import decode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Only Linux tells a process's peak.")

RECORDING = "long/libri_10spk_long.mp3"


@pytest.mark.parametrize(
    ("shape", "speech_s"),
    [
        pytest.param(Shape("1 × 1", 1, 1, 1), 130, id="1 × 1"),
        # A batch of each size for each stream: all of it is heard in ones, twos, threes and fours.
        pytest.param(Shape("2 × 4", 2, 1, 4), 62, id="2 × 4"),
    ],
)
async def test_tiny_takes_what_was_predicted(
    shape: Shape, speech_s: float, tmp_path: Path, ffmpeg_binary: Path
) -> None:
    """Loaded, loading and at work. Too low a price kills a container, too high a one wastes it.

    Within what machines differ by, and what other work beside adds: `scripts/calibrate`, alone, asks for more.
    """
    heard = pcm(speech_file(RECORDING), tmp_path / "speech.pcm", ffmpeg_binary, duration_s=speech_s)
    lines = await measured("tiny.en", shape, heard)
    assert [line.what for line in lines] == ["loaded", "while it loads", shape.name]
    assert [line for line in lines if not 0.8 <= line.ratio <= 1.25] == []


async def test_an_ffmpeg_takes_no_more_than_its_price(tmp_path: Path) -> None:
    """The gate lends that much to each request."""
    work = decode(FFmpeg.locate(), speech_file(RECORDING), tmp_path / "heard.pcm", max_duration_s=3600)
    assert 0 < await ffmpeg_peak(work) <= FFMPEG_BYTES
