"""The planner: which segments share a batch, and in whose turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transcription.core import NOBODY, SAMPLE_RATE, Caller, Priority, Segment, Task, TranscriptionOptions
from transcription.planner import MODEL_STAYS_BATCHES, BatchPlanner, Pending, length_class
from turns import LOWER_CLASS_EVERY

OPTIONS = TranscriptionOptions("tiny.en", "en")


def pending(
    request: int,
    index: int,
    seconds: float = 5.0,
    options: TranscriptionOptions = OPTIONS,
    caller: Caller = NOBODY,
) -> Pending:
    return Pending(request, Segment(Path("a.pcm"), 0, int(seconds * SAMPLE_RATE), index), options, caller)


def places(batch: list[Pending]) -> list[tuple[int, int]]:
    return [(one.request, one.segment.index) for one in batch]


def died(batch: list[Pending]) -> list[Pending]:
    return [replace(one, attempts=one.attempts + 1) for one in batch]


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


def test_a_clip_shares_its_batch_with_clips_and_not_with_a_long_file() -> None:
    """Its answer waits for the whole batch."""
    planner = BatchPlanner(4)
    for index in range(20):
        planner.add(pending(1, index))
    planner.next_batch()
    planner.add(pending(2, 0))
    planner.add(pending(3, 0))
    assert places(planner.next_batch()) == [(2, 0), (3, 0)]
    assert {request for request, _ in places(planner.next_batch())} == {1}


def test_the_express_stream_takes_clips_alone() -> None:
    """It is kept free for them."""
    planner = BatchPlanner(4)
    for index in range(20):
        planner.add(pending(1, index))
    assert planner.next_batch(clips_only=True) == []
    planner.add(pending(2, 0))
    assert places(planner.next_batch(clips_only=True)) == [(2, 0)]
    assert len(planner) == 20


def test_options_do_not_mix() -> None:
    """One batch is one call of the model: one beam size."""
    planner = BatchPlanner(4)
    planner.add(pending(1, 0))
    planner.add(pending(2, 0, options=replace(OPTIONS, beam_size=1)))
    assert places(planner.next_batch()) == [(1, 0)]
    assert places(planner.next_batch()) == [(2, 0)]


def test_languages_and_tasks_share_a_batch() -> None:
    """Each segment has a prompt of its own."""
    planner = BatchPlanner(4)
    planner.add(pending(1, 0, options=replace(OPTIONS, language="fr")))
    planner.add(pending(2, 0, options=replace(OPTIONS, language="fr", task=Task.TRANSLATE)))
    planner.add(pending(3, 0))
    assert places(planner.next_batch()) == [(1, 0), (2, 0), (3, 0)]


def test_a_batch_holds_no_more_audio_than_it_may() -> None:
    """On a CPU a batch takes as long as its audio, and the next clip waits for it; a lone long segment must go all the
    same.
    """
    planner = BatchPlanner(4, batch_s=20.0)
    for index, seconds in enumerate((8.0, 8.0, 8.0, 25.0)):
        planner.add(pending(1, index, seconds))
    assert [places(planner.next_batch()) for _ in range(3)] == [[(1, 0), (1, 1)], [(1, 2)], [(1, 3)]]


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
    planner.put_back(died(planner.next_batch()))
    planner.add(pending(1, 3))
    batches = [planner.next_batch() for _ in range(4)]
    assert [places(batch) for batch in batches] == [[(1, 0)], [(1, 1)], [(1, 2)], [(1, 3)]]
    assert [batch[0].attempts for batch in batches] == [1, 1, 1, 0]


def test_what_did_not_fit_into_memory_comes_in_smaller_batches() -> None:
    """On that device and for that model alone, and in the old order."""
    planner = BatchPlanner(8)
    for index in range(8):
        planner.add(pending(1, index))
    planner.limit("cuda:0", OPTIONS.model, 2)
    planner.put_back(planner.next_batch("cuda:1"))
    assert places(planner.next_batch("cuda:0")) == [(1, 0), (1, 1)]
    assert len(planner.next_batch("cuda:1")) == 6


def test_keys_take_turns_whatever_they_send() -> None:
    """One key sends a crowd of requests, the other a single long one: each gets half of the seconds."""
    planner = BatchPlanner(1)
    crowd, single = Caller("crowd"), Caller("single")
    for request in range(40):
        planner.add(pending(request, 0, caller=crowd))
    for index in range(40):
        planner.add(pending(99, index, caller=single))
    served = Counter(planner.next_batch()[0].caller.key for _ in range(40))
    assert served == {"crowd": 20, "single": 20}


def test_turns_are_counted_in_seconds_not_in_segments() -> None:
    """Who sends segments of 25 s gets one for five of 5 s."""
    planner = BatchPlanner(1)
    for index in range(60):
        planner.add(pending(1, index, 25.0, caller=Caller("long")))
        planner.add(pending(2, index, 5.0, caller=Caller("short")))
    served = Counter(planner.next_batch()[0].caller.key for _ in range(60))
    assert served == {"long": 10, "short": 50}


def test_the_higher_class_goes_first_and_the_lower_one_is_not_starved() -> None:
    """Somebody waits for an interactive request; a batch request may take its time, but not for ever."""
    planner = BatchPlanner(1)
    later, now = Caller("a", Priority.BATCH), Caller("b", Priority.INTERACTIVE)
    for index in range(40):
        planner.add(pending(1, index, caller=later))
        planner.add(pending(2, index, caller=now))
    served = [planner.next_batch()[0].caller for _ in range(2 * LOWER_CLASS_EVERY)]
    assert served.count(later) == 2
    assert served[0] == now


def test_a_stream_of_newcomers_does_not_hold_up_who_was_there() -> None:
    """Each newcomer starts at an even share, not at nothing: the long file is served between them."""
    planner = BatchPlanner(1)
    for index in range(50):
        planner.add(pending(0, index, 20.0))
    planner.next_batch()
    served: Counter[bool] = Counter()
    for newcomer in range(1, 60):
        planner.add(pending(newcomer, 0))
        served[planner.next_batch()[0].request == 0] += 1
    assert served[True] >= 5


BASE = replace(OPTIONS, model="base")


def taken_models(planner: BatchPlanner, batches: int) -> list[str]:
    return [planner.next_batch("cpu")[0].options.model for _ in range(batches)]


def test_models_that_do_not_fit_together_change_places_seldom() -> None:
    """Two callers in turns would have one model loaded in the other's place for each batch."""
    planner = BatchPlanner(1, together=lambda device, one, other: False)
    for index in range(60):
        planner.add(pending(1, index))
        planner.add(pending(2, index, options=BASE))
    models = taken_models(planner, 60)
    changes = sum(one != other for one, other in pairwise(models))
    assert changes <= 60 // MODEL_STAYS_BATCHES
    assert {OPTIONS.model, "base"} == set(models), "nobody is left waiting"


def test_the_other_model_comes_at_once_where_nothing_else_is_to_be_done() -> None:
    """A change for which nobody waits costs nobody anything."""
    planner = BatchPlanner(1, together=lambda device, one, other: False)
    planner.add(pending(1, 0))
    planner.add(pending(2, 0, options=BASE))
    assert taken_models(planner, 2) == [OPTIONS.model, "base"]


def test_models_that_fit_together_take_turns_as_ever() -> None:
    """Nothing has to be loaded."""
    planner = BatchPlanner(1, together=lambda device, one, other: True)
    for index in range(6):
        planner.add(pending(1, index))
        planner.add(pending(2, index, options=BASE))
    assert taken_models(planner, 6).count("base") == 3


KEYS = ("", "a", "b")
MOST_PASSED_OVER = 5 * 3 * LOWER_CLASS_EVERY
"""Requests times the longest segments one may be ahead by, times the share of the lower class."""


class AnyOrder(RuleBasedStateMachine):
    """add, take, die and cancel in any order: nothing lost, nothing twice, nobody left waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.planner = BatchPlanner(3, batch_s=40.0)
        self.next_index: Counter[int] = Counter()
        self.waiting: set[tuple[int, int]] = set()
        self.passed_over: Counter[int] = Counter()

    def caller_of(self, request: int) -> Caller:
        return Caller(KEYS[request % 3], Priority(request % 2))

    @rule(request=st.integers(0, 4), seconds=st.sampled_from([2.0, 12.0, 29.0]), beam=st.sampled_from([1, 5]))
    def add(self, request: int, seconds: float, beam: int) -> None:
        options = replace(OPTIONS, beam_size=beam, language=("en", "fr")[self.next_index[request] % 2])
        one = pending(request, self.next_index[request], seconds, options, self.caller_of(request))
        self.next_index[request] += 1
        self.planner.add(one)
        self.waiting.add((request, one.segment.index))

    @rule(end=st.sampled_from(["done", "died", "did not fit"]))
    def take(self, end: str) -> None:
        waiting_requests = {request for request, _ in self.waiting}
        oldest = {r: min(index for one, index in self.waiting if one == r) for r in waiting_requests}
        batch = self.planner.next_batch()
        assert bool(batch) == bool(self.waiting)
        assert len(batch) <= 3
        assert len(batch) <= 1 or sum(one.segment.duration_s for one in batch) <= 40.0
        assert len({(one.options.beam_size, length_class(one.segment)) for one in batch}) <= 1
        assert len(batch) <= 1 or not any(one.attempts for one in batch)
        taken = places(batch)
        assert len(set(taken)) == len(taken)
        assert set(taken) <= self.waiting
        if batch:
            assert taken[0][1] == oldest[taken[0][0]], "first come within a request"
        for request in waiting_requests:
            self.passed_over[request] = 0 if request in {r for r, _ in taken} else self.passed_over[request] + 1
            assert self.passed_over[request] <= MOST_PASSED_OVER
        if end == "died":
            self.planner.put_back(died(batch))
        elif end == "did not fit":
            self.planner.put_back(batch)
        else:
            self.waiting -= set(taken)

    @rule(request=st.integers(0, 4))
    def cancel(self, request: int) -> None:
        self.planner.cancel(request)
        self.waiting = {place for place in self.waiting if place[0] != request}
        self.passed_over[request] = 0

    @rule(batches=st.integers(1, 30), seconds=st.sampled_from([2.0, 29.0]))
    def serve_a_crowd(self, batches: int, seconds: float) -> None:
        """Newcomers without end, of the highest class, each with one segment."""
        for _ in range(batches):
            self.add(2, seconds, 5)
            self.take("done")

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.planner) == len(self.waiting)

    def teardown(self) -> None:
        """What is left comes out to the last segment."""
        while self.waiting:
            self.take("done")


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_order = AnyOrder.TestCase
