"""What containers call Whisper's languages."""

from __future__ import annotations

import pytest

from transcription.language_tags import name, tag
from transcription.languages import LANGUAGES


def test_every_language_has_three_letters_of_its_own() -> None:
    """A language more in Whisper's list must not become undetermined."""
    tags = [tag(code) for code in LANGUAGES]
    assert all(len(one) == 3 and one.isalpha() and one.islower() and one != "und" for one in tags)
    assert len(set(tags)) == len(LANGUAGES)


@pytest.mark.parametrize(
    ("code", "letters", "shown"),
    [
        ("en", "eng", "English"),
        ("de", "deu", "German"),
        ("zh", "zho", "Chinese"),
        ("pt", "por", "Portuguese"),
        ("jw", "jav", "Javanese"),
        ("ht", "hat", "Haitian Creole"),
        ("yue", "yue", "Cantonese"),
        (None, "und", None),
        ("xx", "und", None),
    ],
)
def test_codes_become_what_players_know(code: str | None, letters: str, shown: str | None) -> None:
    """Whisper's jw is nobody else's code; a player's menu has names."""
    assert (tag(code), name(code)) == (letters, shown)
