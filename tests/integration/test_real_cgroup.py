"""Memory as a real control group limits it: one is made for the test and removed after it, where the machine allows."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cgroup
from cgroup import Cgroup

ROOT = Path(__file__).parents[2]
MB = 2**20
LIMIT_BYTES = 128 * MB
BLOCK_BYTES = 48 * MB
CACHED_BYTES = 32 * MB

CHILD = f"""
import dataclasses, json, os, subprocess, sys
sys.stdin.readline()  # it is in the group now; what is allocated from here on is charged to it
from memory import memory_events, pressure, read_ram

def look():
    return dataclasses.asdict(read_ram())

told = {{"before": look()}}
block = b"x" * {BLOCK_BYTES}
told["after"] = look()
with open(sys.argv[1], "wb") as file:
    file.write(block[:{CACHED_BYTES}])
    os.fsync(file.fileno())
told["with_cache"] = look()
told["no_events"] = dataclasses.asdict(memory_events())
greedy = "open('/proc/self/oom_score_adj', 'w').write('1000'); b'x' * {2 * LIMIT_BYTES}"
told["greedy"] = subprocess.run([sys.executable, "-c", greedy]).returncode
told["events"] = dataclasses.asdict(memory_events())
told["pressure"] = pressure() and dataclasses.asdict(pressure())
print(json.dumps(told))
"""


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """A new group with a limit, as far down in the tree as one may be made."""
    parent = next(filter(_takes_groups, cgroup.groups("memory")), None)
    if parent is None:
        pytest.skip("No control group in sight hands its memory controller on to groups below it.")
    made = Cgroup(parent.folder / f"stenogate-test-{os.getpid()}", parent.version)
    try:
        made.folder.mkdir()
    except OSError as error:
        pytest.skip(f"No control group can be made below {parent.folder}: {error.strerror}.")
    try:
        _limit(made)
        yield made
    finally:
        for pid in map(int, made.text("cgroup.procs").split()):
            _end(pid)
        made.folder.rmdir()


def _takes_groups(group: Cgroup) -> bool:
    """Version 2 hands a controller on only where no process is in the group itself: to siblings of this process's."""
    if group.version == 1:
        return group.number("memory.limit_in_bytes") is not None
    return "memory" in group.text("cgroup.subtree_control").split()


def _limit(group: Cgroup) -> None:
    """Without swap: what is above the limit must be refused and not put elsewhere."""
    limit, swap = (
        ("memory.max", "memory.swap.max") if group.version == 2 else ("memory.limit_in_bytes", "memory.swappiness")
    )
    (group.folder / limit).write_text(str(LIMIT_BYTES))
    if (group.folder / swap).exists():
        (group.folder / swap).write_text("0")


def _end(pid: int) -> None:
    """Kill the process *pid* and wait until it is gone: a group with processes cannot be removed."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        with contextlib.closing(os.fdopen(process)):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], 10)


def _told_by_child(group: Cgroup, folder: Path) -> dict[str, Any]:
    """What a process in *group* reads."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder / "cached")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            (group.folder / "cgroup.procs").write_text(str(child.pid))
        except OSError as error:
            child.kill()
            pytest.skip(f"No process can be put into a control group here: {error.strerror}.")
        output, _ = child.communicate("\n", timeout=120)
    assert child.returncode == 0
    return dict(json.loads(output))


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux has control groups.")
def test_in_a_real_group_its_limit_and_its_use_are_told(group: Cgroup, tmp_path: Path) -> None:
    """The files of this very kernel, limit and accounting included; psutil knows nothing of either."""
    told = _told_by_child(group, tmp_path)
    before, after, with_cache = told["before"], told["after"], told["with_cache"]

    assert before["total_bytes"] == after["total_bytes"] == LIMIT_BYTES
    assert before["source"] == f"cgroup v{group.version}"
    assert before["used_bytes"] < LIMIT_BYTES // 2
    # The kernel charges in batches of some pages, for each processor.
    assert BLOCK_BYTES * 0.95 < after["used_bytes"] - before["used_bytes"] < BLOCK_BYTES * 1.2

    if _on_disk(tmp_path):
        assert with_cache["used_bytes"] - after["used_bytes"] < CACHED_BYTES / 4

    assert told["no_events"]["oom_kill"] == 0
    assert told["greedy"] == -signal.SIGKILL
    assert told["events"]["oom_kill"] == 1
    assert told["events"]["max"] > 0
    if group.version == 2:
        assert told["events"]["oom"] > 0
    if Path("/proc/pressure/memory").exists():
        assert 0 <= told["pressure"]["full_avg10_percent"] <= told["pressure"]["some_avg10_percent"] <= 100


def _on_disk(folder: Path) -> bool:
    """Whether files in *folder* are cached, and not memory themselves (tmpfs)."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = [fields for fields in mounts if folder.is_relative_to(fields[1])]
    return bool(around) and max(around, key=lambda fields: len(fields[1]))[2] != "tmpfs"
