"""What the model is told before the text, and what its tokens spell."""

from __future__ import annotations

import pytest

from transcription.core import TranscriptionOptions
from transcription.tokens import BYTE_OF, MAX_HOTWORD_TOKENS, MAX_PROMPT_TOKENS, bytes_of, prompt_tokens


def encode(text: str) -> list[int]:
    """A token a character."""
    return [ord(letter) for letter in text]


def told(hotwords: str | None, prompt: str | None) -> str:
    options = TranscriptionOptions("base", "en", hotwords=hotwords, initial_prompt=prompt)
    return "".join(map(chr, prompt_tokens(encode, options)))


def test_hot_words_come_before_the_prompt() -> None:
    assert told(None, None) == ""
    assert told(" Grünwald ", None) == " Grünwald"
    assert told("Grünwald", "And then") == " Grünwald And then"


@pytest.mark.parametrize(("hotwords", "prompt"), [(1_000, 0), (0, 1_000), (1_000, 1_000), (100, 1_000)])
def test_the_text_keeps_its_room(hotwords: int, prompt: int) -> None:
    """Of hot words the first count most, of what was said before the last."""
    text = told("h" * hotwords or None, "p" * prompt + "!" if prompt else None)
    assert len(text) <= MAX_PROMPT_TOKENS
    assert text.count("h") == min(hotwords, MAX_HOTWORD_TOKENS - 1)
    assert text.endswith("!") is bool(prompt)


def test_each_byte_has_a_letter_of_its_own() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert bytes_of("Ġcountry") == b" country"
    assert bytes_of("ÃĦ").decode() == "Ä"
