"""Word times made fit to read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from transcription.words import LONGEST_WORD_S, TimedWord, fitted, joined, loudness, tidied


def word(text: str, start: float, end: float) -> TimedWord:
    return TimedWord(text, start, end, 0.9)


def test_punctuation_goes_back_to_its_word() -> None:
    """A comma is not a word, and has no time of its own."""
    words = [
        word(" yes", 0.0, 0.4),
        word(",", 0.4, 0.6),
        word(' "', 0.6, 0.7),
        word("no", 0.7, 1.0),
        word('."', 1.0, 1.1),
    ]
    assert [one.text for one in joined(words)] == [" yes,", ' "no."']
    assert [(one.start, one.end) for one in joined(words)] == [(0.0, 0.4), (0.7, 1.0)]


def test_the_first_word_does_not_reach_back_over_the_pause() -> None:
    """Cross-attention starts the first word at the start of the window."""
    words = [word(" And", 0.0, 3.0), word(" so", 3.0, 3.3), word(" my", 3.3, 3.6)]
    first = tidied(words, 5.0)[0]
    assert first.end == 3.0
    assert first.start > 2.3


def test_a_word_before_a_pause_does_not_last_through_it() -> None:
    """Nor is the word after it moved."""
    words = [word(" one", 0.0, 0.3), word(" two", 0.3, 4.0), word(" three", 4.0, 4.3)]
    tidy = tidied(words, 5.0)
    assert tidy[1].start == 0.3
    assert tidy[1].end <= 1.0
    assert tidy[2].start == 4.0


TIMES = st.floats(-1, 40)


@given(st.lists(st.tuples(st.sampled_from([" a", " word", ",", " 's", '"', " (", "。", " "]), TIMES, TIMES)))
def test_any_times_come_out_in_order(raw: list[tuple[str, float, float]]) -> None:
    """Whatever the attention says: inside the segment, no overlap, none too long."""
    tidy = tidied([word(text, start, end) for text, start, end in raw], 30.0)
    at = 0.0
    for one in tidy:
        assert at <= one.start <= one.end <= 30.0
        assert one.end - one.start <= LONGEST_WORD_S + 1e-9
        at = one.end


def sound(*stretches: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Loudness of (seconds, peak) one after another."""
    return loudness(np.concatenate([np.full(round(seconds * 16_000), peak, np.float32) for seconds, peak in stretches]))


def times(words: Sequence[TimedWord]) -> list[tuple[float, float]]:
    return [(round(word.start, 2), round(word.end, 2)) for word in words]


def test_a_word_begins_with_its_sound_and_lasts_as_long() -> None:
    """Cross-attention has the first word begin with its segment, and the last one end too early."""
    loud = sound((0.3, 0.001), (1.0, 0.5), (1.0, 0.001))
    words = [TimedWord(" so", 0.0, 0.6, 0.9), TimedWord(" be", 0.6, 0.9, 0.9)]
    assert times(fitted(words, loud)) == [(0.29, 0.6), (0.6, 1.31)]


def test_a_word_before_a_pause_ends_where_it_dies_away() -> None:
    """And not with the next word's start, nor before its own last sound."""
    loud = sound((1.0, 0.5), (1.0, 0.001), (0.5, 0.5))
    words = [TimedWord(" so", 0.0, 0.7, 0.9), TimedWord(" be", 1.5, 2.5, 0.9)]
    assert times(fitted(words, loud)) == [(0.0, 1.01), (1.99, 2.5)]


def test_a_word_in_silence_stays_where_it_was() -> None:
    """Where nothing can be heard, nothing better is known; so it is where the sound is not known at all."""
    loud = sound((1.0, 0.001), (1.0, 0.5))
    words = [TimedWord(" so", 0.2, 0.4, 0.9), TimedWord(" be", 1.2, 1.5, 0.9)]
    assert times(fitted(words, loud))[0] == (0.2, 0.4)
    assert fitted(words, loudness(np.zeros(0, np.float32))) == words


def test_steady_noise_changes_no_word_much() -> None:
    """Its floor is its peak: everything counts as sound."""
    words = [TimedWord(" so", 0.2, 0.4, 0.9), TimedWord(" be", 0.5, 0.9, 0.9)]
    assert times(fitted(words, sound((1.0, 0.3))))[0] == (0.2, 0.4)


@given(
    st.lists(st.floats(0, 5), min_size=2, max_size=12).map(sorted),
    st.lists(st.floats(0, 1), min_size=1, max_size=500),
)
def test_words_stay_in_order_whatever_is_heard(edges: list[float], peaks: list[float]) -> None:
    words = [TimedWord(" a", start, end, 0.5) for start, end in zip(edges[::2], edges[1::2], strict=False)]
    fit = fitted(words, np.array(peaks, np.float32))
    assert len(fit) == len(words)
    for word in fit:
        assert word.start <= word.end
    for before, after in pairwise(fit):
        assert before.end <= after.start
