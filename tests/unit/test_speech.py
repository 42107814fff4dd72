"""Where recordings are cut. Pure parts only: the network itself is in tests/integration/test_voice_activity.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcription.core import SAMPLE_RATE
from transcription.speech import FRAME_SAMPLES, CuttingRule, Span, bounded, merged, padded, quietest, spans

RULE = CuttingRule()


def seconds(*times: tuple[float, float]) -> list[Span]:
    return [Span(int(start * SAMPLE_RATE), int(end * SAMPLE_RATE)) for start, end in times]


def frames(*stretches: tuple[float, float]) -> list[float]:
    """Probabilities: (probability, seconds) one after another."""
    return [p for p, duration_s in stretches for _ in range(round(duration_s * SAMPLE_RATE / FRAME_SAMPLES))]


def found(*stretches: tuple[float, float]) -> list[tuple[float, float]]:
    probabilities = frames(*stretches)
    return [
        (round(span.start / SAMPLE_RATE, 1), round(span.end / SAMPLE_RATE, 1))
        for span in spans(probabilities, RULE, len(probabilities) * FRAME_SAMPLES)
    ]


def test_silence_has_no_speech() -> None:
    """Nothing is sent to the model, so nothing can be invented."""
    assert found((0.02, 10)) == []


def test_speech_ends_where_a_pause_begins() -> None:
    """The pause itself belongs to nobody."""
    assert found((0.0, 1), (0.9, 2), (0.0, 1), (0.9, 1)) == [(1.0, 3.0), (4.0, 5.0)]


def test_a_breath_is_no_pause() -> None:
    """Two frames below the threshold occur inside words."""
    assert found((0.9, 1), (0.1, 0.064), (0.9, 1)) == [(0.0, 2.0)]


def test_doubtful_frames_go_on_as_before() -> None:
    """Between the thresholds speech stays speech and silence stays silence."""
    assert found((0.9, 1), (0.4, 1), (0.0, 1), (0.4, 1)) == [(0.0, 2.0)]


def test_a_click_is_no_speech() -> None:
    """Shorter than any word."""
    assert found((0.0, 1), (0.9, 0.064), (0.0, 1)) == []


def test_short_pauses_are_merged_long_ones_cut() -> None:
    """Whisper stops early after a long silence inside its window, and loses what follows."""
    speech = seconds((0, 3), (3.9, 6), (7.2, 9))
    assert list(merged(speech, RULE)) == seconds((0, 6), (7.2, 9))


def test_a_segment_never_grows_past_the_window() -> None:
    """What does not fit any more starts the next segment."""
    speech = seconds((0, 15), (15.5, 28), (28.5, 31))
    assert list(merged(speech, RULE)) == seconds((0, 28), (28.5, 31))


def test_padding_stops_in_the_middle_of_a_pause() -> None:
    """Consonants are quiet; but no sound is heard twice."""
    assert list(padded(seconds((0.1, 3), (3.2, 5)), RULE, 6 * SAMPLE_RATE)) == seconds((0, 3.1), (3.1, 5.3))


def test_speech_without_a_pause_is_cut_where_it_is_quietest() -> None:
    """A word cut in two is two words wrong."""
    rng = np.random.default_rng(0)
    pcm = rng.integers(-8_000, 8_000, 40 * SAMPLE_RATE).astype(np.int16)
    pcm[20 * SAMPLE_RATE : int(20.3 * SAMPLE_RATE)] //= 100
    cut = list(bounded([Span(0, len(pcm))], pcm, RULE))
    assert len(cut) == 2
    assert 20.0 <= cut[0].end / SAMPLE_RATE <= 20.3
    assert quietest(pcm, 15 * SAMPLE_RATE, 30 * SAMPLE_RATE) == cut[0].end


def test_endless_noise_is_cut_all_the_same() -> None:
    """A digital silence of ten minutes, with voice activity turned off."""
    pcm = np.zeros(600 * SAMPLE_RATE, np.int16)
    cut = list(bounded([Span(0, len(pcm))], pcm, RULE))
    assert cut[0].start == 0
    assert cut[-1].end == len(pcm)
    assert all(one.end == following.start for one, following in itertools.pairwise(cut))
    assert max(one.end - one.start for one in cut) <= 30 * SAMPLE_RATE


@given(st.lists(st.floats(0, 1), max_size=3_000))
def test_any_probabilities_give_ordered_segments_within_bounds(probabilities: list[float]) -> None:
    """Segments lie in the recording, in order, do not overlap, and none is longer than Whisper's window."""
    total = len(probabilities) * FRAME_SAMPLES
    pcm = np.zeros(total, np.int16)
    cut = list(bounded(padded(merged(spans(probabilities, RULE, total), RULE), RULE, total), pcm, RULE))
    at = 0
    for span in cut:
        assert at <= span.start < span.end <= total
        assert span.end - span.start <= 30 * SAMPLE_RATE
        at = span.end


@pytest.mark.parametrize("pause_s", [0.2, 0.9, 5.0])
@given(st.lists(st.floats(0.2, 40), min_size=1, max_size=20))
def test_no_speech_is_lost_between_the_segments(pause_s: float, lengths_s: list[float]) -> None:
    """Every sample of speech lies in some segment."""
    speech, at = [], 0
    for length_s in lengths_s:
        speech.append(Span(at, at + int(length_s * SAMPLE_RATE)))
        at = speech[-1].end + int(pause_s * SAMPLE_RATE)
    pcm = np.zeros(at, np.int16)
    cut = list(bounded(padded(merged(speech, RULE), RULE, at), pcm, RULE))
    for span in speech:
        covered = sum(max(0, min(span.end, one.end) - max(span.start, one.start)) for one in cut)
        assert covered == span.end - span.start
