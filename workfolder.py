"""The folder of work in flight, emptied at start unless another server is at work in it; and each request's own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from errors import StorageFull
from telemetry import current_request_id


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


@contextlib.contextmanager
def private_folder(work_folder: Path) -> Iterator[Path]:
    """A new folder under *work_folder*, readable by this user alone, removed with all in it whatever happens.

    Raises StorageFull where what is done in it meets a full disk.
    """
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{current_request_id() or 'request'}-", dir=work_folder))
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull from error
        raise
    finally:
        # Synchronous on purpose: a cancelled request could not wait for a thread, and unlinking takes microseconds.
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
