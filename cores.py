"""How many cores this process may use: affinity and the control groups' quotas counted in."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import cgroup


def allowed_cores() -> int:
    """Cores that the scheduler may put this process on: taskset and containers' cpusets counted in."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_cores(root: Path = Path("/"), allowed: Callable[[], int] = allowed_cores) -> int:
    """Cores this process may use, at least 1. A share of a core counts as one: half a core still runs a thread.

    *root*: where /proc lies. Containers are mostly held by a quota, which affinity does not show: one thread a core of
    the host would then be stopped for most of each period.
    """
    quotas = [quota for group in cgroup.groups("cpu", root) if (quota := _quota(group)) is not None]
    return max(1, min(allowed(), *(math.ceil(quota) for quota in quotas)) if quotas else allowed())


def _quota(group: cgroup.Cgroup) -> float | None:
    """Cores' worth of time that the group gets in each period; None where it has no limit."""
    if group.version == 2:
        quota, _, period = group.text("cpu.max").partition(" ")
    else:
        quota, period = group.text("cpu.cfs_quota_us"), group.text("cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit():
        return None  # "max", "-1", or no such file: the root group has none
    return int(quota) / int(period)
