"""Around every request: its id, its one log line, the headers all answers share, and the last net for exceptions."""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.cross_origin import CrossOrigin
from api.gate import limit_headers, told_of
from api.pace import Pace, Wait
from api.problems import ClientGone, answer
from api.safe_headers import make_safe
from errors import ClientStalled, ConfigurationError, MalformedRequest, ServiceError, ShuttingDown
from telemetry import request_bound, request_id

LINGER_S = 2.0
LINGER_BYTES = 4 * 1024 * 1024
MOST_PATH_CHARS = 512
"""Of a path in the log: what strangers ask for may be long, and stands there twice."""

log = structlog.get_logger("api")


class RequestMiddleware:
    """Pure ASGI: nothing is buffered, no task is added, and a hang-up reaches the endpoint as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _start_without_trace(self._app, scope, receive, send)
        elif scope["type"] == "http":
            proposed = Headers(scope=scope).getlist("x-request-id")
            name = request_id(proposed[0] if len(proposed) == 1 else None)
            with request_bound(name):
                await _Exchange(name, scope, receive, send).run(self._app)
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._name = name
        self._scope = scope
        self._receive = receive
        self._send = send
        self._status: int | None = None
        self._body_pending = _announces_body(Headers(scope=scope))
        self._wait = Wait(_pace(scope))

    async def run(self, app: ASGIApp) -> None:
        started = time.monotonic()
        status = 500
        try:
            if _has_two_ends(Headers(scope=self._scope)):
                status = await self._answer(
                    MalformedRequest("Content-Length and Transfer-Encoding exclude each other.")
                )
            else:
                await app(self._scope, self.receive, self.send)
                status = self._status or 500
        except ClientGone:
            status = 499
        except asyncio.CancelledError:
            # uvicorn cancels what is left when the grace period is over; a caller still there gets a reason.
            # NOTE: not raised again. Nothing runs after this frame, and uvicorn would log the cancellation as a crash.
            status = await self._answer(ShuttingDown())
        except Exception as error:
            log.exception("unexpected exception", exc_info=error)
            status = await self._answer(ServiceError())
        finally:
            log.info(
                f"{self._scope['method']} {_path(self._scope)} {status}",
                method=self._scope["method"],
                path=_path(self._scope),
                status=status,
                duration_ms=round((time.monotonic() - started) * 1000, 1),
                **told_of(self._scope.get("state", {})),
            )

    async def _answer(self, error: ServiceError) -> int:
        if self._status is None:
            await CrossOrigin(answer(error))(self._scope, self.receive, self.send)
        return self._status or error.status

    async def receive(self) -> Message:
        """What comes from the caller. Raises ClientStalled where the body comes too slowly."""
        # A hang-up is waited for however long, and who is being answered already cannot be told otherwise.
        if not self._body_pending or self._status is not None:
            return await self._next()
        try:
            async with asyncio.timeout(self._wait.begin()):
                message = await self._next()
        except TimeoutError:
            raise ClientStalled("The request's body came too slowly, or not at all.") from None
        self._wait.end(len(message.get("body", b"")))
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_pending = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._name
            make_safe(headers, self._scope["scheme"])
            for name, value in limit_headers(self._scope).items():
                headers[name] = value
            if self._body_pending:
                headers["Connection"] = "close"
        elif self._body_pending and message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        """Let a caller that is still sending read the answer before the connection closes.

        Closing a socket with unread data resets the connection, and the reset can overtake the answer. The answer is
        complete by its Content-Length; what still comes is thrown away, for a bounded time and size.
        """
        thrown_away = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while self._body_pending and thrown_away < LINGER_BYTES:
                    thrown_away += len((await self._next()).get("body", b""))


def _pace(scope: Scope) -> Pace:
    # A server that is starting or has stopped has no services.
    parts = getattr(scope["app"].state, "services", None)
    return parts.pace if parts else Pace()


def _announces_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _has_two_ends(headers: Headers) -> bool:
    """Whether a proxy in front may find the body's end elsewhere, and take its rest for somebody's next request."""
    # RFC 9112, 6.1: chunks count then, and the connection ends. Refused at once: only attacks come so.
    return "transfer-encoding" in headers and "content-length" in headers


def _path(scope: Scope) -> str:
    """The path as it was sent: still percent-encoded, so that it cannot break a log line; without the query, and cut
    where no path of ours goes on."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("unicode_escape")
    return raw.decode("ascii", "backslashreplace").partition("?")[0][:MOST_PATH_CHARS]


async def _start_without_trace(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the lifespan; settings that cannot work end it with a sentence, where Starlette would send a traceback."""
    failures: list[Message] = []

    async def hold(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            failures.append(message)
        else:
            await send(message)

    try:
        await app(scope, receive, hold)
    except ConfigurationError as error:
        await send({"type": "lifespan.startup.failed", "message": error.message})
    except BaseException:
        for message in failures:
            await send(message)
        raise
