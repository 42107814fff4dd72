"""What one key may have: requests in flight, and audio in a day."""

from __future__ import annotations

import pytest

from admission import MOST_RETRY_AFTER_S
from errors import KeyBusy, QuotaUsed
from key_limits import DAY_S, KeyLimits, Limits
from reservation import Work
from tests.gates import DEVICE, HIGH, LOW, MB, Clock, Gate, rounds


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


def test_what_was_granted_before_today_is_forgotten() -> None:
    """Else every key that ever came would be held for ever."""
    wall = Clock(DAY_S - 1.0)
    keys = KeyLimits(0, 100.0, wall)
    keys.charge("a", 60.0)
    keys.charge("a", 10.0)
    assert (keys.audio_today_s(), keys.audio_left_s("a", 5.0)) == ({"a": 70.0}, 25.0)
    wall.now_s += 1.0
    keys.charge("b", 20.0)
    assert keys.audio_today_s() == {"b": 20.0}


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


async def test_a_key_may_have_limits_of_its_own() -> None:
    """More or less than the others, in each respect by itself; 0 is none."""
    own = {"a": Limits(1, None), "b": Limits(0, 0), "c": Limits(None, 500.0)}
    limits = KeyLimits(5, 100.0, lambda: 0.0, own.get)
    assert [limits.requests_left(key) for key in "abcd"] == [1, None, 5, 5]
    assert [limits.audio_left_s(key, 0.0) for key in "abcd"] == [100.0, None, 500.0, 100.0]
    limits.charge("c", 450.0)
    assert limits.audio_left_s("c", 20.0) == 30.0


# --- a key's jobs ----------------------------------------------------------------------------------------------------


async def test_what_was_accepted_counts_once() -> None:
    """From when it was handed in: neither while it waits at the gate nor when it is let in does it count again."""
    gate = Gate(slots=1, max_audio_s_a_day=100.0)
    left_s, for_jobs_s = gate.controller.audio_left_s, gate.controller.audio_for_jobs_s
    gate.controller.keys.charge("a", 60.0, of_job=True)
    assert (left_s("a"), for_jobs_s("a")) == (40.0, 100.0)
    working = await gate.arrive("working", "b")
    job = await gate.arrive("job", "a", amount=60.0, accepted=True, charged=60.0)
    call = await gate.arrive("call", "a", amount=30.0)
    assert (job.state, call.state) == ("waiting", "waiting")
    assert (left_s("a"), for_jobs_s("a")) == (10.0, 70.0)
    assert isinstance((await gate.arrive(key="a", amount=10.5)).failure, QuotaUsed)
    for one in (working, job, call):
        one.finish()
        await rounds()
        assert (left_s("a"), for_jobs_s("a")) == (10.0, 70.0)
    gate.wall.now_s += DAY_S
    assert (left_s("a"), for_jobs_s("a")) == (100.0, 100.0)
    assert not gate.traces()


async def test_a_job_that_is_cancelled_at_the_gate_leaves_no_trace_in_the_line() -> None:
    gate = Gate(slots=1, max_audio_s_a_day=100.0)
    await gate.arrive("working", "b")
    job = await gate.arrive("job", "a", amount=60.0, accepted=True)
    await gate.arrive("call", "a", amount=30.0)
    job.cancel()
    await rounds()
    assert gate.controller.audio_left_s("a") == 70.0


async def test_what_only_its_work_tells_of_a_job_counts_then() -> None:
    """A link's length, above all: what is left of the day bounds it, whatever was accepted."""
    gate = Gate(max_audio_s_a_day=100.0)
    link = await gate.arrive(key="a", amount=70.0, accepted=True)
    assert (link.state, gate.controller.audio_left_s("a"), gate.controller.audio_for_jobs_s("a")) == (
        "at work",
        30.0,
        100.0,
    )
    assert isinstance((await gate.arrive(key="a", amount=31.0, accepted=True)).failure, QuotaUsed)
    split = await gate.arrive(key="a", amount=40.0, accepted=True, charged=20.0)
    assert (split.state, gate.controller.audio_left_s("a")) == ("at work", 10.0)
    assert (await gate.arrive(key="a", amount=500.0, accepted=True, charged=500.0)).state == "at work"


async def test_a_job_whose_header_lies_pays_for_the_rest() -> None:
    gate = Gate(max_audio_s_a_day=100.0)
    with gate.controller.reserve(Work.TRANSCRIPTION, "a", accepted=True, charged=50.0) as place:
        await place.granted({DEVICE: MB}, amount=10.0)
        await place.extend(50.0, {}, short=False)
        assert gate.controller.audio_left_s("a") == 100.0, "it was charged for so much"
        await place.extend(90.0, {}, short=False)
        assert gate.controller.audio_left_s("a") == 60.0
        with pytest.raises(QuotaUsed):
            await place.extend(151.0, {}, short=False)


def test_what_is_given_back_is_never_more_than_was_had() -> None:
    """A day may end between both."""
    keys = KeyLimits(0, 100.0, Clock(DAY_S))
    keys.charge("a", -50.0, of_job=True)
    assert keys.audio_left_s("a", 0.0) == 100.0


# --- live sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 4), (9, 6)])
async def test_a_key_has_two_thirds_of_the_live_sessions(slots: int, most: int) -> None:
    """And one at least. They last for hours: nobody else would ever come in."""
    gate = Gate(live=slots, several_keys=True)
    mine = [await gate.arrive(key="a", work=Work.LIVE, no_wait=True) for _ in range(slots + 1)]
    assert [one.state for one in mine] == ["at work"] * most + ["QueueFull"] * (slots + 1 - most)
    assert mine[-1].refusal.retry_after_s
    theirs = [await gate.arrive(key="b", work=Work.LIVE, no_wait=True) for _ in range(slots - most)]
    assert [one.state for one in theirs] == [
        "at work" if number < most else "QueueFull" for number in range(slots - most)
    ]
    mine[0].finish()
    await rounds()
    assert (await gate.arrive(key="a", work=Work.LIVE, no_wait=True)).state == "at work"


async def test_a_key_alone_has_all_live_sessions() -> None:
    gate = Gate(live=3)
    for _ in range(3):
        assert (await gate.arrive(key="a", work=Work.LIVE, no_wait=True)).state == "at work"


async def test_sessions_that_are_about_to_begin_count_for_their_key() -> None:
    """A model is fetched meanwhile, or memory is short: many at once must not all pass."""
    gate = Gate(live=3, several_keys=True)
    begun = [await gate.arrive(key="a", work=Work.LIVE, no_wait=True, body_read=False) for _ in range(3)]
    assert [one.state for one in begun] == ["at the door", "at the door", "QueueFull"]
