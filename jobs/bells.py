"""Whoever waits for news of a job hears at once of what this process does to it, and soon of what others do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Bells:
    """Wakes those who listen for a job. Lives on one event loop; keeps nothing of jobs that nobody listens for."""

    def __init__(self) -> None:
        self._listening: dict[str, list[asyncio.Event]] = {}

    def ring(self, job_id: str) -> None:
        """There is news of that job."""
        for event in self._listening.get(job_id, ()):
            event.set()

    @contextlib.contextmanager
    def listening(self, job_id: str) -> Iterator[asyncio.Event]:
        """Set whenever there is news; cleared by the listener, before it looks."""
        event = asyncio.Event()
        self._listening.setdefault(job_id, []).append(event)
        try:
            yield event
        finally:
            self._listening[job_id].remove(event)
            if not self._listening[job_id]:
                del self._listening[job_id]


async def heard_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for news, or for so long: others' news ring no bell here."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
