"""Work that the disk has no room for is refused before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from disk import Disk
from errors import StorageFull

ROOM = 1000


@dataclass(frozen=True)
class Usage:
    free: int


def disk(free: int, reserve: int = 100) -> Disk:
    return Disk(Path("/data"), reserve, lambda folder: Usage(free) if folder == Path("/data") else Usage(0))


def test_what_leaves_the_reserve_may_begin() -> None:
    disk(ROOM).check_room()
    disk(ROOM).check_room(ROOM - 100)


def test_what_would_touch_the_reserve_is_refused() -> None:
    with pytest.raises(StorageFull) as refused:
        disk(ROOM).check_room(ROOM - 99)
    assert refused.value.status == 507


def test_a_disk_below_its_reserve_takes_no_work_at_all() -> None:
    """The database on it needs room to write down how the work that is there ends."""
    with pytest.raises(StorageFull):
        disk(99).check_room()


def test_room_is_looked_for_each_time() -> None:
    """A server with a full disk heals as soon as there is room."""
    free = iter([0, ROOM])
    healing = Disk(Path("/data"), 100, lambda folder: Usage(next(free)))
    with pytest.raises(StorageFull):
        healing.check_room()
    healing.check_room()


def test_a_real_disk_has_some_room_and_not_any(tmp_path: Path) -> None:
    Disk(tmp_path, 0).check_room(1)
    with pytest.raises(StorageFull):
        Disk(tmp_path, 2**60).check_room()
