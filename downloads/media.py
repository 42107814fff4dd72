"""The files that the service keeps: downloads and extracted sound, each under an id that cannot be guessed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from errors import MediaNotFound, PathNotAllowed, StorageFull

log = structlog.get_logger(__name__)

_ID = re.compile(r"[0-9a-f]{32}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
_INCOMING = "incoming"
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


class MediaStore:
    """Keeps media as `<root>/<id><suffix>`, each with what is known of it in `<root>/<id>.json` beside it.

    A file exists from the moment its sidecar does, which is written last and removed first. Nothing is held in memory:
    several processes may share a root. Methods are synchronous and quick (a few system calls; `list` some for each
    file), but for `add` from another file system, which copies.
    """

    def __init__(
        self, root: Path, roots: Sequence[Path] = (), clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """*roots* are further folders that `resolve` may name files in. *root* is made where it is absent."""
        root.mkdir(parents=True, exist_ok=True)
        self.root = Path(os.path.realpath(root))
        self._roots = tuple(Path(os.path.realpath(folder)) for folder in roots)
        self._incoming = self.root / _INCOMING
        self._incoming.mkdir(mode=0o700, exist_ok=True)
        self._clock = clock

    def __repr__(self) -> str:
        return f"MediaStore({str(self.root)!r})"

    def new_place(self, suffix: str = "") -> Path:
        """A path that does not exist yet, on the store's own file system, to write to before `add`."""
        return self._incoming / (secrets.token_hex(16) + _safe_suffix(suffix))

    def clear_incoming(self) -> None:
        """Remove what a crashed server left half written. Only at start, while nothing else writes there."""
        for left in self._incoming.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()

    def add(
        self,
        path: Path,
        *,
        name: str,
        media_type: str | None = None,
        duration_s: float | None = None,
        title: str | None = None,
        extractor: str | None = None,
        source: str | None = None,
    ) -> MediaFile:
        """Take the finished file *path* into the store: a rename, or a copy where it lies on another file system.

        *media_type* is told from the suffix where none is given. Raises StorageFull, and leaves *path* as it was then.
        """
        media_id = secrets.token_hex(16)
        suffix = _safe_suffix(path.suffix)
        facts = {
            "name": _display_name(name) or media_id + suffix,
            "media_type": media_type or media_type_of(suffix),
            "duration_s": duration_s,
            "created_at": self._clock().astimezone(UTC).isoformat(),
            "title": title,
            "extractor": extractor,
            "source": source,
        }
        place = self.root / (media_id + suffix)
        with _full_disk_told():
            self._move(path, place)
            try:
                self._write_sidecar(media_id, {"suffix": suffix} | facts)
            except BaseException:
                self._move(place, path)
                raise
        return self.get(media_id)

    def get(self, media_id: str) -> MediaFile:
        """The file of that id. Raises MediaNotFound."""
        if not _ID.fullmatch(media_id):
            raise MediaNotFound
        try:
            return self._read_sidecar(media_id)
        except FileNotFoundError as error:
            raise MediaNotFound from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("media_sidecar_unreadable", id=media_id, error=repr(error))
            raise MediaNotFound from error

    def list(self) -> list[MediaFile]:
        """All files, newest first. One whose sidecar cannot be read is left out, and the log says so."""
        found = []
        for sidecar in self.root.glob("*.json"):
            with contextlib.suppress(MediaNotFound):
                found.append(self.get(sidecar.stem))
        return sorted(found, key=lambda media: (media.created_at, media.id), reverse=True)

    def delete(self, media_id: str) -> None:
        """Remove the file of that id. Raises MediaNotFound."""
        media = self.get(media_id)
        self._sidecar(media_id).unlink(missing_ok=True)
        media.path.unlink(missing_ok=True)

    def resolve(self, reference: str) -> Path:
        """The file that a caller names: by id, or by a path, absolute or from the store's folder.

        Every link is followed first; what is then outside the store's and the further folders is refused, in the same
        way whether it exists or not. Raises PathNotAllowed, and MediaNotFound for what is inside and no media.
        """
        if _ID.fullmatch(reference):
            reference = self.get(reference).path.name
        if not reference:
            raise MediaNotFound
        try:
            path = Path(os.path.realpath(self.root / reference))
        except ValueError as error:  # a NUL, or characters that no file name can hold
            raise MediaNotFound from error
        if not any(path.is_relative_to(folder) for folder in (self.root, *self._roots)):
            raise PathNotAllowed
        try:
            is_file = stat.S_ISREG(path.stat().st_mode)
        except OSError as error:  # absent, a name too long, a loop of links, a folder that may not be entered
            raise MediaNotFound from error
        if not is_file or self._is_own(path):
            raise MediaNotFound
        return path

    def _is_own(self, path: Path) -> bool:
        """Whether *path* is the store's bookkeeping. Some file systems take "INCOMING" for "incoming"."""
        if not path.is_relative_to(self.root):
            return False
        first, *deeper = path.relative_to(self.root).parts
        return first.lower() == _INCOMING or (not deeper and path.suffix.lower() == ".json")

    def _sidecar(self, media_id: str) -> Path:
        return self.root / f"{media_id}.json"

    def _write_sidecar(self, media_id: str, facts: dict[str, Any]) -> None:
        draft = self.new_place(".json")
        try:
            draft.write_text(json.dumps(facts, ensure_ascii=True, indent=1), encoding="ascii")
            draft.replace(self._sidecar(media_id))
        finally:
            draft.unlink(missing_ok=True)

    def _read_sidecar(self, media_id: str) -> MediaFile:
        """Raises FileNotFoundError; ValueError, KeyError, TypeError where the sidecar is broken."""
        facts = json.loads(self._sidecar(media_id).read_bytes())
        suffix = str(facts["suffix"])
        del facts["suffix"]
        if suffix != _safe_suffix(suffix):
            raise ValueError(f"suffix {suffix!r}")
        if not isinstance(facts["name"], str) or not isinstance(facts["media_type"], str):
            raise ValueError("name and media_type are not text")
        path = self.root / (media_id + suffix)
        facts["created_at"] = datetime.fromisoformat(facts["created_at"]).astimezone(UTC)
        return MediaFile(id=media_id, path=path, bytes=path.stat().st_size, **facts)

    def _move(self, source: Path, target: Path) -> None:
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            return
        draft = self.new_place()
        try:
            shutil.copyfile(source, draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        source.unlink()


@contextlib.contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull from error
        raise


def _safe_suffix(suffix: str) -> str:
    """The suffix in lower case where it is plain and not the sidecars', else none."""
    suffix = suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) and suffix != ".json" else ""


def _display_name(name: str) -> str:
    """A name without control and invisible formatting characters (which can make ".mp3" of "3pm."), not too long."""
    kept = "".join(char for char in name if not unicodedata.category(char).startswith("C")).strip()
    return kept[:_MAX_NAME_CHARS]
