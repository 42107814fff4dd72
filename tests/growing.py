"""A recording that is written while it is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import numpy as np

from transcription.pcm import GrowingPcm


class WatchedPcm(GrowingPcm):
    """Tells who looks whether its reader waits, and how far it has read."""

    def __init__(self, path: Path, writing: asyncio.Future[None] | None = None) -> None:
        super().__init__(path, writing)
        self._complete = writing
        self.waited_for = asyncio.Event()
        self.samples_read = 0

    async def wait_for(self, samples: int) -> int:
        self.waited_for.set()
        try:
            return await super().wait_for(samples)
        finally:
            self.waited_for.clear()

    def fail(self, error: Exception) -> None:
        """End the writing with *error*."""
        assert self._complete is not None
        self._complete.set_exception(error)

    def read(self, first: int, last: int) -> np.ndarray:
        self.samples_read = max(self.samples_read, last)
        return super().read(first, last)


@contextlib.asynccontextmanager
async def growing(
    path: Path, pcm: np.ndarray, step_bytes: Iterable[int], *, ends: bool = True
) -> AsyncIterator[WatchedPcm]:
    """*pcm* in a new file at *path*, step by step: the next one is written while the reader waits, and no sooner.

    What the steps leave over is written last, unless it does not end: then the reader waits for ever.
    """
    complete = asyncio.get_running_loop().create_future()
    watched = WatchedPcm(path, complete)

    async def write() -> None:
        data = pcm.tobytes()
        with path.open("ab", buffering=0) as file:
            for step in step_bytes:
                await watched.waited_for.wait()
                data = data[file.write(data[:step]) :]
                for _ in range(3):
                    await asyncio.sleep(0)  # the reader looks, and may have enough
            if ends:
                file.write(data)
                complete.set_result(None)

    writer = asyncio.create_task(write())
    try:
        yield watched
    finally:
        writer.cancel()
        await asyncio.wait({writer})
