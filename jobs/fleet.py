"""Who does jobs: each process that does writes down every few seconds what it has, and forgets those that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
import structlog
from pydantic import TypeAdapter

from errors import NotReady, StorageFull, StoreUnavailable
from jobs.database import Database
from jobs.model import State
from jobs.tables import jobs, workers
from reservation import Work

EVERY_S = 15.0
SEEN_WITHIN_S = 60.0
"""Three signs of life may be missed, as with a job's lease."""
FORGOTTEN_AFTER_S = 3600.0
"""The dead stay in the table for so long: whoever looks for the cause finds who they were."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What one process says of itself."""

    host: str
    devices: list[str]
    plans: list[dict[str, Any]]
    """As `limits.Plan`, one a device."""
    slots: dict[str, int]
    """Jobs at once, by kind of work."""
    running: int
    """Jobs under way."""
    model: str
    """The default model's name."""
    loaded: list[str]
    """Names of the models in memory; none: it cannot transcribe yet."""
    version: str


@dataclass(frozen=True, slots=True)
class Member:
    """One process that was seen a moment ago."""

    id: str
    """As the owner of its jobs."""
    seen_s_ago: float
    facts: Facts


@dataclass(frozen=True, slots=True)
class Backlog:
    """What all of them together have before them."""

    queued: dict[Work, int]
    running: dict[Work, int]
    oldest_s: float | None
    """How long the first of those who wait has waited."""


FACTS = TypeAdapter(Facts)


class Fleet:
    """The table of those who do jobs. Synchronous and thread-safe; every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def report(self, owner: str, facts: Facts) -> None:
        """*owner* lives, and says *facts* of itself; the long dead are forgotten."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            values = {"seen_at": now, "facts": asdict(facts)}
            new = self._database.insert(workers).values(id=owner, **values)
            connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=values))
            connection.execute(sa.delete(workers).where(workers.c.seen_at < now - FORGOTTEN_AFTER_S))

    def leave(self, owner: str) -> None:
        """*owner* stops in good order."""
        with self._database.writing() as connection:
            connection.execute(sa.delete(workers).where(workers.c.id == owner))

    def members(self) -> list[Member]:
        """Those that live, in the order of their ids."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            # Not after now, either: the dead would live on for as long as the clock was set back.
            lately = workers.c.seen_at.between(now - SEEN_WITHIN_S, now + SEEN_WITHIN_S)
            seen = sa.select(workers).where(lately).order_by(workers.c.id)
            return [
                Member(row.id, max(0.0, now - row.seen_at), FACTS.validate_python(row.facts))
                for row in connection.execute(seen)
            ]

    def backlog(self) -> Backlog:
        """How many jobs wait and run, by their kind."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            counted = connection.execute(
                sa.select(jobs.c.state, jobs.c.work, sa.func.count(), sa.func.min(jobs.c.created_at))
                .where(jobs.c.state.in_((State.QUEUED, State.RUNNING)))
                .group_by(jobs.c.state, jobs.c.work)
            ).all()
        waiting_since = [since for state, _, _, since in counted if state == State.QUEUED]
        numbers = {
            state: {Work(work): count for found, work, count, _ in counted if found == state}
            for state in (State.QUEUED, State.RUNNING)
        }
        oldest_s = max(0.0, now - min(waiting_since)) if waiting_since else None
        return Backlog(numbers[State.QUEUED], numbers[State.RUNNING], oldest_s)


async def keep_reporting(fleet: Fleet, owner: str, facts: Callable[[], Facts], *, every_s: float = EVERY_S) -> None:
    """Until it is cancelled; then *owner* leaves. *facts*: asked each time, on the event loop."""
    writing: asyncio.Future[None] | None = None
    try:
        while True:
            writing = asyncio.ensure_future(asyncio.to_thread(_report, fleet, owner, facts()))
            await asyncio.shield(writing)
            await asyncio.sleep(every_s)
    finally:
        # What is being written would bring it back.
        if writing is not None:
            await asyncio.wait([writing])
        await asyncio.to_thread(_leave, fleet, owner)


def _report(fleet: Fleet, owner: str, facts: Facts) -> None:
    try:
        fleet.report(owner, facts)
    except (StoreUnavailable, StorageFull) as error:
        log.warning("this process cannot say that it lives", code=error.code)


def _leave(fleet: Fleet, owner: str) -> None:
    try:
        fleet.leave(owner)
    except (StoreUnavailable, StorageFull) as error:
        log.info("this process counts as alive for another minute", code=error.code)


class FleetWatch:
    """In place of engines, in a process that has none: what those have that do the jobs. Looks every few seconds."""

    resident_bytes = 0
    """Main memory of this process's own engines."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.members: list[Member] = []
        """As of the last look; empty, too, while the database does not answer."""
        self.backlog: Backlog | None = None
        """As of the last look; None while the database does not answer."""

    async def look(self) -> None:
        """Look once."""
        try:
            self.members = await asyncio.to_thread(self._fleet.members)
            self.backlog = await asyncio.to_thread(self._fleet.backlog)
        except (StoreUnavailable, StorageFull) as error:
            log.warning("workers cannot be seen", code=error.code)
            self.members, self.backlog = [], None

    async def keep_looking(self, *, every_s: float = EVERY_S / 3) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    def loaded(self) -> list[str]:
        """Names of the models that some worker has in memory."""
        return list(dict.fromkeys(name for member in self.members for name in member.facts.loaded))

    def check_ready(self) -> None:
        """Raises NotReady where no worker can transcribe: jobs are taken in all the same."""
        if not self.members:
            raise NotReady("No worker was seen in the last minute; jobs are taken, and wait for one.")
        if not self.loaded():
            raise NotReady("Workers are there, but none has loaded its model yet.")
