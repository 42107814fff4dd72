"""One key: whose it is, what it opens, how long, and how much. Pure."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

from errors import InvalidRequest
from key_limits import Limits
from transcription.core import Priority

PREFIX = "sg_"
"""Programs that look for lost secrets know a key by it."""
ID_CHARS = 12

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")


class Scope(StrEnum):
    """What a key may do. Its own jobs and files it may see with any."""

    TRANSCRIBE = "transcribe"
    """Recordings that are sent, or lie here: text, subtitles, sound of videos, live text, a vocabulary."""
    DOWNLOAD = "download"
    """Links: this server calls others for it."""
    ADMIN = "admin"
    """What tells of all keys: metrics, capacity, the fleet."""


EVERYTHING = frozenset(Scope)
USUAL = frozenset({Scope.TRANSCRIBE, Scope.DOWNLOAD})


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; not the key, of which there is a SHA-256 digest alone."""

    digest: bytes
    owner: str
    """Whose jobs and files it sees. Keys of one name have one owner, so that one can take another's place."""
    scopes: frozenset[Scope]
    priority: Priority = Priority.INTERACTIVE
    """The most urgent class that it may ask for."""
    limits: Limits | None = None
    """None: those of the server."""
    made_here: bool = False
    """Printed in a terminal at the start, not chosen for a network: it opens nothing from other machines."""
    name: str = ""
    created_at: float = 0.0
    """Seconds since 1970, as the next two."""
    expires_at: float | None = None
    revoked_at: float | None = None

    @property
    def id(self) -> str:
        return id_of(self.digest)

    def opens_at(self, now: float) -> bool:
        """Neither revoked nor expired. *now*: seconds since 1970."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def id_of(digest: bytes) -> str:
    """The beginning of the digest: the same after every start, and no help in finding the key."""
    return digest.hex()[:ID_CHARS]


def configured(key: str, *, batch: bool = False, made_here: bool = False) -> Key:
    """A key from the settings, which is the operator's own: it opens everything."""
    digest = digest_of(key)
    priority = Priority.BATCH if batch else Priority.INTERACTIVE
    return Key(digest, id_of(digest), EVERYTHING, priority, made_here=made_here)


_STORED = "@"


def owner_of(name: str) -> str:
    """Whom the stored keys called *name* belong to: nobody whose key is in the settings, whatever the name."""
    return _STORED + name


def is_stored(owner: str) -> bool:
    """Whether *owner*'s keys were made on the command line; else theirs is the operator's own, in the settings."""
    return owner.startswith(_STORED)


def checked_name(name: str) -> str:
    """Raises InvalidRequest."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r:.60} is no name for a key: 1 to 48 of a-z, 0-9, '.', '_' and '-', the first a letter or digit."
        )
    return name


def scopes_in(text: str) -> frozenset[Scope]:
    """Scopes written a,b,c. Raises InvalidRequest."""
    names = {part.strip() for part in text.split(",")} - {""}
    if not names or names - set(Scope):
        raise InvalidRequest(f"Scopes are one or more of {', '.join(Scope)}, separated by commas.")
    return frozenset(Scope(name) for name in names)
