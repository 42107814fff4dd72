"""The gate: who comes in, who waits, who is refused, and what a stop does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from admission import MOST_RETRY_AFTER_S, retry_after_s
from errors import QueueFull, ShuttingDown, TooLarge
from reservation import Work
from tests.gates import DEVICE, MB, Gate, names, rounds

# --- the line --------------------------------------------------------------------------------------------------------


async def test_the_line_holds_no_more_than_it_may() -> None:
    """One place more would be one too many."""
    gate = Gate(slots=2, max_waiting=3)
    asked = [gate.come(name) for name in names("r", 6)]
    await rounds()
    assert [one.state for one in asked] == ["at work"] * 2 + ["waiting"] * 3 + ["QueueFull"]


async def test_bodies_that_are_being_read_have_their_places() -> None:
    """Nobody who was let in at the door is turned away later for want of a place."""
    gate = Gate(slots=2, max_waiting=3)
    asked = [gate.come(name, body_read=False) for name in names("r", 6)]
    await rounds()
    assert [one.state for one in asked] == ["at the door"] * 5 + ["QueueFull"]
    for one in asked:
        one.body_read.set()
    await rounds()
    assert [one.state for one in asked[:5]] == ["at work"] * 2 + ["waiting"] * 3


async def test_free_slots_are_no_places_while_work_waits_for_memory() -> None:
    """A newcomer could not have one: the line is as long as it may be, not longer by the free slots."""
    gate = Gate(slots=5, memory_mb=100, max_waiting=1)
    await gate.arrive(mb=60)
    await gate.arrive(mb=60)
    assert (await gate.arrive()).state == "waiting"
    assert (await gate.arrive()).state == "QueueFull"


async def test_no_key_fills_a_line_that_several_share() -> None:
    """However much it sends, a third stays open to others."""
    gate = Gate(slots=5, max_waiting=15, several_keys=True)
    for name in names("a", 50):
        await gate.arrive(name, "a")
    assert len(gate.at_work()) == 5
    assert len(gate.waiting()) == 10
    assert (await gate.arrive(key="b")).state == "waiting"


async def test_a_key_alone_may_fill_the_line() -> None:
    """Nobody else is there for whom a place is to be kept."""
    gate = Gate(slots=5, max_waiting=15)
    for name in names("a", 50):
        await gate.arrive(name, "a")
    assert len(gate.waiting()) == 15


@pytest.mark.parametrize("slots", range(1, 9))
async def test_a_key_may_have_every_free_slot(slots: int) -> None:
    """The third that is kept for others is one of the line, not of the slots: what can start now is not refused."""
    gate = Gate(slots=slots, several_keys=True, max_waiting=1)
    asked = [gate.come(key="a", body_read=False) for _ in range(slots)]
    await rounds()
    assert [one.state for one in asked] == ["at the door"] * slots


# --- turned off ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [{"max_waiting": 0}, {"no_wait": True}])
async def test_without_a_line_what_cannot_start_now_is_refused(bounds: dict[str, Any]) -> None:
    """FAIL_FAST, or a line of no places: 429, be it for a slot, a kept slot or memory."""
    asked = {"no_wait": True} if "no_wait" in bounds else {}
    gate = Gate(slots=4, memory_mb=100, max_waiting=bounds.get("max_waiting", 100))
    for _ in range(3):
        assert (await gate.arrive(short=False, **asked)).state == "at work"
    assert (await gate.arrive(short=False, **asked)).state == "QueueFull", "only the clips' slot is free"
    assert (await gate.arrive(mb=98, **asked)).state == "QueueFull", "so much memory is not free"
    gate.controller.observe({DEVICE: 20 * MB}, 0)
    assert (await gate.arrive(mb=10, **asked)).state == "QueueFull", "others hold the memory"
    gate.controller.observe({DEVICE: 1000 * MB}, 0)
    assert (await gate.arrive(**asked)).state == "at work"
    assert (await gate.arrive(body_read=False, **asked)).state == "QueueFull", "refused at the door"
    assert gate.waiting() == []


async def test_fail_fast_takes_all_slots_at_once() -> None:
    """Five at once against five slots: none is refused because another is just being let in."""
    gate = Gate(slots=5)
    asked = [gate.come(no_wait=True) for _ in range(7)]
    await rounds()
    assert [one.state for one in asked] == ["at work"] * 5 + ["QueueFull"] * 2


async def test_slots_that_are_just_being_given_out_are_not_free() -> None:
    """Two end in the same moment, and two in the line are called one after another: a newcomer then is third."""
    gate = Gate(slots=2)
    working = [await gate.arrive() for _ in range(4)][:2]
    for one in working:
        one.finish()
    newcomer = await gate.arrive(no_wait=True, body_read=False)
    assert newcomer.state == "QueueFull"
    assert len(gate.at_work()) == 2


async def test_fail_fast_does_not_wait_behind_who_is_just_being_called() -> None:
    """Slots and memory are free in that moment, and in the next they are not."""
    gate = Gate(slots=2, memory_mb=100)
    working = [await gate.arrive()]
    fails_fast = await gate.arrive(mb=60, no_wait=True, body_read=False)
    working.append(await gate.arrive())
    called = await gate.arrive(mb=60)
    for one in working:
        one.finish()
    fails_fast.body_read.set()
    await rounds()
    assert (called.state, fails_fast.state) == ("at work", "QueueFull")


# --- expected waits --------------------------------------------------------------------------------------------------


async def test_no_wait_is_told_before_a_speed_was_measured() -> None:
    """A guess would refuse requests for nothing."""
    gate = Gate(slots=1, max_wait_s=1.0)
    await gate.arrive(amount=10_000.0)
    assert gate.controller.expected_wait_s(Work.TRANSCRIPTION) is None
    assert (await gate.arrive(amount=10_000.0)).state == "waiting"
    assert (await gate.arrive(timeout_s=1.0, amount=10_000.0)).state == "waiting"


async def test_a_newcomer_that_would_wait_too_long_is_refused() -> None:
    """The line is bounded by time as well as by number."""
    gate = Gate(slots=1, max_wait_s=60.0)
    await gate.learn_speed(10.0)
    await gate.arrive("running", amount=500.0)
    await gate.arrive("waiting", amount=150.0)
    refused = await gate.arrive(body_read=False)
    assert isinstance(refused.failure, QueueFull)
    assert refused.refusal.retry_after_s == 65
    assert (await gate.arrive(key="another", body_read=False)).state == "QueueFull"


async def test_who_was_let_in_may_wait_though_the_wait_has_grown() -> None:
    """Its body is read: it is not sent away because another was faster."""
    gate = Gate(slots=1, max_wait_s=60.0)
    await gate.learn_speed(10.0)
    slow = await gate.arrive(body_read=False)
    await gate.arrive(amount=1000.0)
    slow.body_read.set()
    await rounds()
    assert slow.state == "waiting"


@pytest.mark.parametrize(
    ("expected_s", "told_s"),
    [(None, 5), (0.0, 1), (0.2, 1), (7.1, 8), (119.5, 120), (5000.0, 120), (float("inf"), 120)],
)
def test_retry_after_is_between_a_second_and_two_minutes(expected_s: float | None, told_s: int) -> None:
    """Whole seconds, rounded up; a guess where nothing is known."""
    assert retry_after_s(expected_s) == told_s
    assert MOST_RETRY_AFTER_S == 120


async def test_every_429_says_when_to_come_back() -> None:
    """Retry-After comes from the backlog and the speed."""
    gate = Gate(slots=1, max_waiting=0)
    await gate.learn_speed(10.0)
    await gate.arrive("running", amount=205.0)
    assert (await gate.arrive()).refusal.retry_after_s == 21
    unknown = Gate(slots=1, max_waiting=0)
    await unknown.arrive("running", amount=205.0)
    assert (await unknown.arrive()).refusal.retry_after_s == 5


async def test_a_long_one_is_not_told_to_come_back_for_the_clips_slot() -> None:
    """That slot is free and not for it: it has to wait for the others."""
    gate = Gate(slots=4)
    await gate.learn_speed(10.0)
    for name in names("podcast", 3):
        await gate.arrive(name, short=False, amount=100.0)
    assert (await gate.arrive(short=False, no_wait=True)).refusal.retry_after_s == 30


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_a_large_request_that_waits_for_memory_is_not_passed() -> None:
    """Else small ones could keep it out for ever."""
    gate = Gate(memory_mb=100)
    first = await gate.arrive("first", mb=60)
    await gate.arrive("large", mb=80)
    await gate.arrive("small", mb=1)
    download = await gate.arrive("download", work=Work.DOWNLOAD, mb=1)
    assert gate.waiting() == ["large", "small", "download"]
    first.finish()
    await rounds()
    assert gate.granted == ["first", "large", "download", "small"]
    assert download.state == "at work"


async def test_what_never_fits_is_refused_before_it_waits() -> None:
    """413 at once, not after an hour in the line."""
    gate = Gate(slots=1, memory_mb=100)
    await gate.arrive("working")
    too_large = await gate.arrive(mb=101)
    assert isinstance(too_large.failure, TooLarge)
    fail_fast = await gate.arrive(mb=101, work=Work.DOWNLOAD, no_wait=True)
    assert isinstance(fail_fast.failure, TooLarge), "coming back would not help"
    assert gate.waiting() == []


async def test_memory_that_others_have_eaten_is_waited_for_and_told_once() -> None:
    """An operator reads why nothing moves, once, and that it moves again."""
    gate = Gate(memory_mb=1000)
    observe = gate.controller.observe
    with capture_logs() as logs:
        observe({DEVICE: 50 * MB, "another": 0}, 0)
        waits = await gate.arrive(mb=100)
        for _ in range(3):
            observe({DEVICE: 50 * MB}, 0)
        await rounds()
        assert waits.state == "waiting"
        assert gate.controller.pressed
        for _ in range(3):
            observe({DEVICE: 500 * MB}, 0)
        await rounds()
        assert waits.state == "at work"
        assert not gate.controller.pressed
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("warning", "work waits for memory that other processes hold"),
        ("info", "memory is free again"),
    ]


async def test_waiting_for_ones_own_is_not_pressure() -> None:
    """The budget is lent out: nobody else is to blame."""
    gate = Gate(memory_mb=100)
    await gate.arrive(mb=100)
    waits = await gate.arrive(mb=1)
    gate.controller.observe({DEVICE: 50 * MB}, 0)
    assert waits.state == "waiting"
    assert not gate.controller.pressed


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_at_a_stop_who_waits_is_sent_home_and_what_is_at_work_goes_on() -> None:
    """At once, wherever it waits: at the door, in the line or for memory."""
    gate = Gate(slots=2, memory_mb=100)
    working = await gate.arrive("working", mb=60)
    for_memory = await gate.arrive("for memory", mb=60)
    in_line = await gate.arrive("in the line")
    at_door = await gate.arrive("at the door", body_read=False)
    gate.controller.close()
    at_door.body_read.set()
    await rounds()
    newcomer = await gate.arrive("newcomer")
    for one in (for_memory, in_line, at_door, newcomer):
        assert isinstance(one.failure, ShuttingDown), one
    assert working.state == "at work"
    working.finish()
    await rounds()
    assert working.state == "done"
    assert not gate.traces()


async def test_a_stop_may_come_just_when_somebody_has_waited_long_enough() -> None:
    """It is on its way home already."""
    gate = Gate(slots=1, timeout_s=30.0)
    working, waits = await gate.arrive(), await gate.arrive()
    gate.clock.now_s += 31.0
    await rounds(2)
    assert waits.place is not None
    assert waits.place.patience is not None
    assert (waits.place.patience.expired(), waits.over) == (True, False)
    gate.controller.close()
    working.finish()
    await rounds()
    assert isinstance(waits.failure, ShuttingDown)
    assert not gate.traces()


async def test_a_stop_and_a_hang_up_may_come_together() -> None:
    """Nothing is left to be complained of when the loop collects its futures."""
    gate = Gate(slots=1)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    working, before, after = [await gate.arrive() for _ in range(3)]
    before.cancel()
    gate.controller.close()
    after.cancel()
    await rounds()
    assert isinstance(before.failure, asyncio.CancelledError)
    assert after.over
    working.finish()
    await rounds()
    assert not gate.traces()
    gate.requests.clear()
    del before, after
    assert not complaints
