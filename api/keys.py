"""The keys that open this server, and from where the one it made itself may be used. Knows nothing of requests."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from transcription.core import Priority


class Keys:
    """The keys that callers may send. Holds digests only, so that no trace and no log can show a key."""

    def __init__(self, keys: Iterable[str], *, batch_keys: Iterable[str] = (), loopback_only: bool = False) -> None:
        """*batch_keys*: those whose requests are never interactive, whatever they say."""
        self._digests = tuple(_digest(key.encode()) for key in keys)
        self._batch_names = frozenset(_name(_digest(key.encode())) for key in batch_keys)
        self.loopback_only = loopback_only
        """True for the key that the server made itself: it was printed in a terminal, not chosen for a network."""

    def admit(self, sent: list[bytes]) -> str | None:
        """The key's name in this server, where the header was sent once and is a key.

        The name is the beginning of the key's digest: the same after every start, and no help in finding the key. Takes
        as long for a wrong key as for a right one.
        """
        if len(sent) != 1:
            return None
        digest = _digest(sent[0])
        # Every key is compared, and digests are: neither a key's place nor its first letters can be timed.
        known = sum(hmac.compare_digest(digest, known) for known in self._digests) > 0
        return _name(digest) if known else None

    def ceiling(self, name: str) -> Priority:
        """The most urgent class that the key of that name may ask for."""
        return Priority.BATCH if name in self._batch_names else Priority.INTERACTIVE

    def __len__(self) -> int:
        return len(self._digests)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _name(digest: bytes) -> str:
    return digest.hex()[:12]


def is_loopback(address: str) -> bool:
    """Whether *address*, of a socket on this machine, can be reached from this machine alone."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        # A path: a Unix socket, which no other machine can reach.
        return address.startswith("/")
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


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
