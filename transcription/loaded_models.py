"""The models in the engine's process: each loaded once for all of its streams, and unloaded to make room."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from transcription.whisper import Whisper

log = structlog.get_logger(__name__)

Load = Callable[[Path], Whisper]


@dataclass(slots=True)
class _Held:
    """A model in memory, or on its way there (*model* is None)."""

    bytes: int
    model: Whisper | None = None
    users: int = 0


class LoadedModels:
    """The loaded models, side by side while they fit. Any number of threads may use them.

    Invariant: no more than *budget_bytes* of models are held, but for a lone one; one that is in use stays.
    """

    def __init__(self, load: Load, budget_bytes: int, changed: threading.Condition | None = None) -> None:
        """*changed* is what a thread waits on: for room, or for a model that another thread is loading."""
        self._load = load
        self._budget_bytes = budget_bytes
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._changed = changed or threading.Condition()

    @property
    def names(self) -> list[str]:
        """Least recently used first."""
        with self._changed:
            return [name for name, held in self._held.items() if held.model]

    @contextlib.contextmanager
    def using(self, name: str, path: Path, size_bytes: int) -> Iterator[Whisper]:
        """The model of that name; loaded from *path* where it is not yet, once, however many ask for it."""
        held, loads = self._claimed(name, size_bytes)
        try:
            if loads:
                held.model = self._load(path)
                log.info("model loaded", model=name)
                with self._changed:
                    self._changed.notify_all()
            assert held.model
            yield held.model
        finally:
            with self._changed:
                held.users -= 1
                if held.model is None:
                    self._held.pop(name, None)
                self._changed.notify_all()

    def _claimed(self, name: str, size_bytes: int) -> tuple[_Held, bool]:
        """The place of that model, with one user more, and whether that user is to load it."""
        with self._changed:
            while not ((held := self._held.get(name)) and held.model) and (held or not self._make_room(size_bytes)):
                self._changed.wait()
            loads = held is None
            held = held or _Held(size_bytes)
            held.users += 1
            self._held[name] = held
            self._held.move_to_end(name)
            return held, loads

    def _make_room(self, size_bytes: int) -> bool:
        """Drop models that nobody uses, the least recently used first, until so much fits; whether it does."""
        while self._held and sum(held.bytes for held in self._held.values()) + size_bytes > self._budget_bytes:
            idle = next((name for name, held in self._held.items() if not held.users), None)
            if idle is None:
                return False
            del self._held[idle]
            log.info("model unloaded", model=idle, why="room for another")
            give_memory_back()
        return True

    def unload(self, name: str) -> None:
        """Drop the model of that name, unless it is in use."""
        with self._changed:
            if (held := self._held.get(name)) and not held.users:
                del self._held[name]
                log.info("model unloaded", model=name, why="idle")
                del held
                give_memory_back()
                self._changed.notify_all()

    def unload_idle(self) -> None:
        """Drop every model that nobody uses."""
        for name in self.names:
            self.unload(name)


def give_memory_back() -> None:
    """Hand freed memory to the system: the C library keeps it for later otherwise."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
