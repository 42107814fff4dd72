"""How long a request may wait: its own deadline, and the line's."""

from __future__ import annotations

from errors import DeadlineTooNear, QueueTimeout
from reservation import Work
from tests.gates import MB, Gate, rounds


async def test_a_deadline_that_cannot_be_met_is_refused_at_the_door() -> None:
    """The body is not read for nothing."""
    gate = Gate(slots=1)
    await gate.learn_speed(10.0)
    await gate.arrive("running", amount=500.0)
    refused = await gate.arrive(timeout_s=50.0, body_read=False)
    assert isinstance(refused.failure, DeadlineTooNear)
    assert refused.refusal.retry_after_s == 50
    assert (await gate.arrive(timeout_s=51.0, body_read=False)).state == "at the door"


async def test_a_deadline_that_the_recording_is_too_long_for_is_refused_at_the_line() -> None:
    """Its length is known once the header is read, and so is how long it takes."""
    gate = Gate(slots=1)
    await gate.learn_speed(10.0)
    assert (await gate.arrive(timeout_s=20.0, amount=200.0)).state == "DeadlineTooNear"
    assert (await gate.arrive(timeout_s=20.0, amount=199.0)).state == "at work"


async def test_a_deadline_that_the_line_is_too_long_for_is_refused_there() -> None:
    """While the body was read others have come, and it would wait past it."""
    gate = Gate(slots=1)
    await gate.learn_speed(10.0)
    request = await gate.arrive(timeout_s=20.0, amount=1.0, body_read=False)
    await gate.arrive(amount=205.0)
    request.body_read.set()
    await rounds()
    assert isinstance(request.failure, DeadlineTooNear)
    assert request.refusal.retry_after_s == 21


async def test_a_free_slot_meets_a_deadline_whatever_came_before() -> None:
    """What is being let in is not behind itself."""
    gate = Gate(slots=1)
    await gate.learn_speed(10.0)
    assert (await gate.arrive(timeout_s=5.0, amount=20.0)).state == "at work"


async def test_bodies_still_being_read_are_behind_who_stands_in_the_line() -> None:
    """A deadline is not missed for those who come later."""
    gate = Gate(slots=1)
    await gate.learn_speed(10.0)
    in_time = gate.come(timeout_s=8.0, amount=20.0, body_read=False)
    await gate.arrive(amount=100.0, body_read=False)
    in_time.body_read.set()
    await rounds()
    assert in_time.state == "at work"


async def test_a_deadline_that_passed_while_the_body_was_read_is_refused_at_the_line() -> None:
    """An upload may take longer than its caller waits; no speed need be known for that."""
    gate = Gate()
    request = await gate.arrive(timeout_s=10.0, body_read=False)
    await gate.pass_s(10.0)
    request.body_read.set()
    await rounds()
    assert isinstance(request.failure, DeadlineTooNear)


async def test_a_deadline_that_has_passed_is_dropped_when_its_turn_comes() -> None:
    """Its caller is gone, or will be: the slot goes to the next, in the same moment."""
    gate = Gate(slots=1)
    working = await gate.arrive("working")
    late = await gate.arrive("late", timeout_s=10.0)
    gate.come("next")
    await rounds()
    gate.clock.now_s += 10.0
    assert working.place is not None
    gate.controller.leave(working.place)
    assert gate.controller.lanes[Work.TRANSCRIPTION].called is not None, "whoever is called is not the late one"
    await rounds()
    assert isinstance(late.failure, QueueTimeout)
    assert late.refusal.retry_after_s is not None
    assert gate.at_work() == ["working", "next"]


async def test_who_waits_past_its_deadline_is_told_so() -> None:
    """503 at that moment, not when a slot is free."""
    gate = Gate(slots=1)
    await gate.arrive("working")
    waits = await gate.arrive(timeout_s=10.0)
    await gate.pass_s(9.0)
    assert waits.state == "waiting"
    await gate.pass_s(1.5)
    assert isinstance(waits.failure, QueueTimeout)
    assert waits.refusal.status == 503


async def test_nobody_waits_longer_than_the_line_allows() -> None:
    """QUEUE_TIMEOUT_S, from when it came to the line."""
    gate = Gate(slots=1, timeout_s=30.0)
    await gate.arrive("working")
    waits = gate.come(body_read=False)
    await gate.pass_s(100.0)
    waits.body_read.set()
    await rounds()
    await gate.pass_s(29.0)
    assert waits.state == "waiting"
    await gate.pass_s(1.5)
    assert isinstance(waits.failure, QueueTimeout)


async def test_waiting_for_memory_is_waiting_in_the_line() -> None:
    """It is bounded as well, and what was lent of one device goes back."""
    gate = Gate(timeout_s=30.0, memory_mb=100)
    gate.controller.memory = {**gate.controller.memory, "zpu": type(gate.memory)(10)}
    working = await gate.arrive("working", mb=10)
    waits = gate.come("waits", mb=50)
    waits.costs["zpu"] = 10
    holds = gate.controller.memory["zpu"]
    await holds.acquire(1)
    await rounds()
    assert (waits.state, gate.memory.lent_bytes) == ("waiting", 60 * MB)
    behind = await gate.arrive("behind")
    await gate.pass_s(15.0)
    assert behind.state == "waiting"
    await gate.pass_s(16.0)
    assert isinstance(waits.failure, QueueTimeout)
    assert holds.waiting == 0
    assert gate.memory.lent_bytes == 10 * MB
    working.finish()
    await rounds()
    assert not gate.traces()
