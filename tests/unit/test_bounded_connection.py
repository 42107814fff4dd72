"""Connections over real sockets: silence, answers that nobody reads, too many of them, and what is no HTTP; and what
becomes of them as WebSockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from api.bounded_connection import Terms, protocol_on
from api.bounded_socket import MOST_PONGS_BYTES, socket_on
from api.connection_bounds import ConnectionBounds
from errors import ServiceError
from tests.fakes import KEY, Parts

HOUR = 3600.0
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


def upgrade(*headers: bytes) -> bytes:
    lines = (
        *(b"GET /live HTTP/1.1", b"Host: here", b"Connection: Upgrade", b"Upgrade: websocket"),
        *(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", *headers),
    )
    return b"\r\n".join((*lines, b"", b""))


def frame(opcode: int, data: bytes = b"", *, last: bool = True) -> bytes:
    """As clients send it, of at most 125 bytes. The mask is zero."""
    return bytes([0x80 * last | opcode, 0x80 | len(data), 0, 0, 0, 0]) + data


MORE, TEXT, CLOSE, PING = 0, 1, 8, 9
CHUNKED = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"


class Application:
    """Answers with as many bytes as it was made for, once the body has come; hears of hang-ups."""

    def __init__(self, answer: int = 2) -> None:
        self.answer = answer
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.accept"})
            await asyncio.Event().wait()
        self.asked.set()
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            self.gone.set()
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.body", "body": bytes(self.answer), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.gone.set()


class Talking:
    """Says so many bytes to a WebSocket, all at once; then listens, is busy, or leaves."""

    def __init__(self, says: int = 0, *, accepts: bool = True, then: str = "listens") -> None:
        self._says = says
        self._accepts = accepts
        self._then = then
        self.gone = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            if self._accepts:
                await send({"type": "websocket.accept"})
            if self._says:
                await send({"type": "websocket.send", "bytes": bytes(self._says)})
            if self._then == "is busy":
                await asyncio.Event().wait()
            while self._then == "listens" and (await receive())["type"] != "websocket.disconnect":
                pass
        finally:
            self.gone.set()


class Listening:
    """A server, and what it has refused."""

    def __init__(self) -> None:
        self.port = 0
        self.refused: list[str] = []
        self.state = ServerState()

    @property
    def connection(self) -> Any:
        """The only one."""
        [connection] = self.state.connections
        return connection

    async def caller(self, *sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in sent:
            writer.write(piece)
        return reader, writer

    async def all_said(self, *sent: bytes) -> tuple[int, dict[str, str], bytes]:
        """The status, the headers and the body of what the server says to *sent* before it closes."""
        reader, writer = await self.caller(*sent)
        said = await reader.read()
        writer.close()
        head, _, body = said.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return int(first.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines), body


@asynccontextmanager
async def listening(
    app: Any = None,
    *,
    head_s: float = HOUR,
    unread_s: float = HOUR,
    goodbye_s: float = HOUR,
    bounds: ConnectionBounds | None = None,
) -> AsyncIterator[Listening]:
    there = Listening()

    def refused(error: ServiceError) -> None:
        there.refused.append(error.code)

    terms = Terms(bounds or ConnectionBounds(), head_s, unread_s, refused)
    config = uvicorn.Config(
        app or Application(),
        http=protocol_on(terms),
        ws=socket_on(terms, goodbye_s),
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        log_config=None,
        h11_max_incomplete_event_size=16 * 1024,
        timeout_keep_alive=3600,
    )
    config.load()
    made: Callable[..., asyncio.Protocol] = config.http_protocol_class
    server = await asyncio.get_running_loop().create_server(
        lambda: made(config=config, server_state=there.state, app_state={}), "127.0.0.1", 0
    )
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        server.close()
        for connection in list(there.state.connections):
            if transport := getattr(connection, "transport", None):
                transport.abort()
        for task in list(there.state.tasks):
            task.cancel()
        await asyncio.gather(*there.state.tasks, return_exceptions=True)


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "later"])
async def test_a_head_that_never_ends_is_not_waited_for(before: bytes) -> None:
    """The slow loris: a header every few seconds, on as many connections as there can be."""
    async with listening(head_s=0.05) as there:
        reader, writer = await there.caller(before)
        if before:
            await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nX-A: ")
        said = await reader.read()
        writer.close()
    assert said.startswith(b"HTTP/1.1 408 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["code"] == "CLIENT_STALLED"
    assert there.refused == ["CLIENT_STALLED"]


async def test_bytes_that_keep_coming_do_not_prolong_it() -> None:
    """The clock runs from the first to the last byte of the head."""
    async with listening() as there:
        reader, writer = await there.caller(GET)
        await reader.readuntil(b"0\r\n\r\n")
        connection: Any = next(iter(there.state.connections))
        connection.data_received(b"GET / HTTP/1.1\r\n")
        clock = connection._head_clock
        connection.data_received(b"X")
        assert clock is connection._head_clock is not None
        writer.close()


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    """Browsers open some in advance; an answer to no question would be taken for the next one's."""
    async with listening(head_s=0.05) as there:
        reader, writer = await there.caller()
        assert await reader.read() == b""
        writer.close()
    assert there.refused == []


async def test_a_request_that_is_being_done_takes_as_long_as_it_takes() -> None:
    """The clock stands once the head is there: an upload may take an hour, and so may its transcription."""
    app = Application()
    async with listening(app, head_s=0.05) as there:
        reader, writer = await there.caller(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n")
        await app.asked.wait()
        # The clock of this one, which began later, has run out; so has the other's, if it still runs.
        silent, other = await there.caller()
        assert await silent.read() == b""
        writer.write(b"ab")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        other.close()
        writer.close()


@pytest.mark.parametrize("size", [40_000_000, 5_000_000])
async def test_an_answer_that_nobody_reads_is_given_up(size: int) -> None:
    """Its memory and its place would be held for as long as the caller likes."""
    app = Application(size)
    async with listening(app, unread_s=0.05) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port, limit=1024)
        writer.write(GET)
        await app.gone.wait()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(size)
        writer.close()


async def test_a_slow_reader_is_waited_for_as_long_as_it_reads() -> None:
    """What counts is whether less is unread than at the last look; and anything unread is looked at."""
    async with listening() as there:
        reader, writer = await there.caller(GET)
        await reader.readuntil(b"0\r\n\r\n")
        connection: Any = next(iter(there.state.connections))
        assert connection.transport.get_write_buffer_limits() == (0, 0)
        connection._reader_clock.look(unread_before=1)
        assert not connection.transport.is_closing()
        connection._reader_clock.look(unread_before=0)
        assert connection.transport.is_closing()
        writer.close()


async def test_one_connection_too_many_is_told_so() -> None:
    """In words that a program understands; those that are there go on, and a place is free when one has left."""
    async with listening(bounds=ConnectionBounds(most_per_address=2)) as there:
        callers = [await there.caller(GET) for _ in range(2)]
        for reader, _ in callers:
            await reader.readuntil(b"0\r\n\r\n")
        status, headers, body = await there.all_said()
        assert (status, json.loads(body)["code"]) == (503, "TOO_MANY_CONNECTIONS")
        assert (headers["connection"], headers["retry-after"]) == ("close", "5")
        assert there.refused == ["TOO_MANY_CONNECTIONS"]
        callers[0][1].close()
        while not await comes_in(there):
            pass
        callers[1][1].close()


async def comes_in(there: Listening) -> bool:
    try:
        status, _, _ = await there.all_said(GET.replace(b"Host", b"Connection: close\r\nHost"))
    except ConnectionError:
        # The door was shut before the question was read.
        return False
    return status == 200


async def test_a_websocket_counts_and_keeps_its_connection() -> None:
    """It is another protocol's by then, with clocks of its own."""
    async with listening(head_s=0.05, bounds=ConnectionBounds(most_per_address=1)) as there:
        reader, writer = await there.caller(upgrade())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        connection: Any = next(iter(there.state.connections))
        assert connection.transport.get_write_buffer_limits()[1] > 0
        # By then the head's clock has run out, if it still runs.
        silent, other = await there.caller()
        assert b"TOO_MANY_CONNECTIONS" in await silent.read()
        assert len(there.state.connections) == 1
        other.close()
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET /" + b"x" * 20_000, 414, "ADDRESS_TOO_LONG"),
        (b"GET / HTTP/1.1\r\nX-A: " + b"x" * 20_000, 431, "HEADERS_TOO_LARGE"),
    ],
)
async def test_what_is_no_http_is_answered_as_all_is(sent: bytes, status: int, code: str) -> None:
    """uvicorn says in plain text that something is invalid."""
    async with listening() as there:
        told, headers, body = await there.all_said(sent)
    assert (told, json.loads(body)["code"]) == (status, code)
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == json.loads(body)["request_id"]
    assert headers["x-frame-options"] == "deny"
    assert there.refused == [code]


async def test_uvicorns_log_shows_nothing_of_a_request(
    app: FastAPI, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither what was sent, nor a trace of what went wrong with it: that has its own line, with the request's id."""
    parts.transcriber.error = ZeroDivisionError()
    head = f"POST /transcribe HTTP/1.1\r\nHost: here\r\nX-API-Key: {KEY}\r\nContent-Type: audio/wav\r\n"
    with caplog.at_level("DEBUG"):
        async with listening(app) as there:
            told, _, body = await there.all_said(f"{head}Connection: close\r\nContent-Length: 6\r\n\r\nsecret".encode())
            assert (told, json.loads(body)["code"]) == (500, "INTERNAL_ERROR")
            assert (await there.all_said(b"secret nonsense\r\n\r\n"))[0] == 400
    # Its access log is shut off (`telemetry`).
    told_by_uvicorn = [record for record in caplog.records if record.name == "uvicorn.error"]
    assert [record.getMessage() for record in told_by_uvicorn] == ["Invalid HTTP request received."]
    assert not [record for record in told_by_uvicorn if record.exc_info]


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"5;" + b"x" * 20_000], ids=["no number", "endless extension"])
async def test_a_body_that_is_no_http_ends_its_request(chunk: bytes) -> None:
    """The application must not wait for a rest that cannot come. Nothing is wrong with the head, and none says so."""
    app = Application()
    async with listening(app) as there:
        told, _, body = await there.all_said(CHUNKED + chunk)
        await app.gone.wait()
    assert (told, json.loads(body)["code"]) == (400, "MALFORMED_REQUEST")


async def test_a_body_in_crumbs_is_refused() -> None:
    """A byte in a chunk of its own takes as long as a thousand: a stranger's few megabytes would hold everybody up."""
    app = Application()
    async with listening(app) as there:
        told, _, body = await there.all_said(CHUNKED + b"1\r\na\r\n" * 257)
        await app.gone.wait()
    assert (told, json.loads(body)["code"]) == (400, "MALFORMED_REQUEST")


@pytest.mark.parametrize(
    "chunks", [b"1\r\na\r\n" * 256, (b"40\r\n" + b"a" * 64 + b"\r\n") * 2_000], ids=["few", "fair"]
)
async def test_a_body_in_chunks_is_taken(chunks: bytes) -> None:
    """And the next request on the connection begins anew."""
    async with listening() as there:
        reader, writer = await there.caller()
        for _ in range(2):
            writer.write(CHUNKED + chunks + b"0\r\n\r\n")
            assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize(("sent", "most"), [(GET, 16 * 1024), (upgrade(), 4 * 1024)], ids=["http", "websocket"])
async def test_no_connection_is_read_for_long(sent: bytes, most: int) -> None:
    """What one has sent is looked at in one go, while all others wait."""
    async with listening() as there:
        reader, writer = await there.caller(sent)
        await reader.readuntil(b"\r\n\r\n")
        connection: Any = next(iter(there.state.connections))
        assert connection.transport.max_size == most
        writer.close()


async def test_a_message_in_endless_pieces_is_refused() -> None:
    """Pieces without content count towards no message's size."""
    app = Talking()
    async with listening(app) as there:
        reader, writer = await there.caller(upgrade())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(TEXT, b"a", last=False) + frame(MORE, last=False) * 1_024 + frame(MORE))
        said = await reader.read()
        await app.gone.wait()
        writer.close()
    assert said == b"\x88\x02\x03\xf1"


@pytest.mark.parametrize(
    "headers",
    [
        [b"X-A: " + b"x" * 9_000],
        [b"X-%d: x" % number for number in range(200)],
        [b"Content-Length: 1"],
        [b"Transfer-Encoding: chunked"],
    ],
    ids=["long", "many", "body", "chunks"],
)
async def test_a_handshake_that_cannot_be_read_is_refused(headers: list[bytes]) -> None:
    """HTTP's parser takes such heads, the one of WebSockets does not, and uvicorn waits on: anybody could take all the
    connections that there are."""
    async with listening() as there:
        told, head, body = await there.all_said(upgrade(*headers))
        assert (told, json.loads(body)["code"]) == (400, "MALFORMED_REQUEST")
        assert head["connection"] == "close"
        assert not there.state.connections
    assert there.refused == ["MALFORMED_REQUEST"]


async def test_a_websocket_that_is_never_accepted_is_closed() -> None:
    """Whatever the application waits for."""
    app = Talking(accepts=False)
    async with listening(app, head_s=0.05) as there:
        reader, writer = await there.caller(upgrade())
        assert await reader.read() == b""
        await app.gone.wait()
        writer.close()


async def test_pings_of_who_does_not_read_end_it() -> None:
    """Answers to pings know no bound of their own: a stranger could fill the memory with them."""
    app = Talking()
    async with listening(app) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port, limit=1024)
        writer.write(upgrade())
        await reader.readuntil(b"\r\n\r\n")
        connection = there.connection
        most = 0

        async def flood() -> None:
            nonlocal most
            for _ in range(1_000):
                writer.write(frame(PING, b"x" * 125) * 500)
                await writer.drain()
                most = max(most, connection.transport.get_write_buffer_size())

        with pytest.raises(ConnectionError):
            await flood()
        await app.gone.wait()
        assert not there.state.connections
        assert most < 1024 * 1024
        writer.close()


async def test_pings_of_who_reads_are_answered() -> None:
    """However many, and however slowly they are read."""
    async with listening(Talking()) as there:
        reader, writer = await there.caller(upgrade())
        await reader.readuntil(b"\r\n\r\n")
        pings = 10 * MOST_PONGS_BYTES // 127
        for first in range(0, pings, 500):
            writer.write(frame(PING, b"x" * 125) * 500)
            assert len(await reader.readexactly(500 * 127)) == 500 * 127, first
        connection = there.connection
        connection.pause_writing()
        connection._unread_pongs = MOST_PONGS_BYTES + 1
        connection.resume_writing()
        writer.write(frame(PING))
        assert await reader.readexactly(2) == bytes([0x8A, 0])
        assert not connection.transport.is_closing()
        writer.close()


@pytest.mark.parametrize("sent", [upgrade(), GET + upgrade()], ids=["its own", "an answer before"])
async def test_a_websocket_that_is_not_read_is_given_up(sent: bytes) -> None:
    """As an answer is; also where what waits was said before it became one."""
    size = 5_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await talking(scope, receive, send)
        else:
            head = [(b"content-length", str(size).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": bytes(size)})

    talking = Talking(0 if sent.startswith(GET) else size)
    async with listening(app, unread_s=0.05) as there:
        _, writer = await asyncio.open_connection("127.0.0.1", there.port, limit=1024)
        writer.write(sent)
        await talking.gone.wait()
        assert not there.state.connections
        writer.close()


@pytest.mark.parametrize(
    ("then", "sent"),
    [("leaves", b""), ("is busy", frame(CLOSE)), ("is busy", None)],
    ids=["left", "goodbye", "half closed"],
)
async def test_what_is_unread_holds_no_websocket_that_is_over(then: str, sent: bytes | None) -> None:
    """A closed transport waits until all is read: for ever, where nobody reads. It is over when the application has
    left, when its caller says goodbye, and when nothing more can come."""
    async with listening(Talking(5_000_000, then=then), goodbye_s=0.05) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port, limit=1024)
        writer.write(upgrade())
        await reader.readuntil(b"\r\n\r\n")
        if sent is None:
            writer.write_eof()
        else:
            writer.write(sent)
        async with asyncio.timeout(30):
            while there.state.connections:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
        writer.close()


@pytest.mark.parametrize("after", [b"", frame(CLOSE)], ids=["alone", "before a goodbye"])
async def test_text_that_is_none_ends_it_without_a_trace(after: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """RFC 6455 has a code for it. A trace for every such message would fill the log."""
    app = Talking()
    async with listening(app) as there:
        reader, writer = await there.caller(upgrade())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(TEXT, b"\xff") + after)
        said = await reader.read()
        await app.gone.wait()
        writer.close()
    assert said == (b"\x88\x00" if after else b"\x88\x02\x03\xef")
    assert not [record for record in caplog.records if record.exc_info]
