"""What one request holds, and that all of it goes back wherever the request ends."""

from __future__ import annotations

import asyncio

import pytest

from errors import QueueTimeout, QuotaUsed, TooLarge
from reservation import Work
from tests.gates import DEVICE, MB, Broken, Gate, rounds


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
        assert repr(place) == f"<Reservation transcription amount=1 holds={{'memory': {30 * MB}}}>"
    assert not gate.traces()


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


async def test_each_request_knows_the_most_that_the_service_held_beside_it() -> None:
    """What a request's answer tells of memory."""
    gate = Gate()
    request = await gate.arrive()
    for own_mb in (5, 20, 10):
        gate.controller.observe({}, own_mb * MB)
    assert request.place is not None
    assert request.place.peak_bytes == 20 * MB


async def test_what_is_shared_is_lent_to_the_first_and_returned_by_the_last() -> None:
    """A process that serves all of them is in memory once."""
    gate = Gate(slots=4, memory_mb=100)
    shared = {"alignment": 50 * MB}
    with gate.controller.reserve(Work.TRANSCRIPTION) as second:
        with gate.controller.reserve(Work.TRANSCRIPTION) as first:
            await first.granted({DEVICE: 10 * MB}, shared=shared)
            assert gate.memory.lent_bytes == 60 * MB
            await second.granted({DEVICE: 10 * MB}, shared=shared)
            assert gate.memory.lent_bytes == 70 * MB
        assert gate.memory.lent_bytes == 60 * MB
    assert not gate.traces()


async def test_what_is_shared_counts_where_a_request_can_never_fit() -> None:
    """It is told at once, and does not wait for ever."""
    gate = Gate(memory_mb=100)
    with gate.controller.reserve(Work.TRANSCRIPTION) as place, pytest.raises(TooLarge):
        await place.granted({DEVICE: 60 * MB}, shared={"alignment": 50 * MB})
    assert not gate.traces()


async def test_whoever_said_too_little_pays_for_the_rest() -> None:
    """A header that lies must not be worth its while: neither for the key's day nor for a clip's place."""
    gate = Gate(memory_mb=100, slots=2, max_audio_s_a_day=100.0)
    with gate.controller.reserve(Work.TRANSCRIPTION, "a") as place:
        await place.granted({DEVICE: 10 * MB}, amount=10.0, short=True)
        await place.extend(70.0, {DEVICE: 5 * MB}, short=False)
        assert (place.amount, place.short, gate.memory.lent_bytes) == (70.0, False, 15 * MB)
        assert gate.controller.audio_left_s("a") == 30.0
        with pytest.raises(QuotaUsed):
            await place.extend(101.0, {}, short=False)
        with pytest.raises(TooLarge):
            await place.extend(80.0, {DEVICE: 90 * MB}, short=False)
        assert (place.amount, gate.controller.audio_left_s("a")) == (70.0, 30.0)
    assert gate.memory.lent_bytes == 0


async def test_a_clip_that_is_none_needs_a_place_for_long_ones() -> None:
    """Those kept for clips would else be open to whoever lies."""
    gate = Gate(slots=2)
    with gate.controller.reserve(Work.TRANSCRIPTION) as long, gate.controller.reserve(Work.TRANSCRIPTION) as clip:
        await long.granted({DEVICE: MB}, amount=100.0)
        await clip.granted({DEVICE: MB}, amount=10.0, short=True)
        await clip.extend(20.0, {}, short=True)
        with pytest.raises(TooLarge):
            await clip.extend(100.0, {}, short=False)
        assert clip.short
