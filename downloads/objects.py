"""Files in S3-compatible storage, by name: written whole, read, listed, removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from errors import ConfigurationError, StoreUnavailable

BLOCK_BYTES = 8 * 2**20
_CONNECT_S = 5
_READ_S = 60
_ATTEMPTS = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """One object. *written_at*: seconds since 1970, by the storage's clock."""

    name: str
    bytes: int
    written_at: float


class Objects:
    """The objects below one prefix. Synchronous and thread-safe; every method waits for the network.

    All but FileNotFoundError is raised as StoreUnavailable, with its cause.
    """

    def __init__(self, files: Any, root: str) -> None:
        """*files*: fsspec's file system. *root*: bucket/prefix."""
        self._files = files
        self._root = root.strip("/")

    @classmethod
    def at(cls, url: str) -> Objects:
        """*url*: s3://bucket/prefix. Who may use it, and at which server, s3fs reads from the environment as all of
        Amazon's tools do. Raises ConfigurationError where it is of no such kind, or s3fs is not installed."""
        kind, _, root = url.partition("://")
        if kind != "s3" or not root.strip("/"):
            raise ConfigurationError("MEDIA_URL must be a folder, or s3://bucket/prefix.")
        try:
            # Only those who share storage have it.
            import fsspec  # type: ignore[import-untyped]

            files = fsspec.filesystem(
                "s3",
                # What was listed a moment ago may have been changed by others since.
                use_listings_cache=False,
                skip_instance_cache=True,
                config_kwargs={
                    "connect_timeout": _CONNECT_S,
                    "read_timeout": _READ_S,
                    # Storage that is away is told within seconds: jobs are tried again, callers are waiting.
                    "retries": {"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                },
            )
        except ImportError as error:
            raise ConfigurationError("MEDIA_URL=s3://… needs s3fs: install stenogate[fleet].") from error
        return cls(files, root)

    def __repr__(self) -> str:
        return f"Objects({self._root!r})"

    def below(self, prefix: str) -> Objects:
        return Objects(self._files, f"{self._root}/{prefix}")

    def check(self) -> None:
        """See that the bucket is there and may be written to. Raises ConfigurationError."""
        try:
            self.write("writable", b"")
            self.remove("writable")
        except (FileNotFoundError, StoreUnavailable) as error:
            reason = error.__cause__ or error
            raise ConfigurationError(f"MEDIA_URL=s3://{self._root} cannot be used: {reason}.") from error

    def close(self) -> None:
        """Let the connections go."""
        client = getattr(self._files, "_s3", None)
        if client is not None:
            self._files.close_session(self._files.loop, client)

    def write(self, name: str, content: bytes) -> None:
        """Safe when it returns; seen whole or not at all."""
        with _told():
            self._files.pipe_file(self._path(name), content)

    def put(self, name: str, path: Path) -> None:
        """As `write`, from a file."""
        with _told():
            # NOTE: s3fs would hold ten parts of 50 MiB in memory.
            self._files.put_file(str(path), self._path(name), chunksize=BLOCK_BYTES, max_concurrency=2)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        with _told():
            return bytes(self._files.cat_file(self._path(name)))

    def read_each(self, names: Iterable[str]) -> dict[str, bytes]:
        """Many small ones at once, by name, but for those that are gone."""
        paths = {self._path(name): name for name in names}
        if not paths:
            return {}
        with _told():
            found = self._files.cat(list(paths), on_error="return")
        for content in found.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise _unavailable() from content
        return {paths[path]: content for path, content in found.items() if isinstance(content, bytes)}

    def copy(self, name: str, write: Callable[[bytes], object]) -> None:
        """Hand the content to *write*, block by block. Raises FileNotFoundError, and what *write* raises."""
        with _told():
            file = self._files.open(self._path(name), "rb", block_size=BLOCK_BYTES, cache_type="none")
        with file:
            while True:
                with _told():
                    block = file.read(BLOCK_BYTES)
                if not block:
                    return
                write(block)

    def check_has(self, name: str) -> None:
        """Raises FileNotFoundError."""
        with _told():
            self._files.info(self._path(name))

    def remove(self, name: str) -> None:
        """Nothing happens where it is gone."""
        with _told(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def listed(self) -> list[Stored]:
        """All of them."""
        with _told():
            try:
                found = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return []
        return [
            Stored(path.removeprefix(self._root + "/"), int(facts["size"]), facts["LastModified"].timestamp())
            for path, facts in found.items()
            if path.startswith(self._root + "/")
        ]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("The storage that keeps media and uploads does not answer.")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The storage's failures as callers know them."""
    try:
        yield
    except FileNotFoundError:
        raise
    # NOTE: s3fs lets through what aiohttp, botocore and the sockets raise, which have no base in common.
    except Exception as error:
        log.warning("the storage failed", error=repr(error))
        raise _unavailable() from error
