"""What the integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ffmpeg import FFmpeg
from tests.engines import pcm
from tests.speech import sample_call
from transcription.core import Segment


@pytest.fixture(scope="session")
def ffmpeg_binary() -> Path:
    """The ffmpeg that the service itself would take."""
    return FFmpeg.locate().path


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where packaged weights are joined and checked, once for all tests."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory, ffmpeg_binary: Path) -> Segment:
    """ "Now to our left" and more: 12 s of the telephone call."""
    folder = tmp_path_factory.mktemp("speech")
    return pcm(sample_call(), folder / "call.pcm", ffmpeg_binary, start_s=6.5, duration_s=12.0)
