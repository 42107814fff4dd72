"""The real server as a process: started, watched, spoken to, stopped by its own id."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KEY = "test-api-key-123"
MAX_UPLOAD_MB = 4
MAX_DURATION_S = 90
"""Limits of the one server for most tests: within reach of a test."""

START_S = 120.0


@dataclass
class Server:
    """A running server. *log* grows while it runs."""

    process: subprocess.Popen[str]
    address: str
    key: str
    data_dir: Path
    log: Path
    greeting: str

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def client(self, **options: Any) -> httpx.Client:
        # Nothing here is TLS, and reading the certificates would take 30 ms each time.
        headers = {"X-API-Key": self.key}
        return httpx.Client(base_url=self.address, headers=headers, timeout=120.0, verify=False, **options)

    def lines(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """What was logged, in both processes; of one request where *request_id* is given."""
        told = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in told if request_id in (None, line.get("request_id"))]

    def in_flight(self) -> list[Path]:
        """What lies in the work folder: nothing, unless a request is being served."""
        return list((self.data_dir / "work").rglob("*"))

    def wait_until(self, happened: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Wait for something that the server does by itself; a server that dies ends the wait."""
        deadline = time.monotonic() + limit_s
        while not happened():
            assert time.monotonic() < deadline, f"did not happen within {limit_s} s; the log ends: {self.tail()}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                raise AssertionError(f"the server ended; its log: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text()[-2000:]

    def processes(self) -> list[int]:
        """The server and all its children."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += [int(child) for child in children.read_text().split()]
        return found


def command(*arguments: str) -> list[str]:
    return [sys.executable, *(arguments or (str(ROOT / "main.py"),))]


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """The environment of a server that sees *settings* and nothing of this machine's own."""
    own = {name.upper() for name in Settings.model_fields}
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in own}
    defaults = {"PORT": "0", "MODEL_SIZE": "tiny.en", "MODEL_DOWNLOADS": "false", "DATA_DIR": str(data_dir)}
    defaults["LOG_LEVEL"] = "debug"  # the engine tells of its batches there
    # Where nobody writes bytecode, each start compiles all that a server is made of anew: 3 s. Empty: it is written.
    python = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
    return inherited | python | defaults | settings


@contextlib.contextmanager
def running(folder: Path, *arguments: str, **settings: str) -> Iterator[Server]:
    """A server with its data in *folder*, ready to transcribe. *arguments* replace `main.py`."""
    folder.mkdir(parents=True, exist_ok=True)
    data_dir, log, told = folder / "data", folder / "log", folder / "greeting"
    with log.open("w") as stderr, told.open("w") as stdout:
        process = subprocess.Popen(
            command(*arguments),
            # Not the project's folder: a developer's .env lies there.
            cwd=folder,
            env=environment(data_dir, **settings),
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
    server = Server(process, "", settings.get("API_KEYS", ""), data_dir, log, "")
    try:
        server.wait_until(lambda: "Try it:" in told.read_text() and told.read_text().endswith("\n"), START_S)
        server.greeting = told.read_text()
        found = re.search(r"http://\S+:\d+", server.greeting)
        assert found, server.greeting
        server.address = found[0]
        server.key = server.key or (data_dir / "api-key").read_text().strip()
        server.wait_until(lambda: _ready(server), START_S)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(server: Server) -> bool:
    try:
        return httpx.get(f"{server.address}/ready", verify=False).status_code == 200
    except httpx.TransportError:
        return False


def curl() -> str | None:
    return shutil.which("curl")
