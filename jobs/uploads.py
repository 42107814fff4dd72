"""What callers have sent for jobs that are not over: safe on disk before the job is, gone when nobody needs it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from downloads.local_copies import LocalCopies
from downloads.objects import Objects
from errors import UploadGone

_NAME = re.compile(r"[0-9a-f]{32}")


class Uploads(Protocol):
    """The kept uploads, in a folder or in object storage. Methods are synchronous, and may wait for the network."""

    def keep(self, path: Path) -> str:
        """Take the file *path* in; return its name here. It is safe then. Raises StorageFull, StoreUnavailable."""

    def opened(self, name: str | None) -> contextlib.AbstractAsyncContextManager[Path | None]:
        """Where the upload of that name can be read, while the context lasts; None where there is no name.

        Raises UploadGone, StorageFull, StoreUnavailable.
        """

    def check(self, name: str | None) -> None:
        """Raises UploadGone, StoreUnavailable."""

    def remove(self, name: str) -> None:
        """Forget the upload of that name; nothing happens where it is gone. Raises StoreUnavailable."""

    def names(self) -> Iterator[tuple[str, float]]:
        """All uploads, with the time at which each came (seconds since 1970). Raises StoreUnavailable."""


class UploadStore:
    """A folder of uploads, shared by all who do jobs. `keep` waits for the disk."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root

    def __repr__(self) -> str:
        return f"UploadStore({str(self._root)!r})"

    def keep(self, path: Path) -> str:
        """Take the file *path* in; return its name here. It is on the disk then, also after a power cut.

        Raises OSError, and leaves *path* as it was then.
        """
        name = secrets.token_hex(16)
        place = self._root / name
        try:
            path.replace(place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            try:
                shutil.copyfile(path, place)
            except BaseException:
                place.unlink(missing_ok=True)
                raise
            path.unlink()
        for written in (place, self._root):
            with _descriptor(written) as descriptor:
                os.fsync(descriptor)
        return name

    @contextlib.asynccontextmanager
    async def opened(self, name: str | None) -> AsyncIterator[Path | None]:
        """Where the upload of that name can be read, while the context lasts; None where there is no name.

        Raises UploadGone.
        """
        self.check(name)
        yield None if name is None else self._root / name

    def check(self, name: str | None) -> None:
        """Raises UploadGone."""
        if name is not None and not (_NAME.fullmatch(name) and (self._root / name).is_file()):
            raise UploadGone

    def remove(self, name: str) -> None:
        """Forget the upload of that name; nothing happens where it is gone."""
        if _NAME.fullmatch(name):
            (self._root / name).unlink(missing_ok=True)

    def names(self) -> Iterator[tuple[str, float]]:
        """All uploads, with the time at which each came (seconds since 1970)."""
        for place in self._root.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if _NAME.fullmatch(place.name):
                    # NOTE: a file that is moved in keeps the time at which it was written.
                    yield place.name, place.stat().st_ctime


class ObjectUploads:
    """Uploads in object storage: every machine fetches a copy of what it works on. Methods wait for the network."""

    def __init__(self, objects: Objects, copies: LocalCopies) -> None:
        self._objects = objects
        self._copies = copies

    def __repr__(self) -> str:
        return f"ObjectUploads({self._objects!r})"

    def keep(self, path: Path) -> str:
        """Take the file *path* in; return its name here. It is safe then.

        Raises StoreUnavailable, and leaves *path* as it was then.
        """
        name = secrets.token_hex(16)
        self._objects.put(name, path)
        # Whoever took it in is likely to work on it.
        self._copies.adopt(path, name)
        return name

    @contextlib.asynccontextmanager
    async def opened(self, name: str | None) -> AsyncIterator[Path | None]:
        """A copy of the upload of that name, while the context lasts; None where there is no name.

        Raises UploadGone, StorageFull, StoreUnavailable.
        """
        if name is None:
            yield None
            return
        if not _NAME.fullmatch(name):
            raise UploadGone
        async with contextlib.AsyncExitStack() as stack:
            try:
                path = await stack.enter_async_context(self._copies.opened(name, partial(self._objects.copy, name)))
            except FileNotFoundError as error:
                raise UploadGone from error
            yield path

    def check(self, name: str | None) -> None:
        """Raises UploadGone, StoreUnavailable."""
        if name is None:
            return
        if not _NAME.fullmatch(name):
            raise UploadGone
        try:
            self._objects.check_has(name)
        except FileNotFoundError as error:
            raise UploadGone from error

    def remove(self, name: str) -> None:
        """Forget the upload of that name; nothing happens where it is gone. Raises StoreUnavailable."""
        if _NAME.fullmatch(name):
            self._objects.remove(name)

    def names(self) -> Iterator[tuple[str, float]]:
        """All uploads, with the time at which each came (seconds since 1970). Raises StoreUnavailable."""
        for stored in self._objects.listed():
            if _NAME.fullmatch(stored.name):
                yield stored.name, stored.written_at


@contextlib.contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
