"""Memory as limits leave it, on trees of files as the kernel shows them; CUDA devices on fakes of their libraries."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import memory
from errors import ConfigurationError
from memory import MemoryReading, cuda_memory, read_ram, visible_devices
from tests.cgroup_trees import V2, make, v1

GB = 2**30
HOST = MemoryReading(16 * GB, 3 * GB, "host")
NO_LIMIT_V1 = 9_223_372_036_854_771_712


def ram(root: Path, environ: Mapping[str, str] | None = None, host: MemoryReading = HOST) -> MemoryReading:
    return read_ram(root, environ or {}, host=lambda: host, own=lambda: GB // 4)


def v2_files(group: str, limit: int | str, current: int, inactive: int = 0, high: int | str = "max") -> dict[str, Any]:
    folder = f"{group}/" if group else ""
    return {
        f"{folder}memory.max": limit,
        f"{folder}memory.high": high,
        f"{folder}memory.current": current,
        f"{folder}memory.stat": f"anon 1\ninactive_anon 5\ninactive_file {inactive}\nactive_file 7",
    }


def v1_files(group: str, limit: int, usage: int, inactive: int = 0, least: int = NO_LIMIT_V1) -> dict[str, Any]:
    stat = f"cache 9\ninactive_file 5\nhierarchical_memory_limit {least}\ntotal_inactive_file {inactive}"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    return {f"memory/{group}{name}": text for name, text in zip(names, (limit, usage, stat), strict=True)}


# --- main memory -----------------------------------------------------------------------------------------------------


def test_without_any_limit_it_is_the_hosts(tmp_path: Path) -> None:
    """Windows, macOS and bare machines."""
    assert ram(tmp_path) == HOST
    assert ram(tmp_path).free_bytes == 13 * GB


def test_a_container_of_version_2_has_what_its_limit_leaves(tmp_path: Path) -> None:
    """File cache that goes first under pressure is not used."""
    root = make(tmp_path, "0::/", [V2], v2_files("", 2 * GB, GB, inactive=GB // 2))
    assert ram(root) == MemoryReading(2 * GB, GB // 2, "cgroup v2")


def test_the_least_limit_of_all_ancestors_holds(tmp_path: Path) -> None:
    """A pod's limit binds a container that has none of its own."""
    files = v2_files("pod", 4 * GB, 3 * GB) | v2_files("pod/app", "max", GB) | v2_files("pod/app/in", 8 * GB, GB)
    assert ram(make(tmp_path, "0::/pod/app/in", [V2], files)) == MemoryReading(4 * GB, 3 * GB, "cgroup v2")


def test_what_an_ancestor_has_used_up_is_not_free(tmp_path: Path) -> None:
    """Own limit 2 GB, hardly used; the pod's other containers leave 1 GB."""
    files = v2_files("pod", 4 * GB, 3 * GB) | v2_files("pod/app", 2 * GB, GB // 8)
    reading = ram(make(tmp_path, "0::/pod/app", [V2], files))
    assert (reading.total_bytes, reading.free_bytes) == (2 * GB, GB)


def test_a_full_host_leaves_nothing_to_a_container(tmp_path: Path) -> None:
    """A limit promises nothing: the host may have sold its memory twice."""
    root = make(tmp_path, "0::/", [V2], v2_files("", 4 * GB, 0))
    assert ram(root, host=MemoryReading(16 * GB, 15 * GB, "host")).free_bytes == GB


def test_the_limit_above_which_a_group_is_throttled_counts(tmp_path: Path) -> None:
    """systemd's MemoryHigh: a process that exceeds it lives, but hardly runs."""
    root = make(tmp_path, "0::/a", [V2], v2_files("a", 4 * GB, GB, high=3 * GB))
    assert ram(root).total_bytes == 3 * GB


def test_a_group_without_limit_says_nothing(tmp_path: Path) -> None:
    """ "max" is no number, and the root group has no such files at all."""
    assert ram(make(tmp_path, "0::/a", [V2], v2_files("a", "max", GB))) == HOST
    assert ram(make(tmp_path / "bare", "0::/", [V2], {"cgroup.procs": 1})) == HOST


def test_a_limit_above_the_hosts_memory_is_none(tmp_path: Path) -> None:
    """Version 1 writes a number near 2^63 where there is no limit."""
    files = v1_files("", NO_LIMIT_V1, 5 * GB) | v1_files("a/", NO_LIMIT_V1, 4 * GB)
    assert ram(make(tmp_path, "4:memory:/a", [v1("memory")], files)) == HOST


def test_a_container_of_version_1_has_what_its_limit_leaves(tmp_path: Path) -> None:
    """Its own files count the group alone; those with total_ count the groups below as well."""
    files = v1_files("", NO_LIMIT_V1, 9 * GB) | v1_files("a/", GB, GB // 2, inactive=GB // 4)
    root = make(tmp_path, "4:memory:/a", [v1("memory")], files)
    assert ram(root) == MemoryReading(GB, GB // 4, "cgroup v1")


def test_version_1_tells_of_ancestors_that_cannot_be_seen(tmp_path: Path) -> None:
    """A container sees its own group only; hierarchical_memory_limit is the least above it."""
    files = v1_files("", NO_LIMIT_V1, GB, least=3 * GB)
    assert ram(make(tmp_path, "4:memory:/docker/abc", [v1("memory", "/docker/abc")], files)).total_bytes == 3 * GB


def test_a_path_that_is_the_hosts_leads_to_what_the_container_sees(tmp_path: Path) -> None:
    """Without a namespace for groups /proc says the host's path, and the mount shows less."""
    files = v1_files("", GB, GB // 4) | v1_files("job/", GB // 2, GB // 8)
    by_mount = make(tmp_path / "a", "4:memory:/docker/abc/job", [v1("memory", "/docker/abc")], files)
    assert ram(by_mount).total_bytes == GB // 2
    absent = make(tmp_path / "b", "4:memory:/docker/abc", [v1("memory")], files)
    assert ram(absent).total_bytes == GB
    outside = make(tmp_path / "c", "0::/../other", [V2], v2_files("", GB, 0) | {"../other/memory.max": 1})
    assert ram(outside).total_bytes == GB


def test_on_hybrid_systems_the_hierarchy_that_has_memory_counts(tmp_path: Path) -> None:
    """Version 2 is mounted there as well, without the controller."""
    unified = "41 30 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    files = v1_files("a/", 2 * GB, GB) | {"unified/a/cgroup.procs": 1, "unified/a/memory.max": 7}
    root = make(tmp_path, "4:memory:/a\n1:name=systemd:/a\n0::/a", [unified, v1("cpu"), v1("memory")], files)
    assert ram(root) == MemoryReading(2 * GB, GB, "cgroup v1")


@pytest.mark.parametrize("variable", ["MEMORY_LIMIT_MB", "RAILWAY_RAM_MB"])
def test_a_limit_can_be_set(tmp_path: Path, variable: str) -> None:
    """What counts against it is this process's own tree, not what else runs on the host."""
    assert ram(tmp_path, {variable: "1024"}) == MemoryReading(GB, GB // 4, variable)
    assert ram(tmp_path, {variable: ""}) == ram(tmp_path, {variable: "0"}) == HOST


def test_the_least_of_all_limits_holds(tmp_path: Path) -> None:
    """A limit that is set lowers a container's, and never raises it."""
    root = make(tmp_path, "0::/", [V2], v2_files("", 2 * GB, GB))
    assert ram(root, {"MEMORY_LIMIT_MB": "4096"}).total_bytes == 2 * GB
    both = ram(root, {"MEMORY_LIMIT_MB": "1024", "RAILWAY_RAM_MB": "1536"})
    assert (both.total_bytes, both.source) == (GB, "MEMORY_LIMIT_MB")


@pytest.mark.parametrize("text", ["2GB", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    """To start without the limit that somebody set would be found out by the kernel."""
    with pytest.raises(ConfigurationError, match="MEMORY_LIMIT_MB"):
        ram(tmp_path, {"MEMORY_LIMIT_MB": text})


def test_this_machine_has_memory() -> None:
    """The real files of wherever the tests run."""
    reading = read_ram()
    assert 0 < memory.own_bytes() < reading.total_bytes <= memory.host_memory().total_bytes


# --- CUDA devices ----------------------------------------------------------------------------------------------------

UUIDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


class FakeNvml:
    """Answers as nvml.h says: an error code, and results by reference."""

    def __init__(self, *, starts: int = 0, answers: int = 0, cut_up: bool = False) -> None:
        self._starts, self._answers, self._cut_up = starts, answers, cut_up
        self.stopped = False

    def nvmlInit_v2(self) -> int:
        return self._starts

    def nvmlShutdown(self) -> int:
        self.stopped = True
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(UUIDS)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        device._obj.value = 100 + index.value
        return 0

    def nvmlDeviceGetUUID(self, device: Any, uuid: Any, length: Any) -> int:
        uuid.value = UUIDS[device.value - 100].encode()
        return 0

    def nvmlDeviceGetMigMode(self, device: Any, mode: Any, pending: Any) -> int:
        mode._obj.value = int(self._cut_up)
        return 0 if self._cut_up else 3

    def nvmlDeviceGetMemoryInfo(self, device: Any, found: Any) -> int:
        found._obj.total, found._obj.used = (device.value - 99) * 8 * GB, GB
        return self._answers


class FakeDriver:
    """Answers as cuda.h says. It sees one device, and not what is used of it."""

    def __init__(self, starts: int = 0) -> None:
        self._starts = starts

    def cuInit(self, flags: Any) -> int:
        return self._starts

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, index: Any) -> int:
        device._obj.value = index.value
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, device: Any) -> int:
        total._obj.value = 20 * GB
        return 0


def cuda(nvml: FakeNvml | None, driver: FakeDriver | None, **environ: str) -> list[MemoryReading]:
    return cuda_memory(environ, lambda name: nvml if "ml" in name else driver)


def test_each_device_is_read_without_a_context() -> None:
    """Total and used, by NVML."""
    nvml = FakeNvml()
    readings = cuda(nvml, FakeDriver())
    assert [reading.total_bytes // GB for reading in readings] == [8, 16, 24]
    assert readings[0] == MemoryReading(8 * GB, GB, "nvml")
    assert nvml.stopped


def test_devices_that_are_hidden_from_cuda_are_not_read() -> None:
    """NVML sees all cards whatever CUDA_VISIBLE_DEVICES says; the engine will not."""
    readings = cuda(FakeNvml(), FakeDriver(), CUDA_VISIBLE_DEVICES="2,0")
    assert [reading.total_bytes // GB for reading in readings] == [24, 8]
    assert cuda(FakeNvml(), FakeDriver(), CUDA_VISIBLE_DEVICES="") == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        (" 2 , 0", [2, 0]),
        ("0,7,1", [0]),
        ("0,0", [0]),
        ("GPU-cccc-3,GPU-aaaa-1", [2, 0]),
        ("GPU-c", [2]),
        ("GPU-aa", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_devices_are_chosen_as_cuda_does(visible: str | None, expected: list[int]) -> None:
    """By index or UUID, cut short as long as it names one; whatever follows a name of nothing is hidden."""
    assert visible_devices(visible, UUIDS) == expected


UNKNOWN_USE = [MemoryReading(20 * GB, 0, "cuda driver, use unknown")]


@pytest.mark.parametrize(
    "nvml", [None, FakeNvml(starts=9), FakeNvml(answers=4), FakeNvml(cut_up=True)], ids=["absent", "off", "mute", "mig"]
)
def test_where_nvml_does_not_answer_the_driver_does(nvml: FakeNvml | None) -> None:
    """Small boards have no NVML; of a card that is cut into instances it tells the whole."""
    assert cuda(nvml, FakeDriver()) == UNKNOWN_USE


def test_an_instance_of_a_card_is_read_by_the_driver() -> None:
    """NVML lists whole cards, none of which bears the instance's name."""
    assert cuda(FakeNvml(), FakeDriver(), CUDA_VISIBLE_DEVICES="MIG-1234") == UNKNOWN_USE


def test_no_driver_is_no_device() -> None:
    """Most machines; also those whose driver does not start, as in a container without the card."""
    assert cuda(None, None) == []
    assert cuda(None, FakeDriver(starts=100)) == []


def test_the_real_libraries_are_asked_and_nothing_is_raised() -> None:
    """Whether this machine has a driver or not."""
    assert all(reading.total_bytes > 0 for reading in cuda_memory())
    assert ctypes.sizeof(memory._NvmlMemory) == 24
