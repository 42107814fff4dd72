"""What a live session's sound comes in, and how ffmpeg makes samples of it while it comes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import prices
from transcription.core import SAMPLE_RATE


class Encoding(StrEnum):
    PCM = "pcm_s16le"
    """Raw samples: mono, signed 16 bit, little-endian."""
    WEBM = "webm"
    """As browsers record it: audio/webm;codecs=opus."""
    OGG = "ogg"


@dataclass(frozen=True, slots=True)
class LiveSound:
    """What is sent."""

    encoding: Encoding = Encoding.PCM
    sample_rate: int = SAMPLE_RATE
    """Of raw samples; containers tell their own."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be heard as it is."""
        return self.encoding is Encoding.PCM and self.sample_rate == SAMPLE_RATE

    @property
    def price_bytes(self) -> int:
        """Main memory that a session holds at most."""
        return prices.LIVE_BYTES + (0 if self.is_ready else prices.FFMPEG_BYTES)

    def ffmpeg_arguments(self) -> list[str]:
        """From ffmpeg's stdin to 16 kHz mono samples on its stdout, each as soon as it can be known.

        The demuxer is named, never guessed, and nothing but the two pipes can be opened. Looking for further streams
        would hold back the first seconds: recorders write all they have into the header.
        """
        demuxer = {Encoding.PCM: "s16le", Encoding.WEBM: "matroska", Encoding.OGG: "ogg"}[self.encoding]
        return [
            *("-loglevel", "error", "-nostats", "-threads", "1"),
            *("-protocol_whitelist", "pipe", "-fflags", "nobuffer", "-analyzeduration", "0", "-probesize", "4096"),
            *("-f", demuxer, *(("-ar", str(self.sample_rate)) if self.encoding is Encoding.PCM else ())),
            *("-i", "pipe:0", "-map", "0:a:0", "-vn", "-sn", "-dn", "-map_metadata", "-1", "-threads", "1"),
            *("-ar", str(SAMPLE_RATE), "-ac", "1", "-c:a", "pcm_s16le", "-flush_packets", "1", "-f", "s16le", "pipe:1"),
        ]
