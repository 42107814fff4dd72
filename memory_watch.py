"""Looks at the memory twice a second, tells the gate, and keeps what it saw for operators."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import structlog

from admission import AdmissionController
from memory import MemoryEvents, MemoryPressure, MemoryReading

log = structlog.get_logger(__name__)

EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class MemoryView:
    """One look at all devices."""

    devices: Mapping[str, MemoryReading]
    """By name: "memory", "cuda:0" …"""
    pressure: MemoryPressure | None
    events: MemoryEvents | None
    own_bytes: int
    """Resident memory of this service, its children included."""


class MemoryWatch:
    """Use as an async context manager: it looks once on entry, then every *every_s* until the end."""

    def __init__(
        self,
        look: Callable[[], MemoryView],
        admission: AdmissionController,
        every_s: float = EVERY_S,
        on_pressed: Callable[[], None] = lambda: None,
    ) -> None:
        """*look* runs in a thread: it reads some files of the kernel's. *on_pressed* is called, again and again, while
        work waits for memory that is lent to nobody: something idle may have it."""
        self._look = look
        self._admission = admission
        self._every_s = every_s
        self.on_pressed = on_pressed
        self._task: asyncio.Task[None] | None = None
        self.peak_bytes = 0
        """The most that the service was seen to hold."""

    async def __aenter__(self) -> Self:
        await self._see()
        self._task = asyncio.create_task(self._watch(), name="memory watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._see()
            except Exception:
                # NOTE: a file that cannot be read now may be readable later; without a watch the gate would be blind.
                log.exception("the memory could not be read")

    async def _see(self) -> None:
        self.view = await asyncio.to_thread(self._look)
        self.peak_bytes = max(self.peak_bytes, self.view.own_bytes)
        free_bytes = {name: reading.free_bytes for name, reading in self.view.devices.items()}
        self._admission.observe(free_bytes, self.view.own_bytes)
        if any(memory.pressed for memory in self._admission.memory.values()):
            self.on_pressed()
