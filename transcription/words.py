"""Word times as cross-attention gives them, made fit to read: punctuation joined, no word through a pause."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

OPENING = "\"'“¿([{-"
CLOSING = "\"'.。,，!！?？:：”)]}、"
"""Punctuation that belongs to the word after it, and to the word before it (Whisper, `timing.py`)."""

LONGEST_WORD_S = 2.0
"""No word lasts longer; what does has a pause in it."""


FRAME_SAMPLES = 160
"""Of 10 ms, in which loudness is looked at."""

SHORTEST_S = 0.04
"""No word is cut down to less."""

PAUSE_S = 0.3
"""A word before so much room may end later than was thought."""

LONGEST_TAIL_S = 0.6
TAIL_GAP = 10
"""A sound dies away within so much, and is over after so many quiet frames."""


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word with times in seconds from the start of its segment; *text* keeps the space before it."""

    text: str
    start: float
    end: float
    probability: float


def joined(words: Sequence[TimedWord]) -> list[TimedWord]:
    """Punctuation that was split off goes back to its word; its own time and probability mean nothing."""
    whole: list[TimedWord] = []
    for word in words:
        before = whole[-1] if whole else None
        if not word.text.strip():
            continue
        if before and is_opening(before.text):
            whole[-1] = replace(word, text=before.text + word.text.lstrip())
        elif before and all(mark in CLOSING for mark in word.text):
            whole[-1] = replace(before, text=before.text + word.text)
        else:
            whole.append(word)
    return whole


def is_opening(text: str) -> bool:
    """A mark that stands alone after a space belongs to the word that follows."""
    return text.startswith(" ") and all(mark in OPENING for mark in text.strip())


def tidied(words: Sequence[TimedWord], duration_s: float) -> list[TimedWord]:
    """Words in order, inside their segment, none overlapping, none much longer than a word is.

    Cross-attention stretches a word over the pause beside it: the first one backwards, any other forwards. Twice the
    median length is what a word may last (the rule and its 0.7 s are Whisper's, `timing.py`).
    """
    tidy: list[TimedWord] = []
    lengths = [word.end - word.start for word in words if word.end > word.start]
    longest = min(LONGEST_WORD_S, max(0.6, 2 * min(0.7, statistics.median(lengths)))) if lengths else LONGEST_WORD_S
    floor = 0.0
    for word in joined(words):
        start = min(max(floor, word.start), duration_s)
        end = min(max(start, word.end), duration_s)
        if end - start > longest:
            start, end = (end - longest, end) if not tidy else (start, start + longest)
        tidy.append(replace(word, start=start, end=end))
        floor = end
    return tidy


def loudness(sound: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How loud each 10 ms of *sound* are, smoothed over three: peaks from 0 to 1."""
    steps = len(sound) // FRAME_SAMPLES
    peaks = np.abs(sound[: steps * FRAME_SAMPLES]).reshape(steps, FRAME_SAMPLES).max(axis=1, initial=0.0)
    return np.convolve(np.pad(peaks, 1), np.full(3, 1 / 3, np.float32), "valid")


def fitted(words: Sequence[TimedWord], loud: npt.NDArray[np.float32]) -> list[TimedWord]:
    """*words* without the silence in which they begin or end, and before a pause as long as they can be heard.

    *loud*: of their segment, each 10 ms. Cross-attention knows what is said, not when it falls silent: the first word
    begins with its segment, and the last one ends before its last sound. Against PocketSphinx's times of 27 recordings,
    with `base`, that was 440 ms for first words' starts and 220 ms for last words' ends (medians); so it is 40 and 40.
    """
    if not len(loud):
        return list(words)
    floor, peak = np.percentile(loud, 10), np.percentile(loud, 98)
    heard = loud >= min(max(2 * floor, 0.02 * peak), 0.1 * peak)
    fit: list[TimedWord] = []
    for number, word in enumerate(words):
        first, last = round(word.start * 100), min(len(heard), math.ceil(word.end * 100))
        sounds = np.flatnonzero(heard[first:last])
        start, end = word.start, word.end
        if len(sounds):
            start, end = max(start, (first + int(sounds[0])) / 100), min(end, (first + int(sounds[-1]) + 1) / 100)
            if end - start < SHORTEST_S:
                start, end = word.start, word.end
        ceiling = words[number + 1].start if number + 1 < len(words) else len(heard) / 100
        if ceiling - end > PAUSE_S:
            end = min(ceiling, dying_away(heard, end))
        fit.append(replace(word, start=start, end=end))
    return fit


def dying_away(heard: npt.NDArray[np.bool_], end: float) -> float:
    """Where the sound that goes on at *end* stops, at most LONGEST_TAIL_S later."""
    last = quiet = 0
    for step, sounds in enumerate(heard[round(end * 100) :][: round(LONGEST_TAIL_S * 100)], 1):
        last, quiet = (step, 0) if sounds else (last, quiet + 1)
        if quiet == TAIL_GAP:
            break
    return end + last / 100
