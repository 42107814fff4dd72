"""The stored media of several machines: in object storage, with local copies of what is in use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog

from downloads.local_copies import Fetch, LocalCopies
from downloads.media import entry_of, file_within
from downloads.objects import Objects
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
from errors import MediaNotFound

_SIDECAR = ".json"

log = structlog.get_logger(__name__)


class ObjectMedia:
    """Keeps media as MediaStore does: `<id><suffix>`, and `<id>.json`, written last and removed first.

    A file's path is where its local copy is, once it is `opened`. Methods wait for the network.
    """

    def __init__(
        self,
        objects: Objects,
        copies: LocalCopies,
        roots: Sequence[Path] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """*roots*: folders of this machine that `opened` may name files in."""
        self._objects = objects
        self._copies = copies
        self._roots = tuple(Path(os.path.realpath(folder)) for folder in roots)
        self._clock = clock

    def __repr__(self) -> str:
        return f"ObjectMedia({self._objects!r})"

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
        """Take the finished file *path* in. Raises StoreUnavailable, and leaves *path* as it was then."""
        media_id = secrets.token_hex(16)
        suffix = safe_suffix(path.suffix)
        place = media_id + suffix
        facts = sidecar(
            suffix,
            name=display_name(name) or place,
            media_type=media_type,
            duration_s=duration_s,
            created_at=self._clock(),
            title=title,
            extractor=extractor,
            source=source,
            owner=owner,
            bytes=path.stat().st_size,
        )
        self._objects.put(place, path)
        # NOTE: where this fails, what was put is a stray, and swept.
        self._objects.write(media_id + _SIDECAR, facts)
        self._copies.adopt(path, place)
        return self._media(media_id, facts)

    def get(self, media_id: str, owner: str) -> MediaFile:
        """What is known of a file; nothing is fetched but that. Raises MediaNotFound, StoreUnavailable."""
        return owned(self._get(media_id), owner)

    def _get(self, media_id: str) -> MediaFile:
        """The file of that id, whosever it is."""
        if not is_media_id(media_id):
            raise MediaNotFound
        try:
            return self._media(media_id, self._objects.read(media_id + _SIDECAR))
        except FileNotFoundError as error:
            raise MediaNotFound from error

    def list(self, owner: str) -> list[MediaFile]:
        """That owner's files, newest first. One whose sidecar cannot be read is left out, and the log says so."""
        found = []
        names = [stored.name for stored in self._objects.listed() if _id_of_sidecar(stored.name)]
        for name, facts in self._objects.read_each(names).items():
            with contextlib.suppress(MediaNotFound):
                found.append(owned(self._media(_id_of_sidecar(name), facts), owner))
        return sorted(found, key=lambda media: (media.created_at, media.id), reverse=True)

    def delete(self, media_id: str, owner: str) -> None:
        """Raises MediaNotFound, StoreUnavailable."""
        self._remove(self.get(media_id, owner))

    def remove(self, media_id: str) -> None:
        """As `delete`, whosever it is: for a sweep, never for a caller. Raises MediaNotFound, StoreUnavailable."""
        self._remove(self._get(media_id))

    def _remove(self, media: MediaFile) -> None:
        self._objects.remove(media.id + _SIDECAR)
        self._objects.remove(media.path.name)

    def check(self, reference: str, owner: str) -> None:
        """Whether `opened` would find what a caller names; nothing is fetched. Raises what that does."""
        found = self._found(reference, owner)
        if isinstance(found, MediaFile):
            try:
                self._objects.check_has(found.path.name)
            except FileNotFoundError as error:
                raise MediaNotFound from error

    @contextlib.asynccontextmanager
    async def opened(self, reference: str, owner: str) -> AsyncIterator[Path]:
        """Where the file that a caller names can be read, while the context lasts.

        *reference*: an id, a stored file's path or name, or a path on this machine in one of the further folders.
        Raises PathNotAllowed, MediaNotFound, StorageFull, StoreUnavailable.
        """
        found = await asyncio.to_thread(self._found, reference, owner)
        if isinstance(found, Path):
            yield found
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                path = await stack.enter_async_context(self._copies.opened(found.path.name, self._fetch(found)))
            except FileNotFoundError as error:
                raise MediaNotFound from error
            yield path

    def resolve(self, reference: str, owner: str) -> Path:
        """As `opened`, for a look at once: what is fetched later may push it out. Raises the same."""
        found = self._found(reference, owner)
        if isinstance(found, Path):
            return found
        try:
            return self._copies.fetched(found.path.name, self._fetch(found))
        except FileNotFoundError as error:
            raise MediaNotFound from error

    def kept(self) -> Sequence[Kept]:
        """All files, from listings alone: a sweep that read each sidecar would be billed for each."""
        listed = self._objects.listed()
        since = {media_id: one.written_at for one in listed if (media_id := _id_of_sidecar(one.name))}
        return [
            Kept(one.name[:ID_CHARS], one.bytes, since[one.name[:ID_CHARS]])
            for one in listed
            if is_media_name(one.name) and one.name[:ID_CHARS] in since
        ]

    def remove_strays(self, before: float) -> int:
        """Remove what crashed servers left half added before that time (seconds since 1970); return how many."""
        listed = self._objects.listed()
        whole = {_id_of_sidecar(one.name) for one in listed}
        strays = [
            one.name
            for one in listed
            if is_media_name(one.name) and one.name[:ID_CHARS] not in whole and one.written_at < before
        ]
        for stray in strays:
            self._objects.remove(stray)
        return len(strays)

    def _found(self, reference: str, owner: str) -> MediaFile | Path:
        """The owner's stored file, or the file on this machine, that a caller names.

        Raises PathNotAllowed, MediaNotFound, StoreUnavailable.
        """
        path = Path(reference)
        if is_media_name(path.name) and path.parent in (Path(), self._copies.folder):
            return self.get(path.name[:ID_CHARS], owner)
        path = file_within(Path("/"), reference, self._roots)
        # NOTE: a further folder may hold the copies, in which everybody's files and uploads lie.
        if entry_of(self._copies.folder, path):
            raise MediaNotFound
        return path

    def _fetch(self, media: MediaFile) -> Fetch:
        return partial(self._objects.copy, media.path.name)

    def _media(self, media_id: str, written: bytes) -> MediaFile:
        try:
            suffix, facts = known_of(written)
            return MediaFile(id=media_id, path=self._copies.place(media_id + suffix), **facts)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("media_sidecar_unreadable", id=media_id, error=repr(error))
            raise MediaNotFound from error


def _id_of_sidecar(name: str) -> str:
    """Empty where it is none."""
    media_id = name.removesuffix(_SIDECAR)
    return media_id if media_id != name and is_media_id(media_id) else ""
