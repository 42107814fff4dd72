"""Takes jobs from owners that have died, and tells the broker again of jobs that it may have lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from errors import StorageFull, StoreUnavailable
from jobs.leases import HEARTBEATS, Leases
from jobs.model import Job

EVERY_S = 10.0
"""Between a machine's death and the next attempt lie a lease and this, at most."""
SENT_AGAIN_S = 60.0
"""A job that still waits may have been lost by the broker; told twice, it is done once all the same."""

log = structlog.get_logger(__name__)


class Interruptions:
    """When silence says nothing of an owner: the clock was set, this process stood still, the database was away (pure).

    Owners that live are heard again within a lease of it; until then none is taken for dead.
    """

    def __init__(self, every_s: float, lease_s: float) -> None:
        """*every_s*: how often it is asked."""
        # Owners that miss no more than a beat keep their leases.
        self._longest_s = every_s + lease_s / HEARTBEATS
        self._lease_s = lease_s
        self._asked_at: float | None = None
        self._over_at = float("-inf")

    def are_over(self, now: float) -> bool:
        """Whether a lease has passed since the last one. *now*: by the clock that ends leases."""
        if self._asked_at is not None and not 0.0 <= now - self._asked_at <= self._longest_s:
            self._over_at = now + self._lease_s
        self._asked_at = now
        return now >= self._over_at


def taken(leases: Leases, interruptions: Interruptions) -> list[Job]:
    """The jobs of owners that have died, as they are now; none while those that live may not have been heard."""
    return leases.expire() if interruptions.are_over(leases.now()) else []


async def reap(
    leases: Leases, tell: Callable[[Sequence[Job]], None], *, republishes: bool, every_s: float = EVERY_S
) -> None:
    """For ever. Any number of processes may do so at once. *tell*: hears of every job that changed."""
    interruptions = Interruptions(every_s, leases.lease_s)
    while True:
        try:
            lost = await asyncio.to_thread(taken, leases, interruptions)
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
