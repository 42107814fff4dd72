"""Jobs as their callers see them: written down, listed, looked at, cancelled, tried again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from admission import MOST_RETRY_AFTER_S
from errors import IdempotencyConflict, JobNotFound, JobNotOver, NotRetryable, QueueFull, QuotaUsed
from jobs.database import Database, Lock
from jobs.model import OVER, Event, Job, NewJob, State
from jobs.rows import COLUMNS, changed, end, event_of, job_of, new_id, tell
from jobs.tables import deliveries, events, jobs, results
from key_limits import DAY_S, crowds
from reservation import OF_AUDIO, Work

ANYBODY = None
"""In place of a key: for the service itself, which may see every job."""

_NUL = "\0"
"""Comes in URLs, and is in no id. PostgreSQL takes no text that has it, not even to look for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """How the jobs stand."""

    by_state: dict[tuple[Work, State], int]
    oldest_queued_at: float | None


class JobStore:
    """The jobs of one database. Synchronous and thread-safe; every method is one short transaction."""

    def __init__(
        self,
        database: Database,
        *,
        lease_s: float,
        max_queued: int = 0,
        several_keys: Callable[[], bool] = lambda: False,
    ) -> None:
        """*max_queued*: jobs that may wait at once; 0: any number. *several_keys*: whether none may fill the queue.
        *lease_s*: what an attended job begins with."""
        self._database = database
        self._lease_s = lease_s
        self._max_queued = max_queued
        self._several_keys = several_keys

    # --- written down ----------------------------------------------------------------------------------------------

    def submit(self, new: NewJob, owner: str | None = None, *, audio_s: float | None = None) -> tuple[Job, bool]:
        """The job of *new*, and whether it was made just now: not, where its idempotency key was used before.

        *owner*: who begins it at once, a server on whose connection the caller waits; else it is queued. *audio_s*:
        what its key's queued jobs of today (UTC) may come to; None: any length.
        Raises IdempotencyConflict, QueueFull, QuotaUsed, StorageFull, StoreUnavailable.
        """
        try:
            with self._database.writing() as connection:
                if twin := _twin(connection, new):
                    return twin, False
                if owner is None:
                    self._check_room(connection, new.key, 1)
                    self._check_audio(connection, [new], audio_s)
                return self._written(connection, new, owner), True
        except IntegrityError:
            # Another machine was quicker by a moment.
            with self._database.reading() as connection:
                if twin := _twin(connection, new):
                    return twin, False
            raise

    def submit_many(self, new: Sequence[NewJob], *, audio_s: float | None = None) -> tuple[list[Job], bool]:
        """The queued jobs of one batch, all or none, in order; and whether they were made just now: not, where the
        idempotency key of the first was used before, whose batch it is then. *audio_s*: as for `submit`.

        Raises IdempotencyConflict, QueueFull, QuotaUsed, StorageFull, StoreUnavailable.
        """
        try:
            with self._database.writing() as connection:
                if twin := _twin(connection, new[0]):
                    return _batch_of(connection, twin), False
                self._check_room(connection, new[0].key, len(new))
                self._check_audio(connection, new, audio_s)
                return [self._written(connection, one, None) for one in new], True
        except IntegrityError:
            with self._database.reading() as connection:
                if twin := _twin(connection, new[0]):
                    return _batch_of(connection, twin), False
            raise

    def _check_room(self, connection: sa.Connection, key: str, number: int) -> None:
        """Raises QueueFull where so many more would be too many, or too many of one key's; else nobody else takes that
        room meanwhile."""
        if not self._max_queued:
            return
        self._database.alone(connection, Lock.QUEUE)
        # As the last of them finds it.
        room = self._max_queued - _queued(connection) - number + 1
        if room <= 0:
            raise QueueFull
        if self._several_keys() and crowds(self._max_queued - room, room):
            own = int(connection.scalar(_QUEUED.where(jobs.c.key == key)) or 0) + number - 1
            if crowds(own, room):
                raise QueueFull("Enough of this key's jobs wait already: the rest of the queue is for others.")

    def _check_audio(self, connection: sa.Connection, new: Sequence[NewJob], most_s: float | None) -> None:
        """Raises QuotaUsed where the key's jobs of today would come to more than *most_s*, whoever took them in, and
        whatever has become of them; else nobody else takes what is left meanwhile.

        A link counts from when its length is known. NOTE: what is forgotten (RESULT_TTL_S) counts no more.
        """
        if most_s is None or new[0].work not in OF_AUDIO:
            return
        self._database.alone(connection, Lock.QUEUE)
        now = self._database.now(connection)
        had_s = connection.scalar(
            sa.select(sa.func.coalesce(sa.func.sum(jobs.c.size), 0.0)).where(
                jobs.c.key == new[0].key,
                jobs.c.created_at >= now - now % DAY_S,
                jobs.c.work.in_(OF_AUDIO),
                # Those that a server's own callers wait for, it has counted itself; parts are counted in their wholes.
                sa.not_(jobs.c.attended),
                jobs.c.parent_id.is_(None),
            )
        )
        left_s = most_s - float(had_s or 0.0)
        if left_s <= 0 or sum(one.size or 0.0 for one in new) > left_s:
            raise QuotaUsed(retry_after_s=MOST_RETRY_AFTER_S)

    def _written(self, connection: sa.Connection, new: NewJob, owner: str | None) -> Job:
        now = self._database.now(connection)
        facts = dataclasses.asdict(new) | {
            "id": new_id(),
            "state": State.QUEUED,
            "done": 0.0,
            "attempt": 0,
            "deaths": 0,
            "cancelling": False,
            "events": 0,
            "created_at": now,
            "timings": {},
            "options_hash": hashlib.sha256(json.dumps(new.options, sort_keys=True).encode()).hexdigest(),
        }
        told: list[tuple[str, dict[str, Any]]] = [(State.QUEUED, {})]
        if owner is not None:
            facts |= {
                "state": State.RUNNING,
                "attempt": 1,
                "owner": owner,
                "lease_until": now + self._lease_s,
                "started_at": now,
            }
            told.append((State.RUNNING, {"attempt": 1}))
        job = job_of(connection.execute(sa.insert(jobs).values(**facts).returning(*COLUMNS)).one())
        return tell(connection, job, told, now)

    # --- looked at -------------------------------------------------------------------------------------------------

    def get(self, job_id: str, key: str | None = ANYBODY) -> Job:
        """Raises JobNotFound, also for another key's job."""
        with self._database.reading() as connection:
            return _get(connection, job_id, key)

    def listed(
        self,
        key: str | None = ANYBODY,
        *,
        states: Collection[State] = (),
        work: Work | None = None,
        batch_id: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Newest first; *before*: the id of the last one that was seen. Raises JobNotFound where there is none such."""
        if batch_id is not None and _NUL in batch_id:
            return []
        asked = sa.select(*COLUMNS).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if key is not None:
            asked = asked.where(jobs.c.key == key)
        # Parts of a long recording are nobody's to see.
        asked = asked.where(jobs.c.parent_id.is_(None))
        if states:
            asked = asked.where(jobs.c.state.in_(states))
        if work is not None:
            asked = asked.where(jobs.c.work == work)
        if batch_id is not None:
            asked = asked.where(jobs.c.batch_id == batch_id)
        with self._database.reading() as connection:
            if before is not None:
                last = _get(connection, before, key)
                asked = asked.where(sa.tuple_(jobs.c.created_at, jobs.c.id) < sa.tuple_(last.created_at, last.id))
            return [job_of(row) for row in connection.execute(asked)]

    def ahead_of(self, job: Job) -> tuple[int, float]:
        """How many queued jobs are likely to start before *job*, and the sum of their sizes, as far as those are known.

        Classes of priority one after another; within one, keys take turns: as many of each other key's as of its own.
        """
        with self._database.reading() as connection:
            own = connection.scalar(
                sa.select(sa.func.count()).where(
                    jobs.c.state == State.QUEUED,
                    jobs.c.work == job.work,
                    jobs.c.priority == job.priority,
                    jobs.c.key == job.key,
                    sa.tuple_(jobs.c.created_at, jobs.c.id) < sa.tuple_(job.created_at, job.id),
                )
            )
            lines = connection.execute(
                sa.select(jobs.c.priority, jobs.c.key, sa.func.count(), sa.func.coalesce(sa.func.avg(jobs.c.size), 0.0))
                .where(jobs.c.state == State.QUEUED, jobs.c.work == job.work, jobs.c.priority <= job.priority)
                .group_by(jobs.c.priority, jobs.c.key)
            ).all()
        number, amount = 0, 0.0
        for priority, key, count, mean in lines:
            if priority < job.priority:
                first = count
            else:
                first = int(own or 0) if key == job.key else min(count, int(own or 0) + 1)
            number, amount = number + first, amount + first * mean
        return number, amount

    def result(self, job_id: str, key: str | None = ANYBODY) -> tuple[Job, str]:
        """A succeeded job and its result, as JSON. Raises JobNotFound, JobNotOver."""
        with self._database.reading() as connection:
            job = _get(connection, job_id, key)
            body = connection.scalar(sa.select(results.c.body).where(results.c.job_id == job_id))
        if body is None:
            raise JobNotOver
        return job, str(body)

    def events_of(self, job_id: str, after: int = 0, limit: int = 100) -> Sequence[Event]:
        """What happened to a job since its event *after*, in order."""
        asked = (
            sa.select(events)
            .where(events.c.job_id == job_id, events.c.number > after)
            .order_by(events.c.number)
            .limit(limit)
        )
        with self._database.reading() as connection:
            return [event_of(row) for row in connection.execute(asked)]

    def history_of(self, job_id: str) -> list[Event]:
        """All that has happened to a job, in order: as much as there are segments in its recording."""
        history: list[Event] = []
        while page := self.events_of(job_id, history[-1].number if history else 0):
            history += page
        return history

    def parts_of(self, job_id: str) -> list[Job]:
        """The jobs that are parts of that one, in the order in which they were made."""
        asked = sa.select(*COLUMNS).where(jobs.c.parent_id == job_id).order_by(jobs.c.created_at, jobs.c.id)
        with self._database.reading() as connection:
            return [job_of(row) for row in connection.execute(asked)]

    def deliveries_of(self, job_id: str) -> list[dict[str, Any]]:
        """A job's webhooks, oldest first."""
        asked = sa.select(deliveries).where(deliveries.c.job_id == job_id).order_by(deliveries.c.created_at)
        with self._database.reading() as connection:
            return [dict(row._mapping) for row in connection.execute(asked)]

    def counts(self) -> Counts:
        """How many jobs stand where."""
        asked = sa.select(jobs.c.work, jobs.c.state, sa.func.count()).group_by(jobs.c.work, jobs.c.state)
        with self._database.reading() as connection:
            by_state = {(Work(work), State(state)): count for work, state, count in connection.execute(asked)}
            oldest = connection.scalar(sa.select(sa.func.min(jobs.c.created_at)).where(jobs.c.state == State.QUEUED))
        return Counts(by_state, oldest)

    # --- changed ---------------------------------------------------------------------------------------------------

    def cancel(self, job_id: str, key: str | None = ANYBODY) -> Job:
        """End a queued job now, and ask a running one's owner to stop; one that is over stays as it is.

        Raises JobNotFound.
        """
        with self._database.writing() as connection:
            job = _get(connection, job_id, key, lock=True)
            if job.state is State.QUEUED:
                now = self._database.now(connection)
                job = end(connection, jobs.c.id == job_id, State.CANCELLED, now) or job
            elif job.state is State.RUNNING and not job.cancelling:
                job = changed(connection, jobs.c.id == job_id, cancelling=True) or job
        return job

    def retry(self, job_id: str, key: str | None = ANYBODY) -> Job:
        """Queue a failed or cancelled job once more; what was finished of it is not done again.

        Raises JobNotFound, NotRetryable, QueueFull.
        """
        with self._database.writing() as connection:
            job = _get(connection, job_id, key, lock=True)
            if job.state not in (State.FAILED, State.CANCELLED):
                raise NotRetryable
            self._check_room(connection, job.key, 1)
            again = changed(
                connection,
                jobs.c.id == job_id,
                state=State.QUEUED,
                attended=False,
                error=None,
                finished_at=None,
                deaths=0,
                cancelling=False,
                sent_at=None,
            )
            assert again is not None
            return tell(connection, again, [(State.QUEUED, {})], self._database.now(connection))

    def forget(self, older_than_s: float, limit: int = 100) -> list[Job]:
        """Remove jobs that have been over for so long, with their results and events; return them."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            # Held first: a job that is just being tried again would be removed as it was found, else.
            old = connection.scalars(
                sa.select(jobs.c.id)
                .where(jobs.c.state.in_(OVER), jobs.c.finished_at < now - older_than_s)
                .limit(limit)
                .with_for_update(skip_locked=True)
            ).all()
            gone = connection.execute(sa.delete(jobs).where(jobs.c.id.in_(old)).returning(*COLUMNS))
            return [job_of(row) for row in gone]


def _get(connection: sa.Connection, job_id: str, key: str | None, *, lock: bool = False) -> Job:
    if _NUL in job_id:
        raise JobNotFound
    asked = sa.select(*COLUMNS).where(jobs.c.id == job_id)
    if key is not None:
        asked = asked.where(jobs.c.key == key)
    row = connection.execute(asked.with_for_update() if lock else asked).one_or_none()
    if row is None:
        raise JobNotFound
    return job_of(row)


def _twin(connection: sa.Connection, new: NewJob) -> Job | None:
    """The job that was made with the same idempotency key. Raises IdempotencyConflict."""
    if new.idempotency_key is None:
        return None
    row = connection.execute(
        sa.select(*COLUMNS).where(jobs.c.key == new.key, jobs.c.idempotency_key == new.idempotency_key)
    ).one_or_none()
    if row is None:
        return None
    twin = job_of(row)
    if twin.fingerprint != new.fingerprint:
        raise IdempotencyConflict
    return twin


def _batch_of(connection: sa.Connection, job: Job) -> list[Job]:
    """The jobs that were made with *job*, in order."""
    rows = connection.execute(
        sa.select(*COLUMNS)
        .where(jobs.c.key == job.key, jobs.c.batch_id == job.batch_id)
        .order_by(jobs.c.created_at, jobs.c.id)
    )
    return [job_of(row) for row in rows]


_QUEUED = sa.select(sa.func.count()).where(jobs.c.state == State.QUEUED)


def _queued(connection: sa.Connection) -> int:
    return int(connection.scalar(_QUEUED) or 0)
