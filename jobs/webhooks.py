"""Tells callers' servers that their jobs are over: signed, tried again for hours, and never at private addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx
import sqlalchemy as sa
import structlog

from downloads.egress import EgressProxy
from downloads.urls import check_link
from errors import InvalidLink, LinkNotAllowed, StorageFull, StoreUnavailable
from jobs.bells import heard_within
from jobs.database import Database
from jobs.model import State
from jobs.signatures import secret_of, signed, signing_key
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

TIMEOUT_S = 15.0
CLAIM_S = 60.0
"""For so long an attempt is its process's own: longer than it lasts, and than its outcome takes to be written down."""
LOOK_S = 1.0
"""How often what is due is looked for."""
AT_ONCE = 8
AT_ONCE_EACH = 2
"""At one receiver: one that is slow leaves the others their places."""
GRACE_S = 1.0
"""What is being sent at a stop may take so long; what is cut off is sent again after CLAIM_S."""

_ANSWER_BYTES = 4 * 1024
_TRAFFIC_BYTES = 256 * 1024
"""Of one attempt, both ways: a long link, a TLS handshake with many certificates, and the largest head of an answer."""
_RECEIVER = re.compile(r"[a-z]+://[^/?#]*")

NOT_ALLOWED = "The address is not one that this server calls."
UNREACHABLE = "The receiver cannot be found or does not answer."
TOO_SLOW = "The receiver did not answer in time."
BROKEN = "The connection ended before the receiver had answered."
NOT_HTTP = "The receiver's answer is not HTTP."
NOT_SECURE = "No secure connection: the receiver's certificate or its TLS is not accepted."
NOT_SENT = "The webhook could not be sent; the log has the details."

log = structlog.get_logger(__name__)


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

    def claim(self, passed_over: Collection[str] = ()) -> Delivery | None:
        """What has been due for longest, for the caller to send now; None where nothing is.

        It is due again after CLAIM_S, whatever becomes of the caller. *passed_over*: receivers that get nothing now.
        """
        with self._database.reading() as connection:
            # Most often nothing is due, and a writer would keep others waiting.
            if connection.execute(self._due(connection, passed_over)).first() is None:
                return None
        with self._database.writing() as connection:
            due = self._due(connection, passed_over).with_for_update(skip_locked=True, of=deliveries)
            found = connection.execute(due).first()
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

    def _due(self, connection: sa.Connection, passed_over: Collection[str]) -> sa.Select[tuple[str, str, str, str]]:
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
            .where(due, *(sa.not_(their) for their in theirs))
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


# --- sending ---------------------------------------------------------------------------------------------------------


class Webhooks:
    """Sends what is due while it is entered, each at least once: a crash may send one twice, under the same id."""

    def __init__(
        self,
        database: Database,
        proxy: EgressProxy,
        secret: str,
        *,
        at_once: int = AT_ONCE,
        timeout_s: float = TIMEOUT_S,
        look_s: float = LOOK_S,
        grace_s: float = GRACE_S,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """*secret*: `whsec_` and base64. *spread*: from 0 to 1, at random. Raises ConfigurationError."""
        self._outbox = Outbox(database)
        self._proxy = proxy
        signing_key(secret)
        self._secret = secret
        self._at_once = at_once
        self._timeout_s = timeout_s
        self._look_s = look_s
        self._grace_s = grace_s
        self._spread = spread
        self._tls: ssl.SSLContext | None = None
        self._sending: dict[asyncio.Task[None], Delivery] = {}
        self._news = asyncio.Event()
        self._leaving = False
        self._loop: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Webhooks sending={len(self._sending)}>"

    async def __aenter__(self) -> Self:
        # Reads every root certificate: once, and not on the loop.
        self._tls = await asyncio.to_thread(httpx.create_ssl_context)
        self._loop = asyncio.create_task(self._send_all(), name="webhooks")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._loop is not None
        self._leaving = True
        self._news.set()
        await self._loop
        if sending := list(self._sending):
            await asyncio.wait(sending, timeout=self._grace_s)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)

    def secret_of(self, owner: str) -> str:
        """With what that owner's webhooks are signed."""
        return secret_of(owner, self._secret)

    def check(self, url: str) -> None:
        """Refuse an address that will never be told. Raises InvalidLink, LinkNotAllowed."""
        check_link(url, self._proxy.policy)

    async def _send_all(self) -> None:
        """Until this is left: not cancelled, so that nothing is claimed that nobody sends."""
        while not self._leaving:
            try:
                while not self._leaving and len(self._sending) < self._at_once:
                    delivery = await asyncio.to_thread(self._outbox.claim, self._busy())
                    if delivery is None:
                        break
                    self._begin(delivery)
            except (StoreUnavailable, StorageFull) as error:
                log.warning("no webhook can be claimed", code=error.code)
            except Exception as error:
                # Nobody awaits this loop before the server stops: it must neither end nor be silent.
                log.error("no webhook can be claimed", exc_info=error)
            await heard_within(self._news, self._look_s)

    def _busy(self) -> set[str]:
        """Receivers that are being told as much as they may be at once."""
        receivers = [delivery.receiver for delivery in self._sending.values()]
        return {receiver for receiver in receivers if receivers.count(receiver) >= AT_ONCE_EACH}

    def _begin(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._deliver(delivery), name=f"webhook {delivery.id}")
        self._sending[task] = delivery
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self._news.set()

    async def _deliver(self, delivery: Delivery) -> None:
        """Send once, and write down what came of it."""
        answer = await self._sent(delivery)
        verdict = judged(answer, delivery.attempt, self._spread())
        told = log.bind(
            delivery=delivery.id,
            job=delivery.job_id,
            receiver=delivery.receiver,
            attempt=delivery.attempt,
            status=answer.status,
        )
        try:
            await asyncio.to_thread(self._outbox.write_down, delivery, answer.status, verdict)
        except (StoreUnavailable, StorageFull) as error:
            told.warning("what came of a webhook cannot be written down: it is sent again", code=error.code)
            return
        if verdict.failure is None:
            told.info("webhook taken")
        elif verdict.wait_s is None:
            told.warning("webhook given up", failure=verdict.failure)
        else:
            told.info("webhook not taken", failure=verdict.failure, again_in_s=round(verdict.wait_s))

    async def _sent(self, delivery: Delivery) -> Answer:
        try:
            # Once more: what is allowed may have changed since the job was handed in.
            link = check_link(delivery.url, self._proxy.policy)
        except (InvalidLink, LinkNotAllowed):
            return Answer(failure=NOT_ALLOWED, hopeless=True)
        body = body_of(delivery)
        headers = signed(signing_key(self.secret_of(delivery.owner)), delivery.id, int(delivery.claimed_at), body)
        headers |= {"content-type": "application/json", "user-agent": "stenogate"}
        try:
            return await self._posted(httpx.Request("POST", link.url, headers=headers, content=body), delivery)
        except Exception as error:
            # Whatever it is, it must use its attempts up: else it would be sent every minute for ever.
            log.error("a webhook could not be sent", delivery=delivery.id, exc_info=error)
            return Answer(failure=NOT_SENT)

    async def _posted(self, request: httpx.Request, delivery: Delivery) -> Answer:
        """What the receiver says to *request*. Its status counts, however its body ends, and that is thrown away."""
        assert self._tls is not None
        answer: Answer | None = None
        async with self._proxy.ticket(max_bytes=_TRAFFIC_BYTES) as ticket:
            try:
                # NOTE: a transport and no client, which would log every address whole, and follow the environment.
                async with (
                    asyncio.timeout(self._timeout_s),
                    httpx.AsyncHTTPTransport(proxy=ticket.url, verify=self._tls, trust_env=False) as transport,
                ):
                    response = await transport.handle_async_request(request)
                    async with contextlib.aclosing(response):
                        if "x-egress" in response.headers:
                            # The proxy's own answer.
                            answer = Answer(failure=NOT_HTTP)
                        else:
                            retry_after = response.headers.get("retry-after")
                            answer = answered(response.status_code, retry_after, delivery.claimed_at)
                        await _read_some(response)
            except TimeoutError:
                answer = answer or Answer(failure=TOO_SLOW)
            except httpx.TransportError as error:
                answer = answer or Answer(failure=NOT_SECURE if _is_about_tls(error) else BROKEN)
            # What the proxy saw counts before what came of it here.
            if ticket.refused:
                return Answer(failure=NOT_ALLOWED, hopeless=True)
            if ticket.unreachable:
                return Answer(failure=UNREACHABLE)
            return answer


async def _read_some(response: httpx.Response) -> None:
    """Let a receiver finish a short answer; a long one is cut off. Packed as it comes: nothing unfolds here."""
    size = 0
    async for block in response.aiter_raw():
        size += len(block)
        if size >= _ANSWER_BYTES:
            return


def _is_about_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        # NOTE: httpcore's pool raises `from None`, which clears the cause.
        error = error.__cause__ or error.__context__
    return False
