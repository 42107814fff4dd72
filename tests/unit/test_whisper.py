"""What is decided around the model: windows, safeguards, the first space, whose time it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from transcription.core import Segment, SegmentRequest, TranscriptionOptions
from transcription.whisper import (
    FULL_WINDOW_FRAMES,
    SHORTEST_WINDOW_FRAMES,
    SHORTEST_WINDOW_FRAMES_OF_TINY,
    Decoding,
    Timed,
    result,
    spaced,
    window_frames,
)
from transcription.words import TimedWord


def decoding(text: str, *, logprob: float = -0.3, no_speech: float = 0.1, tokens: int = 5) -> Decoding:
    return Decoding(tuple(range(tokens)), text, logprob, no_speech, 0.0)


@pytest.mark.parametrize(
    ("duration_s", "frames"),
    [(0.05, 1_500), (13.0, 1_500), (13.01, 1_550), (20.0, 2_200), (28.5, 3_000), (30.0, 3_000)],
)
def test_a_window_is_as_long_as_the_segment_and_a_margin(duration_s: float, frames: int) -> None:
    """Never shorter than the floor, where words get lost, never longer than Whisper's own."""
    assert window_frames(duration_s) == frames
    assert SHORTEST_WINDOW_FRAMES <= window_frames(duration_s) <= FULL_WINDOW_FRAMES


def test_the_smallest_model_has_a_shorter_floor() -> None:
    """It keeps its words there; larger ones do not."""
    assert window_frames(2.0, SHORTEST_WINDOW_FRAMES_OF_TINY) == 1_000


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


NO_SOUND = np.zeros(0, np.float32)


def asked(segment: Segment, language: str = "en") -> SegmentRequest:
    return SegmentRequest(segment, TranscriptionOptions("tiny", language))


def test_times_count_from_the_start_of_the_recording() -> None:
    """The model knows only its segment."""
    segment = Segment(Path("a.pcm"), 16_000 * 60, 16_000 * 5, 7)
    found = result(asked(segment), decoding(" Hello there."), [TimedWord(" Hello", 1.0, 1.4, 0.9)], NO_SOUND)
    assert (found.id, found.start, found.end) == (7, 60.0, 65.0)
    assert found.words is not None
    assert (found.words[0].start, found.words[0].end) == (61.0, 61.4)


def test_silence_has_no_words() -> None:
    """Nor text: what was guessed is thrown away."""
    found = result(
        asked(Segment(Path("a.pcm"), 0, 16_000, 0)),
        decoding(" Thank you.", logprob=-1.5, no_speech=0.9),
        [TimedWord(" Thank", 0.0, 0.5, 0.1)],
        NO_SOUND,
    )
    assert (found.text, found.words) == ("", ())


@pytest.mark.parametrize(("language", "text"), [("en", " 你好"), ("zh", "你好")])
def test_each_segment_is_spelled_as_its_own_language_is(language: str, text: str) -> None:
    """Its neighbours in the batch may be in another."""
    segment = Segment(Path("a.pcm"), 0, 16_000, 0)
    assert result(asked(segment, language), decoding("你好"), None, NO_SOUND).text == text


class SlowModel:
    """Takes as many seconds as it is asked to, on a clock of its own. Some calls fail after that."""

    name = "slow"

    def __init__(self) -> None:
        self.now_s = 0.0

    def encode(self, seconds: float) -> float:
        self.now_s += seconds
        return seconds

    def generate(self, seconds: float) -> None:
        self.now_s += seconds
        raise RuntimeError("out of memory")

    def unload_model(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowModel:
    slow = SlowModel()
    monkeypatch.setattr("transcription.whisper.time", SimpleNamespace(perf_counter=lambda: slow.now_s))
    return slow


def test_the_seconds_inside_the_model_are_summed(slow: SlowModel) -> None:
    """Failed calls took time too; what is no decoding does not count."""
    timed = Timed(slow)
    assert timed.busy_s == 0.0
    assert (timed.encode(1.5), timed.name) == (1.5, "slow")
    with pytest.raises(RuntimeError):
        timed.generate(2.0)
    timed.unload_model(4.0)
    assert timed.busy_s == 3.5


def test_each_thread_counts_its_own_seconds(slow: SlowModel) -> None:
    """Streams share the model; one's batch must not be charged for the other's."""
    timed = Timed(slow)
    timed.encode(1.0)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lambda: timed.busy_s).result() == 0.0
        other.submit(timed.encode, 5.0).result()
        assert other.submit(lambda: timed.busy_s).result() == 5.0
    assert timed.busy_s == 1.0
