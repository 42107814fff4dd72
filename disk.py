"""What room the data disk has: no work begins that would fill it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from errors import StorageFull


class Usage(Protocol):
    """Of a file system, in bytes."""

    @property
    def free(self) -> int: ...


class Disk:
    """The file system of one folder, of which a reserve is left free: for what is at work, and for the database."""

    def __init__(
        self, folder: Path, reserve_bytes: int, disk_usage: Callable[[Path], Usage] = shutil.disk_usage
    ) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._disk_usage = disk_usage

    def __repr__(self) -> str:
        return f"Disk({str(self._folder)!r}, reserve_bytes={self._reserve_bytes})"

    def check_room(self, needed_bytes: int = 0) -> None:
        """Refuse work that would write *needed_bytes* where the reserve would be touched. Raises StorageFull.

        One system call. NOTE: nothing is set aside; of many who ask at once, each sees the same room.
        """
        if self._disk_usage(self._folder).free - needed_bytes < self._reserve_bytes:
            raise StorageFull
