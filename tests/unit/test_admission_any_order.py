"""The gate under anything in any order: hang-ups at every await, failures, memory that comes and goes, a stop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from errors import (
    DeadlineTooNear,
    KeyBusy,
    QueueFull,
    QueueTimeout,
    QuotaUsed,
    ServiceError,
    ShuttingDown,
    TooLarge,
)
from key_limits import DAY_S
from lanes import Lane
from reservation import Reservation, Work
from tests.gates import DEVICE, MB, WIDTH, Broken, Gate, Request, rounds

MEMORY_MB = 100
KEYS = ("", "a", "b")
which = st.integers(0, 1_000_000)
"""One of those there are."""


class AnyOrder(RuleBasedStateMachine):
    """Never more lent, at work or waiting than there may be; who is not refused comes in once; nothing is left."""

    @initialize(
        slots=st.integers(1, 5),
        stops=st.booleans(),
        bounds=st.fixed_dictionaries(
            {
                "max_waiting": st.sampled_from([50, 8, 1, 0]),
                "timeout_s": st.sampled_from([0.0, 30.0]),
                "max_wait_s": st.sampled_from([0.0, 100.0]),
                "max_per_key": st.sampled_from([0, 4]),
                "max_audio_s_a_day": st.sampled_from([0.0, 500.0]),
                "several_keys": st.booleans(),
            }
        ),
    )
    def open(self, slots: int, bounds: dict[str, Any], stops: bool) -> None:
        """*stops*: at the end at the latest."""
        self.stops = stops
        self.loop = asyncio.new_event_loop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.gate = Gate(slots, memory_mb=MEMORY_MB, downloads=2, loop=self.loop, **bounds)
        self.controller, self.bounds = self.gate.controller, self.gate.controller.bounds
        self.closed = False

    # --- what happens ------------------------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        work=st.sampled_from([Work.TRANSCRIPTION, Work.TRANSCRIPTION, Work.TRANSCRIPTION, Work.DOWNLOAD]),
        mb=st.sampled_from([1, 30, 60, 100, 101]),
        amount=st.sampled_from([1.0, 20.0, 300.0]),
        priority=st.integers(0, 1),
        no_wait=st.sampled_from([False, False, False, True]),
        timeout_s=st.sampled_from([None, None, None, 20.0]),
        body_read=st.booleans(),
        link_mb=st.sampled_from([0, 0, 0, 20]),
    )
    def come(self, work: Work, link_mb: int, amount: float, **asked: Any) -> None:
        link_mb = link_mb if work is Work.TRANSCRIPTION else 0
        self.gate.come(work=work, link_mb=link_mb, amount=amount, short=amount < 100.0, **asked)

    @rule(number=st.integers(1, 6), key=st.sampled_from(KEYS), mb=st.sampled_from([1, 40, 90]), short=st.booleans())
    def crowd(self, number: int, key: str, mb: int, short: bool) -> None:
        """Several that have nothing special, and get as far as they can."""
        for _ in range(number):
            self.gate.come(key=key, mb=mb, short=short, timeout_s=None)
        self.go_round(3)

    @rule(number=st.sampled_from([1, 1, 2, 3, 5]))
    def go_round(self, number: int) -> None:
        """Between two of these, things happen in the same moment."""
        self.loop.run_until_complete(rounds(number))

    def one(self, number: int, fits: Callable[[Request], bool]) -> Request | None:
        found = [request for request in self.gate.requests if not request.over and fits(request)]
        return found[number % len(found)] if found else None

    @rule(number=which)
    def hang_up(self, number: int) -> None:
        if request := self.one(number, lambda request: not request.cancelled):
            request.cancel()

    @rule(number=which)
    def send_body(self, number: int) -> None:
        if request := self.one(number, lambda request: not request.body_read.is_set()):
            request.body_read.set()

    @rule(number=which, breaks=st.booleans())
    def finish(self, number: int, breaks: bool) -> None:
        if request := self.one(number, lambda request: request.state == "at work"):
            request.finish(Broken("inside") if breaks else None)

    @rule(number=which, another=which, breaks=st.booleans(), between=st.integers(0, 2))
    def finish_and_hang_up(self, number: int, another: int, breaks: bool, between: int) -> None:
        """In the same moment, or nearly: a slot and bytes may be given to who is just leaving."""
        self.finish(number, breaks)
        if between:
            self.go_round(between)
        if request := self.one(another, lambda request: request.state == "waiting" and not request.cancelled):
            request.cancel()

    @rule(number=which, mb=st.sampled_from([1, 30, None]), done=st.sampled_from([0.0, 5.0, 1000.0]))
    def work(self, number: int, mb: int | None, done: float) -> None:
        request = self.one(number, lambda request: request.state == "at work")
        if request and request.place:
            request.place.advance(done)
            request.place.give_back(DEVICE, mb and mb * MB)

    @rule(free_mb=st.sampled_from([1000, 80, 0]), gone=st.booleans())
    def look_at_memory(self, free_mb: int, gone: bool) -> None:
        """*gone*: whoever waits for memory hangs up just then."""
        called = [lane.called for lane in self.controller.lanes.values()]
        self.controller.observe({DEVICE: free_mb * MB}, 10 * MB)
        for request in self.gate.requests:
            if gone and request.place in called and request.place is not None:
                request.cancel()

    @rule(seconds=st.sampled_from([0.5, 0.5, 5.0, 25.0]), days=st.sampled_from([0, 0, 0, 1]))
    def time_passes(self, seconds: float, days: int) -> None:
        self.gate.clock.now_s += seconds
        self.gate.wall.now_s += days * DAY_S

    @precondition(lambda self: len(self.gate.requests) > 5 and not self.closed)
    @rule(sure=st.sampled_from([False, False, False, True]))
    def stop(self, sure: bool) -> None:
        if sure:
            self.loop.run_until_complete(self.close())

    async def close(self) -> None:
        self.closed = True
        called = {lane.called for lane in self.controller.lanes.values() if lane.called}
        self.may_go_on = {request for request in self.gate.requests if request.grants or request.place in called}
        self.controller.close()

    @invariant()
    def nobody_is_let_in_after_a_stop(self) -> None:
        if self.closed:
            assert {request for request in self.gate.requests if request.grants} <= self.may_go_on

    # --- what holds at any moment ------------------------------------------------------------------------------------

    def live(self) -> list[Reservation]:
        """All that hold something."""
        places = [place for request in self.gate.requests for place in (request.place, request.part)]
        return [place for place in places if place is not None and not place._over]

    @invariant()
    def no_lane_is_overfull(self) -> None:
        for work, lane in self.controller.lanes.items():
            live = [place for place in self.live() if place.work is work]
            assert len(lane.active) <= lane.slots
            assert sum(not place.short for place in lane.active) <= lane.slots - lane.kept
            assert lane.arriving == sum(place.turn is None for place in live)
            assert len(lane.line) <= self.bounds.max_waiting
            assert lane.arriving + len(lane.line) + len(lane.active) <= lane.slots + self.bounds.max_waiting
            at_work = {place for place in lane.active if place is not lane.called}
            assert lane.places == Counter(place.key for place in live if place not in at_work)
            assert {*lane.line, *lane.active} <= set(live)
            assert not set(lane.line) & set(lane.active)

    @invariant()
    def no_more_is_lent_than_there_is(self) -> None:
        """NOTE: what was just lent is in its reservation's hands when the loop next goes round."""
        memory = self.gate.memory
        assert self.held_bytes() <= memory.lent_bytes <= memory.budget_bytes

    def held_bytes(self) -> int:
        return sum(sum(place._bytes.values()) for place in self.live())

    @invariant()
    def no_key_has_more_than_it_may(self) -> None:
        counts = Counter(place.key for place in self.live() if place.counted)
        assert self.controller.keys.in_flight == dict(counts)
        if self.bounds.max_per_key:
            assert max(counts.values(), default=0) <= self.bounds.max_per_key
        if self.bounds.max_audio_s_a_day:
            audio_s: Counter[tuple[str, float]] = Counter()
            for request in self.gate.requests:
                if request.granted_on is not None and request.asked["work"] is Work.TRANSCRIPTION:
                    audio_s[request.asked["key"], request.granted_on] += request.amount
            assert max(audio_s.values(), default=0.0) <= self.bounds.max_audio_s_a_day

    @invariant()
    def nobody_is_let_in_twice_or_fails_without_a_reason(self) -> None:
        assert not self.complaints
        for request in self.gate.requests:
            assert request.grants <= 1
            if request.failure is not None:
                assert self.may_fail_so(request, request.failure), request

    def may_fail_so(self, request: Request, failure: BaseException) -> bool:
        timed = self.bounds.timeout_s or request.asked["timeout_s"] or request.link_mb
        reasons: dict[type[BaseException], Any] = {
            asyncio.CancelledError: request.cancelled,
            Broken: request.grants,
            TooLarge: request.costs[DEVICE] > MEMORY_MB * MB,
            KeyBusy: self.bounds.max_per_key,
            QuotaUsed: self.bounds.max_audio_s_a_day,
            QueueTimeout: timed,
            DeadlineTooNear: request.asked["timeout_s"],
            ShuttingDown: self.closed,
            QueueFull: True,
        }
        return bool(reasons.get(type(failure))) and not (request.grants and isinstance(failure, ServiceError))

    # --- what holds once all is still --------------------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        self.loop.run_until_complete(rounds(3 * WIDTH))
        assert self.held_bytes() == self.gate.memory.lent_bytes
        for work, lane in self.controller.lanes.items():
            live = {place for place in self.live() if place.work is work and place.turn is not None}
            assert {*lane.line, *lane.active} == live
            assert self.nobody_could_start(lane)
            for place in lane.all_waiting():
                assert not self.closed
                assert not place.no_wait
                assert self.bounds.max_waiting
                assert place.line_entered is not None
                waited_s = self.gate.clock() - place.line_entered
                assert not self.bounds.timeout_s or waited_s < self.bounds.timeout_s
                assert place.deadline is None or self.gate.clock() < place.deadline

    def nobody_could_start(self, lane: Lane) -> bool:
        """A free slot stays empty for want of memory alone, or is kept for clips."""
        memory = self.gate.memory
        if lane.called is not None:
            head_bytes = memory._waiting[0][0]
            return not (memory._has_room(head_bytes) and memory._is_free(head_bytes))
        return lane.free == 0 or lane.line.first(short_only=lane.free_for_long <= 0) is None

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        try:
            self.settle()
            if self.stops and not self.closed:
                self.loop.run_until_complete(self.close())
            self.end()
        finally:
            self.loop.close()

    def end(self) -> None:
        """Memory is there again, all bodies come, all work ends: nobody is left waiting, and nothing is held."""
        for _ in range(3 * len(self.gate.requests) + 1):
            self.controller.observe({DEVICE: 1000 * MB}, 0)
            for request in self.gate.requests:
                request.body_read.set()
                if request.state == "at work":
                    request.finish(request.error)
            self.settle()
        for request in self.gate.requests:
            assert request.over, request
            assert request.grants == 1 or request.failure is not None, request
        self.nobody_is_let_in_twice_or_fails_without_a_reason()
        traces = self.gate.traces()
        assert not traces.pop("audio", {}) or self.bounds.max_audio_s_a_day
        assert not traces


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
test_any_order = AnyOrder.TestCase
