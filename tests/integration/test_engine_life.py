"""The real engine process with real weights: how it dies, is replaced, and gives its memory back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from errors import WorkerCrashed
from tests.engines import OPTIONS, TWO_STREAMS, asked, made_engine, parts, until, weights_in
from tests.speech import ROOT
from transcription import engine as engine_module
from transcription.core import Segment, TranscriptSegment
from transcription.engine import Engine
from transcription.seen_memory import Sight

SLOWLY = replace(OPTIONS, beam_size=16)

Pulse = Callable[..., None]


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Pulse:
    """Sets how often a process is asked for a sign of life, and how patient the engine is."""

    def set_to(
        beat_s: float, *, silent_after_s: float = math.inf, stuck_after_s: float = math.inf, at_once: float = math.inf
    ) -> None:
        monkeypatch.setattr("transcription.engine.BEAT_S", beat_s)
        monkeypatch.setattr("transcription.vitals.SILENT_AFTER_S", silent_after_s)
        monkeypatch.setattr("transcription.vitals.STUCK_AFTER_S", stuck_after_s)
        monkeypatch.setattr("transcription.vitals.OVERGROWN_AT_ONCE", at_once)

    return set_to


def pid_of(engine: Engine) -> int:
    assert engine.pid is not None
    return engine.pid


def is_gone(pid: int) -> bool:
    """Whether it has ended; whoever took it over from a dead parent may leave it a zombie."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def heard(engine: Engine, speech: Segment) -> str:
    [result] = await engine.transcribe(asked(speech))
    assert isinstance(result, TranscriptSegment)
    return result.text


# --- death -----------------------------------------------------------------------------------------------------------


async def test_a_killed_engine_fails_its_calls_and_comes_back(models_dir: Path, speech: Segment) -> None:
    """Each call hears of it; the next one finds a new process."""
    async with made_engine(models_dir) as engine:
        await engine.load("tiny.en")
        first = pid_of(engine)
        calls = [asyncio.create_task(engine.transcribe(asked(speech, options=SLOWLY))) for _ in range(4)]
        await until(lambda: engine.calls == 4)
        os.kill(first, signal.SIGKILL)
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(failure) for failure in failures] == [WorkerCrashed] * 4
        assert not engine.ready
        assert await heard(engine, speech)
        assert engine.pid != first


async def test_the_process_ends_with_the_engine(models_dir: Path) -> None:
    """No orphan holds the memory."""
    async with made_engine(models_dir) as engine:
        await engine.load("tiny.en")
        pid = pid_of(engine)
        assert engine.loaded() == ["tiny.en"]
    assert not psutil.pid_exists(pid)


SERVER = """
import asyncio, sys
from pathlib import Path
from tests.engines import made_engine

async def main():
    async with made_engine(Path(sys.argv[1])) as engine:
        await engine.load("tiny.en")
        print(engine.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stopped process with its parent")
def test_the_process_ends_with_a_server_that_was_killed(models_dir: Path) -> None:
    """Even one that is stopped, which cannot see that its stdin has ended. It would hold the memory for ever."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(models_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        os.kill(child, signal.SIGSTOP)
        server.kill()
        try:
            # The child writes to the server's stderr: that ends when both have.
            server.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


# --- silence ---------------------------------------------------------------------------------------------------------


async def test_a_process_that_stands_still_takes_no_work_until_it_goes_on(models_dir: Path, pulse: Pulse) -> None:
    """A machine that swaps may stop it for seconds: others take its work meanwhile, and its models stay."""
    pulse(0.05, silent_after_s=0.5)
    async with made_engine(models_dir) as engine:
        await until(lambda: engine.ready)
        first = pid_of(engine)
        os.kill(first, signal.SIGSTOP)
        await until(lambda: not engine.up)
        assert not engine.ready
        os.kill(first, signal.SIGCONT)
        await until(lambda: engine.ready)
        assert (engine.pid, engine.loaded()) == (first, ["tiny.en"])


async def test_a_process_that_stands_still_for_long_is_replaced(
    models_dir: Path, speech: Segment, pulse: Pulse
) -> None:
    """Nobody else would ever end its calls."""
    pulse(0.05)
    async with made_engine(models_dir) as engine:
        await until(lambda: engine.ready)
        first = pid_of(engine)
        os.kill(first, signal.SIGSTOP)
        call = asyncio.create_task(engine.transcribe(asked(speech)))
        await until(lambda: engine.calls == 1)
        pulse(0.05, stuck_after_s=0.5)
        with pytest.raises(WorkerCrashed):
            await call
        pulse(0.05)
        assert await heard(engine, speech)
        assert engine.pid != first
        assert is_gone(first)


async def test_a_server_that_was_held_up_does_not_blame_its_engine(models_dir: Path, pulse: Pulse) -> None:
    """A paused container comes back with the clock far ahead, and nothing said in between."""
    now_s = 0.0
    asked_for = 0

    def clock() -> float:
        nonlocal asked_for
        asked_for += 1
        return now_s

    async with made_engine(models_dir, clock=clock) as engine:
        await until(lambda: engine.ready)
        first = pid_of(engine)
        pulse(0.5, silent_after_s=3.0, stuck_after_s=10.0)
        now_s, asked_for = 60.0, 0
        await until(lambda: asked_for == 3)
        assert (engine.pid, engine.ready) == (first, True)


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_a_process_past_its_bound_answers_first_and_is_replaced_then(
    models_dir: Path, speech: Segment, pulse: Pulse
) -> None:
    """Nobody's batch is lost for it; what comes meanwhile waits for the next one."""
    pulse(0.05)
    async with made_engine(models_dir, placement=replace(TWO_STREAMS, bound_bytes=1)) as engine:
        call = asyncio.create_task(engine.transcribe(asked(*parts(speech, 4), options=SLOWLY)))
        await until(lambda: engine.calls > 0 and not engine.up)
        first = pid_of(engine)
        assert not call.done()
        assert all(isinstance(result, TranscriptSegment) for result in await call)
        await until(lambda: engine.pid != first)
        assert is_gone(first)


async def test_a_process_far_past_its_bound_is_replaced_at_once(
    models_dir: Path, speech: Segment, pulse: Pulse
) -> None:
    """Else the system kills, and may choose the server."""
    pulse(0.05, at_once=1.25)
    async with made_engine(models_dir, placement=replace(TWO_STREAMS, bound_bytes=1)) as engine:
        call = asyncio.create_task(engine.transcribe(asked(*parts(speech, 4), options=SLOWLY)))
        await until(lambda: engine.calls > 0)
        first = pid_of(engine)
        with pytest.raises(WorkerCrashed):
            await call
        await until(lambda: engine.pid != first and engine.up)


async def test_what_the_process_holds_is_told_while_it_lives(models_dir: Path, pulse: Pulse) -> None:
    """It is held against what was planned; a process that is gone holds nothing."""
    pulse(0.05)
    async with made_engine(models_dir) as engine:
        assert engine.resident_bytes == 0
        await engine.load("tiny.en")
        held_bytes = psutil.Process(pid_of(engine)).memory_info().rss
        await until(lambda: engine.resident_bytes > held_bytes / 2)
        assert engine.resident_bytes < 2 * held_bytes
    assert engine.resident_bytes == 0


async def test_looks_at_a_process_are_told_while_it_has_one_model_only(
    models_dir: Path, speech: Segment, pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What loading took, once; then what it holds at work. Of two models nobody could tell which takes what."""
    pulse(0.05)
    sights: list[Sight] = []
    looks, look = 0, engine_module._resident_bytes

    def counted(pid: int) -> int:
        nonlocal looks
        looks += 1
        return look(pid)

    monkeypatch.setattr(engine_module, "_resident_bytes", counted)
    async with made_engine(models_dir, on_seen=sights.append) as engine:
        await until(lambda: engine.ready)
        await engine.transcribe(asked(*parts(speech, 4), options=SLOWLY))
        await until(lambda: any(sight.work_s for sight in sights))
        [loaded] = [sight for sight in sights if sight.load_bytes is not None]
        assert weights_in(models_dir)("tiny.en").bytes / 2 < (loaded.load_bytes or 0) < loaded.resident_bytes
        assert loaded.work_s == 0
        await engine.load("base")
        told, looked = len(sights), looks
        await until(lambda: looks > looked + 2)
        assert len(sights) == told
    assert {(sight.device, sight.compute_type, sight.model) for sight in sights} == {("cpu", "int8", "tiny.en")}


async def test_idle_models_give_their_memory_back(models_dir: Path, speech: Segment, pulse: Pulse) -> None:
    """One by one where another is in use; the last one with its process, which keeps some of it otherwise."""
    now_s = 0.0
    pulse(0.05)
    async with made_engine(models_dir, model_ttl_s=600.0, clock=lambda: now_s) as engine:
        await engine.load("tiny.en")
        await engine.load("base")
        assert sorted(engine.loaded()) == ["base", "tiny.en"]
        first = pid_of(engine)

        now_s = 500.0
        call = asyncio.create_task(engine.transcribe(asked(*[speech] * 6, options=SLOWLY)))
        await until(lambda: engine.calls == 1)
        now_s = 700.0
        await until(lambda: engine.loaded() == ["tiny.en"])
        assert not call.done()
        await call
        assert (engine.pid, engine.ready, engine.loaded()) == (first, True, ["tiny.en"])

        before_bytes = psutil.Process(first).memory_info().rss
        now_s = 2_000.0
        await until(lambda: engine.pid != first and engine.ready)
        assert engine.loaded() == []
        given_back_bytes = before_bytes - psutil.Process(pid_of(engine)).memory_info().rss
        assert given_back_bytes > weights_in(models_dir)("tiny.en").bytes

        assert await heard(engine, speech)
        assert engine.loaded() == ["tiny.en"]
