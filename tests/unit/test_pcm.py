"""Samples that are waited for while another writes them."""

from __future__ import annotations

import asyncio
import concurrent.futures
from pathlib import Path

import numpy as np
import pytest

from transcription import pcm as pcm_module
from transcription.pcm import ALL, GrowingPcm


@pytest.fixture(autouse=True)
def _no_pause_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcm_module, "POLL_S", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pcm"


def append(path: Path, *samples: int) -> None:
    with path.open("ab") as file:
        file.write(np.array(samples, "<i2").tobytes())


async def turns() -> None:
    """Let everybody else run as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_there_is_not_waited_for(path: Path) -> None:
    """Nor the end of what is still being written."""
    append(path, 1, 2, 3)
    assert await GrowingPcm(path, asyncio.Future()).wait_for(2) == 3
    assert await GrowingPcm(path).wait_for(2) == 3


async def test_a_complete_file_has_what_it_has(path: Path) -> None:
    """Asking for more tells how much there is. Half a sample is none."""
    append(path, 1, 2, 3)
    assert await GrowingPcm(path).wait_for(ALL) == 3
    path.write_bytes(bytes(5))
    assert await GrowingPcm(path).wait_for(ALL) == 2


async def test_samples_are_told_when_they_are_written(path: Path) -> None:
    """The file itself may come later than who reads it."""
    waiting = asyncio.create_task(GrowingPcm(path, asyncio.Future()).wait_for(3))
    await turns()
    append(path, 1, 2)
    await turns()
    assert not waiting.done()
    append(path, 3, 4)
    assert await waiting == 4


async def test_the_end_of_the_writing_ends_the_wait(path: Path) -> None:
    """What was written last counts, also where nobody looked in between."""
    complete: asyncio.Future[None] = asyncio.Future()
    waiting = asyncio.create_task(GrowingPcm(path, complete).wait_for(100))
    await turns()
    append(path, 1, 2)
    complete.set_result(None)
    assert await waiting == 2


async def test_who_waits_hears_why_the_writing_failed(path: Path) -> None:
    """So does who could have gone on: what was written of a file that failed is not to be used."""
    complete: asyncio.Future[None] = asyncio.Future()
    pcm = GrowingPcm(path, complete)
    append(path, 1, 2, 3)
    waiting = asyncio.create_task(pcm.wait_for(100))
    await turns()
    complete.set_exception(OSError("no room"))
    with pytest.raises(OSError, match="no room"):
        await waiting
    with pytest.raises(OSError, match="no room"):
        await pcm.wait_for(1)


async def test_leaving_does_not_disturb_the_writing(path: Path) -> None:
    """It has an owner of its own, who cleans up."""
    complete: asyncio.Future[None] = asyncio.Future()
    waiting = asyncio.create_task(GrowingPcm(path, complete).wait_for(1))
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not complete.done()


async def test_a_hundred_who_wait_hold_no_thread(path: Path) -> None:
    """The network runs in threads, of which there are few."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
    complete: asyncio.Future[None] = asyncio.Future()
    waiting = [asyncio.create_task(GrowingPcm(path, complete).wait_for(1)) for _ in range(100)]
    await turns()
    assert await asyncio.to_thread(lambda: "free") == "free"
    complete.set_result(None)
    assert await asyncio.gather(*waiting) == [0] * 100


async def test_samples_are_read_by_their_place(path: Path) -> None:
    append(path, 1, 2, 3, -4, 5)
    pcm = GrowingPcm(path)
    assert pcm.read(1, 4).tolist() == [2, 3, -4]
    assert pcm.read(0, 0).tolist() == []
