"""What the integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ffmpeg import FFmpeg


@pytest.fixture(scope="session")
def ffmpeg_binary() -> Path:
    """The ffmpeg that the service itself would take."""
    return FFmpeg.locate().path
