"""Weights that came in Python packages or lie on the model hub: found, checked, put in place once."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from errors import ModelUnavailable, StorageFull

WEIGHTS = "model.bin"
_NEEDED = (WEIGHTS, "config.json", "tokenizer.json")
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
HUB_FILES = (*_NEEDED, "preprocessor_config.json", "vocabulary.*")

_BLOCK_BYTES = 1 << 20
_SPARE_BYTES = 64 << 20
"""What must stay free on the disk beside the weights: the service's own files are written there too."""

_ABANDONED_AFTER_S = 3_600
"""A half-written folder that nobody has touched for so long was left by a process that died."""

_HUB_TIMEOUT_S = 5.0
"""For the hub's first answer; the default of 10 s is paid twice where packets are dropped."""


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """One model inside installed Python packages; every file pinned, so that nothing else is ever loaded.

    *parts* are `model.bin` in order, one in each of *packages*; the last package holds the other files as well.
    """

    packages: tuple[str, ...]
    folder: str
    parts: tuple[str, ...]
    sha256: Mapping[str, str]
    weights_bytes: int

    @property
    def is_whole(self) -> bool:
        return self.parts == (WEIGHTS,)

    def folders(self) -> list[Path] | None:
        """Where each package keeps its part; None unless all are installed. Imports none of them."""
        found = []
        for package, part in zip(self.packages, self.parts, strict=True):
            places = _package_folders(package)
            folder = next((place / self.folder for place in places if (place / self.folder / part).is_file()), None)
            if folder is None:
                return None
            found.append(folder)
        return found


def missing_files(folder: Path) -> list[str]:
    """What *folder* lacks to be loaded as a CTranslate2 Whisper model without asking the hub."""
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        missing.append(_VOCABULARIES[0])
    return missing


def verify(folder: Path, sha256: Mapping[str, str], memory: Path) -> None:
    """Raise ModelUnavailable unless every file in *folder* has its pinned hash.

    A file whose size and time of change are as they were when it was last found good is not read again: *memory* is
    the JSON file that keeps them.
    """
    known = _read_memory(memory)
    seen = {}
    for name, expected in sha256.items():
        path = folder / name
        try:
            status = path.stat()
            now = {"bytes": status.st_size, "changed_ns": status.st_mtime_ns, "sha256": expected}
            if known.get(str(path)) != now and _file_sha256(path) != expected:
                raise ModelUnavailable(
                    f"{path} is damaged: its SHA-256 is not the pinned one. Install its package anew."
                )
        except OSError as error:
            raise ModelUnavailable(f"{path} cannot be read: {error.strerror}. Install its package anew.") from error
        seen[str(path)] = now
    if any(known.get(path) != now for path, now in seen.items()):
        # A read-only MODEL_DIR only costs the next start another look.
        with suppress(OSError), new_file(memory) as new:
            new.write_text(json.dumps(known | seen))


def join(source: PackagedWeights, folders: list[Path], target: Path) -> None:
    """Put *source* together as the folder *target*: whole, or not at all.

    Any number of processes may do so at once; the first to finish wins. Raises ModelUnavailable where a part is
    damaged, StorageFull where there is no room.
    """
    require_room(target.parent, source.weights_bytes)
    _sweep(target)
    with _new_folder(target) as folder:
        digest = hashlib.sha256()
        with (folder / WEIGHTS).open("wb") as weights:
            for place, part in zip(folders, source.parts, strict=True):
                for block in _blocks(place / part):
                    digest.update(block)
                    weights.write(block)
            weights.flush()
            os.fsync(weights.fileno())
        found = {WEIGHTS: digest.hexdigest()}
        for name in source.sha256.keys() - {WEIGHTS}:
            shutil.copyfile(folders[-1] / name, folder / name)
            found[name] = _file_sha256(folder / name)
        damaged = sorted(name for name, expected in source.sha256.items() if found[name] != expected)
        if damaged:
            raise ModelUnavailable(
                f"The weights in the packages {' and '.join(source.packages)} are damaged: the SHA-256 of "
                f"{', '.join(damaged)} is not the pinned one. Install the packages anew."
            )
        settle(folder, target)


def cached_by_hub(repository: str) -> Path | None:
    """The folder in the hub's cache on this machine, if the model is there whole. Asks no network."""
    from huggingface_hub import try_to_load_from_cache  # slow to import: half a second, 15 MB

    weights = try_to_load_from_cache(repository, WEIGHTS)
    if not isinstance(weights, str) or missing_files(Path(weights).parent):
        return None
    return Path(weights).parent


def fetch_from_hub(repository: str, target: Path, token: str | None, weights_bytes: int) -> None:
    """Download *repository* into the folder *target*. An interrupted download goes on where it stopped.

    Raises StorageFull, and whatever the hub's client raises when the hub cannot be reached or refuses.
    """
    from huggingface_hub import snapshot_download

    require_room(target.parent, weights_bytes)
    folder = target.with_name(f".{target.name}.download")
    with storage_errors(target.parent):
        snapshot_download(
            repository, local_dir=folder, allow_patterns=list(HUB_FILES), token=token, etag_timeout=_HUB_TIMEOUT_S
        )
        if missing := missing_files(folder):
            raise ModelUnavailable(f"The model hub's {repository} lacks {', '.join(missing)}.")
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        settle(folder, target)
        shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path, target: Path) -> None:
    """Give the finished *folder* its name; where another process was first, theirs stays."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if missing := missing_files(target):
            raise ModelUnavailable(
                f"The folder {target} is in the way: it lacks {', '.join(missing)}. Complete it or delete it."
            ) from error


def require_room(folder: Path, needed_bytes: int) -> None:
    """Raise StorageFull unless *needed_bytes* and some to spare are free where *folder* is, which is made."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise StorageFull(
            f"The weights need {needed_bytes >> 20} MiB in {folder}, where {free_bytes >> 20} MiB are free. "
            "Make room, or set MODEL_DIR to another disk."
        )


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into the errors that say so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"There is no room left in {folder} for the weights.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ModelUnavailable(
                f"The weights cannot be put into {folder}: {error.strerror}. Set MODEL_DIR."
            ) from error
        raise


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside *target* to be renamed to it; gone afterwards unless it was."""
    with storage_errors(target.parent):
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target)))
        try:
            folder.chmod(0o755)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file beside *path* that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.joining-"


def _sweep(target: Path) -> None:
    """Remove what processes that died while joining have left."""
    for folder in target.parent.glob(f"{_prefix(target)}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)


def _package_folders(package: str) -> list[Path]:
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a module without a spec has taken the name
        return []
    return [Path(place) for place in (found.submodule_search_locations or ())] if found else []


def _read_memory(memory: Path) -> dict[str, object]:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
