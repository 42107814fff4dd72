"""Models without weights, the shelf that they are loaded from, and threads that use them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from transcription.core import SegmentRequest, TranscriptSegment
from transcription.loaded_models import LoadedModels


class FakeWhisper:
    """Writes each segment's number as its text, and fails at those that it is told to."""

    busy_s = 0.0

    def __init__(self, failures: dict[int, Exception] | None = None) -> None:
        self.failures = failures or {}
        self.batches: list[list[int]] = []
        self.caches_emptied = 0

    def transcribe(self, requests: Sequence[SegmentRequest]) -> list[TranscriptSegment]:
        self.batches.append([request.segment.index for request in requests])
        for request in requests:
            if failure := self.failures.get(request.segment.index):
                raise failure
        return [
            TranscriptSegment(request.segment.index, 0.0, 1.0, f" {request.segment.index}", -0.1, 0.0, 1.0, 0.0)
            for request in requests
        ]

    def empty_cache(self) -> None:
        self.caches_emptied += 1


class WatchedCondition(threading.Condition):
    """Notes each thread that is about to wait on it. Whoever takes its lock after that finds the thread waiting."""

    def __init__(self, halts: SimpleQueue[str]) -> None:
        super().__init__()
        self._halts = halts

    def wait(self, timeout: float | None = None) -> bool:
        self._halts.put("waits")
        return super().wait(timeout)


class Shelf:
    """Loads fakes, and notes which. Can be told to hold, or to fail."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.failure: Exception | None = None
        self.whispers: dict[str, FakeWhisper] = {}
        self.release = threading.Event()
        self.release.set()
        self.halts: SimpleQueue[str] = SimpleQueue()
        """What each thread that came to a halt does there: it "loads", held here, or "waits" for another one."""

    def load(self, path: Path) -> FakeWhisper:
        self.loads.append(path.name)
        if not self.release.is_set():
            self.halts.put("loads")
            self.release.wait()
        if self.failure:
            raise self.failure
        return self.whispers.get(path.name) or FakeWhisper()

    def models(self, budget_bytes: int) -> LoadedModels:
        return LoadedModels(cast(Any, self.load), budget_bytes, WatchedCondition(self.halts))


class User:
    """A thread that uses a model until it is told to leave."""

    def __init__(self, models: LoadedModels, name: str) -> None:
        self._models = models
        self._name = name
        self.model: object = None
        self.failure: Exception | None = None
        self.served = threading.Event()
        """It has its model, or never will."""
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._use, daemon=True)
        self._thread.start()

    def _use(self) -> None:
        try:
            with self._models.using(self._name, Path(self._name), 1) as model:
                self.model = model
                self.served.set()
                self._leave.wait()
        except Exception as error:
            self.failure = error
        finally:
            self.served.set()

    def left(self) -> User:
        self._leave.set()
        self._thread.join()
        return self


@contextlib.contextmanager
def in_use(models: LoadedModels, name: str) -> Iterator[None]:
    user = User(models, name)
    try:
        user.served.wait()
        assert user.model
        yield
    finally:
        user.left()


def use(models: LoadedModels, name: str, size_bytes: int = 1) -> None:
    with models.using(name, Path(name), size_bytes):
        pass
