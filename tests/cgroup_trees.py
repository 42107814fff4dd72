"""Trees of files as the kernel shows control groups: made under a temporary folder, read as if it were /."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GB = 2**30
NO_LIMIT_V1 = 9_223_372_036_854_771_712

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def v1(controllers: str, shown: str = "/") -> str:
    """The line of /proc/self/mountinfo for a version 1 hierarchy that shows the group *shown* at its top."""
    return f"33 30 0:29 {shown} /sys/fs/cgroup/{controllers} rw,nosuid shared:9 - cgroup cgroup rw,{controllers}"


def make(
    root: Path,
    own: str,
    mounts: list[str],
    files: Mapping[str, str | int],
    proc: Mapping[str, str] | None = None,
) -> Path:
    """*own*: what /proc/self/cgroup says. *files*: path below /sys/fs/cgroup -> its text. Gives *root*.

    *proc*: the same for further files below /proc.
    """
    root_filesystem = "23 1 254:0 / / rw,relatime - ext4 /dev/vda rw"
    content = {"proc/self/mountinfo": "\n".join([root_filesystem, *mounts]) + "\n"}
    if own:
        content["proc/self/cgroup"] = own + "\n"
    content |= {f"proc/{path}": text for path, text in (proc or {}).items()}
    for path, text in (content | {f"sys/fs/cgroup/{path}": f"{text}\n" for path, text in files.items()}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


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


def stalls(some: float, full: float) -> str:
    """The text of a pressure file whose averages over 10 s are *some* and *full*; over 60 s they are half of that."""
    lines = (("some", some), ("full", full))
    return "\n".join(f"{kind} avg10={share:.2f} avg60={share / 2:.2f} avg300=0.01 total=4711" for kind, share in lines)


def v2_events(group: str, oom_kill: int = 0, oom: int = 0, high: int = 0, max: int = 0) -> dict[str, Any]:
    folder = f"{group}/" if group else ""
    text = f"low 0\nhigh {high}\nmax {max}\noom {oom}\noom_kill {oom_kill}\noom_group_kill 0"
    return {f"{folder}memory.events": text}


def v1_events(group: str, oom_kill: int = 0, failcnt: int = 0) -> dict[str, Any]:
    control = f"oom_kill_disable 0\nunder_oom 0\noom_kill {oom_kill}"
    return {f"memory/{group}memory.oom_control": control, f"memory/{group}memory.failcnt": failcnt}


# --- layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What a process finds in one kind of place, and where that is known from. Limits and uses are made up."""

    known_from: str
    own: str
    mounts: list[str]
    files: Mapping[str, Any]
    proc: Mapping[str, str] = field(default_factory=dict)

    def make(self, root: Path) -> Path:
        return make(root, self.own, self.mounts, self.files, self.proc)


CONTAINER = "3f2a9c"
POD = "/kubepods/burstable/pod6d1c"
DOCKER_V2 = "744 743 0:31 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate"


def docker_v1(controller: str, shown: str) -> str:
    options = "ro,nosuid,nodev,noexec,relatime master:11"
    return f"752 744 0:34 {shown} /sys/fs/cgroup/{controller} {options} - cgroup cgroup rw,{controller}"


LAYOUTS = {
    "v1, docker": Layout(
        "Docker on version 1: no namespace for groups, so /proc says the host's path, which is the mount's top.",
        f"9:cpuset:/docker/{CONTAINER}\n4:memory:/docker/{CONTAINER}\n1:name=systemd:/docker/{CONTAINER}",
        [docker_v1("cpuset", f"/docker/{CONTAINER}"), docker_v1("memory", f"/docker/{CONTAINER}")],
        v1_files("", 2 * GB, GB, inactive=GB // 4, least=2 * GB) | v1_events("", oom_kill=1, failcnt=12),
        {"pressure/memory": stalls(9, 3)},
    ),
    "v2, docker": Layout(
        "Docker on version 2: a namespace of its own, so the container's group is /.",
        "0::/",
        [DOCKER_V2],
        v2_files("", 2 * GB, GB, inactive=GB // 4)
        | v2_events("", oom_kill=1, oom=2, max=12)
        | {"memory.pressure": stalls(5, 1)},
        {"pressure/memory": stalls(9, 3)},
    ),
    "v2, a service of systemd": Layout(
        "systemd's slices (systemd.resource-control(5)): the service's limit lies below its slice's MemoryHigh.",
        "0::/system.slice/asr.slice/stenogate.service",
        [V2],
        {"memory.pressure": stalls(9, 3), "cgroup.procs": 1}
        | v2_files("system.slice", "max", 5 * GB)
        | v2_files("system.slice/asr.slice", "max", 3 * GB, inactive=GB, high=3 * GB)
        | v2_files("system.slice/asr.slice/stenogate.service", 4 * GB, GB)
        | v2_events("system.slice/asr.slice/stenogate.service", high=40)
        | {"system.slice/asr.slice/stenogate.service/memory.pressure": stalls(20, 10)},
        {"pressure/memory": stalls(9, 3)},
    ),
    "hybrid": Layout(
        "Recorded on a machine with Linux 6.18 (names changed): version 2 is there for pressure, without controllers.",
        "9:name=systemd:/\n8:pids:/\n4:memory:/jobs/one\n3:cpuset:/\n2:cpuacct:/\n1:cpu:/\n0::/",
        [
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755",
            "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu",
            "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset",
            "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory",
            "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd",
            "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
        ],
        v1_files("", NO_LIMIT_V1, 9 * GB)
        | v1_files("jobs/", NO_LIMIT_V1, 8 * GB)
        | v1_files("jobs/one/", 4 * GB, GB, least=4 * GB)
        | v1_events("jobs/one/", oom_kill=2, failcnt=30)
        | {"unified/cgroup.controllers": "", "unified/memory.pressure": stalls(4, 2)},
        {"pressure/memory": stalls(4, 2)},
    ),
    "Kubernetes, v1": Layout(
        "Kubernetes on version 1: the pod's limit cannot be seen, but for hierarchical_memory_limit.",
        f"4:memory:{POD}/{CONTAINER}\n1:name=systemd:{POD}/{CONTAINER}",
        [docker_v1("memory", f"{POD}/{CONTAINER}")],
        v1_files("", NO_LIMIT_V1, GB, inactive=GB // 2, least=3 * GB) | v1_events(""),
    ),
    "Kubernetes, v2": Layout(
        "containerd on version 2: as Docker; a request for memory is memory.min or a weight, and no limit.",
        "0::/",
        [DOCKER_V2],
        v2_files("", 3 * GB, 2 * GB, inactive=GB // 2)
        | v2_events("", max=3)
        | {"memory.min": GB, "memory.pressure": stalls(0, 0)},
        {"pressure/memory": stalls(60, 30)},
    ),
    "Kubernetes, v2, the host's namespace": Layout(
        "A privileged container sees the whole tree; slices are named by systemd.",
        f"0::/kubepods.slice/kubepods-pod6d1c.slice/cri-containerd-{CONTAINER}.scope",
        [V2],
        v2_files("kubepods.slice", 12 * GB, 11 * GB)
        | v2_files("kubepods.slice/kubepods-pod6d1c.slice", 2 * GB, GB)
        | v2_files(f"kubepods.slice/kubepods-pod6d1c.slice/cri-containerd-{CONTAINER}.scope", "max", GB // 2)
        | v2_events(f"kubepods.slice/kubepods-pod6d1c.slice/cri-containerd-{CONTAINER}.scope"),
    ),
    "Railway": Layout(
        "Assumed, not recorded there: version 2, the plan's limit is the container's own, nothing above is seen.",
        "0::/",
        [DOCKER_V2],
        v2_files("", 8 * GB, GB, inactive=GB // 2) | v2_events("") | {"memory.pressure": stalls(0, 0)},
        {"pressure/memory": stalls(30, 15)},
    ),
    "Cloud Run, first generation": Layout(
        "gVisor's source (pkg/sentry/fsimpl/cgroupfs), not recorded there: version 1 with a limit and a use, no more.",
        "5:memory:/\n2:cpu:/",
        [
            "12 9 0:20 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu",
            "15 9 0:23 / /sys/fs/cgroup/memory rw - cgroup none rw,memory",
        ],
        {"memory/memory.limit_in_bytes": GB, "memory/memory.usage_in_bytes": GB // 4},
    ),
    "a sandbox without /proc/self/cgroup": Layout(
        "gVisor before it knew groups, and platforms that lay a file with the limit at the usual place.",
        "",
        [],
        {"memory/memory.limit_in_bytes": GB, "memory/memory.usage_in_bytes": GB // 4},
    ),
    "Cloud Run, second generation": Layout(
        "Documented as full Linux in a machine of its own, not recorded there: a container of version 2 is assumed.",
        "0::/",
        [DOCKER_V2],
        v2_files("", GB, GB // 2) | v2_events("", oom_kill=1, oom=1),
    ),
}
