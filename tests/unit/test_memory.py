"""Memory as limits leave it, on trees of files as the kernel shows them; CUDA devices on fakes of their libraries."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

import memory
from memory import (
    MemoryEvents,
    MemoryPressure,
    MemoryReading,
    cuda_memory,
    memory_events,
    mps_memory,
    pressure,
    read_ram,
    visible_devices,
)
from tests.cgroup_trees import (
    GB,
    LAYOUTS,
    NO_LIMIT_V1,
    V2,
    make,
    stalls,
    v1,
    v1_events,
    v1_files,
    v2_events,
    v2_files,
)

HOST = MemoryReading(16 * GB, 3 * GB, "host")


def ram(root: Path, limit_bytes: int = 0, host: MemoryReading = HOST) -> MemoryReading:
    return read_ram(root, limit_bytes=limit_bytes, host=lambda: host, own=lambda: GB // 4)


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


def test_of_two_mounts_the_one_that_shows_the_group_counts(tmp_path: Path) -> None:
    """Monitoring tools have their host's groups mounted beside their own, before it or after it."""
    hosts = "29 23 0:26 /../.. /host/cgroup ro - cgroup2 cgroup2 rw"
    for mounts in ([hosts, V2], [V2, hosts]):
        root = make(tmp_path, "0::/", mounts, v2_files("", 2 * GB, GB))
        assert ram(root) == MemoryReading(2 * GB, GB, "cgroup v2")


def test_a_limit_can_be_set(tmp_path: Path) -> None:
    """What counts against it is this process's own tree, not what else runs on the host."""
    assert ram(tmp_path, GB) == MemoryReading(GB, GB // 4, "setting")
    assert ram(tmp_path, 0) == HOST


def test_a_limit_that_is_set_never_raises_another(tmp_path: Path) -> None:
    """The kernel kills at its own limit, whatever somebody believes."""
    root = make(tmp_path, "0::/", [V2], v2_files("", 2 * GB, GB))
    assert ram(root, 4 * GB) == MemoryReading(2 * GB, GB, "cgroup v2")
    assert ram(root, GB).source == "setting"


def test_this_machine_has_memory() -> None:
    """The real files of wherever the tests run."""
    reading = read_ram()
    assert 0 < memory.own_bytes() < reading.total_bytes <= memory.host_memory().total_bytes


# --- how scarce it is ------------------------------------------------------------------------------------------------


def test_the_groups_own_pressure_is_told(tmp_path: Path) -> None:
    """A host may be at ease while a container thrashes."""
    files = {"a/memory.pressure": stalls(20, 10), "memory.pressure": stalls(2, 1)}
    root = make(tmp_path, "0::/a", [V2], files, {"pressure/memory": stalls(2, 1)})
    assert pressure(root) == MemoryPressure(20, 10, 10, 5, "cgroup v2")


def test_where_the_group_tells_no_pressure_an_ancestor_does(tmp_path: Path) -> None:
    """It can be switched off by group (cgroup.pressure)."""
    root = make(tmp_path, "0::/a/b", [V2], {"a/memory.pressure": stalls(6, 4), "memory.pressure": stalls(2, 1)})
    assert pressure(root) == MemoryPressure(6, 3, 4, 2, "cgroup v2")


def test_where_no_group_tells_pressure_the_host_does(tmp_path: Path) -> None:
    """Version 1 has no such files."""
    files = v1_files("a/", GB, GB)
    root = make(tmp_path, "4:memory:/a", [v1("memory")], files, {"pressure/memory": stalls(2, 1)})
    assert pressure(root) == MemoryPressure(2, 1, 1, 0.5, "host")


def test_a_kernel_without_pressure_is_none(tmp_path: Path) -> None:
    """Unknown is not none at all: 0 would say that all is well."""
    assert pressure(tmp_path) is None
    assert pressure(make(tmp_path, "0::/", [V2], {"cgroup.procs": 1}, {"pressure/memory": ""})) is None


def test_the_groups_events_are_told_by_name(tmp_path: Path) -> None:
    """Its own, not its parent's."""
    files = v2_events("a", oom_kill=1, oom=2, high=3, max=4) | v2_events("", 9, 9, 9, 9)
    assert memory_events(make(tmp_path, "0::/a", [V2], files)) == MemoryEvents(oom_kill=1, oom=2, high=3, max=4)


def test_without_the_controller_the_ancestor_that_is_charged_is_told(tmp_path: Path) -> None:
    """Version 2 hands controllers on only where asked; memory is then charged further up."""
    root = make(tmp_path, "0::/a/b", [V2], v2_events("a", oom_kill=1) | {"a/b/cgroup.procs": 1})
    assert memory_events(root) == MemoryEvents(oom_kill=1, oom=0, high=0, max=0)


def test_version_1_counts_kills_and_full_groups(tmp_path: Path) -> None:
    """Its files have no word for the others; before Linux 4.13 none for kills either."""
    root = make(tmp_path, "4:memory:/a", [v1("memory")], v1_events("a/", oom_kill=2, failcnt=7))
    assert memory_events(root) == MemoryEvents(oom_kill=2, oom=0, high=0, max=7)
    (root / "sys/fs/cgroup/memory/a/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert memory_events(root) == MemoryEvents(oom_kill=0, oom=0, high=0, max=7)


def test_version_1_counts_the_limit_with_swap_as_well(tmp_path: Path) -> None:
    """Where both are alike the kernel meets that one first, and memory.failcnt stays 0."""
    files = v1_events("a/", failcnt=1) | {"memory/a/memory.memsw.failcnt": 5}
    assert memory_events(make(tmp_path, "4:memory:/a", [v1("memory")], files)) == MemoryEvents(0, 0, 0, max=6)


def test_where_nothing_is_counted_there_are_no_events(tmp_path: Path) -> None:
    """No groups at all, or the root group, which has no limit to meet."""
    assert memory_events(tmp_path) is None
    assert memory_events(make(tmp_path / "v2", "0::/", [V2], {"cgroup.procs": 1})) is None
    assert memory_events(make(tmp_path / "v1", "4:memory:/", [v1("memory")], {"memory/cgroup.procs": 1})) is None


# --- layouts as platforms have them ----------------------------------------------------------------------------------

EXPECTED = {
    # layout: total, used, source; 10 s of some pressure, whose; processes killed, limits reached
    "v1, docker": (2 * GB, 3 * GB // 4, "cgroup v1", (9, "host"), (1, 12)),
    "v2, docker": (2 * GB, 3 * GB // 4, "cgroup v2", (5, "cgroup v2"), (1, 12)),
    "v2, a service of systemd": (3 * GB, 2 * GB, "cgroup v2", (20, "cgroup v2"), (0, 0)),
    "hybrid": (4 * GB, GB, "cgroup v1", (4, "cgroup v2"), (2, 30)),
    "Kubernetes, v1": (3 * GB, GB // 2, "cgroup v1", None, (0, 0)),
    "Kubernetes, v2": (3 * GB, 3 * GB // 2, "cgroup v2", (0, "cgroup v2"), (0, 3)),
    "Kubernetes, v2, the host's namespace": (2 * GB, GB, "cgroup v2", None, (0, 0)),
    "Railway": (8 * GB, GB // 2, "cgroup v2", (0, "cgroup v2"), (0, 0)),
    "Cloud Run, first generation": (GB, GB // 4, "cgroup v1", None, None),
    "a sandbox without /proc/self/cgroup": (GB, GB // 4, "cgroup v1", None, None),
    "Cloud Run, second generation": (GB, GB // 2, "cgroup v2", None, (1, 0)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_in_every_layout_the_containers_memory_is_told(tmp_path: Path, name: str) -> None:
    """Not the host's 16 GB, which psutil would tell in all of them.

    The hybrid layout was recorded. The others follow the kernel's documentation and the platforms' own, or gVisor's
    source: nobody has recorded them on Railway or Cloud Run for these tests. Each says so where it is written down.
    """
    root = LAYOUTS[name].make(tmp_path)
    total_bytes, used_bytes, source, stalled, counted = EXPECTED[name]
    assert ram(root) == MemoryReading(total_bytes, used_bytes, source)
    found = pressure(root)
    assert (found and (found.some_avg10_percent, found.source)) == stalled
    events = memory_events(root)
    assert (events and (events.oom_kill, events.max)) == counted


def test_every_layout_is_expected_something_of() -> None:
    """One that is added needs its figures."""
    assert LAYOUTS.keys() == EXPECTED.keys()


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


# --- Apple's unified memory ------------------------------------------------------------------------------------------


class FakeMac:
    """Answers as sysctlbyname(3) does: -1 for a name it does not know, else a number of 4 or 8 bytes by reference."""

    def __init__(self, memory_bytes: int, *, arm: bool = True, wired_limit_mb: int | None = 0) -> None:
        self._numbers = {"hw.memsize": memory_bytes.to_bytes(8, sys.byteorder)}
        if arm:
            self._numbers["hw.optional.arm64"] = (1).to_bytes(4, sys.byteorder)
        if wired_limit_mb is not None:
            self._numbers["iogpu.wired_limit_mb"] = wired_limit_mb.to_bytes(4, sys.byteorder)

    def sysctlbyname(self, name: bytes, value: Any, length: Any, new: None, new_length: Any) -> int:
        number = self._numbers.get(name.decode())
        if number is None:
            value.raw = b"\xff" * len(value.raw)  # what is there after an error is nobody's promise
            return -1
        assert length._obj.value >= len(number)
        value.raw = number
        length._obj.value = len(number)
        return 0


def mac(memory_bytes: int, used_bytes: int = 0, **answers: Any) -> MemoryReading | None:
    host = MemoryReading(memory_bytes, used_bytes, "host")
    return mps_memory(host, platform="darwin", libc=FakeMac(memory_bytes, **answers))


@pytest.mark.parametrize(("memory_gb", "most_gb"), [(24, 16), (36, 27), (64, 48)])
def test_an_apple_gpu_may_take_a_part_of_the_memory(memory_gb: int, most_gb: int) -> None:
    """The rest is the system's: Metal recommends less than there is."""
    assert mac(memory_gb * GB) == MemoryReading(most_gb * GB, 0, "unified memory, rule of thumb")


@pytest.mark.parametrize("wired_limit_mb", [0, None])
def test_a_limit_that_is_not_set_changes_nothing(wired_limit_mb: int | None) -> None:
    """0 stands for the system's own choice; older systems have no such name."""
    assert mac(24 * GB, wired_limit_mb=wired_limit_mb) == mac(24 * GB)


def test_a_limit_that_is_set_for_the_gpu_holds() -> None:
    """Metal then recommends just that, more or less than its own."""
    assert mac(24 * GB, wired_limit_mb=20 * 1024) == MemoryReading(20 * GB, 0, "iogpu.wired_limit_mb")
    assert mac(24 * GB, wired_limit_mb=8 * 1024) == MemoryReading(8 * GB, 0, "iogpu.wired_limit_mb")


def test_what_programs_use_is_not_free_for_the_gpu() -> None:
    """Both take from the same memory: of 24 GB, 18 are used, so 6 of the GPU's 16 can be had."""
    reading = mac(24 * GB, used_bytes=18 * GB)
    assert reading is not None
    assert (reading.total_bytes, reading.free_bytes) == (16 * GB, 6 * GB)
    idle = mac(24 * GB, used_bytes=GB)
    assert idle is not None
    assert idle.free_bytes == 16 * GB


def test_a_lower_limit_on_memory_holds_for_the_gpu_as_well() -> None:
    """It is the same memory."""
    reading = mps_memory(MemoryReading(4 * GB, GB, "setting"), platform="darwin", libc=FakeMac(24 * GB))
    assert reading is not None
    assert (reading.total_bytes, reading.free_bytes) == (4 * GB, 3 * GB)


def test_other_machines_have_no_unified_memory() -> None:
    """Linux, Windows, and Macs with Intel's processors."""
    assert mac(24 * GB, arm=False) is None
    assert mps_memory(HOST, platform="linux", libc=FakeMac(24 * GB)) is None
