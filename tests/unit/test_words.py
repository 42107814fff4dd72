"""Word times made fit to read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transcription.words import LONGEST_WORD_S, TimedWord, joined, tidied


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
