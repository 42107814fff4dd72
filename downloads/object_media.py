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
from downloads.media import (
    ID_CHARS,
    Kept,
    MediaFile,
    display_name,
    file_within,
    is_media_id,
    is_media_name,
    known_of,
    safe_suffix,
    sidecar,
)
from downloads.objects import Objects
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
            bytes=path.stat().st_size,
        )
        self._objects.put(place, path)
        # NOTE: where this fails, what was put is a stray, and swept.
        self._objects.write(media_id + _SIDECAR, facts)
        self._copies.adopt(path, place)
        return self._media(media_id, facts)

    def get(self, media_id: str) -> MediaFile:
        """What is known of a file; nothing is fetched but that. Raises MediaNotFound, StoreUnavailable."""
        if not is_media_id(media_id):
            raise MediaNotFound
        try:
            return self._media(media_id, self._objects.read(media_id + _SIDECAR))
        except FileNotFoundError as error:
            raise MediaNotFound from error

    def list(self) -> list[MediaFile]:
        """All files, newest first. One whose sidecar cannot be read is left out, and the log says so."""
        found = []
        names = [stored.name for stored in self._objects.listed() if _id_of_sidecar(stored.name)]
        for name, facts in self._objects.read_each(names).items():
            with contextlib.suppress(MediaNotFound):
                found.append(self._media(_id_of_sidecar(name), facts))
        return sorted(found, key=lambda media: (media.created_at, media.id), reverse=True)

    def delete(self, media_id: str) -> None:
        """Raises MediaNotFound, StoreUnavailable."""
        media = self.get(media_id)
        self._objects.remove(media_id + _SIDECAR)
        self._objects.remove(media.path.name)

    @contextlib.asynccontextmanager
    async def opened(self, reference: str) -> AsyncIterator[Path]:
        """Where the file that a caller names can be read, while the context lasts.

        *reference*: an id, a stored file's path or name, or a path on this machine in one of the further folders.
        Raises PathNotAllowed, MediaNotFound, StorageFull, StoreUnavailable.
        """
        media_id = self._named(reference)
        if media_id is None:
            yield file_within(Path("/"), reference, self._roots)
            return
        media = await asyncio.to_thread(self.get, media_id)
        async with contextlib.AsyncExitStack() as stack:
            try:
                path = await stack.enter_async_context(self._copies.opened(media.path.name, self._fetch(media)))
            except FileNotFoundError as error:
                raise MediaNotFound from error
            yield path

    def resolve(self, reference: str) -> Path:
        """As `opened`, for a look at once: what is fetched later may push it out. Raises the same."""
        media_id = self._named(reference)
        if media_id is None:
            return file_within(Path("/"), reference, self._roots)
        media = self.get(media_id)
        try:
            return self._copies.fetched(media.path.name, self._fetch(media))
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

    def _named(self, reference: str) -> str | None:
        """The id in a reference to a stored file."""
        path = Path(reference)
        if is_media_name(path.name) and path.parent in (Path(), self._copies.folder):
            return path.name[:ID_CHARS]
        return None

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
