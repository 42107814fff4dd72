"""The webhooks that are to be sent: what each says, what follows from its receiver's answer, and which are due."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.model import State
from jobs.tables import deliveries, events, jobs
from reservation import Work

WAITS_S = (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800)
"""Between one attempt and the next: a restart is over within seconds, an outage within a night. 16 hours in all."""
MAX_ATTEMPTS = len(WAITS_S) + 1
MAX_RETRY_AFTER_S = 28_800.0
"""What a receiver may ask for: no longer than the longest wait."""
JITTER = 0.2
"""Each wait is up to a fifth shorter or longer: what failed together does not come back together."""
PASSING = frozenset({408, 409, 425, 429})
"""Refusals that another time may not meet. 409: many say it of a delivery that they are just at."""
CLAIM_S = 60.0
"""For so long an attempt is its process's own: longer than it lasts, and than its outcome takes to be written down."""

_RECEIVER = re.compile(r"[a-z]+://[^/?#]*")


# --- what is sent ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook, about to be sent."""

    id: str
    job_id: str
    owner: str
    """Whose secret signs it."""
    work: Work
    event: str
    """`job.` and the state in which the job ended."""
    error: dict[str, Any] | None
    """What ended it, as it was then: the job may have been tried again since."""
    url: str = field(repr=False)
    attempt: int
    """From 1. Whoever holds another one has lost it."""
    ended_at: float
    claimed_at: float

    @property
    def receiver(self) -> str:
        """Scheme and host: what of the address may be logged, and what deliveries have in common."""
        found = _RECEIVER.match(self.url.lower())
        return found[0] if found else ""


def body_of(delivery: Delivery) -> bytes:
    """What is told: that the job is over, how, and where its result is."""
    state = delivery.event.removeprefix("job.")
    ended_at = datetime.fromtimestamp(round(delivery.ended_at, 3), UTC)
    told = {
        "type": delivery.event,
        "timestamp": ended_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "id": delivery.job_id,
            "kind": delivery.work,
            "state": state,
            "error": delivery.error,
            "result_url": f"/jobs/{delivery.job_id}/result" if state == State.SUCCEEDED else None,
        },
    }
    return json.dumps(told, separators=(",", ":")).encode()


# --- what comes of it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What one attempt has met."""

    status: int | None = None
    """None where there was no answer; *failure* says why."""
    failure: str | None = None
    retry_after_s: float = 0.0
    hopeless: bool = False
    """Another attempt would meet the same."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an attempt: it was taken, comes again after *wait_s*, or is given up."""

    failure: str | None
    """None: taken."""
    wait_s: float | None
    """None: over."""


def answered(status: int, retry_after: str | None, now: float) -> Answer:
    """What a receiver's *status* means. *retry_after*: its header of that name, if any."""
    if 200 <= status < 300:
        return Answer(status)
    hopeless = 400 <= status < 500 and status not in PASSING
    return Answer(status, f"The receiver answered with status {status}.", _seconds(retry_after, now), hopeless)


def judged(answer: Answer, attempt: int, spread: float) -> Verdict:
    """What follows from the *attempt*-th one's *answer*. *spread*: from 0 to 1, at random.

    A receiver may put the next attempt off, never bring it forward: ten in ten seconds would outlast no outage.
    """
    if answer.failure is None or answer.hopeless or attempt >= MAX_ATTEMPTS:
        return Verdict(answer.failure, None)
    wait_s = WAITS_S[attempt - 1] * (1 + JITTER * (2 * spread - 1))
    return Verdict(answer.failure, max(wait_s, min(answer.retry_after_s, MAX_RETRY_AFTER_S)))


def _seconds(retry_after: str | None, now: float) -> float:
    """A Retry-After in either of its forms, in seconds; 0 where it is none. Source: RFC 9110 §10.2.3."""
    if retry_after is None:
        return 0.0
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).replace(tzinfo=UTC).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


# --- what is due -----------------------------------------------------------------------------------------------------


class Outbox:
    """The webhooks that are to be sent. Synchronous and thread-safe; any number of processes may send from one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, passed_over: Collection[str] = (), owners_passed_over: Collection[str] = ()) -> Delivery | None:
        """What has been due for longest, for the caller to send now; None where nothing is.

        It is due again after CLAIM_S, whatever becomes of the caller. *passed_over*: receivers that get nothing now.
        *owners_passed_over*: those of whose jobs nothing is told now.
        """
        with self._database.reading() as connection:
            # Most often nothing is due, and a writer would keep others waiting.
            if connection.execute(self._due(connection, passed_over, owners_passed_over)).first() is None:
                return None
        with self._database.writing() as connection:
            due = self._due(connection, passed_over, owners_passed_over)
            found = connection.execute(due.with_for_update(skip_locked=True, of=deliveries)).first()
            if found is None:
                return None
            now = self._database.now(connection)
            row = connection.execute(
                sa.update(deliveries)
                .where(deliveries.c.id == found.id)
                .values(attempts=deliveries.c.attempts + 1, due_at=now + CLAIM_S)
                .returning(deliveries)
            ).one()
            # The event that was written together with it, at the same moment.
            told = connection.scalar(
                sa.select(events.c.body).where(
                    events.c.job_id == row.job_id,
                    events.c.kind == row.event.removeprefix("job."),
                    events.c.at == row.created_at,
                )
            )
        return Delivery(
            id=row.id,
            job_id=row.job_id,
            owner=found.key,
            work=Work(found.work),
            event=row.event,
            error=(told or {}).get("error"),
            url=found.callback_url,
            attempt=row.attempts,
            ended_at=row.created_at,
            claimed_at=now,
        )

    def _due(
        self, connection: sa.Connection, passed_over: Collection[str], owners_passed_over: Collection[str]
    ) -> sa.Select[tuple[str, str, str, str]]:
        url = sa.func.lower(jobs.c.callback_url)
        theirs = [
            sa.or_(url == receiver, *(url.startswith(receiver + end, autoescape=True) for end in "/?#"))
            for receiver in passed_over
        ]
        now = self._database.now(connection)
        # What has never been tried, or would wait for longer than anything does, is due: the clock was set back.
        due = sa.or_(
            deliveries.c.due_at <= now,
            sa.and_(deliveries.c.due_at.is_not(None), deliveries.c.attempts == 0),
            deliveries.c.due_at > now + MAX_RETRY_AFTER_S * (1 + JITTER),
        )
        return (
            sa.select(deliveries.c.id, jobs.c.work, jobs.c.key, jobs.c.callback_url)
            .join(jobs, jobs.c.id == deliveries.c.job_id)
            .where(due, *(sa.not_(their) for their in theirs), jobs.c.key.not_in(owners_passed_over))
            .order_by(deliveries.c.due_at, deliveries.c.id)
            .limit(1)
        )

    def write_down(self, delivery: Delivery, status: int | None, verdict: Verdict) -> bool:
        """What came of *delivery*; False, and nothing written, where it is another attempt's by now, or gone."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            written = connection.execute(
                sa.update(deliveries)
                .where(deliveries.c.id == delivery.id, deliveries.c.attempts == delivery.attempt)
                .values(
                    status=status,
                    failure=verdict.failure,
                    due_at=None if verdict.wait_s is None else now + verdict.wait_s,
                    delivered_at=now if verdict.failure is None else None,
                )
            )
            return written.rowcount == 1
