"""Secrets that this server makes for itself, kept where only its user can read them."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path


def kept_key(path: Path, make: Callable[[], str] = secrets.token_urlsafe) -> str:
    """The key that this server made for itself, from *path*; made there, for this user's eyes only, on the first call.

    Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if key := path.read_text("ascii").strip():
            path.chmod(0o600)
            return key
        path.unlink()
    # Written aside and linked into place: nobody ever reads half a key, and of two servers that start at once one wins.
    handle, aside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(make() + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        os.unlink(aside)
    return path.read_text("ascii").strip()
