"""Local copies of what lies in object storage: fetched once, kept while in use, the least recently used go first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from errors import StorageFull

Write = Callable[[bytes], object]
Fetch = Callable[[Write], None]
"""Writes the whole content, in order, and lets through what writing raises."""

_LOOK_S = 0.2
"""How often somebody else's fetch of the same thing is looked at."""
_PART = ".part"


class GivenUp(Exception):
    """Nobody waits for this copy any more."""


class LocalCopies:
    """A folder of copies, of *max_bytes* together as far as they are not in use. All processes of a machine may share
    it: a lock on a copy keeps it from being removed, and ends with the process that holds it. What is copied never
    changes."""

    def __init__(self, folder: Path, max_bytes: int, *, threads: int = 16) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = Path(os.path.realpath(folder))
        self._max_bytes = max_bytes
        # Of its own: fetching takes minutes, and the threads of the loop have leases to keep.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="fetching")

    def __repr__(self) -> str:
        return f"LocalCopies({str(self.folder)!r}, max_bytes={self._max_bytes})"

    def close(self) -> None:
        """Fetch nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def place(self, name: str) -> Path:
        """Where the copy of that name is, once it is."""
        return self.folder / name

    @contextlib.asynccontextmanager
    async def opened(self, name: str, fetch: Fetch) -> AsyncIterator[Path]:
        """The copy of that name, fetched where it is absent, kept while the context lasts.

        Raises StorageFull, and what *fetch* raises. Cancelling stops a fetch at its next block.
        """
        given_up = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._held, name, fetch, given_up)
        try:
            held = await asyncio.shield(work)
        except asyncio.CancelledError:
            given_up.set()
            work.add_done_callback(_let_go)
            raise
        try:
            yield self.place(name)
        finally:
            os.close(held)

    def fetched(self, name: str, fetch: Fetch) -> Path:
        """The copy of that name, fetched where it is absent; the next ones to be fetched may push it out.

        Raises StorageFull, and what *fetch* raises.
        """
        os.close(self._held(name, fetch, threading.Event()))
        return self.place(name)

    def adopt(self, path: Path, name: str) -> None:
        """Take the file *path* as the copy of that name; where it lies on another file system, just remove it."""
        try:
            # Before it is there: what was used longest ago goes first, and a download is as old as its server says.
            os.utime(path)
            path.replace(self.place(name))
        except OSError:
            path.unlink()
        else:
            self.trim()

    def trim(self) -> None:
        """Remove copies that nobody uses, the least recently used first, until the others are within the bound."""
        copies = []
        for place in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                facts = place.stat()
                copies.append((facts.st_mtime_ns, facts.st_size, place))
        excess = sum(size for _, size, _ in copies) - self._max_bytes
        for _, size, place in sorted(copies):
            if excess <= 0:
                return
            if _removed(place):
                excess -= size

    def _held(self, name: str, fetch: Fetch, given_up: threading.Event) -> int:
        """A descriptor that keeps the copy where it is until it is closed."""
        while (held := _pinned(self.place(name))) is None:
            self._fetch(name, fetch, given_up)
        try:
            os.utime(held)
            self.trim()
        except BaseException:
            os.close(held)
            raise
        return held

    def _fetch(self, name: str, fetch: Fetch, given_up: threading.Event) -> None:
        """Fetch the copy, or wait for whoever fetches it just now, in this process or another."""
        part = self.place(name + _PART)
        with part.open("ab") as file:
            while not _locked(file.fileno(), fcntl.LOCK_EX):
                if given_up.wait(_LOOK_S):
                    raise GivenUp
            if not _is_at(file.fileno(), part):
                return
            if self.place(name).exists():
                # It came between the look and the lock. Another in its place would be held by nobody.
                part.unlink()
                return

            def write(block: bytes) -> None:
                if given_up.is_set():
                    raise GivenUp
                file.write(block)

            try:
                with _full_disk_told():
                    file.truncate(0)
                    fetch(write)
                    file.flush()
                    part.replace(self.place(name))
            except BaseException:
                part.unlink(missing_ok=True)
                raise


def _pinned(place: Path) -> int | None:
    """A descriptor with a lock that keeps *place* from being removed; None where it is absent."""
    while True:
        try:
            descriptor = os.open(place, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            # NOTE: it waits for those alone who are just removing it, which takes microseconds.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(descriptor, place):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _removed(place: Path) -> bool:
    """Remove *place*, unless somebody holds it."""
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        if not _locked(descriptor, fcntl.LOCK_EX) or not _is_at(descriptor, place):
            return False
        place.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, place: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), place.stat())
    except FileNotFoundError:
        return False


def _let_go(work: asyncio.Future[int]) -> None:
    if not work.cancelled() and work.exception() is None:
        os.close(work.result())


@contextlib.contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull from error
        raise
