"""Who has a slot, who is next, and how long a newcomer would wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from reservation import Work
from tests.gates import DEVICE, HIGH, LOW, MB, Gate, names, rounds

# --- slots -----------------------------------------------------------------------------------------------------------


async def test_twenty_at_once_against_five_slots() -> None:
    """Five at work, fifteen in the line, and they come in as they came."""
    gate = Gate(slots=5)
    asked = [gate.come(name).name for name in names("r", 20)]
    await rounds()
    assert gate.at_work() == asked[:5]
    assert (
        repr(gate.controller)
        == "<AdmissionController {'transcription': '5/5+15', 'download': '0/2+0', 'extraction': '0/2+0', "
        "'live': '0/2+0', 'upstream': '0/2+0'}>"
    )
    assert await gate.serve_all() == asked
    assert not gate.traces()


async def test_a_clip_gets_a_slot_while_long_ones_hold_all_others() -> None:
    """One slot in four is not for podcasts."""
    gate = Gate(slots=4)
    for name in names("podcast", 6):
        gate.come(name, short=False)
    await rounds()
    assert gate.at_work() == names("podcast", 3)
    clip = await gate.arrive("clip")
    assert clip.state == "at work"
    await gate.arrive("another clip")
    assert gate.waiting() == ["podcast3", "podcast4", "podcast5", "another clip"]


@pytest.mark.parametrize("bounds", [{"max_waiting": 3}, {"max_wait_s": 1.0}, {"max_waiting": 3, "several_keys": True}])
async def test_podcasts_in_the_line_do_not_shut_the_door_on_clips(bounds: dict[str, Any]) -> None:
    """The slot that is free is not for them; that a newcomer is no clip is known when its header is read."""
    gate = Gate(slots=4, **bounds)
    await gate.learn_speed(10.0)
    for name in names("podcast", 20):
        await gate.arrive(name, short=False, amount=3600.0)
    assert len(gate.at_work()) == 3
    assert len(gate.waiting()) == (0 if "max_wait_s" in bounds else 2 if "several_keys" in bounds else 3)
    clip = await gate.arrive()
    assert clip.state == "at work"
    assert (await gate.arrive(body_read=False)).state == "QueueFull", "no slot is free, and the line is full"
    clip.finish()
    await rounds()
    assert (await gate.arrive(no_wait=True)).state == "at work"


async def test_clips_without_end_do_not_keep_a_long_one_out() -> None:
    """Clips at work leave the kept slot to themselves; a slot that any may have goes by turns."""
    gate = Gate(slots=4)
    for name in names("clip", 40):
        gate.come(name)
    podcast = await gate.arrive("podcast", short=False)
    for name in names("later", 40):
        gate.come(name)
    order = await gate.serve_all()
    assert podcast.state == "done"
    assert order.index("podcast") == 40


async def test_each_kind_of_work_has_slots_of_its_own() -> None:
    """Links that are slow to load keep no transcription waiting, and the other way round."""
    gate = Gate(slots=1, downloads=1)
    for work in Work:
        gate.come(f"{work} 1", work=work)
        gate.come(f"{work} 2", work=work)
    await rounds()
    assert gate.at_work() == [
        *("transcription 1", "download 1", "extraction 1", "extraction 2"),
        *("live 1", "live 2", "upstream 1", "upstream 2"),
    ]


# --- turns -----------------------------------------------------------------------------------------------------------


async def test_keys_take_turns_whatever_they_send() -> None:
    """One sends 200 and another 5: the second waits as if it shared the service with one user."""
    gate = Gate(slots=1, max_waiting=300)
    await gate.arrive("working", "crowd")
    for name in names("crowd", 200):
        gate.come(name, "crowd")
    await rounds()
    for name in names("single", 5):
        gate.come(name, "single")
    await rounds()
    order = (await gate.serve_all())[1:]
    assert [order.index(name) for name in names("single", 5)] == [1, 3, 5, 7, 9]
    assert [name for name in order if name.startswith("crowd")] == names("crowd", 200)


async def test_turns_are_counted_in_seconds_of_audio() -> None:
    """Who sends recordings of an hour has one for sixty of a minute."""
    gate = Gate(slots=1)
    await gate.arrive("working", "other")
    for index in range(20):
        gate.come(f"hour{index}", "hours", amount=3600.0)
        gate.come(f"minute{index}", "minutes", amount=360.0)
    await rounds()
    order = (await gate.serve_all())[1:]
    assert 9 <= sum(name.startswith("minute") for name in order[:12]) <= 11


async def test_interactive_goes_before_batch_and_batch_is_not_starved() -> None:
    """Every eighth turn is the lower class's."""
    gate = Gate(slots=1)
    await gate.arrive("working")
    for index in range(30):
        gate.come(f"batch{index}", priority=LOW)
        gate.come(f"interactive{index}", priority=HIGH)
    await rounds()
    order = (await gate.serve_all())[1:]
    assert sum(name.startswith("batch") for name in order[:16]) == 2
    assert not order[0].startswith("batch")


async def test_a_slot_is_not_given_to_who_has_just_hung_up() -> None:
    """The first in the line hangs up in the very moment in which a slot is free for it: the next has it, and the one
    that ended has given everything back."""
    gate = Gate(slots=1)
    working = await gate.arrive("working", mb=10)
    first, second = await gate.arrive("first"), await gate.arrive("second")
    working.finish()
    first.cancel()
    await rounds()
    assert working.state == "done"
    assert second.state == "at work"
    second.finish()
    await rounds()
    assert not gate.traces()


async def test_who_hangs_up_when_it_was_just_called_gives_its_turn_back() -> None:
    """It was given the slot, and never knew."""
    gate = Gate(slots=1)
    working = await gate.arrive("working")
    first, second = await gate.arrive("first"), await gate.arrive("second")
    assert working.place is not None
    working.finish()
    for _ in range(3):
        await asyncio.sleep(0)
        if gate.controller.lanes[Work.TRANSCRIPTION].called is first.place:
            first.cancel()
            break
    assert first.cancelled
    await rounds()
    assert first.grants == 0
    assert second.state == "at work"


async def test_who_hung_up_is_not_charged_for_its_turn() -> None:
    """Its key has not been served: it comes as early as if nothing had happened."""
    gate = Gate(slots=1)
    working = await gate.arrive("working", "c")
    for name in ("a1", "b1", "a2", "b2"):
        await gate.arrive(name, name[0], amount=100.0)
    gone = next(one for one in gate.requests if one.name == "a1")
    working.finish()
    gone.cancel()
    await rounds()
    assert (await gate.serve_all())[1:] == ["a2", "b1", "b2"]


# --- times -----------------------------------------------------------------------------------------------------------


async def test_the_expected_wait_is_the_backlog_over_the_measured_speed() -> None:
    """What is left of the running, and the line, at so many audio seconds a second."""
    gate = Gate(slots=1)
    assert gate.controller.expected_wait_s(Work.TRANSCRIPTION) == 0.0, "a slot is free"
    await gate.learn_speed(10.0)
    running = await gate.arrive("running", amount=100.0)
    assert gate.controller.expected_wait_s(Work.TRANSCRIPTION) == pytest.approx(10.0)
    await gate.arrive("waiting", amount=300.0)
    assert gate.controller.expected_wait_s(Work.TRANSCRIPTION) == pytest.approx(40.0)
    assert running.place is not None
    await gate.pass_s(5.0)
    running.place.advance(50.0)
    assert gate.controller.expected_wait_s(Work.TRANSCRIPTION) == pytest.approx(35.0)


async def test_another_keys_backlog_is_not_all_waited_for() -> None:
    """Keys take turns: who comes to a line that one key fills waits for its own turn only."""
    gate = Gate(slots=1)
    await gate.learn_speed(10.0)
    for name in names("a", 101):
        await gate.arrive(name, "a", amount=100.0)
    own = gate.controller.expected_wait_s(Work.TRANSCRIPTION, "a")
    others = gate.controller.expected_wait_s(Work.TRANSCRIPTION, "b")
    assert own == pytest.approx(1010.0)
    assert others == pytest.approx(20.0, abs=1.0), "the running one, and one of the other key"


async def test_bodies_that_are_being_read_count_as_backlog() -> None:
    """Twenty that come at once are twenty, though none of them stands in the line yet."""
    gate = Gate(slots=1, max_wait_s=100.0)
    await gate.learn_speed(10.0)
    for name in names("a", 30):
        gate.come(name, "a", amount=100.0, body_read=False)
    await rounds()
    let_in = [one for one in gate.requests if one.state == "at the door"]
    assert 10 <= len(let_in) <= 12


async def test_batch_expects_to_wait_for_what_is_interactive() -> None:
    """And an interactive request does not count the batch behind it."""
    gate = Gate(slots=1)
    await gate.learn_speed(10.0)
    await gate.arrive("running", amount=100.0)
    await gate.arrive("batch", "b", amount=1000.0, priority=LOW)
    await gate.arrive("interactive", "a", amount=200.0)
    wait_s = gate.controller.expected_wait_s
    assert wait_s(Work.TRANSCRIPTION, "c", HIGH) == pytest.approx(30.0)
    assert wait_s(Work.TRANSCRIPTION, "b", LOW) == pytest.approx(130.0)
    for _ in range(20):
        await gate.arrive(key="a", amount=200.0, priority=HIGH)
    assert (wait_s(Work.TRANSCRIPTION, "d", LOW) or 0.0) > 430.0
    assert (wait_s(Work.TRANSCRIPTION, "d", HIGH) or 0.0) < 150.0


async def test_waiting_for_memory_is_no_work() -> None:
    """An hour in which others held the memory says nothing of the speed."""
    gate = Gate()
    await gate.learn_speed(10.0)
    nothing_to_do = await gate.arrive(amount=0.0)
    gate.controller.observe({DEVICE: 0}, 0)
    waits = await gate.arrive()
    nothing_to_do.finish()
    await rounds()
    await gate.pass_s(3600.0)
    assert gate.controller.lanes[Work.TRANSCRIPTION].speed.per_s == 10.0
    waits.cancel()
    gate.controller.observe({DEVICE: 1000 * MB}, 0)
    working = await gate.arrive(amount=1000.0)
    await gate.pass_s(100.0)
    working.finish()
    await rounds()
    assert gate.controller.lanes[Work.TRANSCRIPTION].speed.per_s == pytest.approx(10.0)


async def test_how_long_each_waits_is_known() -> None:
    """While it waits, and afterwards."""
    gate = Gate(slots=1)
    lane = gate.controller.lanes[Work.TRANSCRIPTION]
    first = await gate.arrive()
    assert gate.controller.oldest_wait_s(lane) is None
    second = await gate.arrive()
    await gate.pass_s(3.0)
    await gate.arrive()
    await gate.pass_s(4.0)
    assert gate.controller.oldest_wait_s(lane) == 7.0
    first.finish()
    await rounds()
    assert first.place is not None
    assert second.place is not None
    assert (first.place.wait_s, second.place.wait_s) == (0.0, 7.0)
