"""A few slots in turns."""

from __future__ import annotations

import asyncio
import contextlib

from fair_slots import FairSlots


async def test_keys_take_turns() -> None:
    """Two hundred files of one caller must not all be looked at before another's first."""
    slots, order, gate = FairSlots(1), [], asyncio.Event()

    async def step(key: str) -> None:
        async with slots.slot(key):
            order.append(key)
            await gate.wait()

    async with asyncio.TaskGroup() as group:
        for key in ["a"] * 6 + ["b"] * 2:
            group.create_task(step(key))
        await asyncio.sleep(0)
        gate.set()
    assert order[:5].count("b") == 2, "one was at work and one next when b came; then in turns"
    assert repr(slots) == "<FairSlots free=1 waiting=0>"


async def test_no_more_than_its_slots_at_once() -> None:
    """Each step is a process."""
    slots, inside, most = FairSlots(2), 0, 0

    async def step() -> None:
        nonlocal inside, most
        async with slots.slot():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(step() for _ in range(9)))
    assert most == 2


async def test_who_leaves_gives_up_its_place() -> None:
    """In the line, in the moment of its turn, and at work."""
    slots, gate = FairSlots(1), asyncio.Event()

    async def step() -> None:
        async with slots.slot():
            await gate.wait()

    for loops in range(4):
        tasks = [asyncio.create_task(step()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        for _ in range(loops):
            await asyncio.sleep(0)
        for task in tasks[1:]:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert repr(slots) == "<FairSlots free=1 waiting=0>"


async def test_a_step_that_fails_gives_its_slot_back() -> None:
    """Most files that are looked at in vain are broken ones."""
    slots = FairSlots(1)
    with contextlib.suppress(ValueError):
        async with slots.slot():
            raise ValueError
    async with slots.slot():
        assert repr(slots) == "<FairSlots free=0 waiting=0>"
