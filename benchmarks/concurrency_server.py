"""The server that is measured: found or started, asked, and watched from outside. I/O only."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil
from pydantic import ValidationError

from access.addresses import is_loopback
from benchmarks.concurrency_calls import Reply, retry_after_s
from benchmarks.concurrency_levels import Capacity, Usage, usage_of
from benchmarks.experiment import say
from benchmarks.processes import MemoryWatch, tree_cpu_s
from benchmarks.server import ANSWER_WITHIN_S, Server
from benchmarks.speech_set import ROOT
from memory import read_ram
from settings import Settings

USUAL_ADDRESS = "http://127.0.0.1:8000"
KEY_VARIABLE = "STENOGATE_API_KEY"
CONNECT_WITHIN_S = 10.0
LOOK_EVERY_S = 0.5
"""At the server's capacity and the memory of its processes: often enough for peaks, and no load."""


class CannotMeasure(Exception):
    """There is nothing to measure, or no way to; the sentence says what to do."""


class Target:
    """One server, spoken to from any number of threads. A context manager."""

    def __init__(
        self,
        address: str,
        key: str,
        model: str | None = None,
        pid: int | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.address = address
        self.model = model
        """None: the server's own choice."""
        self.pid = pid
        """The server's process, where it is on this machine and can be seen."""
        self._http = httpx.Client(
            base_url=address,
            headers={"X-API-Key": key} if key else {},
            timeout=httpx.Timeout(ANSWER_WITHIN_S, connect=CONNECT_WITHIN_S),
            limits=httpx.Limits(max_connections=None),
            trust_env=not is_here(address),
            transport=transport,
        )

    def send(self, recording: Path) -> Reply:
        """Upload the recording and wait for what comes back. A problem is a reply, and so is a broken connection."""
        try:
            with recording.open("rb") as file:
                answer = self._http.post(
                    "/transcribe",
                    params={"model_size": self.model} if self.model else {},
                    files={"file": (recording.name, file)},
                )
        except httpx.TransportError as error:
            return Reply(0, type(error).__name__)
        return reply_of(answer)

    def capacity(self) -> Capacity | None:
        """What GET /capacity tells; None where the server has no such call, or does not answer it."""
        try:
            answer = self._http.get("/capacity", timeout=CONNECT_WITHIN_S)
            return Capacity.parse(answer.json()) if answer.status_code == 200 else None
        except (httpx.TransportError, ValueError):
            return None

    def is_reachable(self) -> bool:
        try:
            self._http.get("/health", timeout=CONNECT_WITHIN_S)
        except httpx.TransportError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()


def reply_of(answer: httpx.Response) -> Reply:
    """What an answer to /transcribe means; proxies in between answer in words of their own."""
    try:
        document: Any = answer.json()
    except ValueError:
        document = None
    told: Mapping[str, Any] = document if isinstance(document, Mapping) else {}
    if answer.status_code == 200 and "duration" in told:
        return Reply(200, audio_s=float(told["duration"]))
    code = str(told.get("code") or f"HTTP {answer.status_code}")
    # A 200 that is no transcript is an error too: something else listens there.
    status = answer.status_code if answer.status_code != 200 else 0
    return Reply(status, code, retry_after_s=retry_after_s(answer.headers.get("Retry-After")))


def is_here(address: str) -> bool:
    """Whether the address leads to this machine itself."""
    host = urlsplit(address).hostname or ""
    return host == "localhost" or is_loopback(host)


def serving_pid(port: int) -> int | None:
    """Stenogate's process that listens on this port of this machine; None where there is none, or it cannot be seen."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    listening = {each.pid for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port}
    for pid in sorted(pid for pid in listening if pid):
        # A container's port is held by its runtime's proxy, whose memory says nothing.
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(Path(word).name == "main.py" or word == "main:app" for word in psutil.Process(pid).cmdline()):
                return int(pid)
    return None


def local_settings() -> Settings:
    """What a server on this machine runs with, from the environment and the project's `.env`. Raises CannotMeasure."""
    try:
        return Settings(_env_file=ROOT / ".env")
    except ValidationError as error:
        names = ", ".join(".".join(map(str, fault["loc"])).upper() for fault in error.errors())
        raise CannotMeasure(f"These settings in the environment or .env are wrong: {names}.") from None


def key_for(address: str, given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The key to send: *given*, else the environment's, else for this machine's server the one it made; "": none.

    NOTE: the kept key never leaves this machine, whatever address is asked.
    """
    if given or (given := environ.get(KEY_VARIABLE)):
        return given
    if not is_here(address):
        return ""
    try:
        return (ROOT / local_settings().data_dir / "api-key").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


@contextlib.contextmanager
def opened(
    address: str | None,
    key: str | None,
    model: str | None,
    *,
    usual: str = USUAL_ADDRESS,
    start: Callable[[str], Server] = Server,
) -> Iterator[tuple[Target, bool]]:
    """The server at *address*, at the usual one, or a new one; and whether it was started here. Raises CannotMeasure.

    A new one is started only where no address was given and nobody answers at the usual one.
    """
    there = address or usual
    port = urlsplit(there).port
    with Target(there, key_for(there, key), model, serving_pid(port) if port and is_here(there) else None) as target:
        if target.is_reachable():
            yield target, False
            return
    if address:
        raise CannotMeasure(f"Nobody answers at {address}: is the server running?")
    model = model or local_settings().model_size
    say(f"Nobody answers at {there}: starting a server with {model} for this run; it ends with it")
    with (
        start(model) as server,
        Target(server.client.url, server.key, model, server.pid) as target,
    ):
        yield target, True


@dataclass(slots=True)
class Watched:
    usage: Usage = field(default_factory=Usage)
    """Known when the block has ended."""


@contextlib.contextmanager
def watched(target: Target) -> Iterator[Watched]:
    """See what the server uses while the block runs: by its own word and, on this machine, by its processes."""
    result, seen, done = Watched(), list[Capacity](), threading.Event()
    looking = threading.Thread(target=_look, args=(target, seen, done), daemon=True)
    looking.start()
    tree_bytes = cpu_cores = None
    try:
        if target.pid is None:
            yield result
        else:
            before_s, started = tree_cpu_s(target.pid), time.perf_counter()
            with MemoryWatch(target.pid, LOOK_EVERY_S) as memory:
                yield result
                cpu_cores = (tree_cpu_s(target.pid) - before_s) / (time.perf_counter() - started)
            # PSS counts shared pages once; macOS tells RSS only.
            tree_bytes = memory.peak.pss or memory.peak.rss
    finally:
        done.set()
        looking.join()
    result.usage = usage_of(seen, tree_bytes, cpu_cores, read_ram().total_bytes)


def _look(target: Target, seen: list[Capacity], done: threading.Event) -> None:
    while True:
        capacity = target.capacity()
        if capacity is not None:
            seen.append(capacity)
        elif not seen:
            return
        if done.wait(LOOK_EVERY_S):
            return
