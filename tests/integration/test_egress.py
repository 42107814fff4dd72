"""The one door to the network, spoken to over real sockets. The canary stands for all that must not be reached."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from downloads.egress import EgressProxy, Resolver, Ticket
from downloads.urls import AddressPolicy
from tests.media_server import MediaServer, media_server

CONTENT = bytes(range(256)) * 400
UNREACHABLE_PUBLIC_ADDRESS = "2000::1"  # in the public range, given to nobody

PRIVATE_HOSTS = [
    "127.0.0.1",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "127.1",
    "%31%32%37.0.0.1",
    "0.0.0.0",
    "localhost",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[fec0::1]",
    "100.64.0.1",
    "169.254.169.254",
    "metadata.google.internal",
]


@pytest.fixture
def server() -> Iterator[MediaServer]:
    with media_server({"/clip.mp3": ("audio/mpeg", CONTENT)}) as running:
        yield running


@pytest.fixture
def canary() -> Iterator[MediaServer]:
    with media_server() as running:
        yield running


@asynccontextmanager
async def proxy_for(
    server: MediaServer, *, max_bytes: int = 10_000_000, resolver: Resolver | None = None, **limits: float
) -> AsyncIterator[tuple[EgressProxy, Ticket]]:
    policy = AddressPolicy((server.authority, f"media.example:{server.port}"))
    options = limits | ({} if resolver is None else {"resolver": resolver})
    async with EgressProxy(policy, **options) as proxy, proxy.ticket(max_bytes=max_bytes) as ticket:  # type: ignore[arg-type]
        yield proxy, ticket


def answering(*answers: Sequence[str]) -> tuple[Resolver, list[str]]:
    """A resolver that gives the next answer each time, and the names that it was asked for."""
    asked: list[str] = []
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return left.pop(0)

    return resolve, asked


async def say(proxy: EgressProxy, lines: list[str], ticket: Ticket | None, after_connect: bytes = b"") -> bytes:
    """All that comes back for a request with *lines*. With *after_connect*, what is said once the tunnel stands."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        if ticket is not None:
            parts = urlsplit(ticket.url)
            credential = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
            lines = [*lines, f"Proxy-Authorization: Basic {credential}"]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        if not after_connect:
            return await reader.read(-1)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(after_connect)
        return head + await reader.read(-1)
    finally:
        writer.transport.abort()


def get(url: str) -> list[str]:
    return [f"GET {url} HTTP/1.1"]


async def test_a_plain_request_comes_back_whole_and_is_counted(server: MediaServer) -> None:
    """What passes is what counts against the ticket."""
    async with proxy_for(server) as (proxy, ticket):
        answer = await say(proxy, get(server.at("/clip.mp3")), ticket)
    assert answer.endswith(b"\r\n\r\n" + CONTENT)
    assert b"Connection: close" in answer
    assert ticket.bytes > len(CONTENT)
    assert "Proxy-Authorization" not in server.headers[0]


async def test_a_tunnel_carries_bytes_both_ways(server: MediaServer) -> None:
    """https links go through tunnels."""
    inside = b"GET /clip.mp3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with proxy_for(server) as (proxy, ticket):
        answer = await say(proxy, [f"CONNECT {server.authority} HTTP/1.1"], ticket, inside)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(CONTENT)
    assert ticket.bytes > len(CONTENT) + len(inside)


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
async def test_private_hosts_are_refused_in_every_notation(server: MediaServer, canary: MediaServer, host: str) -> None:
    """A redirect or a playlist may ask for them in any way; the last check stands here."""
    async with proxy_for(server) as (proxy, ticket):
        plain = await say(proxy, get(f"http://{host}:{canary.port}/"), ticket)
        tunnel = await say(proxy, [f"CONNECT {host}:{canary.port} HTTP/1.1"], ticket)
    assert plain.startswith(b"HTTP/1.1 403 ")
    assert tunnel.startswith(b"HTTP/1.1 403 ")
    assert len(ticket.refused) == 2
    assert canary.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        [UNREACHABLE_PUBLIC_ADDRESS, "127.0.0.1"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%lo"],
        ["not an address"],
    ],
)
async def test_a_name_with_any_private_address_is_refused(
    server: MediaServer, canary: MediaServer, answer: list[str]
) -> None:
    """Which of several addresses is taken is up to chance, so one bad one spoils all."""
    resolver, _ = answering(answer)
    async with proxy_for(server, resolver=resolver) as (proxy, ticket):
        said = await say(proxy, get(f"http://evil.example:{canary.port}/"), ticket)
    assert said.startswith(b"HTTP/1.1 403 ")
    assert b"127.0.0.1" not in said
    assert ticket.refused == ["evil.example"]
    assert canary.connections == 0


async def test_a_tickets_own_policy_narrows_what_it_may_reach(server: MediaServer, canary: MediaServer) -> None:
    """Links may be bound to a few hosts, at every step, while webhooks go through the same door."""
    resolver, _ = answering(["127.0.0.1"])
    opened = (server.authority, canary.authority, f"media.example:{server.port}")
    everywhere = AddressPolicy(opened)
    narrow = AddressPolicy(opened, hosts_allowed=("media.example",))
    async with (
        EgressProxy(everywhere, resolver=resolver) as proxy,
        proxy.ticket(max_bytes=10_000_000) as wide,
        proxy.ticket(max_bytes=10_000_000, policy=narrow) as bound,
    ):
        assert (await say(proxy, get(f"http://media.example:{server.port}/clip.mp3"), bound)).endswith(CONTENT)
        assert (await say(proxy, get(canary.at("/")), bound)).startswith(b"HTTP/1.1 403 ")
        assert (await say(proxy, [f"CONNECT {canary.authority} HTTP/1.1"], bound)).startswith(b"HTTP/1.1 403 ")
        assert canary.connections == 0
        assert (await say(proxy, get(server.at("/clip.mp3")), wide)).endswith(CONTENT)
    assert (len(bound.refused), wide.refused) == (2, [])


async def test_a_name_that_leads_into_a_denied_network_is_refused(server: MediaServer) -> None:
    """Whatever it is called, and although its address is public."""
    resolver, _ = answering([UNREACHABLE_PUBLIC_ADDRESS])
    policy = AddressPolicy(hosts_denied=(f"{UNREACHABLE_PUBLIC_ADDRESS}/128",))
    async with EgressProxy(policy, resolver=resolver) as proxy, proxy.ticket(max_bytes=1000) as ticket:
        assert (await say(proxy, get("http://other.example/"), ticket)).startswith(b"HTTP/1.1 403 ")
    assert ticket.refused == ["other.example"]


async def test_a_name_is_resolved_once_and_that_very_address_is_taken(server: MediaServer) -> None:
    """Whoever asks a second time, to connect, may get another answer than the one that was checked."""
    resolver, asked = answering(["127.0.0.1"])
    async with proxy_for(server, resolver=resolver) as (proxy, ticket):
        answer = await say(proxy, get(f"http://media.example:{server.port}/clip.mp3"), ticket)
    assert answer.endswith(CONTENT)
    assert asked == ["media.example"]


async def test_a_name_whose_answer_changes_is_checked_each_time(server: MediaServer, canary: MediaServer) -> None:
    """First a public address, then, for the redirect or the segment, one inside."""
    resolver, asked = answering([UNREACHABLE_PUBLIC_ADDRESS], ["127.0.0.1"])
    url = f"http://rebind.example:{canary.port}/"
    async with proxy_for(server, resolver=resolver, connect_timeout_s=0.5) as (proxy, ticket):
        first = await say(proxy, get(url), ticket)
        second = await say(proxy, get(url), ticket)
    assert first.startswith(b"HTTP/1.1 502 ")
    assert second.startswith(b"HTTP/1.1 403 ")
    assert (ticket.unreachable, ticket.refused, len(asked)) == (["rebind.example"], ["rebind.example"], 2)
    assert canary.connections == 0


async def test_a_name_without_an_address_is_unreachable_not_refused(server: MediaServer) -> None:
    """The caller is told that the server cannot be found, not that he may not go there."""

    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise OSError("no such host")

    async with proxy_for(server, resolver=nowhere) as (proxy, ticket):
        answer = await say(proxy, get("http://gone.example/"), ticket)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert (ticket.unreachable, ticket.refused) == (["gone.example"], [])


async def test_a_resolver_that_does_not_answer_is_given_up(server: MediaServer) -> None:
    """Whoever owns a name owns the server that is asked for it, and may let it wait."""

    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with proxy_for(server, resolver=silent, connect_timeout_s=0.05) as (proxy, ticket):
        answer = await say(proxy, get("http://slow.example/"), ticket)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert ticket.unreachable == ["slow.example"]


@pytest.mark.parametrize("credential", [None, "Basic Zm9vOmJhcg==", "Basic !", "Bearer x", "Basic "])
async def test_without_its_credential_nobody_is_served(server: MediaServer, credential: str | None) -> None:
    """Every process of the machine can reach the port."""
    async with proxy_for(server) as (proxy, _):
        header = [] if credential is None else [f"Proxy-Authorization: {credential}"]
        answer = await say(proxy, [*get(server.at("/clip.mp3")), *header], None)
    assert answer.startswith(b"HTTP/1.1 407 ")
    assert server.connections == 0


async def test_a_ticket_is_good_until_its_download_ends_and_for_itself_alone(server: MediaServer) -> None:
    """What one download is refused or spends must not be booked on another; nor does a credential outlive its use."""
    async with EgressProxy(AddressPolicy((server.authority,))) as proxy:
        async with proxy.ticket(max_bytes=10_000_000) as first, proxy.ticket(max_bytes=10_000_000) as second:
            await say(proxy, get(server.at("/clip.mp3")), first)
            await say(proxy, get("http://10.0.0.1/"), second)
        assert (first.refused, second.refused) == ([], ["10.0.0.1"])
        assert first.bytes > len(CONTENT) > second.bytes
        answer = await say(proxy, get(server.at("/clip.mp3")), first)
    assert answer.startswith(b"HTTP/1.1 407 ")


@pytest.mark.parametrize("tunnelled", [False, True])
async def test_what_grows_over_the_limit_is_cut_and_nothing_follows(server: MediaServer, tunnelled: bool) -> None:
    """A server that never ends must not fill the disk, nor get another try."""
    async with proxy_for(server, max_bytes=300_000) as (proxy, ticket):
        tunnel, inside = [f"CONNECT {server.authority} HTTP/1.1"], b"GET /endless HTTP/1.1\r\n\r\n"
        with pytest.raises(ConnectionResetError):
            await say(proxy, tunnel if tunnelled else get(server.at("/endless")), ticket, inside if tunnelled else b"")
        assert ticket.over_limit
        assert ticket.bytes < 300_000 + 2 * 65_536
        assert (await say(proxy, get(server.at("/clip.mp3")), ticket)).startswith(b"HTTP/1.1 403 ")
    assert server.paths == ["/endless"]


async def test_an_answer_that_is_cut_short_does_not_look_whole(server: MediaServer) -> None:
    """Without a length, the end of the connection is the end of the file: a reset upstream must stay a reset."""
    async with proxy_for(server) as (proxy, ticket):
        with pytest.raises(ConnectionResetError):
            await say(proxy, get(server.at("/half-reset")), ticket)


async def test_a_server_that_falls_silent_is_given_up(server: MediaServer) -> None:
    """One that sends a few bytes and then nothing would hold its place for ever."""
    async with proxy_for(server, idle_timeout_s=0.1) as (proxy, ticket):
        with pytest.raises(ConnectionResetError):
            await say(proxy, get(server.at("/slow")), ticket)


async def test_a_client_that_never_ends_its_head_is_given_up(server: MediaServer) -> None:
    """Connections are few."""
    async with proxy_for(server, head_timeout_s=0.1) as (proxy, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET http://example.org/ HTTP/1.1\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
        writer.close()


async def test_a_head_without_end_is_refused(server: MediaServer) -> None:
    """Heads are held in memory."""
    async with proxy_for(server) as (proxy, ticket):
        with pytest.raises(ConnectionResetError):
            await say(proxy, [*get(server.at("/clip.mp3")), "X: " + "a" * 70_000], ticket)
    assert server.connections == 0


async def test_more_connections_than_allowed_are_turned_away(server: MediaServer) -> None:
    """One download that opens them all must not use up the machine's."""
    async with proxy_for(server, max_connections=1) as (proxy, ticket):
        _, first = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await say(proxy, get(server.at("/clip.mp3")), ticket)
        first.transport.abort()
    assert server.connections == 0


async def test_the_proxy_does_not_lead_to_itself(server: MediaServer) -> None:
    """Not even where an operator has opened that port: it would be a loop."""
    async with proxy_for(server) as (proxy, ticket):
        proxy.policy = AddressPolicy((f"127.0.0.1:{proxy.port}",))
        answer = await say(proxy, [f"CONNECT 127.0.0.1:{proxy.port} HTTP/1.1"], ticket)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert ticket.refused == ["127.0.0.1"]


async def test_closing_leaves_no_task_and_no_connection_behind(server: MediaServer) -> None:
    """A cancelled download must not go on in the background."""
    before = asyncio.all_tasks()
    async with proxy_for(server) as (proxy, ticket):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        parts = urlsplit(ticket.url)
        credential = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
        writer.write(f"CONNECT {server.authority} HTTP/1.1\r\nProxy-Authorization: Basic {credential}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert asyncio.all_tasks() > before
    with pytest.raises(ConnectionResetError):
        await reader.read(-1)
    writer.close()
    assert asyncio.all_tasks() == before


async def test_no_credential_is_ever_logged(server: MediaServer, caplog: pytest.LogCaptureFixture) -> None:
    """Logs are read by more people than those who may fetch."""
    caplog.set_level(logging.DEBUG)
    async with proxy_for(server) as (proxy, ticket):
        await say(proxy, get(server.at("/clip.mp3")), ticket)
        await say(proxy, get("http://10.0.0.1/"), ticket)
        secret = urlsplit(ticket.url).password
        assert secret
        logging.getLogger("test").info("%r %r", proxy, ticket)
    assert "10.0.0.1" in caplog.text
    assert secret not in caplog.text
