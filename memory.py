"""What memory there is: total, used and free, of this machine or container and of each GPU; and how scarce it is.

Imports neither torch nor the engine: the server asks before any model is loaded. Reading takes about a millisecond and
starts no process, so it can be done often.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import cgroup


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes of one device."""

    total_bytes: int
    used_bytes: int
    source: str
    """What set the limit: "host", "cgroup v1", "cgroup v2", "setting"; of a GPU, who told."""

    @property
    def free_bytes(self) -> int:
        return max(0, self.total_bytes - self.used_bytes)


# --- main memory -----------------------------------------------------------------------------------------------------


def host_memory() -> MemoryReading:
    """The machine's physical memory. What the kernel can give back at once (file cache) is not used."""
    memory = psutil.virtual_memory()
    return MemoryReading(memory.total, memory.total - memory.available, "host")


def own_bytes() -> int:
    """Resident memory of this process and its children."""
    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def read_ram(
    root: Path = Path("/"),
    *,
    limit_bytes: int = 0,
    host: Callable[[], MemoryReading] = host_memory,
    own: Callable[[], int] = own_bytes,
) -> MemoryReading:
    """The memory that this process may use: the machine's, held by every limit above it.

    Total is the smallest limit, free the smallest that any of them leaves: a container can be full while its host is
    not, and the other way round. *root*: where /proc lies. *limit_bytes*: one more limit, which somebody set since some
    containers show their host's memory and nothing else; what counts against it is this process and its children.
    """
    limits = [host()]
    limits += [reading for group in cgroup.groups("memory", root) if (reading := _group_memory(group))]
    if limit_bytes:
        limits.append(MemoryReading(limit_bytes, own(), "setting"))
    tightest = min(limits, key=lambda limit: limit.total_bytes)
    free_bytes = min(limit.free_bytes for limit in limits)
    return MemoryReading(tightest.total_bytes, tightest.total_bytes - free_bytes, tightest.source)


def _group_memory(group: cgroup.Cgroup) -> MemoryReading | None:
    """A control group's limit and use; None where it has no limit.

    Use is what the group is charged less the file cache that goes first under pressure, as Kubernetes counts its
    working set. NOTE: without a limit version 1 says a number near 2^63, which is above any machine's memory.
    """
    if group.version == 2:
        # Above memory.high a group is slowed down until it hardly runs: that is no memory to plan with either.
        limits = [group.number("memory.max"), group.number("memory.high")]
        current, cache = group.number("memory.current"), group.field("memory.stat", "inactive_file")
    else:
        # The second is the least of all ancestors, those that a container cannot see included.
        limits = [
            group.number("memory.limit_in_bytes"),
            group.field("memory.stat", "hierarchical_memory_limit"),
        ]
        current, cache = group.number("memory.usage_in_bytes"), group.field("memory.stat", "total_inactive_file")
    known = [limit for limit in limits if limit is not None]
    if not known:
        return None
    return MemoryReading(min(known), max(0, (current or 0) - (cache or 0)), f"cgroup v{group.version}")


# --- how scarce it is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryPressure:
    """How much of the time is lost to waiting for memory (Linux, Documentation/accounting/psi.rst)."""

    some_avg10_percent: float
    """Of the last 10 s, the share in which some tasks waited."""
    some_avg60_percent: float
    full_avg10_percent: float
    """The share in which all tasks waited, so that nothing was done at all."""
    full_avg60_percent: float
    source: str
    """Whose tasks: "cgroup v2", or "host" where the group's own are not told."""


def pressure(root: Path = Path("/")) -> MemoryPressure | None:
    """The pressure on this process's group, else on the nearest ancestor that tells, else on the host.

    The group's own figure is the one to know: it counts its tasks' waiting, whichever limit above it they wait for.
    Only version 2 tells it, on hybrid systems too. None where the kernel has no such figure: before Linux 4.20, without
    CONFIG_PSI, booted with psi=0, and on other systems.
    """
    for group in cgroup.groups("", root):
        if found := _parsed_pressure(group.text("memory.pressure"), "cgroup v2"):
            return found
    try:
        return _parsed_pressure((root / "proc/pressure/memory").read_text(encoding="ascii"), "host")
    except OSError:
        return None


def _parsed_pressure(text: str, source: str) -> MemoryPressure | None:
    """From the lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`; None where there are none."""
    shares = {}
    for line in text.splitlines():
        kind, *fields = line.split()
        shares[kind] = {name: float(value) for name, value in (field.split("=") for field in fields)}
    if not {"some", "full"} <= shares.keys():
        return None
    some, full = shares["some"], shares["full"]
    return MemoryPressure(some["avg10"], some["avg60"], full["avg10"], full["avg60"], source)


@dataclass(frozen=True, slots=True)
class MemoryEvents:
    """How often a group met its limits since it was made, by the kernel's own names (admin-guide/cgroup-v2.rst).

    What version 1 does not count is 0: `oom` and `high`.
    """

    oom_kill: int
    """Processes that the kernel killed for want of memory."""
    oom: int
    """Times that no memory could be had within the limit, whatever came of it."""
    high: int
    """Times that a process was slowed down for being above memory.high."""
    max: int
    """Times that the limit was reached; file cache may have been given back then, and no harm done."""


def memory_events(root: Path = Path("/")) -> MemoryEvents | None:
    """The events of the group that this process's memory is charged to; None where the kernel tells none.

    That is its own, or the nearest ancestor where version 2 has the controller off below it. Version 2 counts groups
    below in. Version 1 counts in memory.oom_control (Linux 4.13) and memory.failcnt (admin-guide/cgroup-v1/memory.rst).
    NOTE: where its limit on memory and swap together is the same, as containers' often is, that one is met first, and
    recent kernels count it nowhere (6.18 was seen to): then kills are told, and `max` is 0.
    """
    for group in cgroup.groups("memory", root):
        if group.version == 2 and (text := group.text("memory.events")):
            counts = dict(line.split() for line in text.splitlines())
            return MemoryEvents(*(int(counts.get(name, 0)) for name in ("oom_kill", "oom", "high", "max")))
        if group.version == 1 and group.text("memory.failcnt"):
            oom_kills = group.field("memory.oom_control", "oom_kill") or 0
            reached = (group.number("memory.failcnt") or 0) + (group.number("memory.memsw.failcnt") or 0)
            return MemoryEvents(oom_kill=oom_kills, oom=0, high=0, max=reached)
    return None


# --- CUDA devices ----------------------------------------------------------------------------------------------------


def cuda_memory(
    environ: Mapping[str, str] = os.environ, load: Callable[[str], Any | None] | None = None
) -> list[MemoryReading]:
    """One reading a device that CUDA programs see here, in their order; empty without a driver. Never raises.

    NVML, the library behind nvidia-smi, tells total and used without a CUDA context, which would take 0.3 GB of each
    device. It knows nothing of CUDA_VISIBLE_DEVICES, so the visible ones are picked here. NOTE: its order is the bus's;
    CUDA's own puts the fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID, so on machines with unlike cards name them by
    UUID. Where NVML does not answer, the driver tells the totals, and used is unknown: 0.
    """
    load = load or _library
    names = ("nvml.dll", "nvcuda.dll") if sys.platform == "win32" else ("libnvidia-ml.so.1", "libcuda.so.1")
    if nvml := load(names[0]):
        readings = _nvml_memory(nvml, environ.get("CUDA_VISIBLE_DEVICES"))
        if readings is not None:
            return readings
    if driver := load(names[1]):
        return _driver_memory(driver)
    return []


def _library(name: str) -> Any | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


class _NvmlMemory(ctypes.Structure):
    """`nvmlMemory_t` (nvml.h)."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Failed(Exception):
    """A call into a driver's library gave an error code."""


def _must(code: int) -> None:
    if code != 0:  # NVML_SUCCESS and CUDA_SUCCESS alike
        raise _Failed(code)


def _nvml_memory(nvml: Any, visible: str | None) -> list[MemoryReading] | None:
    """The visible devices' memory; None where NVML fails, or tells of whole cards that are cut into instances (MIG)."""
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        count = ctypes.c_uint()
        _must(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        devices = []
        for index in range(count.value):
            device, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(96)
            _must(nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)))
            _must(nvml.nvmlDeviceGetUUID(device, uuid, ctypes.c_uint(len(uuid))))
            devices.append((device, uuid.value.decode()))
        readings = []
        if visible and "MIG-" in visible:
            return None
        for index in visible_devices(visible, [uuid for _, uuid in devices]):
            if _is_cut_up(nvml, devices[index][0]):
                return None
            memory = _NvmlMemory()
            _must(nvml.nvmlDeviceGetMemoryInfo(devices[index][0], ctypes.byref(memory)))
            readings.append(MemoryReading(memory.total, memory.used, "nvml"))
        return readings
    except _Failed:
        return None
    finally:
        nvml.nvmlShutdown()


def _is_cut_up(nvml: Any, device: ctypes.c_void_p) -> bool:
    """Whether the card's memory is divided among instances. Cards that cannot be cut give an error code."""
    mode, pending = ctypes.c_uint(), ctypes.c_uint()
    return nvml.nvmlDeviceGetMigMode(device, ctypes.byref(mode), ctypes.byref(pending)) == 0 and mode.value == 1


def visible_devices(visible: str | None, uuids: list[str]) -> list[int]:
    """Indices of the devices that CUDA_VISIBLE_DEVICES lets through, in its order (CUDA Programming Guide).

    It holds indices, or UUIDs that may be cut short; the first that names no device, or one twice, ends the list.
    """
    if visible is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for name in (part.strip() for part in visible.split(",")):
        if name.isdigit():
            found = [int(name)] if int(name) < len(uuids) else []
        else:
            found = [index for index, uuid in enumerate(uuids) if name and uuid.startswith(name)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    return chosen


def _driver_memory(driver: Any) -> list[MemoryReading]:
    """Totals by CUDA's driver, which itself obeys CUDA_VISIBLE_DEVICES."""
    readings = []
    try:
        _must(driver.cuInit(ctypes.c_uint(0)))
        count = ctypes.c_int()
        _must(driver.cuDeviceGetCount(ctypes.byref(count)))
        for index in range(count.value):
            device, total = ctypes.c_int(), ctypes.c_size_t()
            _must(driver.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index)))
            _must(driver.cuDeviceTotalMem_v2(ctypes.byref(total), device))
            readings.append(MemoryReading(total.value, 0, "cuda driver, use unknown"))
    except _Failed:
        return []
    return readings


# --- Apple's unified memory ------------------------------------------------------------------------------------------

LARGE_MAC_BYTES = 36 * 2**30


def mps_memory(ram: MemoryReading, *, platform: str = sys.platform, libc: Any | None = None) -> MemoryReading | None:
    """What an Apple GPU may take of *ram*, which it shares with the processor; None where there is none.

    For operators to see: CTranslate2 has no MPS, so the engine runs on the processor there. NOTE: this was never run
    on a Mac; it is tested with a false libc only.

    The recommended maximum is Metal's to tell (MTLDevice.recommendedMaxWorkingSetSize, "an approximation of how much
    memory, in bytes, this GPU device can allocate without affecting its runtime performance"), and Metal is not asked
    here. Where somebody set the sysctl iogpu.wired_limit_mb, Metal was seen to recommend just that. Else this is a rule
    of thumb, from what users of other programs reported: two thirds (10.7 of 16 GiB), on large machines three quarters,
    on newer systems rather more (11.8 of 16 GiB, 107.5 of 128 GiB). Apple documents none of these figures.
    """
    if platform != "darwin":
        return None
    libc = libc or ctypes.CDLL(None)
    if not _sysctl(libc, "hw.optional.arm64"):
        return None  # An Intel Mac: its GPU is not meant here.
    physical_bytes = _sysctl(libc, "hw.memsize")
    if set_mb := _sysctl(libc, "iogpu.wired_limit_mb"):
        most_bytes, source = set_mb * 2**20, "iogpu.wired_limit_mb"
    else:
        most_bytes = physical_bytes * 3 // 4 if physical_bytes >= LARGE_MAC_BYTES else physical_bytes * 2 // 3
        source = "unified memory, rule of thumb"
    total_bytes = min(most_bytes, ram.total_bytes)
    return MemoryReading(total_bytes, max(0, total_bytes - ram.free_bytes), source)


def _sysctl(libc: Any, name: str) -> int:
    """The number that macOS's kernel has under *name* (sysctlbyname(3)); 0 where there is no such name."""
    value, length = ctypes.create_string_buffer(8), ctypes.c_size_t(8)
    failed = libc.sysctlbyname(name.encode(), value, ctypes.byref(length), None, ctypes.c_size_t(0))
    return 0 if failed else int.from_bytes(value.raw[: length.value], sys.byteorder)
