"""Callers that hold what they can for as long as they can: the server lets go of them, and goes on for all others."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.acceptance.server import Server, running

IDLE_S = 1
STRANGER = "127.0.0.2"
"""Another address of this machine, and no trusted proxy's."""

needs_addresses = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As deployed, with less patience."""
    with running(
        tmp_path_factory.mktemp("hurried"),
        BODY_IDLE_S=str(IDLE_S),
        HEAD_TIMEOUT_S=str(IDLE_S),
        MAX_CONNECTIONS_PER_ADDRESS="3",
        TRUSTED_PROXIES="127.0.0.1",
    ) as server:
        yield server


@contextlib.contextmanager
def connection(server: Server, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30, source_address=(source, 0)) as line:
        yield line


def answered(line: socket.socket, *, drip: bytes = b"") -> tuple[int, bytes]:
    """The status and the body of the answer, up to the connection's end; until it begins, *drip* is sent again and
    again, with short pauses."""
    said = b""
    line.settimeout(0.1 if drip else 30)
    while True:
        try:
            piece = line.recv(65536)
        except TimeoutError:
            line.sendall(drip)
            continue
        except ConnectionResetError:
            break
        if not piece:
            break
        said += piece
        line.settimeout(30)
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, body


BODIES = {
    "audio/wav": b"RIFF",
    "multipart/form-data; boundary=b": b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n',
    "application/json": b'{"url": "',
}
"""Types of body, and how each begins."""


def begun(server: Server, kind: str) -> bytes:
    """A request whose body will not come to its end."""
    head = f"POST /transcribe HTTP/1.1\r\nHost: here\r\nX-API-Key: {server.key}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: 1000000\r\n\r\n".encode() + BODIES[kind]


def at_work(server: Server) -> int:
    with server.client() as client:
        return sum(lane["active"] + lane["waiting"] for lane in client.get("/capacity").json()["work"].values())


def test_bodies_that_do_not_come_free_their_places(server: Server) -> None:
    """More callers than there are places, each silent or with a body that will take days: all get 408, nothing is
    left, and whoever asks meanwhile is answered."""
    kinds = [*BODIES] * 4
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(kinds)) as pool:
        lines = [stack.enter_context(connection(server)) for _ in kinds]
        for line, kind in zip(lines, kinds, strict=True):
            line.sendall(begun(server, kind))
        answers = [pool.submit(answered, line, drip=b"x" if at % 2 else b"") for at, line in enumerate(lines)]
        assert httpx.get(f"{server.address}/health").status_code == 200
        told = [answer.result(60) for answer in answers]
    assert [(status, json.loads(body)["code"]) for status, body in told] == [(408, "CLIENT_STALLED")] * len(kinds)
    assert at_work(server) == 0
    server.wait_until(lambda: server.in_flight() == [])


def test_heads_that_do_not_end_are_not_waited_for(server: Server) -> None:
    """The slow loris, and those who say nothing at all."""
    with connection(server) as slow, connection(server) as silent:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\nX-Slow: ")
        status, body = answered(slow, drip=b"x")
        assert (status, json.loads(body)["code"]) == (408, "CLIENT_STALLED")
        assert answered(silent) == (0, b"")


@pytest.mark.parametrize("header", ["X-A: " + "x" * 9_000, "\r\n".join(["X-A: x"] * 200), "Content-Length: 1"])
def test_a_handshake_that_cannot_be_read_holds_nothing(server: Server, header: str) -> None:
    """One stranger could shut out everybody else with connections that nobody ends."""
    lines = ["GET /transcribe/live HTTP/1.1", "Host: here", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", header]
    with connection(server) as line:
        line.sendall("\r\n".join((*lines, "", "")).encode())
        status, body = answered(line)
    assert (status, json.loads(body)["code"]) == (400, "MALFORMED_REQUEST")


@needs_addresses
def test_one_address_cannot_take_all_connections(server: Server) -> None:
    """Others go on; and a trusted proxy has as many as it needs."""
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connection(server, STRANGER))
        status, body = answered(stack.enter_context(connection(server, STRANGER)))
        assert (status, json.loads(body)["code"]) == (503, "TOO_MANY_CONNECTIONS")
        assert httpx.get(f"{server.address}/health").status_code == 200
    with server.client() as client:
        assert "TOO_MANY_CONNECTIONS" in client.get("/metrics").text


@needs_addresses
@pytest.mark.parametrize(("source", "believed"), [("127.0.0.1", True), (STRANGER, False)])
def test_only_a_trusted_proxy_says_how_a_request_came(server: Server, source: str, believed: bool) -> None:
    """Anybody can send the header."""
    with connection(server, source) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n")
        head = b"".join(iter(lambda: line.recv(65536), b"")).lower()
    assert (b"strict-transport-security" in head) == believed
    assert b"x-frame-options: deny" in head
