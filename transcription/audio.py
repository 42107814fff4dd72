"""From a recording in any format to PCM on disk, as the rest of the service reads it."""

from __future__ import annotations

from pathlib import Path

from ffmpeg import FFmpeg
from recording import convert, read_header
from transcription.core import BYTES_PER_SAMPLE, SAMPLE_RATE, AudioInfo


async def probe(ffmpeg: FFmpeg, path: Path) -> AudioInfo:
    """What the container's header says of its first sound: enough to price the work, and not to be relied on for more.

    Decodes nothing, so that bytes which merely look like frames pass here and fail in `decode`.

    Raises MediaNotFound, EmptyMedia (0 bytes), UnsupportedMedia (no media, or a format that is not opened),
    NoAudioStream (pictures only), MediaTimeout.
    """
    header = await read_header(ffmpeg, path)
    return AudioInfo(
        duration_s=header.duration_s,
        sample_rate=header.sample_rate,
        channels=header.channels,
        codec=header.codec,
        container=header.container,
        has_video=header.has_video,
    )


async def decode(
    ffmpeg: FFmpeg, source: Path, target: Path, *, max_duration_s: float, channel: int | None = None
) -> float:
    """Write *source* to the new file *target* as raw PCM (16 kHz, mono, signed 16 bit, little-endian); return seconds.

    *channel*: that one alone, counted from 0. None: all are mixed, at equal parts for stereo. Of a damaged file, what
    can be decoded is. A recording that goes on past *max_duration_s* is not decoded much beyond it. On any error, and
    on cancellation, *target* is removed.

    Raises MediaNotFound, EmptyMedia, UnsupportedMedia, NoAudioStream, AudioTooLong, MediaTimeout, StorageFull.
    """
    return await convert(
        ffmpeg,
        source,
        target,
        [
            *(("-af", f"pan=mono|c0=c{channel}") if channel is not None else ("-ac", "1")),
            "-c:a",
            "pcm_s16le",
            "-f",
            "s16le",
        ],
        sample_rate=SAMPLE_RATE,
        bytes_per_s=SAMPLE_RATE * BYTES_PER_SAMPLE,
        max_duration_s=max_duration_s,
    )
