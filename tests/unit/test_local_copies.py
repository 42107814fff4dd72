"""Copies of what lies elsewhere: fetched once, kept while in use, bounded."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from downloads import local_copies
from downloads.local_copies import Fetch, LocalCopies, Write
from errors import StorageFull, StoreUnavailable


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[LocalCopies]:
    copies = LocalCopies(tmp_path / "copies", max_bytes=100)
    yield copies
    copies.close()


def content(size: int) -> Fetch:
    def fetch(write: Write) -> None:
        write(b"x" * size)

    return fetch


def absent(write: Write) -> None:
    raise AssertionError("it is here already")


def there(copies: LocalCopies) -> list[str]:
    return sorted(path.name for path in copies.folder.iterdir())


async def test_what_is_here_is_not_fetched_again(copies: LocalCopies) -> None:
    async with copies.opened("a", content(5)) as path:
        assert path.read_bytes() == b"xxxxx"
    async with copies.opened("a", absent) as path:
        assert path.read_bytes() == b"xxxxx"
    assert copies.fetched("a", absent) == path


def test_the_least_recently_used_goes_first(copies: LocalCopies) -> None:
    for name in ("a", "b"):
        copies.fetched(name, content(40))
    os.utime(copies.place("a"), (1, 1))
    os.utime(copies.place("b"), (2, 2))
    copies.fetched("a", absent)
    copies.fetched("c", content(40))
    assert there(copies) == ["a", "c"]


async def test_what_is_in_use_stays_however_full_it_is(copies: LocalCopies) -> None:
    """A job reads its file for hours, by its path, in processes of its own."""
    async with copies.opened("a", content(60)) as first:
        os.utime(first, (1, 1))
        async with copies.opened("b", content(70)) as second:
            assert first.exists()
            assert second.exists()
        assert there(copies) == ["a", "b"]
    copies.trim()
    assert there(copies) == ["b"]


def test_another_process_keeps_what_it_uses(copies: LocalCopies) -> None:
    """Several servers of one machine share the folder; one that dies keeps nothing."""
    path = copies.fetched("a", content(60))
    program = f"import fcntl, sys; file = open({str(path)!r}); fcntl.flock(file, fcntl.LOCK_SH); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program + "; sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        os.utime(path, (1, 1))
        copies.fetched("b", content(60))
        assert there(copies) == ["a", "b"]
        other.kill()
        other.wait()
        copies.trim()
        assert there(copies) == ["b"]


async def test_those_who_want_the_same_wait_for_one_fetch(copies: LocalCopies) -> None:
    """Twenty jobs that name one file must not fetch it twenty times."""
    fetches = 0
    begun, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(write: Write) -> None:
        nonlocal fetches
        fetches += 1
        loop.call_soon_threadsafe(begun.set)
        go.wait()
        write(b"sound")

    async def use() -> bytes:
        async with copies.opened("a", slow) as path:
            return path.read_bytes()

    users = [asyncio.create_task(use()) for _ in range(5)]
    await begun.wait()
    go.set()
    assert await asyncio.gather(*users) == [b"sound"] * 5
    assert fetches == 1


async def test_a_fetch_that_fails_leaves_nothing_and_can_be_tried_again(copies: LocalCopies) -> None:
    def broken(write: Write) -> None:
        write(b"so")
        raise StoreUnavailable

    with pytest.raises(StoreUnavailable):
        async with copies.opened("a", broken):
            pass
    assert there(copies) == []
    async with copies.opened("a", content(5)) as path:
        assert path.stat().st_size == 5


def test_a_full_disk_is_told_as_such(copies: LocalCopies) -> None:
    def full(write: Write) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(StorageFull):
        copies.fetched("a", full)


def test_what_a_crash_left_half_fetched_is_fetched_anew(copies: LocalCopies) -> None:
    copies.place("a.part").write_bytes(b"half of something")
    assert copies.fetched("a", content(5)).read_bytes() == b"xxxxx"
    assert there(copies) == ["a"]


async def test_a_caller_who_goes_stops_the_fetch(copies: LocalCopies) -> None:
    """A cancelled job must not go on loading gigabytes."""
    begun, go, stopped = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(write: Write) -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait()
        try:
            while True:
                write(b"")
        finally:
            loop.call_soon_threadsafe(stopped.set)

    async def use() -> None:
        async with copies.opened("a", endless):
            pass

    user = asyncio.create_task(use())
    await begun.wait()
    user.cancel()
    with pytest.raises(asyncio.CancelledError):
        await user
    go.set()
    await stopped.wait()


def test_a_copy_that_comes_between_two_looks_is_not_replaced(
    copies: LocalCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds it would hold a file that is not there any more."""
    before = copies.fetched("a", content(5)).stat()
    real, looks = local_copies._pinned, []

    def late(place: Path) -> int | None:
        looks.append(place)
        return real(place) if len(looks) > 1 else None

    monkeypatch.setattr(local_copies, "_pinned", late)
    assert os.path.samestat(copies.fetched("a", absent).stat(), before)
    assert there(copies) == ["a"]


async def test_a_copy_that_comes_too_late_is_let_go(tmp_path: Path) -> None:
    """Else it could never be removed again."""
    # With one thread, whoever came too late is through before those who come now.
    copies = LocalCopies(tmp_path / "copies", max_bytes=100, threads=1)
    begun, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def late(write: Write) -> None:
        write(b"x" * 200)
        loop.call_soon_threadsafe(begun.set)
        go.wait()

    async def use() -> None:
        async with copies.opened("a", late):
            pass

    user = asyncio.create_task(use())
    await begun.wait()
    user.cancel()
    with pytest.raises(asyncio.CancelledError):
        await user
    go.set()
    async with copies.opened("a", absent):
        pass
    copies.trim()
    assert there(copies) == []
    copies.close()


def test_what_is_adopted_needs_no_fetch(copies: LocalCopies, tmp_path: Path) -> None:
    """The machine that downloads a file is likely to be the one that transcribes it. Its own date says nothing."""
    copies.fetched("b", content(60))
    (tmp_path / "made").write_bytes(b"x" * 60)
    os.utime(tmp_path / "made", (1, 1))
    copies.adopt(tmp_path / "made", "a")
    assert not (tmp_path / "made").exists()
    assert there(copies) == ["a"]
    copies.fetched("a", absent)
