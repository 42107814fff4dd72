"""The files that the service keeps in a folder: downloads and extracted sound, under ids that nobody guesses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import stat
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import structlog

from downloads.stored_files import (
    ID_CHARS,
    Kept,
    MediaFile,
    display_name,
    is_media_id,
    is_media_name,
    known_of,
    owned,
    safe_suffix,
    sidecar,
)
from errors import MediaNotFound, PathNotAllowed, StorageFull

log = structlog.get_logger(__name__)

_INCOMING = "incoming"

MAX_REFERENCE_CHARS = 4096
"""Of what callers name files by, as Linux bounds paths: each part is looked up, together with all before it."""


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
        return self._incoming / (secrets.token_hex(16) + safe_suffix(suffix))

    def clear_incoming(self) -> None:
        """Remove what a crashed server left half written. Only at start, while nothing else writes there."""
        for left in self._incoming.iterdir():
            _remove(left)

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
        """Take the finished file *path* into the store: a rename, or a copy where it lies on another file system.

        *media_type* is told from the suffix where none is given. Raises StorageFull, and leaves *path* as it was then.
        """
        media_id = secrets.token_hex(16)
        suffix = safe_suffix(path.suffix)
        facts = sidecar(
            suffix,
            name=display_name(name) or media_id + suffix,
            media_type=media_type,
            duration_s=duration_s,
            created_at=self._clock(),
            title=title,
            extractor=extractor,
            source=source,
            owner=owner,
        )
        place = self.root / (media_id + suffix)
        with _full_disk_told():
            self._move(path, place)
            try:
                self._write_sidecar(media_id, facts)
            except BaseException:
                self._move(place, path)
                raise
        return self._get(media_id)

    def get(self, media_id: str, owner: str) -> MediaFile:
        """The file of that id. Raises MediaNotFound."""
        return owned(self._get(media_id), owner)

    def _get(self, media_id: str) -> MediaFile:
        """The file of that id, whosever it is."""
        if not is_media_id(media_id):
            raise MediaNotFound
        try:
            return self._read_sidecar(media_id)
        except FileNotFoundError as error:
            raise MediaNotFound from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("media_sidecar_unreadable", id=media_id, error=repr(error))
            raise MediaNotFound from error

    def list(self, owner: str) -> list[MediaFile]:
        """That owner's files, newest first. One whose sidecar cannot be read is left out, and the log says so."""
        found = [media for media in self._all() if media.owner == owner]
        return sorted(found, key=lambda media: (media.created_at, media.id), reverse=True)

    def _all(self) -> Iterator[MediaFile]:
        for known in self.root.glob("*.json"):
            with contextlib.suppress(MediaNotFound):
                yield self._get(known.stem)

    def delete(self, media_id: str, owner: str) -> None:
        """Remove the file of that id. Raises MediaNotFound."""
        self._remove(self.get(media_id, owner))

    def remove(self, media_id: str) -> None:
        """As `delete`, whosever it is: for a sweep, never for a caller. Raises MediaNotFound."""
        self._remove(self._get(media_id))

    def _remove(self, media: MediaFile) -> None:
        self._sidecar(media.id).unlink(missing_ok=True)
        media.path.unlink(missing_ok=True)

    def kept(self) -> Sequence[Kept]:
        return [Kept(media.id, media.bytes, media.created_at.timestamp(), media.owner) for media in self._all()]

    def remove_strays(self, before: float) -> int:
        """Remove what crashed servers left half added before that time (seconds since 1970); return how many."""
        strays = [*self._incoming.iterdir()]
        strays += [
            path for path in self.root.iterdir() if is_media_name(path.name) and not self._sidecar(path.stem).exists()
        ]
        removed = 0
        for stray in strays:
            with contextlib.suppress(FileNotFoundError):
                # NOTE: a file that is moved in keeps the time at which it was written.
                if stray.lstat().st_ctime < before:
                    _remove(stray)
                    removed += 1
        return removed

    def check(self, reference: str, owner: str) -> None:
        """As `resolve`, as stores elsewhere need it."""
        self.resolve(reference, owner)

    @contextlib.asynccontextmanager
    async def opened(self, reference: str, owner: str) -> AsyncIterator[Path]:
        """As `resolve`, as stores elsewhere need it."""
        yield await asyncio.to_thread(self.resolve, reference, owner)

    def resolve(self, reference: str, owner: str) -> Path:
        """The file that a caller names: by id, or by a path, absolute or from the store's folder.

        Every link is followed first; what is then outside the store's and the further folders is refused, in the same
        way whether it exists or not. Raises PathNotAllowed, and MediaNotFound for what is inside and no media, or
        another's.
        """
        folders = (self.root, *self._roots)
        if is_media_id(reference):
            return file_within(self.root, self.get(reference, owner).path.name, folders)
        path = file_within(self.root, reference, folders)
        if entry := entry_of(self.root, path):
            self._check_open_to(owner, entry, deeper=entry != path)
        return path

    def _check_open_to(self, owner: str, entry: Path, *, deeper: bool) -> None:
        """Whether that owner may read an entry of the store's folder, or what lies *deeper* in it.

        What has no name of the store's, an operator has laid there: it is open to all. Raises MediaNotFound.
        """
        # NOTE: some file systems take "INCOMING" for "incoming". What counts is how the folder itself spells it.
        name = spelled(entry.name, os.listdir(self.root))
        if name is None or name.lower() == _INCOMING:
            raise MediaNotFound
        if deeper:
            return
        if name.lower().endswith(".json"):
            raise MediaNotFound
        if is_media_name(name):
            # Also what has no sidecar yet, or no more, is nobody's.
            self.get(name[:ID_CHARS], owner)

    def _sidecar(self, media_id: str) -> Path:
        return self.root / f"{media_id}.json"

    def _write_sidecar(self, media_id: str, facts: bytes) -> None:
        draft = self.new_place(".json")
        try:
            draft.write_bytes(facts)
            draft.replace(self._sidecar(media_id))
        finally:
            draft.unlink(missing_ok=True)

    def _read_sidecar(self, media_id: str) -> MediaFile:
        """Raises FileNotFoundError; ValueError, KeyError, TypeError where the sidecar is broken."""
        suffix, facts = known_of(self._sidecar(media_id).read_bytes())
        path = self.root / (media_id + suffix)
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


def file_within(base: Path, reference: str, folders: Sequence[Path]) -> Path:
    """The file that *reference* names, absolute or from *base*, with every link followed, in one of *folders*.

    Raises PathNotAllowed for what is outside, whether it exists or not, and MediaNotFound for what is inside and no
    file.
    """
    if not reference or len(reference) > MAX_REFERENCE_CHARS:
        raise MediaNotFound
    try:
        path = Path(os.path.realpath(base / reference))
    except ValueError as error:  # a NUL, or characters that no file name can hold
        raise MediaNotFound from error
    if not any(path.is_relative_to(folder) for folder in folders):
        raise PathNotAllowed
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:  # absent, a name too long, a loop of links, a folder that may not be entered
        raise MediaNotFound from error
    if not is_file:
        raise MediaNotFound
    return path


def entry_of(folder: Path, path: Path) -> Path | None:
    """The entry of *folder* that the file *path* is, or lies in; None where it lies elsewhere.

    Folders are compared by what they are: the same one may be named in other letters, or mounted twice. Raises
    MediaNotFound for a file that has just gone.
    """
    try:
        return next((entry for entry, above in pairwise((path, *path.parents)) if above.samefile(folder)), None)
    except OSError as error:
        raise MediaNotFound from error


def spelled(name: str, entries: Iterable[str]) -> str | None:
    """The one of a folder's *entries* that has this *name*, letter by letter; a file system may find others by it, too.

    Some give an "ä" back as two letters.
    """
    wanted = unicodedata.normalize("NFC", name)
    return next((entry for entry in entries if unicodedata.normalize("NFC", entry) == wanted), None)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
