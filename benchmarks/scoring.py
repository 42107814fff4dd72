"""Word error rates, as the field counts them: jiwer's alignment after Whisper's own normalisation of both sides."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import jiwer

with warnings.catch_warnings():
    # Its docstrings hold escapes of which Python warns while it compiles them.
    warnings.simplefilter("ignore")
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

LETTER_LANGUAGES = frozenset({"zh", "ja", "ko"})
"""Written without spaces, or with spaces where writers please: scored by character."""


@dataclass(frozen=True, slots=True)
class Score:
    """Errors and sizes in words (characters for LETTER_LANGUAGES). Scores add up, so that long clips weigh more."""

    errors: int = 0
    reference: int = 0
    written: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.errors + other.errors, self.reference + other.reference, self.written + other.written)

    @property
    def error_rate(self) -> float:
        """Errors a reference word. Words where nothing was said count as one error each: never a division by zero."""
        return self.errors / max(self.reference, 1)


@cache
def _normaliser(language: str | None) -> EnglishTextNormalizer | BasicTextNormalizer:
    if language == "en":
        return EnglishTextNormalizer()
    return BasicTextNormalizer(split_letters=language in LETTER_LANGUAGES)


def normalise(text: str, language: str | None) -> str:
    """What is compared: no case, no punctuation, one spelling; single characters where words have no spaces."""
    return " ".join(str(_normaliser(language)(text)).split())


def score(reference: str, written: str, language: str | None) -> Score:
    """Compare one transcript with what was said."""
    expected, got = normalise(reference, language), normalise(written, language)
    if not expected:
        return Score(errors=len(got.split()), written=len(got.split()))
    found = jiwer.process_words(expected, got)
    return Score(
        errors=found.substitutions + found.deletions + found.insertions,
        reference=found.hits + found.substitutions + found.deletions,
        written=found.hits + found.substitutions + found.insertions,
    )


def total(scores: Iterable[Score]) -> Score:
    return sum(scores, Score())
