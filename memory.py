"""What memory there is: total, used and free, of this machine or container and of each CUDA device.

Imports neither torch nor the engine: the server asks before any model is loaded.
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
from errors import ConfigurationError

LIMIT_VARIABLES = ("MEMORY_LIMIT_MB", "RAILWAY_RAM_MB")
"""Limits in MiB that a person or a platform sets: some containers show their host's memory and nothing else."""


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes of one device, and what set the limit."""

    total_bytes: int
    used_bytes: int
    source: str

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
    environ: Mapping[str, str] = os.environ,
    *,
    host: Callable[[], MemoryReading] = host_memory,
    own: Callable[[], int] = own_bytes,
) -> MemoryReading:
    """The memory that this process may use: the machine's, held by every limit above it.

    Total is the smallest limit, free the smallest that any of them leaves: a container can be full while its host is
    not, and the other way round. *root*: where /proc lies. Raises ConfigurationError for limits that are no numbers.
    """
    limits = [host()]
    limits += [reading for group in cgroup.groups("memory", root) if (reading := _group_memory(group))]
    limits += [
        MemoryReading(limit_bytes, own(), variable)
        for variable in LIMIT_VARIABLES
        if (limit_bytes := _variable_bytes(variable, environ))
    ]
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


def _variable_bytes(variable: str, environ: Mapping[str, str]) -> int | None:
    """The limit that *variable* sets, in bytes; None where it is empty or 0."""
    text = environ.get(variable, "").strip()
    try:
        mebibytes = float(text or 0)
        if mebibytes < 0:
            raise ValueError
        return int(mebibytes * 2**20) or None
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{variable}={text} is no number of MiB: write 2048 for 2 GiB.") from None


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
