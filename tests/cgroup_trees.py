"""Trees of files as the kernel shows control groups: made under a temporary folder, read as if it were /."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def v1(controllers: str, shown: str = "/") -> str:
    """The line of /proc/self/mountinfo for a version 1 hierarchy that shows the group *shown* at its top."""
    return f"33 30 0:29 {shown} /sys/fs/cgroup/{controllers} rw,nosuid shared:9 - cgroup cgroup rw,{controllers}"


def make(root: Path, own: str, mounts: list[str], files: Mapping[str, str | int]) -> Path:
    """*own*: what /proc/self/cgroup says. *files*: path below /sys/fs/cgroup -> its text. Gives *root*."""
    root_filesystem = "23 1 254:0 / / rw,relatime - ext4 /dev/vda rw"
    content = {"proc/self/cgroup": own + "\n", "proc/self/mountinfo": "\n".join([root_filesystem, *mounts]) + "\n"}
    for path, text in (content | {f"sys/fs/cgroup/{path}": f"{text}\n" for path, text in files.items()}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root
