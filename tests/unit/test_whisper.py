"""What is decided around the model: windows, safeguards, the first space."""

from __future__ import annotations

from pathlib import Path

import pytest

from transcription.core import Segment
from transcription.whisper import FULL_WINDOW_FRAMES, SHORTEST_WINDOW_FRAMES, Decoding, result, spaced, window_frames
from transcription.words import TimedWord


def decoding(text: str, *, logprob: float = -0.3, no_speech: float = 0.1, tokens: int = 5) -> Decoding:
    return Decoding(tuple(range(tokens)), text, logprob, no_speech, 0.0)


@pytest.mark.parametrize(
    ("duration_s", "frames"), [(0.05, 1_000), (9.0, 1_000), (9.01, 1_050), (20.0, 2_100), (29.5, 3_000), (30.0, 3_000)]
)
def test_a_window_is_as_long_as_the_segment_and_a_margin(duration_s: float, frames: int) -> None:
    """Never shorter than the floor, where words get lost, never longer than Whisper's own."""
    assert window_frames(duration_s) == frames
    assert SHORTEST_WINDOW_FRAMES <= window_frames(duration_s) <= FULL_WINDOW_FRAMES


@pytest.mark.parametrize(
    ("text", "logprob", "no_speech"),
    [
        ("", -0.1, 0.0),
        ("  ", -0.1, 0.0),
        (" Thank you.", -1.2, 0.8),
        (" Mmm.", -0.8, 0.7),
        (" Hmm, mm.", -0.5, 0.7),
    ],
)
def test_silence_is_told_from_speech(text: str, logprob: float, no_speech: float) -> None:
    """Words that the model itself does not believe, over what it takes for no speech."""
    assert decoding(text, logprob=logprob, no_speech=no_speech).is_silence


@pytest.mark.parametrize(
    ("text", "logprob", "no_speech"),
    [
        (" Thank you.", -0.4, 0.8),
        (" Thank you.", -1.2, 0.1),
        (" Mmm.", -0.8, 0.2),
        (" Yes.", -0.8, 0.7),
        (" 5 5.", -0.9, 0.7),
    ],
)
def test_speech_is_not_taken_for_silence(text: str, logprob: float, no_speech: float) -> None:
    """A short answer is an answer; a hum that was heard clearly is one too."""
    assert not decoding(text, logprob=logprob, no_speech=no_speech).is_silence


def test_loops_and_guesses_fail_the_safeguards() -> None:
    """They are decoded again, hotter."""
    assert decoding(" A plain sentence of several words.").is_sound
    assert not decoding(" and then" * 40).is_sound
    assert not decoding(" A guess.", logprob=-1.1, no_speech=0.2).is_sound


def test_more_tokens_than_can_be_said_do_not_fit() -> None:
    """The mark of a loop in a window that was too short."""
    assert decoding(" x", tokens=18).fits(1.0)
    assert not decoding(" x", tokens=19).fits(1.0)


def test_the_first_space_is_put_back_where_the_language_has_spaces() -> None:
    """Segments' texts are joined as they are."""
    assert spaced("en", "fr") == " en"
    assert spaced(" so", "en") == " so"
    assert spaced("你好", "zh") == "你好"


def test_times_count_from_the_start_of_the_recording() -> None:
    """The model knows only its segment."""
    segment = Segment(Path("a.pcm"), 16_000 * 60, 16_000 * 5, 7)
    found = result(segment, decoding(" Hello there."), [TimedWord(" Hello", 1.0, 1.4, 0.9)], "en")
    assert (found.id, found.start, found.end) == (7, 60.0, 65.0)
    assert found.words is not None
    assert (found.words[0].start, found.words[0].end) == (61.0, 61.4)


def test_silence_has_no_words() -> None:
    """Nor text: what was guessed is thrown away."""
    found = result(
        Segment(Path("a.pcm"), 0, 16_000, 0),
        decoding(" Thank you.", logprob=-1.5, no_speech=0.9),
        [TimedWord(" Thank", 0.0, 0.5, 0.1)],
        "en",
    )
    assert (found.text, found.words) == ("", ())
