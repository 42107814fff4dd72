"""Jobs as those see them who do them: claimed under a lease, kept alive, told of, ended; and lost, when an owner dies.

Whoever claims a job gets the next attempt's number with it; what an owner writes is written only while its attempt is
still the job's. An owner that was away for too long is thereby shut out, whatever it believes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from errors import WorkerCrashed
from jobs.database import Database, Lock
from jobs.model import MAX_ATTEMPTS, Job, Stage, State
from jobs.rows import COLUMNS, changed, end, job_of, tell
from jobs.tables import jobs, results, shares
from jobs.turns import NOTHING, Shares, Waiting, in_order
from reservation import OF_AUDIO, Work

LEASE_S = 60.0
HEARTBEATS = 4
"""In each lease. Three may be missed: a machine that swaps, or a database that restarts, is not dead yet."""

UNKNOWN_SIZE = 60.0
"""What a turn costs its key where nobody knows how long the recording lasts, in audio-seconds."""

Told = Sequence[tuple[str, dict[str, Any]]]
"""Events that are new: kind and body."""
Values = Mapping[str, Any]
"""Columns that have changed."""
NO_VALUES: Values = {}

_ROUNDS = -1
"""In the table of shares, the place of the number of turns so far."""


class LeaseLost(Exception):
    """The job is somebody else's by now, or over: whatever was done of it here counts for nothing."""


class Leases:
    """One owner's hold on jobs. Synchronous and thread-safe; every method is one short transaction."""

    def __init__(
        self,
        database: Database,
        owner: str,
        *,
        lease_s: float = LEASE_S,
        max_running: Callable[[str], int] = lambda key: 0,
    ) -> None:
        """*owner*: a name that no other process has, nor this one after a restart. *max_running*: how many jobs of a
        key may run at once, whoever does them; 0: any number. Asked in a thread."""
        self._database = database
        self._max_running = max_running
        self.owner = owner
        self.lease_s = lease_s

    def now(self) -> float:
        """By the clock that ends leases. Raises StoreUnavailable."""
        with self._database.reading() as connection:
            return self._database.now(connection)

    def claim(self, works: Collection[Work], *, links: bool = True) -> Job | None:
        """The job whose turn it is, of those kinds, for this owner from now on; None where none waits. Without *links*,
        none whose recording has to be fetched before it can be heard. Keys that have enough at work are passed over.
        """
        with self._database.writing() as connection:
            # Two that read the same accounts would take one turn twice, and pass over the lowest class's.
            self._database.alone(connection, Lock.TURNS)
            claimable = self._claimable(connection, works, links)
            lines = connection.execute(
                sa.select(jobs.c.priority, jobs.c.key, sa.func.min(jobs.c.created_at))
                .where(*claimable)
                .group_by(jobs.c.priority, jobs.c.key)
            ).all()
            if not lines:
                return None
            accounts, rounds = _accounts(connection)
            for line in in_order((Waiting(*row) for row in lines), accounts, rounds):
                first = connection.scalar(
                    sa.select(jobs.c.id)
                    .where(*claimable, jobs.c.priority == line.priority, jobs.c.key == line.key)
                    .order_by(jobs.c.created_at, jobs.c.id)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                )
                if first is not None:
                    job = self._begin(connection, first)
                    self._charge(connection, job, accounts.get(job.priority, NOTHING))
                    return job
        return None

    def _claimable(
        self, connection: sa.Connection, works: Collection[Work], links: bool
    ) -> tuple[sa.ColumnElement[bool], ...]:
        meant = sa.or_(jobs.c.not_for.is_(None), jobs.c.not_for != self.owner)
        lies_here = sa.or_(jobs.c.work.not_in(OF_AUDIO), jobs.c.source["url"].as_string().is_(None))
        # A part is done for a job that runs already.
        may_run = sa.or_(jobs.c.parent_id.is_not(None), jobs.c.key.not_in(self._busy_keys(connection)))
        return jobs.c.state == State.QUEUED, jobs.c.work.in_(works), meant, may_run, sa.true() if links else lies_here

    def _busy_keys(self, connection: sa.Connection) -> list[str]:
        """Whose jobs that run, over all machines, are as many as may. Calls that wait here are the gate's to count."""
        running = connection.execute(
            sa.select(jobs.c.key, sa.func.count())
            .where(jobs.c.state == State.RUNNING, sa.not_(jobs.c.attended), jobs.c.parent_id.is_(None))
            .group_by(jobs.c.key)
        )
        return [key for key, number in running if 0 < self._max_running(key) <= number]

    def _begin(self, connection: sa.Connection, job_id: str) -> Job:
        now = self._database.now(connection)
        job = changed(
            connection,
            jobs.c.id == job_id,
            state=State.RUNNING,
            attempt=jobs.c.attempt + 1,
            owner=self.owner,
            lease_until=now + self.lease_s,
            started_at=sa.func.coalesce(jobs.c.started_at, now),
            stage=Stage.WAITING,
            stage_done=None,
        )
        assert job is not None
        return tell(connection, job, [(State.RUNNING, {"attempt": job.attempt})], now)

    def _charge(self, connection: sa.Connection, job: Job, account: Shares) -> None:
        """*job*'s key has had its turn."""
        start = account.start_of(job.key)
        for priority, key, ends in (
            (job.priority, job.key, start + (UNKNOWN_SIZE if job.size is None else job.size)),
            (job.priority, "", start),
            (_ROUNDS, "", None),
        ):
            new = self._database.insert(shares).values(priority=priority, key=key, ends=1 if ends is None else ends)
            known = shares.c.ends + 1 if ends is None else ends
            connection.execute(new.on_conflict_do_update(index_elements=["priority", "key"], set_={"ends": known}))

    def beat(self, running: Collection[str] | None = None) -> dict[str, int]:
        """Hold on to those jobs for another lease; the attempts, by job, of those that are still this owner's.

        *running*: None for all of them.
        """
        with self._database.writing() as connection:
            held = (
                sa.update(jobs)
                .where(self._own, sa.true() if running is None else jobs.c.id.in_(running))
                .values(lease_until=self._database.now(connection) + self.lease_s)
                .returning(jobs.c.id, jobs.c.attempt)
            )
            return {row.id: row.attempt for row in connection.execute(held)}

    def cancelled(self) -> set[str]:
        """Those of this owner's jobs that are to be stopped."""
        with self._database.reading() as connection:
            return set(connection.scalars(sa.select(jobs.c.id).where(self._own, jobs.c.cancelling)))

    @property
    def _own(self) -> sa.ColumnElement[bool]:
        return sa.and_(jobs.c.state == State.RUNNING, jobs.c.owner == self.owner)

    def _mine(self, job: Job) -> sa.ColumnElement[bool]:
        return sa.and_(jobs.c.id == job.id, jobs.c.attempt == job.attempt, self._own)

    def advance(self, job: Job, told: Told = (), values: Values = NO_VALUES) -> None:
        """Write down what *job* has told, and how far it has come. Raises LeaseLost."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            row = changed(connection, self._mine(job), **{**values, "lease_until": now + self.lease_s})
            if row is None:
                raise LeaseLost
            tell(connection, row, told, now)

    def end(
        self,
        job: Job,
        state: State,
        told: Told = (),
        values: Values = NO_VALUES,
        *,
        result: str | None = None,
        error: dict[str, Any] | None = None,
    ) -> None:
        """Commit how *job* ended, with its *result* (JSON) or its *error* (`code`, `message`, `status`).

        Raises LeaseLost: nothing was committed then.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            if not end(connection, self._mine(job), state, now, told, error=error, **values):
                raise LeaseLost
            if result is not None:
                connection.execute(sa.insert(results).values(job_id=job.id, attempt=job.attempt, body=result))

    def give_back(self, job: Job, told: Told = (), values: Values = NO_VALUES) -> None:
        """Queue *job* again, at its old place: this owner stops, and it is nobody's fault. Raises LeaseLost.

        A job that was to be cancelled is: whoever asked for that shall not see it wait again.
        """
        mine = self._mine(job)
        with self._database.writing() as connection:
            now = self._database.now(connection)
            cancelling = connection.scalar(sa.select(jobs.c.cancelling).where(mine).with_for_update())
            if cancelling is None:
                raise LeaseLost
            if cancelling:
                end(connection, mine, State.CANCELLED, now, told, **values)
            else:
                _requeue(connection, mine, now, told, **values)

    def same_as(self, job: Job, digest: str) -> Job | None:
        """Another job of the same key that has made, or is making, the same of the same samples; a finished one first.

        Notes that *job* has these samples, so that of two that look for each other the older one goes on.
        Raises LeaseLost.
        """
        with self._database.writing() as connection:
            if changed(connection, self._mine(job), content_hash=digest) is None:
                raise LeaseLost
            same = sa.select(*COLUMNS).where(
                jobs.c.key == job.key,
                jobs.c.content_hash == digest,
                jobs.c.options_hash == sa.select(jobs.c.options_hash).where(jobs.c.id == job.id).scalar_subquery(),
                jobs.c.id != job.id,
            )
            finished = same.where(jobs.c.state == State.SUCCEEDED)
            older = sa.tuple_(jobs.c.created_at, jobs.c.id) < sa.tuple_(sa.literal(job.created_at), sa.literal(job.id))
            running = same.where(jobs.c.state == State.RUNNING, older)
            row = (
                connection.execute(finished.limit(1)).one_or_none()
                or connection.execute(running.order_by(jobs.c.created_at, jobs.c.id).limit(1)).one_or_none()
            )
            return job_of(row) if row else None

    def expire(self, *, all_owners: bool = False) -> list[Job]:
        """Take the jobs from owners that have been silent for a lease; return those jobs as they are now.

        Queued again; cancelled where that was asked for, or where the caller was on the dead owner's connection; failed
        after MAX_ATTEMPTS. *all_owners*: whoever owned a job before this moment is known to be dead.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            self._end_within_reach(connection, now)
            silent = sa.and_(jobs.c.state == State.RUNNING, sa.true() if all_owners else jobs.c.lease_until < now)
            lost = connection.execute(
                sa.select(*COLUMNS, jobs.c.deaths).where(silent).with_for_update(skip_locked=True)
            ).all()
            return [self._lost(connection, job_of(row), row.deaths + 1, now) for row in lost]

    def _end_within_reach(self, connection: sa.Connection, now: float) -> None:
        """A lease from before the clock was set back would outlast its owner by as much.

        NOTE: no owner is taken for dead by this. Where another process has longer leases, it has four beats in each.
        """
        latest = now + 2 * self.lease_s
        connection.execute(
            sa.update(jobs).where(jobs.c.state == State.RUNNING, jobs.c.lease_until > latest).values(lease_until=latest)
        )

    def _lost(self, connection: sa.Connection, job: Job, deaths: int, now: float) -> Job:
        one = jobs.c.id == job.id
        if job.cancelling or job.attended:
            after = end(connection, one, State.CANCELLED, now)
        elif deaths >= MAX_ATTEMPTS:
            error = {"code": WorkerCrashed.code, "status": WorkerCrashed.status, "message": WorkerCrashed().message}
            after = end(connection, one, State.FAILED, now, error=error, deaths=deaths)
        else:
            after = _requeue(connection, one, now, deaths=deaths)
        assert after is not None
        return after

    def to_be_sent(self, older_than_s: float, limit: int = 1000) -> list[Job]:
        """Queued jobs of which the broker was told nothing for so long; they count as told from now on."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            silent = sa.or_(jobs.c.sent_at.is_(None), jobs.c.sent_at < now - older_than_s)
            found = connection.execute(
                sa.select(*COLUMNS)
                .where(jobs.c.state == State.QUEUED, silent)
                .order_by(jobs.c.priority, jobs.c.created_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            told = [job_of(row) for row in found]
            connection.execute(sa.update(jobs).where(jobs.c.id.in_([job.id for job in told])).values(sent_at=now))
            return told


def _requeue(
    connection: sa.Connection, which: sa.ColumnElement[bool], now: float, told: Told = (), **values: Any
) -> Job | None:
    nobodys = {"state": State.QUEUED, "owner": None, "lease_until": None, "stage": None, "stage_done": None}
    job = changed(connection, which, **values | nobodys | {"sent_at": None})
    return job and tell(connection, job, [*told, (State.QUEUED, {})], now)


def _accounts(connection: sa.Connection) -> tuple[dict[int, Shares], int]:
    """Every class's account, and the number of turns so far."""
    now: dict[int, float] = {}
    ends: dict[int, dict[str, float]] = {}
    for priority, key, end_ in connection.execute(sa.select(shares)):
        if key:
            ends.setdefault(priority, {})[key] = end_
        else:
            now[priority] = end_
    rounds = int(now.pop(_ROUNDS, 0))
    return {priority: Shares(now.get(priority, 0.0), ends.get(priority, {})) for priority in {*now, *ends}}, rounds
