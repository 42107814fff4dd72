"""A process that comes when it is needed, goes when it is not, and takes no call with it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio

from errors import EngineFailed, GpuOutOfMemory, OutOfMemory, WorkerCrashed
from transcription.torch_process import TorchProcess

COMMAND = (sys.executable, "-m", "tests.torch_child")


def made(**more: Any) -> TorchProcess:
    return TorchProcess("alignment", **{"command": COMMAND, "idle_s": 0.0} | more)


@pytest_asyncio.fixture
async def process() -> AsyncIterator[TorchProcess]:
    async with made() as process:
        yield process


async def test_there_is_none_before_the_first_call(process: TorchProcess) -> None:
    """Torch takes some hundred megabytes for nothing."""
    assert (process.pid, process.resident_bytes) == (None, 0)
    reply = await process.call(60, do="pid")
    assert reply["pid"] == process.pid
    assert process.resident_bytes > 0


async def test_calls_get_their_own_answers(process: TorchProcess) -> None:
    replies = await asyncio.gather(*(process.call(60, do="echo", number=number) for number in range(5)))
    assert [reply["told"]["number"] for reply in replies] == list(range(5))


async def test_one_that_dies_fails_its_call_and_the_next_has_another(process: TorchProcess) -> None:
    first = (await process.call(60, do="pid"))["pid"]
    with pytest.raises(WorkerCrashed):
        await process.call(60, do="die")
    assert (await process.call(60, do="pid"))["pid"] != first


async def test_one_that_hangs_is_replaced(process: TorchProcess) -> None:
    """Its caller is told, and the next call does not wait for it."""
    first = (await process.call(60, do="pid"))["pid"]
    with pytest.raises(WorkerCrashed):
        await process.call(0.0, do="hang")
    assert (await process.call(60, do="pid"))["pid"] != first


@pytest.mark.parametrize(
    ("do", "device", "error"),
    [("fail", "auto", EngineFailed), ("memory", "auto", OutOfMemory), ("memory", "cuda", GpuOutOfMemory)],
)
async def test_errors_have_their_names(do: str, device: str, error: type[Exception]) -> None:
    async with made(device=device) as process:
        with pytest.raises(error):
            await process.call(60, do=do)
        assert (await process.call(60, do="echo"))["told"]["do"] == "echo"


async def test_a_caller_who_leaves_does_not_take_the_others_answer(process: TorchProcess) -> None:
    """What was asked is answered, to nobody; the next answer is the next caller's."""
    leaves = asyncio.create_task(process.call(60, do="echo", who="leaves"))
    await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert (await process.call(60, do="echo", who="stays"))["told"]["who"] == "stays"


async def test_it_ends_when_nobody_needs_it() -> None:
    async with made(idle_s=0.01) as process:
        pid = (await process.call(60, do="pid"))["pid"]
        async with asyncio.timeout(60):
            while psutil.pid_exists(pid):  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert process.pid is None
        assert (await process.call(60, do="pid"))["pid"] != pid


async def test_it_ends_with_the_server() -> None:
    async with made() as process:
        pid = (await process.call(60, do="pid"))["pid"]
    assert not psutil.pid_exists(pid)


async def test_a_token_stands_in_no_command_line() -> None:
    """Every user of a machine can read those."""
    async with made(config={"token": "hf_secret"}) as process:
        assert (await process.call(60, do="config"))["config"]["token"] == "hf_secret"
        assert process.pid is not None
        assert "hf_secret" not in " ".join(psutil.Process(process.pid).cmdline())
        assert "hf_secret" not in repr(process)
