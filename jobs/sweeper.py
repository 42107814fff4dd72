"""Removes what has had its time: jobs that are long over, uploads that nobody will read, media past their age or quota.

What goes is decided from facts and a clock; any number of processes may sweep at once, and come to the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

import structlog

from downloads.stored_files import Kept, Media
from errors import JobNotFound, MediaNotFound, ServiceError
from jobs.model import State
from jobs.store import JobStore
from jobs.uploads import Uploads

EVERY_S = 600.0
UNKNOWN_S = 3600.0
"""What belongs to nothing may be about to: between an upload's arrival and its job lie milliseconds, or a database that
comes back."""
PAGE = 1000

RETRYABLE = (State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED)
"""Jobs in these states may yet read what was uploaded for them."""
AT_WORK = (State.QUEUED, State.RUNNING)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long what is kept is kept; 0: for ever, or any number."""

    result_ttl_s: float = 0.0
    """Since the job was over: it is forgotten, with its result and events."""
    media_ttl_s: float = 0.0
    """Since the file was stored."""
    media_quota_bytes: int = 0
    """Of all stored files together."""


# --- what goes; pure -------------------------------------------------------------------------------------------------


def old_uploads(uploads: Iterable[tuple[str, float]], now: float) -> list[str]:
    """Names of the *uploads* (with the time each came) that have long had a job, or never will."""
    return [name for name, came_at in uploads if came_at < now - UNKNOWN_S]


def ids_in(references: Iterable[str]) -> set[str]:
    """The ids of stored files that jobs name: as such, by a file's name or by its path."""
    return {PurePath(reference).stem for reference in references}


def media_to_go(files: Iterable[Kept], in_use: Collection[str], now: float, lifetimes: Lifetimes) -> list[str]:
    """Ids of the stored files that are past their age, and then the oldest until the others are within the quota.

    Those *in_use* stay, and count.
    """
    kept = sorted(files, key=lambda file: (file.since, file.id))
    quota_bytes = lifetimes.media_quota_bytes or float("inf")
    oldest = now - (lifetimes.media_ttl_s or float("inf"))
    total_bytes = sum(file.bytes for file in kept)
    gone = []
    for file in kept:
        if file.id not in in_use and (file.since < oldest or total_bytes > quota_bytes):
            gone.append(file.id)
            total_bytes -= file.bytes
    return gone


# --- and goes --------------------------------------------------------------------------------------------------------


async def sweep(
    store: JobStore,
    uploads: Uploads,
    media: Media,
    lifetimes: Lifetimes,
    *,
    clock: Callable[[], float] = time.time,
    every_s: float = EVERY_S,
) -> None:
    """For ever. *clock*: seconds since 1970."""
    while True:
        await asyncio.to_thread(swept, store, uploads, media, lifetimes, clock)
        await asyncio.sleep(every_s)


def swept(
    store: JobStore, uploads: Uploads, media: Media, lifetimes: Lifetimes, clock: Callable[[], float] = time.time
) -> dict[str, int]:
    """Sweep once; tell how many of each kind went. What cannot be swept now is left for the next time."""
    parts: dict[str, Callable[[], int]] = {
        "jobs": partial(_forget, store, lifetimes.result_ttl_s),
        "uploads": partial(_sweep_uploads, store, uploads, clock),
        "media": partial(_sweep_media, store, media, lifetimes, clock),
        "strays": lambda: media.remove_strays(clock() - UNKNOWN_S),
    }
    gone = {}
    for what, part in parts.items():
        try:
            gone[what] = part()
        except (ServiceError, OSError) as error:
            log.warning("cannot be swept now", what=what, error=repr(error))
    if any(gone.values()):
        log.info("swept", **gone)
    return gone


def _forget(store: JobStore, result_ttl_s: float) -> int:
    forgotten = 0
    while result_ttl_s and (gone := store.forget(result_ttl_s)):
        forgotten += len(gone)
    return forgotten


def _sweep_uploads(store: JobStore, uploads: Uploads, clock: Callable[[], float]) -> int:
    # NOTE: the uploads first. A job that is handed in meanwhile has a newer upload than those that are looked for.
    old = old_uploads(uploads.names(), clock())
    needed = _named(store, RETRYABLE, "upload") if old else set()
    gone = [name for name in old if name not in needed]
    for name in gone:
        uploads.remove(name)
    return len(gone)


def _sweep_media(store: JobStore, media: Media, lifetimes: Lifetimes, clock: Callable[[], float]) -> int:
    if not lifetimes.media_ttl_s and not lifetimes.media_quota_bytes:
        return 0
    files, now = media.kept(), clock()
    if not media_to_go(files, (), now, lifetimes):
        return 0
    gone = media_to_go(files, ids_in(_named(store, AT_WORK, "file")), now, lifetimes)
    for media_id in gone:
        # Another process may have been quicker.
        with contextlib.suppress(MediaNotFound):
            media.remove(media_id)
    return len(gone)


def _named(store: JobStore, states: Sequence[State], part: str) -> set[str]:
    """What the jobs in *states* name as that part of their source."""
    named: set[str] = set()
    last: str | None = None
    while True:
        try:
            page = store.listed(states=states, before=last, limit=PAGE)
        except JobNotFound:
            # The last one has been forgotten meanwhile.
            last = None
            continue
        named |= {job.source[part] for job in page if job.source.get(part)}
        if len(page) < PAGE:
            return named
        last = page[-1].id
