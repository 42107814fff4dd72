"""What requests hold of main memory beside the engine, and which models fit at all. Pure.

Weights and batches are the engine's, planned once (`limits.plan`); a request costs its children and what is kept of it.
`scripts/calibrate` holds these figures against what is seen (docs/capacity.md).
"""

from __future__ import annotations

MEMORY = "memory"
"""Main memory's name among the devices."""

SERVER_BYTES = 136 * 2**20
"""The server at work: Python, the web framework, onnxruntime with the model of voice activity. Seen: 131 to 135 MiB."""

FFMPEG_BYTES = 44 * 2**20
"""An ffmpeg that decodes or probes. Seen: 33 MiB for sound, 42 MiB for a video in 1080p."""

BURNING_BYTES = 400 * 2**20
"""An ffmpeg that draws subtitles into a picture and encodes it anew. Seen: 305 to 383 MB in 1080p."""

DOWNLOAD_BYTES = 112 * 2**20
"""yt-dlp with all its extractors (seen: 68 MiB), and the ffmpeg that joins sound and pictures beside it."""

REQUEST_BYTES = 4 * 2**20
"""A request in the server: windows of voice activity, segments that wait, buffers."""

TEXT_BYTES_A_SECOND = 500
"""Words with their times, as they are kept until the answer is written, and the answer."""

SMALLEST_BYTES_A_SECOND = 2_000
"""Speech in 16 kbit/s: less is hardly found."""

LIVE_BYTES = 12 * 2**20
"""A live session in the server: half a minute of sound that is being spoken, as much for each of three stretches that
wait or are decoded, messages on their way, and the network's windows."""

SHORT_S = 60.0
"""Up to here a recording counts as a clip at the gate."""


def guessed_s(file_bytes: int) -> float:
    """How long a recording lasts at most whose header does not tell."""
    return file_bytes / SMALLEST_BYTES_A_SECOND


def within_price_s(priced_s: float) -> float:
    """How much may come of a recording that was priced as so long: headers round, and encoders add a little."""
    return priced_s * 1.05 + 5.0


def transcription_bytes(duration_s: float) -> int:
    """Of a recording that lasts so long, its ffmpeg included."""
    return FFMPEG_BYTES + REQUEST_BYTES + round(TEXT_BYTES_A_SECOND * duration_s)


ALIGNING_BYTES = 1_450 * 2**20
"""The process that aligns, its model left out: torch and WhisperX (seen: 806 MiB), and what a network of wav2vec 2.0's
base size takes besides while it hears 30 s (seen: 646 MiB)."""

DIARIZATION_BYTES = 2_000_000_000
"""The process that tells speakers apart: 985 MB loaded, 870 MB for a block of ten minutes at work. Seen: 1.86 GB,
in two hours as in ten minutes; blocks are half as long now."""


def alignment_bytes(weights_bytes: int) -> int:
    """The process that aligns, with a model of that size at work."""
    return ALIGNING_BYTES + weights_bytes


LARGEST_BYTES = DOWNLOAD_BYTES
"""Of one piece of work that lasts a few hours: at least so much is lent on the smallest machine, or nothing could run
there. The memory that is free at the moment is looked at besides."""
