"""The bytes of one device: never more lent than there are, in order, and none lost with who hangs up."""

from __future__ import annotations

import asyncio

import pytest

from errors import TooLarge
from limits import HEADROOM_BYTES, MemorySemaphore
from tests.gates import rounds


def waiter(memory: MemorySemaphore, amount_bytes: int) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(memory.acquire(amount_bytes))


async def test_no_more_is_lent_than_there_is() -> None:
    """To the byte."""
    memory = MemorySemaphore(100)
    await memory.acquire(60)
    await memory.acquire(40)
    assert not memory.fits(1)
    waits = waiter(memory, 1)
    await rounds()
    assert not waits.done()
    assert repr(memory) == "<MemorySemaphore 100 of 100, waiting=1>"
    memory.release(40)
    await waits
    assert memory.lent_bytes == 61


async def test_what_is_more_than_all_is_refused() -> None:
    """It would wait for ever; and says how much is missing."""
    memory = MemorySemaphore(100 * 2**20)
    with pytest.raises(TooLarge, match="needs 101 MiB, and this server has 100 MiB"):
        await memory.acquire(101 * 2**20)
    with pytest.raises(TooLarge):
        memory.check(100 * 2**20 + 1)
    memory.check(100 * 2**20)
    assert (memory.lent_bytes, memory.waiting) == (0, 0)


async def test_the_large_one_that_waits_is_not_passed() -> None:
    """Small ones would keep it out for ever."""
    memory = MemorySemaphore(100)
    await memory.acquire(50)
    large, small = waiter(memory, 80), waiter(memory, 10)
    await rounds()
    assert not memory.fits(10), "nor by who comes later"
    assert (large.done(), small.done()) == (False, False)
    memory.release(50)
    await rounds()
    assert (large.done(), small.done(), memory.lent_bytes) == (True, True, 90)


async def test_one_release_may_serve_several() -> None:
    """As many as fit."""
    memory = MemorySemaphore(100)
    await memory.acquire(90)
    waiting = [waiter(memory, 30) for _ in range(4)]
    await rounds()
    memory.release(90)
    await rounds()
    assert [one.done() for one in waiting] == [True, True, True, False]
    memory.release(30)
    await waiting[-1]


async def test_who_hangs_up_while_waiting_lets_the_next_one_in() -> None:
    """A large one that is gone holds nobody up."""
    memory = MemorySemaphore(100)
    await memory.acquire(50)
    large, small = waiter(memory, 80), waiter(memory, 10)
    await rounds()
    large.cancel()
    await rounds()
    assert large.cancelled()
    assert small.done()
    assert (memory.lent_bytes, memory.waiting) == (60, 0)


async def test_who_hangs_up_when_its_bytes_were_just_lent_gives_them_back() -> None:
    """It never knew that it had them."""
    memory = MemorySemaphore(100)
    await memory.acquire(100)
    first, second = waiter(memory, 100), waiter(memory, 100)
    await rounds()
    memory.release(100)
    first.cancel()
    await rounds()
    assert first.cancelled()
    assert second.done()
    assert memory.lent_bytes == 100


async def test_bytes_that_come_just_when_somebody_hangs_up_go_to_the_next() -> None:
    """It is still in the line then, and no longer waits: it is passed over, and does not trip over that."""
    memory = MemorySemaphore(100)
    await memory.acquire(100)
    first, second = waiter(memory, 100), waiter(memory, 100)
    await rounds()
    first.cancel()
    memory.release(100)
    await rounds()
    assert first.cancelled()
    assert second.done()
    assert (memory.lent_bytes, memory.waiting) == (100, 0)


async def test_nothing_is_lent_that_others_have_eaten() -> None:
    """The budget was planned at the start; what is free now is what counts."""
    memory = MemorySemaphore(1000 + HEADROOM_BYTES)
    memory.observe(99 + HEADROOM_BYTES)
    assert not memory.fits(100)
    assert memory.fits(99)
    waits = waiter(memory, 100)
    await rounds()
    assert memory.pressed
    memory.observe(100 + HEADROOM_BYTES)
    await waits
    assert not memory.pressed


async def test_what_was_lent_since_the_last_look_is_not_lent_again() -> None:
    """Whoever has it has not touched it yet: it would still be seen as free."""
    memory = MemorySemaphore(1000)
    memory.observe(100 + HEADROOM_BYTES)
    await memory.acquire(60)
    assert not memory.fits(60)
    memory.observe(100 + HEADROOM_BYTES)
    assert memory.fits(60)


async def test_before_the_first_look_the_budget_alone_counts() -> None:
    """A device that cannot be looked at is no reason to stand still."""
    memory = MemorySemaphore(100)
    assert memory.fits(100)
    assert not memory.pressed


async def test_waiting_for_the_budget_is_not_pressure() -> None:
    """The service's own work holds the memory."""
    memory = MemorySemaphore(100)
    await memory.acquire(100)
    waits = waiter(memory, 1)
    await rounds()
    memory.observe(0)
    assert not memory.pressed
    memory.release(100)
    assert memory.pressed
    assert not waits.done()
    waits.cancel()
    await rounds()
    assert (memory.pressed, memory.waiting) == (False, 0)
