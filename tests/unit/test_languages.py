"""Which spellings of a language are understood."""

from __future__ import annotations

import pytest

from errors import UnsupportedLanguage
from transcription.languages import ADDED_IN_LARGE_V3, LANGUAGES, language_code


def test_there_are_whispers_hundred_languages() -> None:
    """large-v3 has a hundred language tokens; one missing here could never be asked for."""
    assert len(LANGUAGES) == 100
    assert set(LANGUAGES) >= {"en", "haw", "jw", "yue"}
    assert set(LANGUAGES) >= ADDED_IN_LARGE_V3


def test_the_codes_are_those_of_the_engines_tokenizer() -> None:
    """A code that the tokenizer does not know fails in mid-transcription, so the tables must agree."""
    from faster_whisper import tokenizer

    assert set(LANGUAGES) == set(tokenizer._LANGUAGE_CODES)


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_every_code_and_every_name_is_understood(code: str) -> None:
    """Answers give the name and the code; either can be sent back."""
    assert language_code(code) == code
    assert language_code(LANGUAGES[code]) == code
    assert language_code(LANGUAGES[code].upper()) == code


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("en-US", "en"),
        ("pt_BR", "pt"),
        ("zh-TW", "zh"),
        ("zh-Hant-TW", "zh"),
        ("sr_Latn", "sr"),
        ("es-419", "es"),
        ("yue-HK", "yue"),
        ("nb-NO", "no"),
        ("iw", "he"),
        (" EN ", "en"),
        ("Castilian", "es"),
        ("flemish", "nl"),
        ("Mandarin", "zh"),
        ("burmese", "my"),
        ("valencian", "ca"),
        ("Haitian  Creole", "ht"),
        ("Norwegian Bokmål", "no"),
        ("nynorsk", "nn"),
        ("Français", "fr"),
        ("francais", "fr"),
        ("русский", "ru"),
        ("日本語", "ja"),
    ],
)
def test_people_write_languages_in_many_ways(written: str, code: str) -> None:
    """Locales from a browser, older codes, other names, own names, with and without accents."""
    assert language_code(written) == code


@pytest.mark.parametrize(
    "written", ["", "xx", "klingon", "en-", "en-USA-x", "english (us)", "e", "a" * 10_000, "en\x00"]
)
def test_what_is_no_language_is_refused(written: str) -> None:
    """A guess would be worse than a refusal: Whisper writes the wrong language with confidence."""
    with pytest.raises(UnsupportedLanguage) as refusal:
        language_code(written)
    assert len(refusal.value.message) < 250


def test_a_refusal_names_the_nearest_language() -> None:
    """Most wrong names are typing errors."""
    with pytest.raises(UnsupportedLanguage, match=r"'englsh' here. Did you mean 'english' \(en\)\?"):
        language_code("englsh")
