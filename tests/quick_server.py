"""The real server with an engine that decodes nothing: what files do to all the rest shows in little time.

`python -m tests.quick_server` is the server; with a configuration as its argument it is the engine's process, whose
model reads the samples of each segment and says how many there were.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transcription.core import SAMPLE_RATE, Segment, SegmentRequest, TranscriptSegment
from transcription.pcm import samples_of
from transcription.protocol import Language

MODULE = "tests.quick_server"


class Counting:
    """In a Whisper model's place: its text is the number of samples."""

    busy_s = 0.0

    def __init__(self, path: Path, **settings: Any) -> None:
        """Loads nothing."""

    def empty_cache(self) -> None:
        """There is none."""

    def detect_language(self, segments: Sequence[Segment]) -> Language:
        return Language("en", 1.0)

    def transcribe(self, requests: Sequence[SegmentRequest]) -> list[TranscriptSegment]:
        return [counted(request.segment) for request in requests]


def counted(segment: Segment) -> TranscriptSegment:
    return TranscriptSegment(
        id=segment.index,
        start=segment.start_s,
        end=segment.start_s + segment.samples / SAMPLE_RATE,
        text=f" {len(samples_of(segment))} samples",
        avg_logprob=0.0,
        no_speech_prob=0.0,
        compression_ratio=1.0,
        temperature=0.0,
    )


def engine() -> None:
    from transcription import engine_child

    with patch.object(engine_child, "Whisper", Counting):
        engine_child.main()


def server() -> None:
    import main
    from transcription.engine import Engine

    # The command is the default of an argument, which wiring.py leaves alone.
    defaults = Engine.__init__.__kwdefaults__
    assert "command" in defaults
    with patch.dict(defaults, command=(sys.executable, "-m", MODULE)):
        main.serve()


if __name__ == "__main__":
    engine() if len(sys.argv) > 1 else server()
