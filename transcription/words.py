"""Word times as cross-attention gives them, made fit to read: punctuation joined, no word through a pause."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

OPENING = "\"'“¿([{-"
CLOSING = "\"'.。,，!！?？:：”)]}、"
"""Punctuation that belongs to the word after it, and to the word before it (Whisper, `timing.py`)."""

LONGEST_WORD_S = 2.0
"""No word lasts longer; what does has a pause in it."""


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
