"""Each key's vocabulary: names and words that its recordings are likely to hold, given to the decoder as hot words."""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa

from errors import InvalidRequest, VocabularyNotFound
from jobs.database import Database
from jobs.tables import vocabularies

MAX_BYTES = 16 * 1024
"""The decoder has room for some hundred words; what comes first goes first."""

KNOWN_FOR_S = 5.0
"""What other processes write is seen after so long: one look at the database serves many requests."""


class Vocabularies:
    """All keys' vocabularies, kept beside the jobs. Blocks: call it in a thread."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}

    def text(self, key: str) -> str:
        """As it was written; empty where there is none. Raises StoreUnavailable."""
        text, until = self._known.get(key, ("", 0.0))
        if until > self._clock():
            return text
        with self._database.reading() as connection:
            found = connection.scalar(sa.select(vocabularies.c.words).where(vocabularies.c.key == key))
        self._known[key] = str(found or ""), self._clock() + KNOWN_FOR_S
        return self._known[key][0]

    def write(self, key: str, text: str) -> None:
        """In place of what was there. Raises StoreUnavailable, StorageFull."""
        insert = self._database.insert(vocabularies).values(key=key, words=text)
        with self._database.writing() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["key"], set_={"words": text}))
        self._known.pop(key, None)

    def remove(self, key: str) -> None:
        """Raises VocabularyNotFound, StoreUnavailable, StorageFull."""
        with self._database.writing() as connection:
            removed = connection.execute(sa.delete(vocabularies).where(vocabularies.c.key == key)).rowcount
        self._known.pop(key, None)
        if not removed:
            raise VocabularyNotFound


def words_in(text: str) -> list[str]:
    """One word or phrase a line, as it is spelled; empty lines and lines that begin with # say nothing."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def read_words(content: bytes) -> str:
    """*content* as a vocabulary. Raises InvalidRequest."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest("A vocabulary is text in UTF-8, one word or phrase a line.") from error
    if not words_in(text) or any(ord(letter) < 32 and letter not in "\r\n\t" for letter in text):
        raise InvalidRequest("A vocabulary is text, one word or phrase a line, and at least one.")
    return text


def hotwords(asked: str | None, vocabulary: str) -> str | None:
    """What the caller names for this recording, then the vocabulary: what comes first goes first."""
    return ", ".join([*([asked] if asked else []), *words_in(vocabulary)]) or None
