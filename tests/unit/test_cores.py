"""Cores by affinity and quota, on trees of files as the kernel shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cores import allowed_cores, available_cores
from tests.cgroup_trees import V2, make, v1


def cores(root: Path, allowed: int = 8) -> int:
    return available_cores(root, lambda: allowed)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("9900000 100000", 8)],
)
def test_a_quota_of_version_2_is_rounded_up(tmp_path: Path, quota: str, expected: int) -> None:
    """One and a half cores run two threads; a quota never gives more than affinity does."""
    assert cores(make(tmp_path, "0::/app", [V2], {"app/cpu.max": quota})) == expected


def test_the_least_quota_of_all_ancestors_holds(tmp_path: Path) -> None:
    """A pod's limit binds a container that has none of its own."""
    files = {"pod/cpu.max": "300000 100000", "pod/app/cpu.max": "max 100000", "pod/app/in/cpu.max": "400000 100000"}
    assert cores(make(tmp_path, "0::/pod/app/in", [V2], files)) == 3


@pytest.mark.parametrize(("quota", "expected"), [(-1, 8), (50_000, 1), (250_000, 3)])
def test_a_quota_of_version_1(tmp_path: Path, quota: int, expected: int) -> None:
    """The older kernels' two files; "cpu" shares its hierarchy with "cpuacct" on most of them."""
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": quota, "cpu,cpuacct/a/cpu.cfs_period_us": 100_000}
    assert cores(make(tmp_path, "3:cpu,cpuacct:/a\n0::/a", [v1("cpu,cpuacct"), V2], files)) == expected


def test_without_control_groups_affinity_alone_counts(tmp_path: Path) -> None:
    """Windows, macOS and bare machines."""
    assert cores(tmp_path, allowed=3) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="This system has no affinity.")
def test_a_process_tied_to_one_core_has_one() -> None:
    """What taskset and a container's cpuset do."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert allowed_cores() == 1
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
