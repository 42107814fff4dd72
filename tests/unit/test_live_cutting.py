"""Where speech that is still going on is cut, and how often it is looked at meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcription.core import SAMPLE_RATE
from transcription.live_cutting import LiveCutter, LiveRule, Stretch
from transcription.speech import FRAME_SAMPLES

STEP_FRAMES = 8
RULE = LiveRule()


def sound(*parts: tuple[float, float]) -> tuple[np.ndarray, list[float]]:
    """Samples and probabilities of (probability of speech, seconds) one after another; speech is loud."""
    probabilities = [p for p, seconds in parts for _ in range(round(seconds * SAMPLE_RATE / FRAME_SAMPLES))]
    loud = np.random.default_rng(0).integers(-8_000, 8_000, len(probabilities) * FRAME_SAMPLES).astype(np.int16)
    return loud * np.repeat(np.array(probabilities) > 0.5, FRAME_SAMPLES).astype(np.int16), probabilities


def steps(
    samples: np.ndarray, probabilities: list[float], frames: int = STEP_FRAMES
) -> Iterator[tuple[np.ndarray, list[float]]]:
    for first in range(0, len(probabilities), frames):
        last = first + frames
        yield samples[first * FRAME_SAMPLES : last * FRAME_SAMPLES], probabilities[first:last]


def cut(*parts: tuple[float, float], cutter: LiveCutter | None = None, frames: int = STEP_FRAMES) -> list[Stretch]:
    """All stretches of a session that goes so, its end included."""
    cutter = cutter or LiveCutter()
    found = [stretch for step in steps(*sound(*parts), frames) for stretch in cutter.add(*step)]
    return found + cutter.flush()


def looks(seconds: float, cutter: LiveCutter, *, takes_s: float = 0.0) -> list[Stretch]:
    """What is looked at while somebody speaks for so long without a pause; each look takes *takes_s* of their time."""
    found: list[Stretch] = []
    over_at: float | None = None
    for step in steps(*sound((1.0, seconds))):
        cutter.add(*step)
        if over_at is not None and cutter.heard >= over_at * SAMPLE_RATE:
            cutter.looked()
            over_at = None
        if over_at is None and (stretch := cutter.partial()):
            found.append(stretch)
            over_at = stretch.end_s + takes_s
    return found


# --- what is final ---------------------------------------------------------------------------------------------------


def test_a_pause_ends_a_stretch() -> None:
    """Whoever reads along waits for it, and no longer than for the pause."""
    cutter = LiveCutter()
    assert not [s for step in steps(*sound((0.0, 1.0), (1.0, 2.0), (0.0, 0.5))) for s in cutter.add(*step)]
    [stretch] = [s for step in steps(*sound((0.0, 0.4))) for s in cutter.add(*step)]
    assert stretch.start_s == pytest.approx(0.7, abs=0.05)
    assert stretch.end_s == pytest.approx(3.3, abs=0.05)


def test_a_breath_does_not() -> None:
    """People breathe in the middle of a sentence."""
    [stretch] = cut((1.0, 2.0), (0.0, 0.4), (1.0, 2.0), (0.0, 1.0))
    assert stretch.duration_s == pytest.approx(4.7, abs=0.05)


def test_silence_gives_nothing() -> None:
    """What is not decoded costs nothing."""
    cutter = LiveCutter()
    assert cut((0.0, 60.0), cutter=cutter) == []
    assert cutter.partial() is None


def test_a_click_is_no_speech() -> None:
    """One frame is a door."""
    assert cut((0.0, 1.0), (1.0, 0.032), (0.0, 2.0)) == []


def test_who_never_pauses_is_cut_at_the_quietest_place() -> None:
    """Within Whisper's window, and not in a word where there is a gap between two."""
    parts = [(1.0, 20.0), (0.0, 0.3), (1.0, 20.0), (0.0, 1.0)]
    first, second = cut(*parts)
    assert first.end_s == pytest.approx(20.15, abs=0.2)
    assert second.first_sample == first.first_sample + len(first.sound)


def test_flush_ends_what_is_under_way_and_the_rest_goes_on_from_there() -> None:
    """A caller who knows that a sentence is over need not wait for the pause."""
    cutter = LiveCutter()
    before = [s for step in steps(*sound((1.0, 2.0))) for s in cutter.add(*step)] + cutter.flush()
    after = cut((1.0, 1.0), (0.0, 1.0), cutter=cutter)
    assert [round(s.duration_s) for s in before] == [2]
    assert [s.first_sample for s in after] == [before[0].first_sample + len(before[0].sound)]
    assert cutter.flush() == []


@settings(deadline=None, max_examples=50)
@given(
    parts=st.lists(st.tuples(st.sampled_from([0.0, 0.4, 1.0]), st.floats(0.05, 40.0)), min_size=1, max_size=8),
    frames=st.sampled_from([1, 4, 32]),
)
def test_whatever_comes_no_sample_is_given_twice_or_changed(parts: list[tuple[float, float]], frames: int) -> None:
    """In order, no longer than the window, and the very samples that lie there; bounded memory meanwhile."""
    samples, probabilities = sound(*parts)
    cutter = LiveCutter()
    found = []
    for step in steps(samples, probabilities, frames):
        found += cutter.add(*step)
        assert len(cutter._sound) <= (RULE.longest_s + 2) * SAMPLE_RATE
    found += cutter.flush()
    last = 0
    for stretch in found:
        assert last <= stretch.first_sample
        last = stretch.first_sample + len(stretch.sound)
        assert 0 < len(stretch.sound) <= RULE.longest_s * SAMPLE_RATE
        assert np.array_equal(stretch.sound, samples[stretch.first_sample : last])
    loud = sum(seconds for p, seconds in parts if p == 1.0)
    assert last <= len(samples)
    assert sum(s.duration_s for s in found) >= loud - 0.5 * len(parts)


# --- looks -----------------------------------------------------------------------------------------------------------


def test_speech_is_looked_at_after_a_second_and_then_as_it_grows() -> None:
    """The first words come soon; later a look need not come for each word."""
    times = [stretch.end_s for stretch in looks(20.0, LiveCutter())]
    assert times[0] == pytest.approx(1.0, abs=0.3)
    assert times[1] - times[0] == pytest.approx(1.0, abs=0.3)
    assert 3.0 < times[-1] - times[-2] < 6.0


@pytest.mark.parametrize("seconds", [5.0, 15.0, 29.0, 120.0])
def test_looks_decode_a_bounded_share_of_what_is_said(seconds: float) -> None:
    """Decoding the whole stretch each second would be quadratic: 450 s for one of 30 s."""
    looked_s = sum(stretch.duration_s for stretch in looks(seconds, LiveCutter()))
    assert looked_s <= seconds / RULE.partial_growth


def test_the_bound_on_looks_comes_from_their_growth() -> None:
    """A look each second goes past it."""
    eager = LiveCutter(LiveRule(partial_growth=0.0))
    assert sum(stretch.duration_s for stretch in looks(29.0, eager)) > 29.0 / RULE.partial_growth


def test_a_slow_server_looks_less() -> None:
    """Looks that take long wait as long again: they never take more than half of the time."""
    quick, slow = looks(29.0, LiveCutter()), looks(29.0, LiveCutter(), takes_s=4.0)
    assert len(slow) < len(quick) / 2
    gaps = [later.end_s - earlier.end_s for earlier, later in itertools.pairwise(slow)]
    assert min(gaps) >= 8.0


def test_a_look_begins_where_its_stretch_does() -> None:
    """What was final stays final."""
    cutter = LiveCutter()
    [first] = [s for step in steps(*sound((1.0, 2.0), (0.0, 1.0))) for s in cutter.add(*step)]
    [*_, look] = looks(2.0, cutter)
    assert look.first_sample >= first.first_sample + len(first.sound)
