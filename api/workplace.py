"""A request's private folder: everything it writes on its way, gone when it ends."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from errors import StorageFull
from telemetry import current_request_id


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
