"""One engine as the server sees it: a child process that holds the models and may die; no request dies with it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import structlog

import telemetry
from errors import EngineFailed, GpuOutOfMemory, NotReady, OutOfMemory, ServiceError, WorkerCrashed
from transcription import protocol
from transcription.core import Segment, SegmentRequest, TranscriptSegment
from transcription.placement import Placement, Weights
from transcription.protocol import Hello, Language
from transcription.seen_memory import Sight
from transcription.vitals import BEAT_S, Verdict, verdict

log = structlog.get_logger(__name__)

START_TIMEOUT_S = 60.0
"""Work waits so long for a child to be there: a restart takes some seconds, a broken installation for ever."""

ANSWER_WITHIN_S = 300.0
"""A batch takes no longer than this, its model's loading included, and twenty times its audio: else it is stuck."""

RESPAWN_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Waits before the child is started again; the last one repeats. A child that was ready starts from the first."""

NICENESS = 2
"""The engine's, on a CPU: the server, and ffmpeg for a short clip, go before a long file's next batch."""

PING = protocol.line({"id": 0, "op": "ping"})

COMMAND = (sys.executable, "-m", "transcription.engine_child")

ENVIRONMENT = {
    # Spectrograms are small: numpy's own threads wait for each other at the streams' expense (a fifth of the time).
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    # With a heap for each thread, glibc keeps what one has freed from the others: 90 MB more after 240 clips.
    "MALLOC_ARENA_MAX": "1",
}


class Engine:
    """One child process. Use as an async context manager: started on entry, stopped on exit.

    Invariant: every call that was sent ends, with its answer or, when the child dies, with WorkerCrashed.
    """

    def __init__(
        self,
        weights: Callable[[str], Awaitable[Weights]],
        *,
        model: str,
        placement: Placement | None = None,
        model_ttl_s: float = 0.0,
        log_level: str = "info",
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
        on_seen: Callable[[Sight], None] | None = None,
    ) -> None:
        """*weights* finds (or fetches) a model's. *model* is loaded before the engine is ready.

        Models unused for *model_ttl_s* are unloaded; 0: never. *on_seen* is told each look at the child's memory, as
        long as a child has had to do with one model only: what several take cannot be told apart.
        """
        self._weights = weights
        self._first_model: str | None = model
        self._placement = placement or Placement()
        self._model_ttl_s = model_ttl_s
        self._log_level = log_level
        self._command = command
        self._clock = clock
        self._on_seen = on_seen
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._hello: Hello | None = None
        self._unheard_since: float | None = None
        """When it was asked for the sign of life that it still owes."""
        self._resident_bytes = 0
        self._loaded: list[str] = []
        self._used_at: dict[str, float] = {}
        self._models: set[str] = set()
        """All that this child was ever asked for."""
        self._up = asyncio.Event()
        self._warm = False
        self._failure: str | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the child lives, can be heard and has loaded its first model."""
        return self._warm and self.up

    @property
    def up(self) -> bool:
        """Whether it takes work."""
        return self._up.is_set()

    @property
    def streams(self) -> int:
        return self._placement.streams

    @property
    def express(self) -> bool:
        return self._placement.express

    @property
    def device(self) -> str:
        """Where it was placed, such as "cuda:1"; "auto" is resolved once the child has said hello."""
        return self._hello.device if self._hello and self._placement.device == "auto" else self._placement.device

    @property
    def compute_type(self) -> str:
        return self._hello.compute_type if self._hello else self._placement.compute_type

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def calls(self) -> int:
        """Calls under way."""
        return len(self._calls)

    @property
    def resident_bytes(self) -> int:
        """The child's main memory at its last sign of life; 0 before the first, and without a child."""
        return self._resident_bytes

    @property
    def failure(self) -> str | None:
        """Why it is not ready, where that is known."""
        return self._failure

    def loaded(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        return list(self._loaded)

    def __repr__(self) -> str:
        return f"<Engine pid={self.pid} ready={self.ready} loaded={self._loaded} calls={len(self._calls)}>"

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_alive(), name="engine")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    async def wait_until_up(self) -> None:
        """Return as soon as the engine takes work. Raises NotReady after START_TIMEOUT_S."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self.up:
                    await self._up.wait()
        except TimeoutError:
            raise NotReady(self._failure) from None

    async def transcribe(
        self, requests: Sequence[SegmentRequest], *, request_ids: Sequence[str] = ()
    ) -> list[TranscriptSegment | ServiceError]:
        """One result or error a request, which have the same model; the child's log lines bear *request_ids*.

        Raises WorkerCrashed when the child dies meanwhile, OutOfMemory when so many do not fit, EngineFailed.
        """
        reply = await self._call(
            "transcribe",
            requests[0].options.model,
            [request.segment for request in requests],
            requests=[protocol.plain(request) for request in requests],
            request_id=" ".join(request_ids) or None,
        )
        return [EngineFailed() if "error" in data else protocol.result_from(data) for data in reply["results"]]

    async def detect_language(self, segments: Sequence[Segment], model: str) -> Language:
        """The language of the speech in *segments*. Raises as `transcribe` does."""
        described = [protocol.plain(segment) for segment in segments]
        reply = await self._call("detect_language", model, segments, segments=described)
        return Language(**reply["language"])

    async def load(self, model: str) -> None:
        """Bring *model* into memory. Raises ModelUnavailable, or as `transcribe` does."""
        await self._call("load", model)

    async def _call(self, op: str, model: str, heard: Sequence[Segment] = (), /, **content: Any) -> dict[str, Any]:
        """The child's answer. *heard*: what it is to listen to, which says how long it may take."""
        weights = await self._weights(model)
        await self.wait_until_up()
        call = {"op": op, "model": model, "path": str(weights.path), "bytes": weights.bytes}
        self._used_at[model] = self._clock()
        self._models.add(model)
        within_s = ANSWER_WITHIN_S + 20 * sum(segment.duration_s for segment in heard)
        reply = await self._send(call | {"request_id": telemetry.current_request_id()} | content, within_s)
        self._used_at[model] = self._clock()
        if reply.get("out_of_memory"):
            raise GpuOutOfMemory() if self.device.startswith("cuda") else OutOfMemory()
        if "error" in reply:
            log.error("the engine failed", op=op, model=model)
            raise EngineFailed()
        return reply

    async def _send(self, call: dict[str, Any], within_s: float) -> dict[str, Any]:
        """The child's answer to *call*. Raises WorkerCrashed when it dies before; it is killed after *within_s*."""
        child = self._child
        assert child is not None
        assert child.stdin is not None
        number = next(self._ids)
        answered = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                child.stdin.write(protocol.line({"id": number} | call))
                await child.stdin.drain()
                reply: dict[str, Any] = await answered
        except TimeoutError:
            log.error("a call takes for ever: the engine's process is replaced", pid=child.pid, op=call["op"])
            if child.returncode is None:
                child.kill()
            raise WorkerCrashed() from None
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerCrashed() from None
        finally:
            self._calls.pop(number, None)
        return reply

    # --- the child's life ---------------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Start the child, and again whenever it ends."""
        deaths = 0
        while True:
            await asyncio.sleep(RESPAWN_DELAYS_S[min(deaths, len(RESPAWN_DELAYS_S) - 1)])
            try:
                deaths = 0 if await self._run_child() else deaths + 1
            except Exception as error:
                # NOTE: whatever it was, the next child may do better; without one every request would wait.
                self._failure = f"The engine's process failed: {error}"
                log.exception("engine failed")
                deaths += 1

    async def _run_child(self) -> bool:
        """One child's life, from start to end. Returns whether it was ready at its end."""
        child = self._child = await self._started()
        self._unheard_since = None
        self._models.clear()
        nurses: list[asyncio.Task[None]] = []
        try:
            assert child.stdout is not None
            async with asyncio.timeout(START_TIMEOUT_S):
                hello = await child.stdout.readline()
            if hello:
                self._hello = Hello(**json.loads(hello))
                empty_bytes = _resident_bytes(child.pid)
                self._up.set()
                nurses = [asyncio.create_task(self._warm_up(empty_bytes)), asyncio.create_task(self._watch(child))]
            async for line in child.stdout:
                self._unheard_since = None
                answer = json.loads(line)
                self._loaded = answer.get("models", self._loaded)
                if (answered := self._calls.get(answer["id"])) and not answered.done():
                    answered.set_result(answer)
            log.error("the engine's process ended", pid=child.pid, returncode=await child.wait())
        finally:
            self._up.clear()
            was_warm, self._warm, self._loaded = self._warm, False, []
            self._resident_bytes = 0
            for answered in self._calls.values():
                if not answered.done():
                    answered.set_exception(WorkerCrashed())
            for nurse in nurses:
                nurse.cancel()
            if child.returncode is None:
                child.kill()
            await child.wait()
        return was_warm

    async def _started(self) -> asyncio.subprocess.Process:
        placement = self._placement
        config = {
            "parent": os.getpid(),
            "device": placement.device,
            "compute_type": placement.compute_type,
            "streams": placement.streams + placement.express,
            "threads": placement.threads,
            "models_bytes": placement.models_bytes,
            "niceness": NICENESS,
            "log_level": self._log_level,
        }
        return await asyncio.create_subprocess_exec(
            *self._command,
            json.dumps(config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=protocol.MAX_LINE_BYTES,
            cwd=Path(__file__).parent.parent,
            env=os.environ | ENVIRONMENT,
        )

    async def _warm_up(self, empty_bytes: int) -> None:
        """Load the first model into a child that holds *empty_bytes* without one."""
        if self._first_model is not None:
            try:
                await self.load(self._first_model)
            except WorkerCrashed:
                return  # the next child warms up again
            except Exception as error:
                self._failure = str(error)
                log.error("no model is ready", model=self._first_model, reason=self._failure)
                return
            if self._child and not self._calls and (loaded_bytes := _resident_bytes(self._child.pid)) > empty_bytes > 0:
                self._see(loaded_bytes, load_bytes=loaded_bytes - empty_bytes)
        self._warm, self._failure = True, None
        log.info("ready", pid=self.pid, model=self._first_model, device=self.device, compute_type=self.compute_type)

    async def _watch(self, child: asyncio.subprocess.Process) -> None:
        """Ask for a sign of life again and again; replace a child that gives none, or takes too much memory."""
        assert child.stdin is not None
        while True:
            # NOTE: not drained: a child that is stopped reads nothing.
            child.stdin.write(PING)
            # Counted from here, not from its last answer: a server that was itself held up must not blame the child.
            if self._unheard_since is None:
                self._unheard_since = self._clock()
            await asyncio.sleep(BEAT_S)
            rss_bytes = self._resident_bytes = _resident_bytes(child.pid)
            if not rss_bytes:
                return
            self._see(rss_bytes, work_s=BEAT_S if self._calls else 0.0)
            unheard_s = 0.0 if self._unheard_since is None else self._clock() - self._unheard_since
            found = verdict(unheard_s, rss_bytes, self._placement.bound_bytes)
            if found is Verdict.WELL:
                self._up.set()
                self._unload_idle(child.stdin)
                continue
            self._up.clear()
            if found in (Verdict.STUCK, Verdict.OVERGROWN) or (found is Verdict.FULL and not self._calls):
                log.error("the engine's process is replaced", pid=child.pid, why=found.value, rss_mib=rss_bytes >> 20)
                self._kill()

    def _see(self, resident_bytes: int, *, work_s: float = 0.0, load_bytes: int | None = None) -> None:
        """Tell what the child holds, where all of it is one model's."""
        if self._on_seen and len(self._models) == 1 and self._loaded == [*self._models]:
            [model] = self._loaded
            kind = self.device.partition(":")[0]
            self._on_seen(Sight(kind, self.compute_type, model, resident_bytes, work_s, load_bytes))

    def _unload_idle(self, stdin: asyncio.StreamWriter) -> None:
        """Unload what was not used for long. The last model goes with its process.

        Unloading leaves some 100 MB in the process (libraries' caches and threads); a fresh one has none of it.
        """
        if not self._model_ttl_s:
            return
        now = self._clock()
        idle = [name for name in self._loaded if now - self._used_at.get(name, now) > self._model_ttl_s]
        if idle and len(idle) == len(self._loaded) and not self._calls:
            log.info("no model was used for long: a fresh process without one", pid=self.pid, models=idle)
            self._first_model = None
            self._kill()
            return
        for name in idle:
            # NOTE: asked once, and not waited for: all streams may be busy. Who uses it meanwhile notes the time anew.
            del self._used_at[name]
            stdin.write(protocol.line({"id": 0, "op": "unload", "model": name}))

    def _kill(self) -> None:
        """End the child; the next one is started at once."""
        self._up.clear()
        if self._child and self._child.returncode is None:
            self._child.kill()


def _resident_bytes(pid: int) -> int:
    """The process's main memory; 0 where it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
