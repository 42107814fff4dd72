"""What a stored file is: its owner, its name, its type, and what is written beside it; what a store of them can do."""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from errors import MediaNotFound

_ID = re.compile(r"[0-9a-f]{32}")
ID_CHARS = 32
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
_MAX_NAME_CHARS = 255

_MEDIA_TYPES = {
    ".3gp": "video/3gpp",
    ".aac": "audio/aac",
    ".ac3": "audio/ac3",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".amr": "audio/amr",
    ".avi": "video/x-msvideo",
    ".caf": "audio/x-caf",
    ".flac": "audio/flac",
    ".flv": "video/x-flv",
    ".m4a": "audio/mp4",
    ".m4v": "video/mp4",
    ".mka": "audio/x-matroska",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".mpeg": "video/mpeg",
    ".mpg": "video/mpeg",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".opus": "audio/ogg",
    ".ts": "video/mp2t",
    ".wav": "audio/wav",
    ".weba": "audio/webm",
    ".webm": "video/webm",
    ".wma": "audio/x-ms-wma",
    ".wmv": "video/x-ms-wmv",
}


def media_type_of(path_or_suffix: Path | str) -> str:
    """The media type that a name's ending stands for ("talk.mp3", ".mp3"); nothing is opened."""
    ending = "." + str(path_or_suffix).rpartition(".")[2].lower()
    return _MEDIA_TYPES.get(ending, "application/octet-stream")


@dataclass(frozen=True, slots=True)
class MediaFile:
    """One stored file. *name* is for people (from a title or an upload) and is never a name on disk."""

    id: str
    path: Path
    name: str
    media_type: str
    bytes: int
    duration_s: float | None
    created_at: datetime
    """Aware, UTC."""
    title: str | None = None
    extractor: str | None = None
    source: str | None = None
    owner: str | None = None
    """The name of the key that had it made, which alone sees it; None: made before files had owners, nobody's."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a sweep needs to know of a stored file. *since*: seconds since 1970."""

    id: str
    bytes: int
    since: float
    owner: str | None = None
    """None where a listing does not tell."""


class Media(Protocol):
    """The stored media, in a folder or in object storage. Methods are synchronous, and may wait for the network.

    *owner*: who asks. What is somebody else's is MediaNotFound, exactly as what does not exist.
    """

    def add(
        self,
        path: Path,
        *,
        owner: str,
        name: str,
        media_type: str | None = None,
        duration_s: float | None = None,
        title: str | None = None,
        extractor: str | None = None,
        source: str | None = None,
    ) -> MediaFile:
        """Take the finished file *path* in. Raises StorageFull, StoreUnavailable, and leaves *path* as it was then."""

    def get(self, media_id: str, owner: str) -> MediaFile:
        """What is known of a file. Raises MediaNotFound, StoreUnavailable."""

    def list(self, owner: str) -> list[MediaFile]:
        """All of that owner's files, newest first. Raises StoreUnavailable."""

    def delete(self, media_id: str, owner: str) -> None:
        """Raises MediaNotFound, StoreUnavailable."""

    def check(self, reference: str, owner: str) -> None:
        """Whether `opened` would find what a caller names; nothing is fetched. Raises what that does."""

    def opened(self, reference: str, owner: str) -> contextlib.AbstractAsyncContextManager[Path]:
        """Where the file that a caller names can be read, while the context lasts.

        Raises PathNotAllowed, MediaNotFound, StorageFull, StoreUnavailable.
        """

    def resolve(self, reference: str, owner: str) -> Path:
        """As `opened`, for a look at once: what is fetched later may push it out. Raises the same."""

    def kept(self) -> Sequence[Kept]:
        """Everybody's files, as a sweep sees them; nothing is read that a listing tells."""

    def remove(self, media_id: str) -> None:
        """As `delete`, whosever it is: for a sweep, never for a caller. Raises the same."""

    def remove_strays(self, before: float) -> int:
        """Remove what crashed servers left half added before that time (seconds since 1970); return how many."""


def owned(media: MediaFile, owner: str) -> MediaFile:
    """*media*, where it is that owner's. Raises MediaNotFound."""
    if media.owner != owner:
        raise MediaNotFound
    return media


def is_media_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def is_media_name(name: str) -> bool:
    """Whether a store has given this name to a file: an id, and perhaps a suffix."""
    media_id, suffix = name[:ID_CHARS], name[ID_CHARS:]
    return is_media_id(media_id) and safe_suffix(suffix) == suffix


def sidecar(
    suffix: str, *, name: str, media_type: str | None, created_at: datetime, **facts: str | float | None
) -> bytes:
    """What is written beside a file. *media_type* is told from the suffix where none is given."""
    known = {"suffix": suffix, "name": name, "media_type": media_type or media_type_of(suffix)}
    facts |= {"created_at": created_at.astimezone(UTC).isoformat()}
    return json.dumps(known | facts, ensure_ascii=True, indent=1).encode("ascii")


def known_of(written: bytes) -> tuple[str, dict[str, Any]]:
    """The suffix, and what a MediaFile is made of, from a sidecar.

    Raises ValueError, KeyError, TypeError where it is broken.
    """
    facts = json.loads(written)
    suffix = str(facts["suffix"])
    del facts["suffix"]
    if suffix != safe_suffix(suffix):
        raise ValueError(f"suffix {suffix!r}")
    if not isinstance(facts["name"], str) or not isinstance(facts["media_type"], str):
        raise ValueError("name and media_type are not text")
    facts["created_at"] = datetime.fromisoformat(facts["created_at"]).astimezone(UTC)
    return suffix, facts


def safe_suffix(suffix: str) -> str:
    """The suffix in lower case where it is plain and not the sidecars', else none."""
    suffix = suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) and suffix != ".json" else ""


def display_name(name: str) -> str:
    """A name without control and invisible formatting characters (which can make ".mp3" of "3pm."), not too long."""
    kept = "".join(char for char in name if not unicodedata.category(char).startswith("C")).strip()
    return kept[:_MAX_NAME_CHARS]
