"""Many callers in one thread, as light as can be: what they cost, the server on the same machine does not have.

Plain HTTP/1.1 over a connection of its own for each call, as most callers' first request is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speech_set import Clip

BOUNDARY = "stenogate-caller"


@dataclass(frozen=True, slots=True)
class Reply:
    """One call as its caller saw it."""

    name: str
    status: int
    """0: the connection failed."""
    begun_s: float
    seconds: float
    audio_s: float = 0.0
    retry_after_s: int | None = None
    code: str | None = None
    """Of a problem."""
    worked_s: float = 0.0
    """By the server on this, as it says: from its turn at the gate to its transcript."""


class Callers:
    """Calls one server. The clock of all replies begins when this is made."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._bodies: dict[Path, bytes] = {}
        self._begun = time.perf_counter()

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self._begun

    async def transcribe(self, clip: Clip, key: str, query: str = "") -> Reply:
        """Upload *clip*; *query*: parameters, "?" and all."""
        body = self._bodies.setdefault(clip.path, _form(clip))
        request = (
            f"POST /transcribe{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\nConnection: close\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._call(clip.name, request.encode() + body, clip.duration_s)

    async def health(self) -> Reply:
        return await self._call("/health", _get("/health", ""), 0.0)

    async def capacity(self, key: str) -> dict[str, Any]:
        """What the server tells of itself."""
        _, _, document = await _exchange(self._port, _get("/capacity", key))
        return document

    async def _call(self, name: str, request: bytes, audio_s: float) -> Reply:
        begun_s = self.now_s
        try:
            status, headers, document = await _exchange(self._port, request)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            return Reply(name, 0, begun_s, self.now_s - begun_s, audio_s)
        retry_after = headers.get("retry-after")
        return Reply(
            name,
            status,
            begun_s,
            self.now_s - begun_s,
            audio_s,
            retry_after_s=int(retry_after) if retry_after else None,
            code=document.get("code"),
            worked_s=_worked_s(document.get("timings", {})),
        )


def _worked_s(timings: dict[str, float]) -> float:
    return timings.get("total", 0.0) - timings.get("queue", 0.0) - timings.get("probe", 0.0)


def _get(path: str, key: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n".encode()


async def _exchange(port: int, request: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Send *request* and read the answer, which may come before all was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(_send(writer, request))
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, json.loads(body) if body.startswith(b"{") else {}
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await sending
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, request: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        await writer.drain()


def _form(clip: Clip) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{clip.path.name}"\r\n\r\n'
    return head.encode() + clip.path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
