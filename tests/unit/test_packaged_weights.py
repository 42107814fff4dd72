"""Weights in packages: pinned, joined once, whole or not at all. The packages here are small but real ones."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from errors import ModelUnavailable, StorageFull
from transcription import weights
from transcription.weights import PackagedWeights, join, verify

FILES = {"config.json": b"{}", "tokenizer.json": b"{ }", "vocabulary.json": b"[]"}
PARTS = (b"first half, ", b"second half")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """Two packages on the import path, each with a part of the weights."""
    for number, part in enumerate(PARTS, start=1):
        folder = tmp_path / f"packages/test_weights_part_{number}/data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise ImportError('weights are data: nobody imports them')")
        (folder / f"model.bin.part{number}").write_bytes(part)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    importlib.invalidate_caches()
    return PackagedWeights(
        packages=("test_weights_part_1", "test_weights_part_2"),
        folder="data",
        parts=("model.bin.part1", "model.bin.part2"),
        weights_bytes=len(b"".join(PARTS)),
        sha256={name: digest(content) for name, content in FILES.items()} | {"model.bin": digest(b"".join(PARTS))},
    )


def found(source: PackagedWeights) -> list[Path]:
    folders = source.folders()
    assert folders is not None
    return folders


def test_parts_are_joined_and_the_other_files_lie_beside(source: PackagedWeights, tmp_path: Path) -> None:
    """The folder must be one that the engine loads, and nothing else may be left."""
    target = tmp_path / "models/base"
    join(source, found(source), target)
    assert (target / "model.bin").read_bytes() == b"first half, second half"
    assert {path.name for path in target.iterdir()} == {"model.bin", *FILES}
    assert list(target.parent.iterdir()) == [target]
    assert oct(target.stat().st_mode & 0o777) == "0o755"


@pytest.mark.parametrize("name", ["model.bin.part1", "model.bin.part2", "tokenizer.json"])
def test_a_damaged_file_is_refused_and_leaves_nothing(source: PackagedWeights, tmp_path: Path, name: str) -> None:
    """Weights that are not the pinned ones are never loaded, and never lie where they could be."""
    folders = found(source)
    path = folders[0] / name if name.endswith("1") else folders[1] / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelUnavailable, match="damaged"):
        join(source, folders, tmp_path / "models/base")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_missing_package_means_no_weights(source: PackagedWeights) -> None:
    """Half a model is none."""
    shutil.rmtree(found(source)[1].parent)
    importlib.invalidate_caches()
    assert source.folders() is None
    assert replace(source, packages=("no_such_package_here",) * 2).folders() is None


def test_too_little_room_is_told_before_anything_is_written(
    source: PackagedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk filled to the last byte takes the whole service down, not only this model."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 1 << 20))
    with pytest.raises(StorageFull, match="1 MiB are free"):
        join(source, found(source), tmp_path / "models/base")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_first_process_to_finish_wins(source: PackagedWeights, tmp_path: Path) -> None:
    """The second one's folder is dropped: the first one's may be in use."""
    target = tmp_path / "models/base"
    join(source, found(source), target)
    first = (target / "model.bin").stat().st_ino
    join(source, found(source), target)
    assert (target / "model.bin").stat().st_ino == first
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_in_the_way_is_named_and_left_alone(source: PackagedWeights, tmp_path: Path) -> None:
    """It may be a copy that somebody is still making."""
    target = tmp_path / "models/base"
    target.mkdir(parents=True)
    (target / "model.bin").write_bytes(b"theirs")
    with pytest.raises(ModelUnavailable, match=r"in the way: it lacks config.json"):
        join(source, found(source), target)
    assert (target / "model.bin").read_bytes() == b"theirs"


def test_a_place_that_cannot_be_written_is_named(source: PackagedWeights, tmp_path: Path) -> None:
    """The one who started the service must see which setting to change."""
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ModelUnavailable, match=r"models.*Set MODEL_DIR"):
        join(source, found(source), tmp_path / "models/base")


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(
    source: PackagedWeights, tmp_path: Path
) -> None:
    """A process killed while joining cannot clean up after itself."""
    old, new = tmp_path / "models/.base.joining-old", tmp_path / "models/.base.joining-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (0, 0))
    join(source, found(source), tmp_path / "models/base")
    assert not old.exists()
    assert new.exists()


# --- verified where it lies ------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, dict[str, str], Path]:
    """A folder, its pinned hashes, and where it is remembered."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "config.json").write_bytes(b"{}")
    return folder, {"model.bin": digest(b"weights"), "config.json": digest(b"{}")}, tmp_path / "models/.verified.json"


def test_a_file_found_good_is_not_read_again(whole: tuple[Path, dict[str, str], Path]) -> None:
    """Large weights take a second to hash, and every start would pay it."""
    folder, sha256, memory = whole
    verify(folder, sha256, memory)
    status = (folder / "model.bin").stat()
    (folder / "model.bin").write_bytes(b"WEIGHTS")
    os.utime(folder / "model.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    verify(folder, sha256, memory)
    memory.unlink()
    with pytest.raises(ModelUnavailable, match="damaged"):
        verify(folder, sha256, memory)


def test_a_file_that_changed_is_read_again(whole: tuple[Path, dict[str, str], Path]) -> None:
    """What was good yesterday is not good for ever."""
    folder, sha256, memory = whole
    verify(folder, sha256, memory)
    (folder / "model.bin").write_bytes(b"WEIGHTS and more")
    with pytest.raises(ModelUnavailable, match="damaged"):
        verify(folder, sha256, memory)


def test_another_pin_is_not_satisfied_by_what_is_remembered(whole: tuple[Path, dict[str, str], Path]) -> None:
    """A new release pins new weights; the memory is of the old ones."""
    folder, sha256, memory = whole
    verify(folder, sha256, memory)
    with pytest.raises(ModelUnavailable, match="damaged"):
        verify(folder, sha256 | {"model.bin": digest(b"other")}, memory)


def test_a_missing_file_is_refused(whole: tuple[Path, dict[str, str], Path]) -> None:
    """Half an installation must say so, not fail inside the engine."""
    folder, sha256, memory = whole
    (folder / "config.json").unlink()
    with pytest.raises(ModelUnavailable, match=r"config.json cannot be read"):
        verify(folder, sha256, memory)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_broken_memory_costs_one_more_look_and_no_more(
    whole: tuple[Path, dict[str, str], Path], content: str
) -> None:
    """Power can fail while it is written."""
    folder, sha256, memory = whole
    memory.parent.mkdir()
    memory.write_text(content)
    verify(folder, sha256, memory)
    assert str(folder / "model.bin") in json.loads(memory.read_text())
    assert list(memory.parent.iterdir()) == [memory]
