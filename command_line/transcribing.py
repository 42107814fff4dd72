"""What becomes of one recording, whoever does it: contents in several formats, or a failure with an exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from command_line.files import Source
from transcription.core import ResponseFormat


class Exit(IntEnum):
    """What scripts read."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOBODY = 3
    """No server, and no engine here."""
    REFUSED = 4
    """For now: the same command may succeed later."""
    INTERRUPTED = 130


WRONG_USAGE = (
    "UNAUTHORIZED",
    "INVALID_REQUEST",
    "UNKNOWN_MODEL",
    "UNSUPPORTED_LANGUAGE",
    "INVALID_URL",
    "PROVIDER_NOT_ALLOWED",
)
"""Codes of errors that the command's own words are to blame for."""

REFUSALS = (429, 503, 507)
"""Statuses of a server that cannot take anything now."""


class Failed(Exception):
    """One recording came to nothing. Its text is a line for people."""

    def __init__(self, message: str, code: str = "", *, exit: Exit = Exit.FAILED) -> None:
        super().__init__(f"{' '.join(message.split())} ({code})" if code else " ".join(message.split()))
        self.exit = Exit.USAGE if code in WRONG_USAGE else exit


@dataclass(frozen=True, slots=True)
class Made:
    """What a recording has come to."""

    contents: Mapping[ResponseFormat, bytes]
    warnings: Sequence[str] = ()


class Shown(Protocol):
    """Who watches a recording's progress."""

    def stage(self, name: str) -> None:
        """What is just being done, in a word or two."""

    def length(self, audio_s: float | None) -> None:
        """So long it lasts."""

    def heard(self, audio_s: float) -> None:
        """So much of it is done."""


class Transcribing(Protocol):
    """A server, or the engine here."""

    at_once: int
    """Recordings that it takes at a time."""

    async def transcribe(
        self, source: Source, parameters: Mapping[str, str], formats: Sequence[ResponseFormat], shown: Shown
    ) -> Made:
        """Cancelling stops the work, wherever it is done. Raises Failed."""


Opened = AbstractAsyncContextManager[Transcribing]


def as_bytes(content: str | bytes | dict[str, Any]) -> bytes:
    """A format's content as a file's. JSON is for people, too: a line a value."""
    if isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    return content.encode() if isinstance(content, str) else content


def with_words(parameters: Mapping[str, str], formats: Sequence[ResponseFormat]) -> dict[str, str]:
    """*parameters* for all of *formats* at once: subtitles are cut by the times of words."""
    needed = {"word_timestamps": "true"} if any(one.needs_words for one in formats) else {}
    return {**parameters, **needed}
