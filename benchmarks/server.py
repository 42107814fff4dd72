"""A real Stenogate server as a process, and the calls that are timed."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.processes import environment, stop
from benchmarks.speech_set import ROOT, Clip
from benchmarks.weights import MODEL_DIR

READY_WITHIN_S = 120.0
ANSWER_WITHIN_S = 3_600.0


class ServerFailed(Exception):
    """The server did not become ready, or answered with an error; its own words follow."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One transcription as the caller saw it."""

    text: str
    language: str
    seconds: float
    first_byte_s: float


class Client:
    """Speaks to one server, from any number of threads."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=ANSWER_WITHIN_S, trust_env=False)

    def transcribe(self, clip: Clip, model: str, language: str | None, beam_size: int = 5) -> Answer:
        """Upload the clip and wait for its transcript. Raises ServerFailed with the server's problem."""
        parameters = {"model_size": model, "beam_size": str(beam_size), "response_format": "json"}
        if language:
            parameters["language"] = language
        started = time.perf_counter()
        with (
            clip.path.open("rb") as file,
            self._http.stream(
                "POST", "/transcribe", params=parameters, files={"file": (clip.path.name, file)}
            ) as reply,
        ):
            chunks = reply.iter_bytes()
            body = next(chunks, b"")
            first_byte_s = time.perf_counter() - started
            body += b"".join(chunks)
        if reply.status_code != 200:
            raise ServerFailed(f"{clip.name}: {reply.status_code} {body.decode(errors='replace')}")
        seconds = time.perf_counter() - started
        document: dict[str, Any] = httpx.Response(200, content=body).json()
        return Answer(document["text"], document["language"], seconds, first_byte_s)

    def is_ready(self) -> bool:
        try:
            return self._http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()


class Server:
    """`python main.py` on a free port with a folder of its own for data; ended by its own id. A context manager."""

    def __init__(self, model: str, threads: int, beam_size: int = 5, batch_size: int = 8) -> None:
        self._data = tempfile.TemporaryDirectory(prefix="stenogate-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        key, port = secrets.token_hex(16), free_port()
        settings = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "API_KEYS": key,
            "DATA_DIR": self._data.name,
            "MODEL_DIR": str(MODEL_DIR),
            "MODEL_SIZE": model,
            "MODEL_DOWNLOADS": "false",
            "DEVICE": "cpu",
            "COMPUTE_TYPE": "int8",
            "CPU_THREADS": str(threads),
            "BATCH_SIZE": str(batch_size),
            "BEAM_SIZE": str(beam_size),
            "LOG_LEVEL": "warning",
        }
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "main.py"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**environment(threads, Path(self._data.name)), **settings},
        )
        self.client = Client(f"http://127.0.0.1:{port}", key)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - started

    @property
    def pid(self) -> int:
        return self.process.pid

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + READY_WITHIN_S
        while not self.client.is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                self._log.seek(0, os.SEEK_SET)
                raise ServerFailed(self._log.read().decode(errors="replace")[-3000:])
            time.sleep(0.1)

    def close(self) -> None:
        stop(self.process)
        self.client.close()
        self._log.close()
        self._data.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
