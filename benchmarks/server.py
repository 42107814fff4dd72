"""A real Stenogate server as a process, and the calls that are timed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from benchmarks.engine_log import events_in
from benchmarks.processes import environment, stop, tree
from benchmarks.speech_set import ROOT, Clip
from benchmarks.weights import MODEL_DIR

READY_WITHIN_S = 120.0
ANSWER_WITHIN_S = 3_600.0
ENGINE_MODULE = "transcription.engine_child"


class ServerFailed(Exception):
    """The server did not become ready, or answered with an error; its own words follow."""


class Refused(ServerFailed):
    """The server answered with a problem; *code* is its own word for it."""

    def __init__(self, clip: Clip, status: int, body: bytes) -> None:
        try:
            self.code = str(json.loads(body)["code"])
        except (ValueError, KeyError, TypeError):
            self.code = f"HTTP {status}"
        super().__init__(f"{clip.name}: {status} {body.decode(errors='replace')}")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engines are laid out. 0 leaves it to the server, as its users do."""

    replicas: int = 0
    streams: int = 0
    cores: int = 0
    """Of all engines together."""
    batch_size: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read REPLICAS:STREAMS:CORES:BATCH_SIZE. Raises ValueError."""
        replicas, streams, cores, batch_size = (int(part) for part in text.split(":"))
        return cls(replicas, streams, cores, batch_size)

    def environment(self) -> dict[str, str]:
        """The server's settings, those left to it absent."""
        values = {
            "ENGINE_REPLICAS": self.replicas,
            "ENGINE_STREAMS": self.streams,
            "CPU_THREADS": self.cores,
            "BATCH_SIZE": self.batch_size,
        }
        return {name: str(value) for name, value in values.items() if value}


DECIDED = EngineSettings()
"""All is left to the server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One transcription as the caller saw it."""

    text: str
    language: str
    seconds: float


class Client:
    """Speaks to one server, from any number of threads."""

    def __init__(self, url: str, key: str, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=answer_within_s, trust_env=False)

    def transcribe(self, clip: Clip, model: str, language: str | None, beam_size: int = 5) -> Answer:
        """Upload the clip and wait for its transcript. Raises ServerFailed with the server's problem."""
        parameters = {"model_size": model, "beam_size": str(beam_size)} | ({"language": language} if language else {})
        started = time.perf_counter()
        with clip.path.open("rb") as file:
            reply = self._http.post("/transcribe", params=parameters, files={"file": (clip.path.name, file)})
        seconds = time.perf_counter() - started
        if reply.status_code != 200:
            raise Refused(clip, reply.status_code, reply.content)
        document: dict[str, Any] = reply.json()
        return Answer(document["text"], document["language"], seconds)

    def hang_up(self, clip: Clip, model: str, after_s: float) -> None:
        """Send the clip and leave *after_s* later, unanswered. Raises ServerFailed where the answer was there first."""
        leaving = httpx.Timeout(ANSWER_WITHIN_S, read=after_s)
        try:
            with clip.path.open("rb") as file:
                self._http.post("/transcribe", params={"model_size": model}, files={"file": file}, timeout=leaving)
        except httpx.ReadTimeout:
            return
        raise ServerFailed(f"{clip.name} was answered within {after_s:.1f} s")

    def is_ready(self) -> bool:
        try:
            return self._http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()


class Server:
    """`python main.py` on a free port with a folder of its own for data; ended by its own id. A context manager."""

    def __init__(
        self,
        model: str,
        engine: EngineSettings = DECIDED,
        *,
        beam_size: int = 5,
        log_level: str = "warning",
        answer_within_s: float = ANSWER_WITHIN_S,
        settings: Mapping[str, str] | None = None,
        cgroup: Path | None = None,
    ) -> None:
        """*settings*: more of them, by their names in the environment. *cgroup*: the control group to live in."""
        self.model = model
        self._data = tempfile.TemporaryDirectory(prefix="stenogate-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        key, port = secrets.token_hex(16), free_port()
        chosen = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "API_KEYS": key,
            "DATA_DIR": self._data.name,
            "MODEL_DIR": str(MODEL_DIR),
            "MODEL_SIZE": model,
            "MODEL_DOWNLOADS": "false",
            "DEVICES": "cpu",
            "COMPUTE_TYPE": "int8",
            "BEAM_SIZE": str(beam_size),
            "LOG_LEVEL": log_level,
            **engine.environment(),
            **(settings or {}),
        }
        self.data = Path(self._data.name)
        self._command = _inside(cgroup, [sys.executable, "main.py"])
        self._environment = {**environment(self.data), **chosen}
        started = time.perf_counter()
        self.process = self._started()
        self.key = key
        self.port = port
        self.client = Client(f"http://127.0.0.1:{port}", key, answer_within_s)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - started

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self._environment,
        )

    def strike(self, number: int) -> None:
        """Send the signal of that *number* to the server's own process, and wait for its end where it ends."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def start_again(self) -> None:
        """Once it has ended: on the same port, with the same data; ready when this returns."""
        self.process = self._started()
        self._wait_until_ready()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + READY_WITHIN_S
        while not self.client.is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise ServerFailed(self._logged(0)[-3000:])
            time.sleep(0.1)

    def hear(self, clip: Clip) -> str:
        """The text of the clip, by the model that the server was started with."""
        return self.client.transcribe(clip, self.model, clip.language).text

    def engines(self) -> list[psutil.Process]:
        """The engines' processes that live, oldest first."""
        found = []
        for process in tree(self.pid)[1:]:
            try:
                if ENGINE_MODULE in process.cmdline():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return sorted(found, key=lambda process: process.pid)

    def log_end(self) -> int:
        """Where the log ends now, to read from later."""
        return os.fstat(self._log.fileno()).st_size

    def events(self, name: str, since: int = 0) -> list[dict[str, Any]]:
        """What the server and its engines have logged by that name after the place *since*."""
        return events_in(self._logged(since), name)

    def _logged(self, since: int) -> str:
        # NOTE: the processes write where this file's offset stands, so that it must not be moved: no seek.
        return os.pread(self._log.fileno(), self.log_end() - since, since).decode(errors="replace")

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


def _inside(cgroup: Path | None, command: list[str]) -> list[str]:
    """*command*, as a process of *cgroup* from its first moment on."""
    if cgroup is None:
        return command
    return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(cgroup / "cgroup.procs"), *command]


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
