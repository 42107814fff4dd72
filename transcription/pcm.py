"""PCM on disk that may still be being written: who reads it waits for what is not there yet."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transcription.core import BYTES_PER_SAMPLE, SAMPLE_RATE, Segment

POLL_S = 0.02
"""ffmpeg gives no sign of what it has written, so the file's size is looked at: ten times in the shortest clip, and at
most by as many readers as there are writers."""

ALL = sys.maxsize
"""More samples than any recording has."""

Samples = npt.NDArray[np.int16]


class GrowingPcm:
    """A recording's samples in a file that only ever grows at its end.

    Read with plain file reads: the pages of a memory map would count as this process's own, more with every window.
    """

    def __init__(self, path: Path, writing: asyncio.Future[Any] | None = None) -> None:
        """*writing* ends when the file is complete, or with the error that kept it from being so. None: it is complete.

        The file need not be there yet.
        """
        self.path = path
        self._writing = writing

    async def wait_for(self, samples: int) -> int:
        """Wait until *samples* are on disk, or no more will come; return how many there are.

        Holds no thread meanwhile. Raises what the writing raised, also where the samples are there.
        """
        while self._writing and not self._writing.done():
            if (there := self._samples()) >= samples:
                return there
            await asyncio.wait({self._writing}, timeout=POLL_S)
        if self._writing:
            self._writing.result()
        return self._samples()

    def read(self, first: int, last: int) -> Samples:
        """The samples from *first* up to *last*, which are on disk. Blocks."""
        return np.fromfile(self.path, np.int16, last - first, offset=first * BYTES_PER_SAMPLE)

    def _samples(self) -> int:
        try:
            return self.path.stat().st_size // BYTES_PER_SAMPLE
        except FileNotFoundError:
            return 0


def seconds_in(path: Path) -> float:
    """How much there is at *path* by now, which need not be there yet."""
    try:
        return path.stat().st_size / BYTES_PER_SAMPLE / SAMPLE_RATE
    except FileNotFoundError:
        return 0.0


def samples_of(segment: Segment) -> npt.NDArray[np.float32]:
    """The segment's samples, -1 to 1, read from its file."""
    pcm = np.fromfile(segment.path, np.int16, segment.samples, offset=segment.first_sample * BYTES_PER_SAMPLE)
    return pcm.astype(np.float32) / np.float32(32_768)
