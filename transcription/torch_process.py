"""A child process with torch as the server sees it: started when it is needed, ended when nobody needs it any more.

Torch alone takes some hundred megabytes before it has loaded a model, so none of it stays for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import psutil
import structlog

import telemetry
from errors import EngineFailed, GpuOutOfMemory, OutOfMemory, WorkerCrashed
from transcription import protocol

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "transcription.torch_child")

NICENESS = 2
"""As the engine's: the server goes before it."""

START_S = 180.0
"""Importing torch takes some seconds, on a cold disk and a small machine a minute."""

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class TorchProcess:
    """One child with one role, or none. A context manager. Lives on one event loop.

    One call at a time; whoever waits for another's should stand in a line with fair turns. Invariant: every call ends,
    with its answer or with an error.
    """

    def __init__(
        self,
        role: str,
        *,
        config: dict[str, Any] | None = None,
        idle_s: float = 300.0,
        log_level: str = "info",
        threads: int = 1,
        device: str = "auto",
        local_only: bool = False,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """*config*: what that role wants to know besides. *idle_s*: a child that has had nothing to do for so long is
        ended; 0: never. *threads*: of torch on the CPU. *local_only*: no model is fetched."""
        self.role = role
        self._config = {
            "role": role,
            "parent": os.getpid(),
            "log_level": log_level,
            "niceness": NICENESS,
            "threads": threads,
            "device": device,
            "local_only": local_only,
        } | (config or {})
        self.device = device
        self._idle_s = idle_s
        self._command = command
        self._child: asyncio.subprocess.Process | None = None
        self._buried: list[asyncio.subprocess.Process] = []
        """Those that were killed."""
        self._turn = asyncio.Lock()
        self._ids = itertools.count(1)
        self._ending: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Task[dict[str, Any]]] = set()

    @staticmethod
    def is_possible() -> bool:
        """Whether what it needs is installed."""
        return find_spec("whisperx") is not None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child and self._child.returncode is None else None

    @property
    def resident_bytes(self) -> int:
        """Main memory of the child; 0 where there is none."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0
        except psutil.NoSuchProcess:
            return 0

    def __repr__(self) -> str:
        return f"<TorchProcess {self.role} pid={self.pid} busy={self._turn.locked()}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await asyncio.gather(*(child.wait() for child in self._buried))

    async def call(self, within_s: float, **content: Any) -> dict[str, Any]:
        """The child's answer to *content*, its start included where there is none.

        Raises WorkerCrashed when it dies or has not answered *within_s* (it is killed then); OutOfMemory, EngineFailed.
        """
        asked = content | {"request_id": telemetry.current_request_id()}
        call = asyncio.create_task(self._called(asked, within_s))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        # NOTE: shielded: a child that was asked will answer, whether its caller is still there or not.
        reply = await asyncio.shield(call)
        if reply.get("out_of_memory"):
            raise GpuOutOfMemory() if self.device.startswith("cuda") else OutOfMemory()
        if "error" in reply:
            raise EngineFailed()
        return reply

    def end(self) -> None:
        """Kill the child, where there is one: the next call starts another."""
        if self._ending:
            self._ending.cancel()
        # NOTE: forgotten at once: it takes a moment until a killed child is known to have ended.
        child, self._child = self._child, None
        if child and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            self._buried.append(child)

    def end_if_idle(self) -> None:
        if not self._turn.locked():
            if self.pid:
                log.info("ended: nobody needs it", process=self.role, pid=self.pid)
            self.end()

    async def _called(self, content: dict[str, Any], within_s: float) -> dict[str, Any]:
        async with self._turn:
            if self._ending:
                self._ending.cancel()
            try:
                async with asyncio.timeout(within_s + (0 if self.pid else START_S)):
                    return await self._exchange(content)
            except (TimeoutError, BrokenPipeError, ConnectionResetError) as error:
                log.error("the process is replaced", process=self.role, pid=self.pid, why=type(error).__name__)
                self.end()
                raise WorkerCrashed() from None
            finally:
                if self._idle_s:
                    self._ending = asyncio.get_running_loop().call_later(self._idle_s, self.end_if_idle)

    async def _exchange(self, content: dict[str, Any]) -> dict[str, Any]:
        child = self._child
        if child is None or child.returncode is not None:
            self._buried = [one for one in self._buried if one.returncode is None]
            child = self._child = await self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        number = next(self._ids)
        child.stdin.write(protocol.line({"id": number} | content))
        await child.stdin.drain()
        while line := await child.stdout.readline():
            reply: dict[str, Any] = json.loads(line)
            if reply["id"] == number:
                return reply
        log.error("the process ended", process=self.role, pid=child.pid, returncode=await child.wait())
        self.end()
        raise WorkerCrashed()

    async def _started(self) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=protocol.MAX_LINE_BYTES,
            cwd=Path(__file__).parent.parent,
            env=os.environ | ENVIRONMENT,
        )
        assert child.stdin is not None
        # NOTE: by stdin, not as an argument, which every user of the machine can read: there may be a token in it.
        child.stdin.write(protocol.line(self._config))
        log.info("started", process=self.role, pid=child.pid)
        return child
