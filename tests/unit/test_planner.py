"""The planner: which segments share a batch, and in whose turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transcription.core import SAMPLE_RATE, Segment, TranscriptionOptions
from transcription.planner import BatchPlanner, Pending, length_class

OPTIONS = TranscriptionOptions("tiny.en", "en")


def pending(request: int, index: int, seconds: float = 5.0, options: TranscriptionOptions = OPTIONS) -> Pending:
    return Pending(request, Segment(Path("a.pcm"), 0, int(seconds * SAMPLE_RATE), index), options)


def places(batch: list[Pending]) -> list[tuple[int, int]]:
    return [(one.request, one.segment.index) for one in batch]


def test_a_short_request_does_not_wait_behind_a_long_one() -> None:
    """The ten-second clip and the two-hour podcast: the clip is in the very next batch."""
    planner = BatchPlanner(4)
    for index in range(100):
        planner.add(pending(1, index))
    planner.next_batch()
    planner.add(pending(2, 0))
    assert (2, 0) in places(planner.next_batch())


def test_a_lone_request_fills_the_batch() -> None:
    """Nobody else waits: no slot is left empty."""
    planner = BatchPlanner(4)
    for index in range(6):
        planner.add(pending(1, index))
    assert places(planner.next_batch()) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert places(planner.next_batch()) == [(1, 4), (1, 5)]
    assert planner.next_batch() == []


def test_options_do_not_mix() -> None:
    """One batch is one call of the model: one beam size, one language."""
    planner = BatchPlanner(4)
    planner.add(pending(1, 0))
    planner.add(pending(2, 0, options=replace(OPTIONS, beam_size=1)))
    assert places(planner.next_batch()) == [(1, 0)]
    assert places(planner.next_batch()) == [(2, 0)]


def test_like_lengths_share_a_batch() -> None:
    """A batch is encoded over the window of its longest segment: a 28 s one would make the short ones dear."""
    planner = BatchPlanner(4)
    for index, seconds in enumerate((5.0, 28.0, 6.0, 29.0)):
        planner.add(pending(1, index, seconds))
    assert places(planner.next_batch()) == [(1, 0), (1, 2)]
    assert places(planner.next_batch()) == [(1, 1), (1, 3)]


def test_a_cancelled_request_is_not_given_out() -> None:
    """Its client has hung up."""
    planner = BatchPlanner(4)
    planner.add(pending(1, 0))
    planner.add(pending(2, 0))
    planner.cancel(1)
    assert places(planner.next_batch()) == [(2, 0)]


def test_what_an_engine_died_with_is_tried_alone() -> None:
    """Should one of them be the cause, the others do not die with it again."""
    planner = BatchPlanner(4)
    for index in range(3):
        planner.add(pending(1, index))
    planner.put_back(planner.next_batch())
    planner.add(pending(1, 3))
    batches = [planner.next_batch() for _ in range(4)]
    assert [places(batch) for batch in batches] == [[(1, 0)], [(1, 1)], [(1, 2)], [(1, 3)]]
    assert [batch[0].attempts for batch in batches] == [1, 1, 1, 0]


class AnyOrder(RuleBasedStateMachine):
    """add, take, die and cancel in any order: nothing lost, nothing twice, nobody left waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.planner = BatchPlanner(3)
        self.next_index: Counter[int] = Counter()
        self.waiting: set[tuple[int, int]] = set()
        self.passed_over: Counter[int] = Counter()
        self.under_way: list[Pending] = []

    @rule(request=st.integers(0, 4), seconds=st.sampled_from([2.0, 12.0, 29.0]), beam=st.sampled_from([1, 5]))
    def add(self, request: int, seconds: float, beam: int) -> None:
        one = pending(request, self.next_index[request], seconds, replace(OPTIONS, beam_size=beam))
        self.next_index[request] += 1
        self.planner.add(one)
        self.waiting.add((request, one.segment.index))

    @rule(dies=st.booleans())
    def take(self, dies: bool) -> None:
        waiting_requests = {request for request, _ in self.waiting}
        batch = self.planner.next_batch()
        assert bool(batch) == bool(self.waiting)
        assert len(batch) <= 3
        assert len({(one.options, length_class(one.segment)) for one in batch}) <= 1
        taken = places(batch)
        assert len(set(taken)) == len(taken)
        assert set(taken) <= self.waiting
        for request in waiting_requests:
            self.passed_over[request] = 0 if request in {r for r, _ in taken} else self.passed_over[request] + 1
            assert self.passed_over[request] <= 5, "no more batches than there are requests"
        if dies:
            self.planner.put_back(batch)
        else:
            self.waiting -= set(taken)

    @rule(request=st.integers(0, 4))
    def cancel(self, request: int) -> None:
        self.planner.cancel(request)
        self.waiting = {place for place in self.waiting if place[0] != request}
        self.passed_over[request] = 0

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.planner) == len(self.waiting)


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_order = AnyOrder.TestCase
