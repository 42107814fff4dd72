"""What the store and the leases do alike to rows: read a job, tell an event, end a job. Within their transactions."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from jobs.model import Event, Job, Stage, State
from jobs.tables import deliveries, events, jobs
from reservation import Work

COLUMNS = tuple(jobs.c[field.name] for field in dataclasses.fields(Job))


def new_id() -> str:
    return secrets.token_hex(16)


def job_of(row: sa.Row[*tuple[Any, ...]]) -> Job:
    """The job in *row*, whatever else is in it."""
    facts = {column.name: row._mapping[column] for column in COLUMNS}
    stage = facts["stage"]
    named = {"work": Work(facts["work"]), "state": State(facts["state"]), "stage": Stage(stage) if stage else None}
    return Job(**facts | named)


def changed(connection: sa.Connection, which: sa.ColumnElement[bool], **values: Any) -> Job | None:
    """The one job of which *which* was true, with *values*; None where there is none such (any more)."""
    row = connection.execute(sa.update(jobs).where(which).values(**values).returning(*COLUMNS)).one_or_none()
    return None if row is None else job_of(row)


def tell(connection: sa.Connection, job: Job, new: Sequence[tuple[str, dict[str, Any]]], at: float) -> Job:
    """Write events behind those of *job*, whose row this transaction has changed: nobody else writes any meanwhile.

    The job as it is then.
    """
    if not new:
        return job
    numbered = enumerate(new, job.events + 1)
    connection.execute(
        sa.insert(events),
        [
            {"job_id": job.id, "number": number, "kind": kind, "body": body, "at": at}
            for number, (kind, body) in numbered
        ],
    )
    written = job.events + len(new)
    connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(events=written))
    return dataclasses.replace(job, events=written)


def end(
    connection: sa.Connection,
    which: sa.ColumnElement[bool],
    state: State,
    now: float,
    told: Sequence[tuple[str, dict[str, Any]]] = (),
    *,
    error: dict[str, Any] | None = None,
    **values: Any,
) -> Job | None:
    """End the job of which *which* is true: its state, its last events, and its webhook to be sent, all or nothing.

    None where there is no such job.
    """
    over = {"state": state, "error": error, "finished_at": now, "owner": None, "lease_until": None}
    job = changed(connection, which, **values | over | {"stage": None, "stage_done": None})
    if job is None:
        return None
    job = tell(connection, job, [*told, (state, {"error": error} if error else {})], now)
    _end_parts(connection, job, now)
    if job.callback_url:
        connection.execute(
            sa.insert(deliveries).values(
                id=new_id(), job_id=job.id, event=f"job.{state}", attempts=0, due_at=now, created_at=now
            )
        )
    return job


def _end_parts(connection: sa.Connection, job: Job, now: float) -> None:
    """Nobody needs the parts of a recording any more whose own job is over."""
    if job.parent_id is not None:
        return
    for part_id, state in connection.execute(
        sa.select(jobs.c.id, jobs.c.state).where(jobs.c.parent_id == job.id)
    ).all():
        if state == State.QUEUED:
            end(connection, sa.and_(jobs.c.id == part_id, jobs.c.state == State.QUEUED), State.CANCELLED, now)
        elif state == State.RUNNING:
            changed(connection, sa.and_(jobs.c.id == part_id, jobs.c.state == State.RUNNING), cancelling=True)


def event_of(row: sa.Row[Any]) -> Event:
    return Event(**row._mapping)
