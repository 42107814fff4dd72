"""Whisper's tokens: what is told before the text, and the bytes that each stands for. Pure."""

from __future__ import annotations

from collections.abc import Callable

from transcription.core import TranscriptionOptions

MAX_PROMPT_TOKENS = 223
"""Of the text's context of 448 tokens, what may come before the text (Whisper, `decoding.py`)."""

MAX_HOTWORD_TOKENS = 150
"""Of the prompt: the rest is the initial prompt's."""

LEAST_PROBABILITY = 1e-10
"""A token that the model gave none: its logarithm must be a number."""


def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: itself where it can be printed, else one from
    256 on, in order (GPT-2, `encoder.py`)."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = byte_letters()


def prompt_tokens(encode: Callable[[str], list[int]], options: TranscriptionOptions) -> list[int]:
    """What the model is told before the text: the hot words' beginning, then the initial prompt's end."""
    hotwords = encode(" " + options.hotwords.strip())[:MAX_HOTWORD_TOKENS] if options.hotwords else []
    prompt = encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
    return hotwords + prompt[max(0, len(prompt) + len(hotwords) - MAX_PROMPT_TOKENS) :]


def bytes_of(token: str) -> bytes:
    """The bytes that a token stands for, from its spelling in the vocabulary."""
    return bytes(BYTE_OF[letter] for letter in token)
