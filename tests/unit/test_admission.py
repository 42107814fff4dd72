"""The gate: who comes in, who waits for how long, who is refused, and that nothing is held afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from admission import DAY_S, MOST_RETRY_AFTER_S, Work, retry_after_s
from errors import (
    DeadlineTooNear,
    KeyBusy,
    QueueFull,
    QueueTimeout,
    QuotaUsed,
    ShuttingDown,
    TooLarge,
)
from tests.gates import DEVICE, MB, Broken, Gate, rounds

LOW, HIGH = 1, 0


def names(letter: str, number: int) -> list[str]:
    return [f"{letter}{index}" for index in range(number)]


# --- slots -----------------------------------------------------------------------------------------------------------


async def test_twenty_at_once_against_five_slots() -> None:
    """Five at work, fifteen in the line, and they come in as they came."""
    gate = Gate(slots=5)
    asked = [gate.come(name).name for name in names("r", 20)]
    await rounds()
    assert gate.at_work() == asked[:5]
    assert (
        repr(gate.controller)
        == "<AdmissionController {'transcription': '5/5+15', 'download': '0/2+0', 'extraction': '0/2+0'}>"
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
    assert gate.at_work() == ["transcription 1", "download 1", "extraction 1", "extraction 2"]


async def test_a_links_download_does_not_count_for_its_key() -> None:
    """It is a part of a request that counts already."""
    gate = Gate(max_per_key=2)
    reserve, left = gate.controller.reserve, gate.controller.requests_left
    with reserve(Work.TRANSCRIPTION, "a") as whole:
        with reserve(Work.DOWNLOAD, "a", counted=False) as part:
            await part.granted({DEVICE: MB})
            assert left("a") == 1
        with reserve(Work.DOWNLOAD, "a"):
            assert left("a") == 0
            with pytest.raises(KeyBusy):
                reserve(Work.DOWNLOAD, "a")
        await whole.granted({DEVICE: MB})
        assert left("a") == 1
    assert left("a") == 2
    assert not gate.traces()


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


async def test_bytes_given_back_early_serve_others() -> None:
    """A child that has ended needs its memory no more, though its request goes on."""
    gate = Gate(memory_mb=100)
    first = await gate.arrive("first", mb=90)
    second = await gate.arrive("second", mb=50)
    assert first.place is not None
    first.place.give_back(DEVICE, 30 * MB)
    await rounds()
    assert second.state == "waiting"
    first.place.give_back(DEVICE, 10 * MB)
    await rounds()
    assert second.state == "at work"
    first.place.give_back(DEVICE, 500 * MB)
    assert gate.memory.lent_bytes == 50 * MB, "nobody gives back more than was lent"
    first.finish()
    await rounds()
    assert gate.memory.lent_bytes == 50 * MB


async def test_what_is_taken_while_at_work_goes_back_with_the_rest() -> None:
    """A request may find out late what it needs."""
    gate = Gate(memory_mb=100)
    with gate.controller.reserve(Work.TRANSCRIPTION) as place:
        await place.granted({DEVICE: 10 * MB})
        await place.take(DEVICE, 20 * MB)
        assert gate.memory.lent_bytes == 30 * MB
        assert repr(place) == f"<Reservation transcription amount=1 holds={{'cpu': {30 * MB}}}>"
    assert not gate.traces()


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


async def test_each_request_knows_the_most_that_the_service_held_beside_it() -> None:
    """What a request's answer tells of memory."""
    gate = Gate()
    request = await gate.arrive()
    for own_mb in (5, 20, 10):
        gate.controller.observe({}, own_mb * MB)
    assert request.place is not None
    assert request.place.peak_bytes == 20 * MB


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


async def test_who_is_refused_does_not_hold_up_others_while_it_cleans_up() -> None:
    """The caller's folder is removed before its block ends; others need not wait for that."""
    gate = Gate(memory_mb=100)
    await gate.arrive("working", mb=60)
    with gate.controller.reserve(Work.TRANSCRIPTION, timeout_s=5.0) as place:
        waits = asyncio.get_running_loop().create_task(place.granted({DEVICE: 60 * MB}))
        await rounds()
        behind = await gate.arrive("behind")
        assert behind.state == "waiting"
        await gate.pass_s(6.0)
        with pytest.raises(QueueTimeout):
            await waits
        await rounds()
        assert behind.state == "at work"


# --- expected waits --------------------------------------------------------------------------------------------------


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


# --- deadlines -------------------------------------------------------------------------------------------------------


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


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_has_so_many_requests_in_flight() -> None:
    """At the door, in the line or at work; another key is not concerned."""
    gate = Gate(slots=1, max_per_key=3)
    await gate.learn_speed(10.0)
    assert gate.controller.requests_left("a") == 3
    working = await gate.arrive("working", "a", amount=200.0)
    await gate.arrive("waiting", "a")
    await gate.arrive("at the door", "a", body_read=False)
    assert gate.controller.requests_left("a") == 0
    refused = await gate.arrive(key="a")
    assert isinstance(refused.failure, KeyBusy)
    assert refused.refusal.retry_after_s == 20, "when one of them will be done"
    assert (await gate.arrive(key="b")).state == "waiting"
    working.finish()
    await rounds()
    assert gate.controller.requests_left("a") == 1
    assert (await gate.arrive(key="a")).state == "waiting"


async def test_a_key_has_so_much_audio_a_day() -> None:
    """The next day it has as much again."""
    gate = Gate(max_audio_s_a_day=100.0)
    left_s = gate.controller.audio_left_s
    assert left_s("a") == 100.0
    assert (await gate.arrive(key="a", amount=70.0)).state == "at work"
    assert left_s("a") == 30.0
    too_much = await gate.arrive(key="a", amount=30.5)
    assert isinstance(too_much.failure, QuotaUsed)
    assert 1 <= (too_much.refusal.retry_after_s or 0) <= MOST_RETRY_AFTER_S
    assert (await gate.arrive(key="a", amount=30.0)).state == "at work"
    assert (await gate.arrive(key="a", body_read=False)).state == "QuotaUsed", "at the door"
    assert (await gate.arrive(key="b", amount=100.0)).state == "at work"
    assert (await gate.arrive(key="a", work=Work.DOWNLOAD)).state == "at work", "a download is no audio"
    gate.wall.now_s += 3600.0
    assert gate.controller.quota_resets_in_s() == DAY_S - 3600
    gate.wall.now_s += DAY_S - 3600.0
    assert left_s("a") == 100.0
    assert (await gate.arrive(key="a", amount=100.0)).state == "at work"


async def test_what_waits_is_spoken_for() -> None:
    """A hundred at once must not all pass because none of them was granted yet."""
    gate = Gate(slots=1, max_audio_s_a_day=100.0)
    await gate.arrive("working", "b")
    for priority in (HIGH, LOW):
        assert (await gate.arrive(key="a", amount=50.0, priority=priority)).state == "waiting"
    assert gate.controller.audio_left_s("a") == 0.0
    third = await gate.arrive(key="a", amount=1.0)
    assert isinstance(third.failure, QuotaUsed)
    gate.requests[-2].cancel()
    await rounds()
    assert gate.controller.audio_left_s("a") == 50.0
    assert (await gate.arrive(key="a", amount=50.0)).state == "waiting"


async def test_what_waits_for_memory_is_spoken_for_too() -> None:
    """It has left the line, and is charged only when it is let in."""
    gate = Gate(memory_mb=100, max_audio_s_a_day=100.0)
    working = await gate.arrive(key="b", mb=100)
    await gate.arrive(key="a", amount=100.0)
    assert gate.controller.audio_left_s("a") == 0.0
    assert (await gate.arrive(key="a", amount=1.0)).state == "QuotaUsed"
    working.finish()
    await rounds()
    assert gate.controller.audio_left_s("a") == 0.0


async def test_a_key_without_bounds_is_told_of_none() -> None:
    """Nothing is counted down where there is nothing to count."""
    gate = Gate()
    assert gate.controller.requests_left("a") is None
    assert gate.controller.audio_left_s("a") is None


# --- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["at the door", "waiting", "waiting for memory", "at work"])
async def test_who_hangs_up_leaves_no_trace(where: str) -> None:
    """Wherever it stood; and whoever stood behind it moves up."""
    gate = Gate(slots=2, memory_mb=100)
    others = [await gate.arrive(mb=48) for _ in range(2 if where == "waiting" else 1)]
    leaves = await gate.arrive(key="leaves", mb=60 if "memory" in where else 1, body_read=where != "at the door")
    assert where.startswith(leaves.state)
    behind = await gate.arrive("behind")
    leaves.cancel()
    await rounds()
    assert leaves.failure is not None
    for one in others:
        one.finish()
    await rounds()
    assert behind.state == "at work"
    behind.finish()
    await rounds()
    assert not gate.traces()


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


async def test_what_fails_inside_gives_everything_back() -> None:
    """A slot, its bytes, its key's place; and a failure is no work done."""
    gate = Gate(slots=1)
    await gate.learn_speed(10.0)
    fails, behind = await gate.arrive("fails", "a", amount=1000.0), await gate.arrive("behind", "b")
    fails.finish(Broken("inside"))
    await rounds()
    assert isinstance(fails.failure, Broken)
    assert behind.state == "at work"
    assert gate.controller.lanes[Work.TRANSCRIPTION].speed.per_s == pytest.approx(10.0)
    behind.finish()
    await rounds()
    assert not gate.traces()


async def test_who_is_refused_in_the_line_and_answers_for_itself_has_done_no_work() -> None:
    """The error need not leave the block."""
    gate = Gate()
    await gate.learn_speed(10.0)
    with gate.controller.reserve(Work.TRANSCRIPTION) as place, pytest.raises(TooLarge):
        await place.granted({DEVICE: 5000 * MB}, amount=1000.0)
    assert gate.controller.lanes[Work.TRANSCRIPTION].speed.per_s == pytest.approx(10.0)
    assert not gate.traces()


async def test_work_is_counted_once_however_often_it_is_told() -> None:
    """Progress goes forward only, and the end counts what is left."""
    gate = Gate()
    request = await gate.arrive(amount=100.0)
    assert request.place is not None
    await gate.pass_s(5.0)
    for done in (30.0, 20.0, 50.0, 50.0, 400.0):
        request.place.advance(done)
    assert request.place.remaining == 0.0
    request.finish()
    await rounds()
    assert gate.controller.lanes[Work.TRANSCRIPTION].speed.per_s == pytest.approx(100.0 / 5.0)


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
