"""The engine's process on a GPU that is too small: two segments fit, and none with a beam wider than WIDEST_BEAM.

Says that it computes on CUDA, and fails as CTranslate2 does there; what fits is decoded, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from transcription import engine_child
from transcription.core import SegmentRequest, TranscriptSegment
from transcription.protocol import Hello
from transcription.whisper import Whisper

MOST_SEGMENTS = 2
WIDEST_BEAM = 8


class CrampedWhisper(Whisper):
    def transcribe(self, requests: Sequence[SegmentRequest]) -> list[TranscriptSegment]:
        if len(requests) > MOST_SEGMENTS or requests[0].options.beam_size > WIDEST_BEAM:
            raise RuntimeError("CUDA failed with error out of memory")
        return super().transcribe(requests)


def hello(_: str, compute_type: str) -> Hello:
    return Hello("cuda", compute_type)


if __name__ == "__main__":
    with (
        patch("transcription.engine_child.Whisper", CrampedWhisper),
        patch("transcription.protocol.Hello", hello),
    ):
        engine_child.main()
