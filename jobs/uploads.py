"""What callers have sent for jobs that are not over: safe on disk before the job is, gone when nobody needs it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from errors import UploadGone

_NAME = re.compile(r"[0-9a-f]{32}")


class UploadStore:
    """A folder of uploads, shared by all who do jobs. Methods are synchronous; `keep` waits for the disk."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root

    def __repr__(self) -> str:
        return f"UploadStore({str(self._root)!r})"

    def keep(self, path: Path) -> str:
        """Take the file *path* in; return its name here. It is on the disk then, also after a power cut."""
        name = secrets.token_hex(16)
        place = self._root / name
        try:
            path.replace(place)
        except OSError:
            # Another file system.
            shutil.copyfile(path, place)
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
        if name is None:
            yield None
            return
        place = self._root / name
        if not place.is_file():
            raise UploadGone
        yield place

    def remove(self, name: str) -> None:
        """Forget the upload of that name; nothing happens where it is gone."""
        if _NAME.fullmatch(name):
            (self._root / name).unlink(missing_ok=True)

    def names(self) -> Iterator[tuple[str, float]]:
        """All uploads, with the time at which each came (seconds since 1970)."""
        for place in self._root.iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield place.name, place.stat().st_mtime


@contextlib.contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
