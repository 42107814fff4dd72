"""Which control groups bind this process, and what their files say. Linux only: elsewhere there are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One group's folder of files, in the hierarchy of version 1 or 2."""

    folder: Path
    version: Literal[1, 2]

    def number(self, name: str) -> int | None:
        """What the file *name* holds; None where there is no such file, or where it says "max"."""
        try:
            return int(self.text(name))
        except ValueError:
            return None

    def field(self, name: str, key: str) -> int | None:
        """The value beside *key* in a file of lines `key value`."""
        for line in self.text(name).splitlines():
            if line.startswith(f"{key} "):
                return int(line.split()[1])
        return None

    def text(self, name: str) -> str:
        """The file's text; empty where it cannot be read."""
        try:
            return (self.folder / name).read_text(encoding="ascii").strip()
        except OSError:
            return ""


@dataclass(frozen=True, slots=True)
class _Mount:
    root: PurePosixPath
    """The group that the mount shows at its top: a container's own where it has no namespace for groups."""
    point: str
    version: Literal[1, 2]

    def shows(self, path: PurePosixPath | None) -> bool:
        """Whether the group *path* can be seen here."""
        return path is not None and path.is_relative_to(self.root) and ".." not in path.relative_to(self.root).parts


def groups(controller: str, root: Path = Path("/")) -> list[Cgroup]:
    """This process's group for *controller*, then its ancestors as far as they can be seen: each of them binds.

    A controller belongs to one hierarchy: where version 1 has it (hybrid systems), version 2 does not. The empty name
    asks for version 2's own files, which need no controller: those of pressure.
    """
    own = _own_paths(root)
    mounts = [(mount, own.get(controller if mount.version == 1 else "")) for mount in _mounts(root, controller)]
    if not mounts:
        return _unlisted(controller, root)
    mount, path = min(mounts, key=lambda pair: (pair[0].version, not pair[0].shows(pair[1])))
    # NOTE: a path outside the mount's root belongs to another namespace; what can be seen is the mount's top.
    inside = path.relative_to(mount.root).parts if path and mount.shows(path) else ()
    top = root / mount.point.lstrip("/")
    return [Cgroup(top.joinpath(*inside[:depth]), mount.version) for depth in range(len(inside), -1, -1)]


def _unlisted(controller: str, root: Path) -> list[Cgroup]:
    """The group at the usual place, where /proc tells of none: sandboxes that show the files of limits and no more."""
    top = root / "sys/fs/cgroup"
    if controller and (top / controller).is_dir():
        return [Cgroup(top / controller, 1)]
    return [Cgroup(top, 2)] if top.is_dir() else []


def _own_paths(root: Path) -> dict[str, PurePosixPath]:
    """Controller -> this process's group. Version 2 has one group for all controllers, under the empty name."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = PurePosixPath(path)
    return paths


def _mounts(root: Path, controller: str) -> list[_Mount]:
    """Where the kernel shows groups that may hold *controller* (proc(5), `mountinfo`)."""
    mounts = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        filesystem, _, options = kind.split(" ", 2)
        shown, point = place.split(" ")[3:5]
        if filesystem == "cgroup2":
            mounts.append(_Mount(PurePosixPath(shown), point, 2))
        elif filesystem == "cgroup" and controller in options.split(","):
            mounts.append(_Mount(PurePosixPath(shown), point, 1))
    return mounts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
