"""The parent's side of the yt-dlp process: start it, ask it, listen, and see to it that it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("ytdlp_child.py")
_MAX_LINE_BYTES = 256 * 1024
_STDERR_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is. *total_bytes* is None or an estimate while the server has not told."""

    downloaded_bytes: int
    total_bytes: int | None


async def ask_child(
    request: dict[str, Any], folder: Path, on_progress: Callable[[Progress], None] | None
) -> tuple[dict[str, Any], bytes]:
    """The child's answer, {} where it died without one, and the end of what it wrote to stderr.

    *request* is what downloads/ytdlp_child.py reads. Whatever happens, its process group is dead afterwards.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(_CHILD),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env=_environment(folder, request["proxy"]),
        limit=_MAX_LINE_BYTES,
        process_group=0,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    stderr_tail = asyncio.create_task(_tail(child.stderr))
    try:
        with contextlib.suppress(ConnectionError):
            child.stdin.write(json.dumps(request).encode() + b"\n")
            await child.stdin.drain()
        answer = await _listen(child.stdout, on_progress)
    finally:
        await _killed(child, child.stdin, child.stdout, stderr_tail)
    return answer, stderr_tail.result()


def _environment(folder: Path, proxy_url: str) -> dict[str, str]:
    """The child's whole environment: none of the service's keys, no settings of the user's."""
    home = str(folder)
    return {
        "PATH": os.defpath,
        "HOME": home,
        "XDG_CONFIG_HOME": home,
        "XDG_CACHE_HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "YTDLP_NO_PLUGINS": "1",
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"), proxy_url),
    }


async def _listen(stdout: asyncio.StreamReader, on_progress: Callable[[Progress], None] | None) -> dict[str, Any]:
    """Pass progress on until the answer comes; {} where none comes, or what comes is no answer."""
    while True:
        try:
            line = await stdout.readline()
            event: dict[str, Any] = json.loads(line) if line else {}
        except ValueError:  # not JSON, or a line over the limit
            return {}
        if event.get("event") != "progress":
            return event
        if on_progress is not None:
            total_bytes = event["total_bytes"]
            on_progress(Progress(int(event["downloaded_bytes"]), None if total_bytes is None else int(total_bytes)))


async def _tail(stream: asyncio.StreamReader) -> bytes:
    tail = b""
    while block := await stream.read(_STDERR_TAIL_BYTES):
        tail = (tail + block)[-_STDERR_TAIL_BYTES:]
    return tail


async def _killed(
    child: asyncio.subprocess.Process,
    stdin: asyncio.StreamWriter,
    stdout: asyncio.StreamReader,
    stderr_tail: asyncio.Task[bytes],
) -> None:
    """Kill the child's process group and wait until it is gone, also when this wait is itself cancelled."""

    async def gone() -> None:
        stdin.close()
        while await stdout.read(_MAX_LINE_BYTES):  # to the end, else the pipe stays open
            pass
        await stderr_tail
        await child.wait()

    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        os.killpg(child.pid, signal.SIGKILL)
    waiting = asyncio.create_task(gone())
    cancelled = False
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            cancelled = True
    waiting.result()
    if cancelled:
        raise asyncio.CancelledError
