"""The sound of a video or a recording as a file of its own, in the format that is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from downloads.stored_files import media_type_of
from errors import InvalidRequest
from ffmpeg import FFmpeg
from recording import convert, read_header

_MAX_TITLE_CHARS = 300


class AudioFormat(StrEnum):
    MP3 = "mp3"
    WAV = "wav"
    FLAC = "flac"
    M4A = "m4a"
    OPUS = "opus"


@dataclass(frozen=True, slots=True)
class _Encoding:
    """What ffmpeg is told for a format, and what the format can hold."""

    arguments: tuple[str, ...]
    sample_rates: tuple[int, ...] | None = None
    """None: any between the bounds below."""
    bit_rates: tuple[int, int] | None = None
    """Least and most bits a second; None: lossless."""


_MIN_SAMPLE_RATE, _MAX_SAMPLE_RATE = 8_000, 192_000
_ENCODINGS = {
    AudioFormat.MP3: _Encoding(
        ("-c:a", "libmp3lame", "-f", "mp3"),
        (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
        (8_000, 320_000),
    ),
    AudioFormat.WAV: _Encoding(("-c:a", "pcm_s16le", "-rf64", "auto", "-f", "wav")),
    AudioFormat.FLAC: _Encoding(("-c:a", "flac", "-f", "flac")),
    AudioFormat.M4A: _Encoding(
        ("-c:a", "aac", "-movflags", "+faststart", "-f", "ipod"),
        (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
        (16_000, 320_000),
    ),
    # libopus takes at most 256 kb/s a channel.
    AudioFormat.OPUS: _Encoding(
        ("-c:a", "libopus", "-f", "opus"), (8_000, 12_000, 16_000, 24_000, 48_000), (6_000, 256_000)
    ),
}


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How the sound is to be written. Raises InvalidRequest that names what is allowed.

    None: as in the source, as near as the format allows; for bit_rate, the encoder's default.
    """

    format: AudioFormat = AudioFormat.MP3
    sample_rate: int | None = None
    """Hertz."""
    channels: int | None = None
    """1 or 2. None: as in the source, more than two mixed down to two."""
    bit_rate: int | None = None
    """Bits a second."""

    def __post_init__(self) -> None:
        encoding = _ENCODINGS[self.format]
        if self.sample_rate is not None:
            self._check_sample_rate(self.sample_rate, encoding.sample_rates)
        if self.channels not in (None, 1, 2):
            raise InvalidRequest("channels must be 1 (mono) or 2 (stereo).")
        if self.bit_rate is not None:
            self._check_bit_rate(self.bit_rate, encoding.bit_rates)

    def _check_sample_rate(self, rate: int, allowed: Sequence[int] | None) -> None:
        if allowed is None and not _MIN_SAMPLE_RATE <= rate <= _MAX_SAMPLE_RATE:
            raise InvalidRequest(f"sample_rate must lie between {_MIN_SAMPLE_RATE} and {_MAX_SAMPLE_RATE}.")
        if allowed is not None and rate not in allowed:
            raise InvalidRequest(f"sample_rate for {self.format} must be one of {', '.join(map(str, allowed))}.")

    def _check_bit_rate(self, rate: int, bounds: tuple[int, int] | None) -> None:
        if bounds is None:
            raise InvalidRequest(
                f"{self.format} is lossless and has no bit_rate; leave it out, or take mp3, m4a or opus."
            )
        if not bounds[0] <= rate <= bounds[1]:
            raise InvalidRequest(
                f"bit_rate for {self.format} must lie between {bounds[0]} and {bounds[1]} bits a second."
            )

    def output_rate(self, source_rate: int) -> int:
        """The sample rate to write: the one asked for, else the least that loses nothing of *source_rate*."""
        if self.sample_rate is not None:
            return self.sample_rate
        allowed = _ENCODINGS[self.format].sample_rates
        if allowed is None:
            return min(max(source_rate, _MIN_SAMPLE_RATE), _MAX_SAMPLE_RATE)
        return min((rate for rate in allowed if rate >= source_rate), default=allowed[-1])


@dataclass(frozen=True, slots=True)
class ExtractedAudio:
    """What was written."""

    media_type: str
    duration_s: float
    bytes: int
    title: str | None
    """The source's, which is all that is kept of its tags."""


async def extract(
    ffmpeg: FFmpeg, source: Path, target: Path, *, options: ExtractOptions, max_duration_s: float
) -> ExtractedAudio:
    """Write the first sound of *source* to the new file *target*, without pictures, subtitles, chapters and tags.

    On any error, and on cancellation, *target* is removed. Raises MediaNotFound, EmptyMedia, UnsupportedMedia,
    NoAudioStream, AudioTooLong, MediaTimeout, StorageFull.
    """
    header = await read_header(ffmpeg, source)
    sample_rate = options.output_rate(header.sample_rate)
    channels = options.channels or min(max(header.channels, 1), 2)
    title = header.title[:_MAX_TITLE_CHARS] if header.title else None
    duration_s = await convert(
        ffmpeg,
        source,
        target,
        [
            *("-ac", str(channels)),
            *(("-b:a", str(options.bit_rate)) if options.bit_rate is not None else ()),
            *(("-metadata", f"title={title}") if title else ()),
            *_ENCODINGS[options.format].arguments,
        ],
        sample_rate=sample_rate,
        bytes_per_s=sample_rate * channels * 4 + 64_000,
        max_duration_s=max_duration_s,
    )
    return ExtractedAudio(
        media_type=media_type_of(f".{options.format}"),
        duration_s=duration_s,
        bytes=os.stat(target).st_size,
        title=title,
    )
