"""The engine as the server sees it: a child process that holds the models and may die; no request dies with it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import structlog

import telemetry
from errors import EngineFailed, NotReady, WorkerCrashed
from transcription import protocol
from transcription.core import Segment, TranscriptionOptions, TranscriptSegment
from transcription.protocol import Hello, Language

log = structlog.get_logger(__name__)

START_TIMEOUT_S = 60.0
"""A call waits so long for a child to be there: a restart takes some seconds, a broken installation for ever."""

RESPAWN_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Waits before the child is started again; the last one repeats. A child that said hello starts from the first."""


class Engine:
    """One child process. Use as an async context manager: started on entry, stopped on exit.

    Invariant: every call that was sent ends, with its answer or, when the child dies, with WorkerCrashed.
    """

    def __init__(
        self,
        weights: Callable[[str], Path],
        *,
        model: str,
        device: str = "auto",
        compute_type: str = "auto",
        threads: int = 0,
        log_level: str = "info",
    ) -> None:
        """*weights* finds (or fetches; it may block) a model's folder. *model* is loaded before the engine is ready."""
        self._weights = weights
        self._model = model
        self._config = {
            "device": device,
            "compute_type": compute_type,
            "threads": threads or available_cores(),
            "log_level": log_level,
        }
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._hello: Hello | None = None
        self._loaded: list[str] = []
        self._up = asyncio.Event()
        self._ready = False
        self._failure: str | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the child lives and has loaded its first model."""
        return self._ready

    @property
    def device(self) -> str:
        return self._hello.device if self._hello else str(self._config["device"])

    @property
    def compute_type(self) -> str:
        return self._hello.compute_type if self._hello else str(self._config["compute_type"])

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def loaded(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        return list(self._loaded)

    def __repr__(self) -> str:
        return f"<Engine pid={self.pid} ready={self._ready} loaded={self._loaded} calls={len(self._calls)}>"

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_alive(), name="engine")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    async def transcribe(
        self, segments: Sequence[Segment], options: TranscriptionOptions, *, request_ids: Sequence[str] = ()
    ) -> list[TranscriptSegment]:
        """One result a segment; the child's log lines bear *request_ids*.

        Raises WorkerCrashed when the child dies meanwhile, EngineFailed on its errors.
        """
        reply = await self._call(
            "transcribe",
            options.model,
            segments=[protocol.plain(segment) for segment in segments],
            options=protocol.plain(options),
            request_id=" ".join(request_ids) or None,
        )
        return [protocol.result_from(data) for data in reply["results"]]

    async def detect_language(self, segments: Sequence[Segment], model: str) -> Language:
        """The language of the speech in *segments*. Raises as `transcribe` does."""
        reply = await self._call("detect_language", model, segments=[protocol.plain(segment) for segment in segments])
        return Language(**reply["language"])

    async def find_weights(self, model: str) -> None:
        """Have *model* on disk, fetched where it must be. Raises ModelUnavailable, UnknownModel."""
        await asyncio.to_thread(self._weights, model)

    async def load(self, model: str) -> None:
        """Bring *model* into memory. Raises ModelUnavailable, or as `transcribe` does."""
        await self._call("load", model)

    async def _call(self, op: str, model: str, **content: Any) -> dict[str, Any]:
        path = await asyncio.to_thread(self._weights, model)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._up.wait()
        except TimeoutError:
            raise NotReady(self._failure) from None
        assert self._child is not None
        assert self._child.stdin is not None
        number = next(self._ids)
        call = {"id": number, "op": op, "model": model, "path": str(path), "request_id": telemetry.current_request_id()}
        answered = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self._child.stdin.write(protocol.line(call | content))
            await self._child.stdin.drain()
            reply: dict[str, Any] = await answered
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerCrashed() from None
        finally:
            self._calls.pop(number, None)
        self._loaded = reply["models"]
        if "error" in reply:
            log.error("the engine failed", op=op, model=model, error=reply["error"])
            raise EngineFailed()
        return reply

    async def _keep_alive(self) -> None:
        """Start the child, and again whenever it ends."""
        deaths = 0
        while True:
            await asyncio.sleep(RESPAWN_DELAYS_S[min(deaths, len(RESPAWN_DELAYS_S) - 1)])
            try:
                if await self._run_child():
                    deaths = 0
            except Exception as error:
                # NOTE: whatever it was, the next child may do better; without one every request would wait.
                self._failure = f"The engine's process failed: {error}"
                log.exception("engine failed")
            deaths += 1

    async def _run_child(self) -> bool:
        """One child's life, from start to end. Returns whether it ever said hello."""
        child = self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "transcription.engine_child",
            json.dumps(self._config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=protocol.MAX_LINE_BYTES,
            cwd=Path(__file__).parent.parent,
        )
        greeted = False
        warming: asyncio.Task[None] | None = None
        try:
            assert child.stdout is not None
            async for line in child.stdout:
                message = json.loads(line)
                if "id" not in message:
                    greeted, self._hello = True, Hello(**message)
                    self._up.set()
                    warming = asyncio.create_task(self._warm_up())
                elif (answered := self._calls.get(message["id"])) and not answered.done():
                    answered.set_result(message)
            log.error("the engine's process ended", returncode=await child.wait())
        finally:
            self._up.clear()
            self._ready, self._loaded = False, []
            for answered in self._calls.values():
                if not answered.done():
                    answered.set_exception(WorkerCrashed())
            if warming:
                warming.cancel()
            if child.returncode is None:
                child.kill()
            await child.wait()
        return greeted

    async def _warm_up(self) -> None:
        try:
            await self.load(self._model)
        except WorkerCrashed:
            return  # the next child warms up again
        except Exception as error:
            self._failure = str(error)
            log.error("no model is ready", model=self._model, reason=self._failure)
            return
        self._ready, self._failure = True, None
        log.info("ready", model=self._model, device=self.device, compute_type=self.compute_type)

    def check_ready(self) -> None:
        """Raises NotReady, with the reason where it is known."""
        if not self._ready:
            raise NotReady(self._failure)


def available_cores() -> int:
    """Cores this process may use: taskset and containers' cpusets counted in."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
