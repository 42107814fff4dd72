"""The folder of work in flight: emptied at start, unless another server is at work in it."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Make *folder*, remove what a crashed server left in it, and hold it while the context lasts.

    Yields whether this server is the first: of several that share the folder (uvicorn --workers) it alone empties it.
    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH)
            first = False
        else:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            fcntl.flock(lock, fcntl.LOCK_SH)
            first = True
        yield first
