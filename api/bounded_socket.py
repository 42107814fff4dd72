"""WebSockets that cannot be held for nothing: uvicorn's, with bounds on how they begin, on what is not read, and on
how they end.

In between the application has clocks of its own (`api.live`).
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from api.bounded_connection import ReaderClock, Terms, read_at_most
from errors import ClientStalled

log = structlog.get_logger("api")

GOODBYE_S = 10.0
"""What is still to be read when all is over, and the other side's goodbye, are waited for so long."""

READ_BYTES = 4 * 1024
"""Taken of a connection at once: 128 ms of samples, or some hundred frames without content."""

MOST_FRAGMENTS = 1024
"""Of one message."""

MOST_PONGS_BYTES = 64 * 1024
"""Of answers to pings, beside the 64 KiB that the connection holds. Whoever reads has a handful."""


def socket_on(terms: Terms, goodbye_s: float = GOODBYE_S) -> type[WebSocketsSansIOProtocol]:
    """What uvicorn is given as `ws`. *goodbye_s*: at most so long it is there when it has come to its end."""

    class OnTerms(BoundedSocket):
        pass

    OnTerms.terms = terms
    OnTerms.goodbye_s = goodbye_s
    return OnTerms


class BoundedSocket(WebSocketsSansIOProtocol):
    """One connection, once its request's head is there. A clock runs until it is accepted, another while what was sent
    waits to be read, and one from its end on."""

    terms: Terms
    goodbye_s: float

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._clocks: list[asyncio.TimerHandle] = []
        self._reader_clock: ReaderClock
        self._ending = False
        self._unread_pongs = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        read_at_most(transport, READ_BYTES)
        self._clocks.append(self.loop.call_later(self.terms.head_s, self._accept_overdue))
        self._reader_clock = ReaderClock(transport, self.loop, self.terms.unread_s)
        if transport.get_write_buffer_size():
            # Of an answer before the upgrade; the protocol that sent it has been told, and this one has not.
            self.pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in self._clocks:
            clock.cancel()
        self._reader_clock.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            self._end()

    def eof_received(self) -> None:
        super().eof_received()
        self._end()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self._end()

    def handle_ping(self) -> None:
        unread = self.transport.get_write_buffer_size()
        super().handle_ping()
        # NOTE: uvicorn answers without waiting for a reader, however many answers there are.
        if not self.writable.is_set():
            self._unread_pongs += self.transport.get_write_buffer_size() - unread
        if self._unread_pongs > MOST_PONGS_BYTES and not self.transport.is_closing():
            log.info("answers to pings were not read", code=ClientStalled.code)
            self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MOST_FRAGMENTS:
            super().handle_cont(event)
        elif not self.transport.is_closing():
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG)
            self.handle_parser_exception()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_text(b"".join(self.frames)):
            # uvicorn would do the same, and write a trace into the log.
            self.frames = []
            self.conn.fail(CloseCode.INVALID_DATA)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_clock.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader_clock.stop()
        self._unread_pongs = 0

    def _accept_overdue(self) -> None:
        if not self.handshake_complete:
            self.transport.abort()

    def _end(self) -> None:
        """Whatever is read of what is left: soon it is over."""
        if not self._ending and not self.disconnected:
            self._ending = True
            self._clocks.append(self.loop.call_later(self.goodbye_s, self.transport.abort))


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
