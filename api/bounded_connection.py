"""Connections that cannot be held for nothing: uvicorn's, with bounds on silence, on what is not read, and on numbers.

`python main.py` serves with these, and with `api.bounded_socket` where they become WebSockets. `uvicorn main:app` has
uvicorn's own: it waits for a request's head, and for who does not read, however long, refuses nobody (but for
--limit-concurrency), and answers what is no HTTP in plain text. Bodies that come too slowly are refused either way
(`api.middleware`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
import structlog
from starlette.datastructures import MutableHeaders
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.connection_bounds import ConnectionBounds
from api.problems import MEDIA_TYPE, problem_of
from api.safe_headers import make_safe
from errors import ClientStalled, HeadTooLarge, MalformedRequest, ServiceError, TargetTooLong, TooManyConnections
from telemetry import request_bound, request_id

log = structlog.get_logger("api")

READ_BYTES = 16 * 1024
"""Taken of a connection at once, before others have their turn: in crumbs, 256 KiB of it would take seconds."""

FREE_CHUNKS = 256
LEAST_CHUNK_BYTES = 64
"""Of a body's chunks after FREE_CHUNKS, on the average: each takes as long as a thousand times as much in one."""

NO_HANDSHAKE = "A request for a WebSocket has no body, and at most 128 headers of 8 KiB each."
"""What the websockets package reads."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a connection is held to. *refused* hears of each request that was turned away before it was one."""

    bounds: ConnectionBounds
    head_s: float
    """From a connection's beginning, or a head's first byte, to the head's end."""
    unread_s: float
    """In so long a caller must have taken something of its answer."""
    refused: Callable[[ServiceError], None] = lambda error: None


def protocol_on(terms: Terms) -> type[H11Protocol]:
    """What uvicorn is given as `http`."""

    class OnTerms(BoundedConnection):
        pass

    OnTerms.terms = terms
    return OnTerms


class _Reading(h11.Connection):
    """What h11 makes of a connection's bytes, but for bodies in crumbs."""

    def __init__(self, most_head_bytes: int) -> None:
        super().__init__(h11.SERVER, most_head_bytes)
        self._chunks = self._body_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Raises h11.RemoteProtocolError."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            # The last chunk may be one of which the rest is on its way.
            if self._chunks > FREE_CHUNKS and self._body_bytes < (self._chunks - 1) * LEAST_CHUNK_BYTES:
                raise h11.RemoteProtocolError("A body's chunks are too small.")
        return event


def read_at_most(transport: asyncio.Transport, size: int) -> None:
    """Let *transport* take so many bytes at once. Other event loops than asyncio's own have nothing to set."""
    with contextlib.suppress(AttributeError):
        transport.max_size = size  # type: ignore[attr-defined]


class ReaderClock:
    """Runs while what was sent waits to be read, and cuts off who has taken nothing of it for *unread_s*."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, unread_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._unread_s = unread_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.stop()
        unread = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._unread_s, self.look, unread)

    def look(self, unread_before: int) -> None:
        """Wait on where less is unread than there was."""
        if self._transport.get_write_buffer_size() < unread_before:
            self.start()
        else:
            log.info("an answer was not read", code=ClientStalled.code)
            self._transport.abort()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class BoundedConnection(H11Protocol):
    """One connection. While the head of a request is being waited for, a clock runs; while an answer waits to be
    read, another."""

    terms: Terms

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        assert self.config.h11_max_incomplete_event_size
        self.conn = _Reading(self.config.h11_max_incomplete_event_size)
        self._head_clock: asyncio.TimerHandle | None = None
        self._reader_clock: ReaderClock

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        clients = [getattr(one, "client", None) for one in self.connections]
        others = [client[0] if client else None for client in clients]
        super().connection_made(transport)
        read_at_most(transport, READ_BYTES)
        self._reader_clock = ReaderClock(transport, self.loop, self.terms.unread_s)
        # Whoever has not taken all of an answer is seen, not only who leaves more than 64 KiB of it.
        transport.set_write_buffer_limits(high=0)
        try:
            self.terms.bounds.check(self.client[0] if self.client else None, others)
        except TooManyConnections as error:
            self.connections.discard(self)
            self._turn_away(error)
        else:
            self._head_clock = self.loop.call_later(self.terms.head_s, self._head_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_clock()
        self._reader_clock.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_head_clock()
        elif self._head_clock is None:
            # NOTE: uvicorn has stopped its clock for kept connections at the first byte.
            self._head_clock = self.loop.call_later(self.terms.head_s, self._head_overdue)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        # From here on another protocol has the connection, with bounds of its own.
        self._stop_head_clock()
        self._reader_clock.stop()
        self.transport.set_write_buffer_limits()
        super().handle_websocket_upgrade(event)
        # NOTE: uvicorn does not look whether the other protocol could read the head, and that one waits for ever then.
        if not getattr(self.transport.get_protocol(), "handshake_initiated", True):
            self._turn_away(MalformedRequest(NO_HANDSHAKE))

    def send_400_response(self, msg: str) -> None:
        # NOTE: uvicorn calls this while it handles h11's error, and hands on a sentence that says nothing.
        cause = sys.exception()
        status = cause.error_status_hint if isinstance(cause, h11.RemoteProtocolError) else HTTPStatus.BAD_REQUEST
        if status != HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE or self._under_way:
            # Too large a line in a body's chunks is none of a head.
            self._turn_away(MalformedRequest())
        else:
            self._turn_away(HeadTooLarge() if b"\n" in self.conn.trailing_data[0] else TargetTooLong())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_clock.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader_clock.stop()

    def _head_overdue(self) -> None:
        self._head_clock = None
        if self.conn.trailing_data[0]:
            self._turn_away(ClientStalled("The request's head did not come in time."))
        else:
            # Opened in advance, and never used.
            self.transport.close()

    def _turn_away(self, error: ServiceError) -> None:
        """Answer *error* and close. Where a request is being answered, it ends as if its caller had hung up."""
        self._stop_head_clock()
        under_way = self._under_way
        if not (under_way and self.cycle.response_started):
            name = request_id(None)
            with request_bound(name):
                log.info(error.message, code=error.code)
                self.terms.refused(error)
                self.transport.write(rendered(error, name, self.scheme or "http"))
        if under_way:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    @property
    def _under_way(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_head_clock(self) -> None:
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None


def rendered(error: ServiceError, name: str, scheme: str) -> bytes:
    """The whole answer to *error*, as bytes."""
    body = problem_of(error).model_dump_json(exclude_none=True).encode()
    headers = MutableHeaders(
        {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "X-Request-ID": name,
            "Connection": "close",
        }
    )
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    make_safe(headers, scheme)
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{header}: {value}" for header, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body
