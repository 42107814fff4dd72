"""Waiting for what must come to its end, though whoever waits for it is being cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def undisturbed(future: asyncio.Future[T]) -> T:
    """The result of *future*, which is near, however often the waiting task is cancelled meanwhile.

    Only while an exception is in flight, which then goes on. NOTE: a task group's cancellation arrives at every await.
    """
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(future)
    return future.result()


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of *work*, which is near and must not break off: the waiting task is cancelled after it, if at all."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await undisturbed(doing)
        raise
