"""Tells callers' servers that their jobs are over: signed, tried again for hours, and never at private addresses."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Self

import httpx
import structlog

from downloads.egress import EgressProxy
from downloads.urls import check_link
from errors import InvalidLink, LinkNotAllowed, StorageFull, StoreUnavailable
from jobs.bells import heard_within
from jobs.database import Database
from jobs.deliveries import Answer, Delivery, Outbox, answered, body_of, judged
from jobs.signatures import secret_of, signed, signing_key
from key_limits import share_of

TIMEOUT_S = 15.0
LOOK_S = 1.0
"""How often what is due is looked for."""
AT_ONCE = 8
AT_ONCE_EACH = 2
"""At one receiver: one that is slow leaves the others their places."""
AT_ONCE_OWNER = share_of(AT_ONCE)
"""Of one owner's jobs: every name and every port is another receiver, and costs nothing. It holds for a sole owner,
too: three receivers that are slow at the same moment are rare, and cost the fourth TIMEOUT_S."""
GRACE_S = 1.0
"""What is being sent at a stop may take so long; what is cut off is sent again after CLAIM_S."""

_ANSWER_BYTES = 4 * 1024
_TRAFFIC_BYTES = 256 * 1024
"""Of one attempt, both ways: a long link, a TLS handshake with many certificates, and the largest head of an answer."""

NOT_ALLOWED = "The address is not one that this server calls."
UNREACHABLE = "The receiver cannot be found or does not answer."
TOO_SLOW = "The receiver did not answer in time."
BROKEN = "The connection ended before the receiver had answered."
NOT_HTTP = "The receiver's answer is not HTTP."
NOT_SECURE = "No secure connection: the receiver's certificate or its TLS is not accepted."
NOT_SENT = "The webhook could not be sent; the log has the details."

log = structlog.get_logger(__name__)


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
                    delivery = await asyncio.to_thread(self._outbox.claim, *self._busy())
                    if delivery is None:
                        break
                    self._begin(delivery)
            except (StoreUnavailable, StorageFull) as error:
                log.warning("no webhook can be claimed", code=error.code)
            except Exception as error:
                # Nobody awaits this loop before the server stops: it must neither end nor be silent.
                log.error("no webhook can be claimed", exc_info=error)
            await heard_within(self._news, self._look_s)

    def _busy(self) -> tuple[set[str], set[str]]:
        """Receivers, and owners, that have as much under way as they may have at once."""
        receivers = Counter(delivery.receiver for delivery in self._sending.values())
        owners = Counter(delivery.owner for delivery in self._sending.values())
        return (
            {receiver for receiver, number in receivers.items() if number >= AT_ONCE_EACH},
            {owner for owner, number in owners.items() if number >= AT_ONCE_OWNER},
        )

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
