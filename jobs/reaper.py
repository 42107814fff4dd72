"""Takes jobs from owners that have died, and tells the broker again of jobs that it may have lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from errors import StorageFull, StoreUnavailable
from jobs.leases import Leases
from jobs.model import Job

EVERY_S = 10.0
"""Between a machine's death and the next attempt lie a lease and this, at most."""
SENT_AGAIN_S = 60.0
"""A job that still waits may have been lost by the broker; told twice, it is done once all the same."""

log = structlog.get_logger(__name__)


async def reap(
    leases: Leases, tell: Callable[[Sequence[Job]], None], *, republishes: bool, every_s: float = EVERY_S
) -> None:
    """For ever. Any number of processes may do so at once. *tell*: hears of every job that changed."""
    while True:
        try:
            lost = await asyncio.to_thread(leases.expire)
            for job in lost:
                log.warning("a job's owner has died", job=job.id, attempt=job.attempt, state=job.state)
            tell(lost)
            if republishes:
                tell(await asyncio.to_thread(leases.to_be_sent, SENT_AGAIN_S))
        except (StoreUnavailable, StorageFull) as error:
            log.warning("owners cannot be watched", code=error.code)
        except Exception:
            # NOTE: nobody awaits this loop before the server stops: it must not end silently.
            log.exception("owners cannot be watched")
        await asyncio.sleep(every_s)
