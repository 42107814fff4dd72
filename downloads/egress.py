"""The one door to the network: a small HTTP proxy that connects to checked addresses only, and counts what passes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import logging
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from downloads.proxy_messages import BadMessage, ProxyRequest, closing_response_head, parse_request
from downloads.urls import AddressPolicy, literal_address
from errors import InvalidLink, LinkNotAllowed

log = logging.getLogger(__name__)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to the addresses behind them, as text, best first. Raises OSError where there are none."""

_MAX_HEAD_BYTES = 64 * 1024
_BLOCK_BYTES = 64 * 1024
_MAX_ADDRESSES_TRIED = 4


@dataclass(slots=True)
class Ticket:
    """What one download may do through the proxy, and what it did. Valid while EgressProxy.ticket() is open."""

    url: str = field(repr=False)
    """The proxy's address with this ticket's credential in it: never log it."""
    max_bytes: int
    bytes: int = 0
    """Passed on so far, both ways, of all connections."""
    over_limit: bool = False
    refused: list[str] = field(default_factory=list)
    """Hosts that were asked for and may not be reached."""
    unreachable: list[str] = field(default_factory=list)
    """Hosts that have no address or did not answer."""
    policy: AddressPolicy | None = None
    """Where it may lead; None: where the proxy's own policy lets it."""
    _credential: str = field(default="", repr=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    def count(self, size: int) -> None:
        """Raises _OverLimit when more has passed than may."""
        self.bytes += size
        if self.bytes > self.max_bytes:
            self.over_limit = True
            raise _OverLimit


class _OverLimit(Exception):
    """More bytes came than the ticket is good for."""


class _Refused(Exception):
    """A request that gets an answer of ours and no connection."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of *host* as the system's resolver orders them. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class EgressProxy:
    """Listens on loopback while it is entered; each download opens a ticket and speaks through its address.

    Invariant: no byte leaves for an address that was not itself checked against the policy. A name is resolved once a
    connection and the connection goes to one of those very addresses, so a second answer is never asked for.
    Every connection carries one request or one tunnel, so there is no way to slip in a second, unchecked one.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        resolver: Resolver = resolve,
        connect_timeout_s: float = 10.0,
        head_timeout_s: float = 30.0,
        idle_timeout_s: float = 60.0,
        max_connections: int = 256,
    ) -> None:
        self.policy = policy
        self._resolver = resolver
        self._connect_timeout_s = connect_timeout_s
        self._head_timeout_s = head_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._max_connections = max_connections
        self._tickets: dict[str, Ticket] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def __repr__(self) -> str:
        return f"EgressProxy(port={self.port}, tickets={len(self._tickets)}, connections={len(self._connections)})"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_MAX_HEAD_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await _cancelled(self._connections)
        await self._server.wait_closed()
        self._server = None

    @contextlib.asynccontextmanager
    async def ticket(self, *, max_bytes: int, policy: AddressPolicy | None = None) -> AsyncIterator[Ticket]:
        """A credential of its own for one download; on leaving, its connections are cut.

        *policy* takes the place of the proxy's own for what comes with it.
        """
        name, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        credential = base64.b64encode(f"{name}:{secret}".encode()).decode("ascii")
        ticket = Ticket(
            f"http://{name}:{secret}@127.0.0.1:{self.port}", max_bytes, policy=policy, _credential=credential
        )
        self._tickets[name] = ticket
        try:
            yield ticket
        finally:
            del self._tickets[name]
            await _cancelled(ticket._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > self._max_connections:
                raise ConnectionAbortedError("too many connections")
            async with asyncio.timeout(self._head_timeout_s):
                request = parse_request(await reader.readuntil(b"\r\n\r\n"))
            ticket = self._ticket_of(request.credential)
            ticket._tasks.add(task)
            try:
                await self._serve(request, ticket, reader, writer)
                async with asyncio.timeout(self._head_timeout_s):
                    writer.close()
                    await writer.wait_closed()
            finally:
                ticket._tasks.discard(task)
        except _Refused as refusal:
            with contextlib.suppress(OSError):
                await _answer(writer, refusal.status)
        except BadMessage:
            with contextlib.suppress(OSError):
                await _answer(writer, "400 Bad Request")
        except (OSError, EOFError, asyncio.LimitOverrunError, _OverLimit):  # TimeoutError is an OSError
            # The answer may lack its end and the client must not take it for whole: reset, do not close.
            _reset(writer)
        except asyncio.CancelledError:
            # Ticket or proxy closed. Swallowed: this task is the connection, and nobody waits for its outcome.
            _reset(writer)
        finally:
            self._connections.discard(task)
            writer.close()

    def _ticket_of(self, credential: bytes) -> Ticket:
        with contextlib.suppress(ValueError):
            name = base64.b64decode(credential, validate=True).partition(b":")[0].decode("ascii")
            ticket = self._tickets.get(name)
            if ticket is not None and hmac.compare_digest(ticket._credential.encode("ascii"), credential):
                return ticket
        raise _Refused("407 Proxy Authentication Required")

    async def _serve(
        self, request: ProxyRequest, ticket: Ticket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if ticket.over_limit:
            raise _Refused("403 Forbidden")
        try:
            upstream_reader, upstream = await self._connect(request.host, request.port, ticket.policy or self.policy)
        except (LinkNotAllowed, InvalidLink) as error:
            ticket.refused.append(request.host)
            log.info("egress refused host=%r port=%d", request.host, request.port)
            raise _Refused("403 Forbidden") from error
        except OSError as error:
            ticket.unreachable.append(request.host)
            raise _Refused("502 Bad Gateway") from error
        try:
            async with asyncio.timeout(self._idle_timeout_s) as idle:
                if request.is_tunnel:
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    await self._tunnel(reader, writer, upstream_reader, upstream, ticket, idle)
                else:
                    await self._exchange(request, reader, writer, upstream_reader, upstream, ticket, idle)
        finally:
            upstream.transport.abort()

    async def _connect(
        self, host: str, port: int, policy: AddressPolicy
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to one of the addresses behind *host*, all of them allowed. Raises LinkNotAllowed, OSError."""
        policy.check_host(host, port)
        async with asyncio.timeout(self._connect_timeout_s):
            found = [host] if literal_address(host) is not None else await self._resolver(host, port)
        addresses = [literal_address(text) for text in found]
        for address in addresses:
            # An answer that is no plain address (fe80::1%eth0) is refused like a closed one.
            if address is None or not policy.allows(host, port, address):
                raise LinkNotAllowed
            if address.is_loopback and port == self.port:
                raise LinkNotAllowed
        failure: OSError = OSError(f"no address for {host!r}")
        for address in addresses[:_MAX_ADDRESSES_TRIED]:
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    reader, writer = await asyncio.open_connection(str(address), port, limit=_MAX_HEAD_BYTES)
            except OSError as error:
                failure = error
                continue
            to_itself = writer.get_extra_info("peername")[0] == writer.get_extra_info("sockname")[0]
            if to_itself and not policy.is_opened(host, port):
                # This machine's own public address: what its firewall closes to others would be open from here.
                writer.transport.abort()
                raise LinkNotAllowed
            return reader, writer
        raise failure

    async def _exchange(
        self,
        request: ProxyRequest,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        ticket: Ticket,
        idle: asyncio.Timeout,
    ) -> None:
        """One plain request and its answer. Raises OSError, EOFError, _OverLimit when it is cut short."""
        ticket.count(len(request.origin_head))
        upstream.write(request.origin_head)
        left = request.body_bytes
        while left:
            block = await reader.readexactly(min(left, _BLOCK_BYTES))
            left -= len(block)
            ticket.count(len(block))
            upstream.write(block)
            await upstream.drain()
            _moved(idle, self._idle_timeout_s)
        await upstream.drain()
        head = b""
        while not head or head.split(b" ", 2)[1:2] == [b"100"]:
            try:
                head = await upstream_reader.readuntil(b"\r\n\r\n")
                closing_head = closing_response_head(head)
            except (BadMessage, asyncio.LimitOverrunError) as error:
                raise _Refused("502 Bad Gateway") from error
            ticket.count(len(head))
        writer.write(closing_head)
        await self._pump(upstream_reader, writer, ticket, idle)

    async def _tunnel(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        ticket: Ticket,
        idle: asyncio.Timeout,
    ) -> None:
        """Bytes both ways until the upstream ends. Raises OSError, _OverLimit."""
        outward = asyncio.create_task(self._pump(reader, upstream, ticket, idle))
        try:
            await self._pump(upstream_reader, writer, ticket, idle)
        finally:
            outward.cancel()
            await asyncio.gather(outward, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, ticket: Ticket, idle: asyncio.Timeout
    ) -> None:
        while block := await source.read(_BLOCK_BYTES):
            ticket.count(len(block))
            sink.write(block)
            await sink.drain()
            _moved(idle, self._idle_timeout_s)


def _moved(idle: asyncio.Timeout, timeout_s: float) -> None:
    if not idle.expired():
        idle.reschedule(asyncio.get_running_loop().time() + timeout_s)


async def _answer(writer: asyncio.StreamWriter, status: str) -> None:
    challenge = 'Proxy-Authenticate: Basic realm="egress"\r\n' if status.startswith("407") else ""
    head = f"HTTP/1.1 {status}\r\n{challenge}X-Egress: refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    writer.write(head.encode("ascii"))
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees an error, not an end."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    running = list(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
