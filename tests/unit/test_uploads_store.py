"""What callers have sent for their jobs: taken in, found, removed."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from errors import UploadGone
from jobs.uploads import UploadStore


@pytest.fixture
def store(tmp_path: Path) -> UploadStore:
    return UploadStore(tmp_path / "uploads")


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    (tmp_path / "sent").write_bytes(b"sound")
    return tmp_path / "sent"


async def test_what_is_kept_can_be_read(store: UploadStore, sent: Path) -> None:
    name = store.keep(sent)
    assert not sent.exists()
    async with store.opened(name) as path:
        assert path is not None
        assert path.read_bytes() == b"sound"


async def test_where_nothing_was_sent_there_is_nothing_to_read(store: UploadStore) -> None:
    async with store.opened(None) as path:
        assert path is None
    store.check(None)


@pytest.mark.parametrize("name", ["0" * 32, "", "../sent", "a/../../sent", "\0"])
async def test_what_is_not_kept_is_gone(store: UploadStore, sent: Path, name: str) -> None:
    """Names come from the database; one that leads out of the folder leads nowhere."""
    with pytest.raises(UploadGone):
        store.check(name)
    with pytest.raises(UploadGone):
        async with store.opened(name):
            pass
    store.remove(name)
    assert sent.exists()


def test_what_is_removed_is_gone_however_often(store: UploadStore, sent: Path) -> None:
    name = store.keep(sent)
    store.remove(name)
    store.remove(name)
    with pytest.raises(UploadGone):
        store.check(name)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="There is no second file system at hand.")
def test_an_upload_from_another_file_system_is_copied(store: UploadStore, tmp_path: Path) -> None:
    """The work folder may lie on a disk of its own."""
    elsewhere = Path("/dev/shm") / f"upload-{os.getpid()}"
    elsewhere.write_bytes(b"sound")
    try:
        name = store.keep(elsewhere)
        assert not elsewhere.exists()
    finally:
        elsewhere.unlink(missing_ok=True)
    assert (tmp_path / "uploads" / name).read_bytes() == b"sound"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="There is no second file system at hand.")
def test_half_a_copy_is_not_left(store: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: what was copied of it would keep it so."""
    elsewhere = Path("/dev/shm") / f"upload-{os.getpid()}"
    elsewhere.write_bytes(b"sound")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"so")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shutil, "copyfile", full)
    try:
        with pytest.raises(OSError, match="full"):
            store.keep(elsewhere)
        assert elsewhere.exists()
    finally:
        elsewhere.unlink()
    assert list(store.names()) == []


def test_an_upload_is_as_old_as_it_has_been_here(store: UploadStore, sent: Path) -> None:
    """Not as its file: a sweep would remove one that took an hour to arrive before its job is written down."""
    started = time.time()
    os.utime(sent, (0, 0))
    name = store.keep(sent)
    ((found, came_at),) = store.names()
    assert found == name
    # File systems' clocks tick in steps.
    assert came_at > started - 1


def test_only_uploads_are_listed(store: UploadStore, tmp_path: Path, sent: Path) -> None:
    """A sweep removes what is listed: nothing that somebody else has put there."""
    (tmp_path / "uploads" / "README").write_text("mine")
    (tmp_path / "uploads" / ("0" * 32 + ".bak")).write_text("mine")
    name = store.keep(sent)
    assert [found for found, _ in store.names()] == [name]
