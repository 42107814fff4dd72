"""Removes what has had its time: jobs that are long over, uploads that nobody will read, media past their age or quota.

What goes is decided from facts and a clock; any number of processes may sweep at once, and come to the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

import structlog

from downloads.stored_files import Kept, Media
from errors import JobNotFound, MediaNotFound, ServiceError
from jobs.model import Job, State
from jobs.store import JobStore
from jobs.uploads import Uploads

EVERY_S = 600.0
UNKNOWN_S = 3600.0
"""What belongs to nothing may be about to: between an upload's arrival and its job lie milliseconds, or a database that
comes back."""
PAGE = 1000
RETRIES_KEPT = 20
"""Of each key's jobs that are over and may be tried again, so many keep their uploads, the newest. Else whoever hands
in and cancels, or sends what cannot be read, has the disk for RESULT_TTL_S."""

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
    """Of all stored files together, whosever they are."""


# --- what goes; pure -------------------------------------------------------------------------------------------------


def old_uploads(uploads: Iterable[tuple[str, float]], now: float) -> list[str]:
    """Names of the *uploads* (with the time each came) that have long had a job, or never will."""
    return [name for name, came_at in uploads if came_at < now - UNKNOWN_S]


def uploads_named(jobs: Iterable[Job]) -> tuple[set[str], set[str]]:
    """Of what was uploaded for *jobs*, newest first: what they may yet read, and what is kept for no retry any more."""
    needed: set[str] = set()
    spare: set[str] = set()
    of_key: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        if not (upload := job.source.get("upload")):
            continue
        if not job.state.is_over:
            needed.add(upload)
        elif upload in of_key[job.key] or len(of_key[job.key]) < RETRIES_KEPT:
            of_key[job.key].add(upload)
        else:
            spare.add(upload)
    return needed.union(*of_key.values()), spare


def ids_in(references: Iterable[str]) -> set[str]:
    """The ids of stored files that jobs name: as such, by a file's name or by its path."""
    return {PurePath(reference).stem for reference in references}


def media_to_go(files: Iterable[Kept], in_use: Collection[str], now: float, lifetimes: Lifetimes) -> list[str]:
    """Ids of the stored files that are past their age; then, until the others are within the quota, always the oldest
    of the owner who has most.

    Those *in_use* stay, and count. Where whoever has most has nothing else, the rest stays, too, until the jobs are
    over: nobody's files are pushed out by somebody who has more.
    """
    kept = sorted(files, key=lambda file: (file.since, file.id))
    oldest = now - (lifetimes.media_ttl_s or float("inf"))
    gone = [file.id for file in kept if file.id not in in_use and file.since < oldest]
    left: dict[str, int] = defaultdict(int)
    may_go: dict[str, list[Kept]] = defaultdict(list)
    for file in reversed(kept):
        if file.id in in_use or file.since >= oldest:
            left[file.owner or ""] += file.bytes
            if file.id not in in_use:
                may_go[file.owner or ""].append(file)
    over_bytes = sum(left.values()) - (lifetimes.media_quota_bytes or float("inf"))
    while over_bytes > 0:
        owner = max(left, key=lambda owner: (left[owner], owner))
        if not may_go[owner]:
            break
        file = may_go[owner].pop()
        gone.append(file.id)
        left[owner] -= file.bytes
        over_bytes -= file.bytes
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
    names = list(uploads.names())
    if not names:
        return 0
    needed, spare = uploads_named(_jobs_in(store, RETRYABLE))
    # What is spared has had its job: no upload of a job that is about to be.
    old = {*old_uploads(names, clock()), *spare}
    gone = [name for name, _ in names if name in old and name not in needed]
    for name in gone:
        uploads.remove(name)
    return len(gone)


def _sweep_media(store: JobStore, media: Media, lifetimes: Lifetimes, clock: Callable[[], float]) -> int:
    if not lifetimes.media_ttl_s and not lifetimes.media_quota_bytes:
        return 0
    files, now = media.kept(), clock()
    if not media_to_go(files, (), now, lifetimes):
        return 0
    named = (job.source.get("file") for job in _jobs_in(store, AT_WORK))
    gone = media_to_go(files, ids_in(filter(None, named)), now, lifetimes)
    for media_id in gone:
        # Another process may have been quicker.
        with contextlib.suppress(MediaNotFound):
            media.remove(media_id)
    return len(gone)


def _jobs_in(store: JobStore, states: Sequence[State]) -> Iterator[Job]:
    """Newest first; some come twice where jobs are forgotten meanwhile."""
    last: str | None = None
    while True:
        try:
            page = store.listed(states=states, before=last, limit=PAGE)
        except JobNotFound:
            # The last one has been forgotten meanwhile.
            last = None
            continue
        yield from page
        if len(page) < PAGE:
            return
        last = page[-1].id
