"""Becomes another program, confined first: bounded, without new rights, without a network. A script (`python -I -S`).

    confined.py PARENT CPU_S CPU_END_S FILE_BYTES MEMORY_BYTES NICE FILTER BINARY_FILTER
                [+r PATH | +w PATH | +d FOLDER]... -- PROGRAM ARGUMENT...

"-" stands for no limit, or for no filter. The filters are seccomp's, in hexadecimal; the second one is for programs
that are no scripts. Where paths are told, such a program reads these, itself, its libraries and the system's, writes to
those of +w alone, and makes files in those of +d. What a system does not have or refuses is left out, and the rest
still holds: macOS knows limits only. Imports nothing of ours, and little else: it runs each time.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

# Source: linux/prctl.h, linux/seccomp.h, linux/landlock.h, linux/capability.h.
_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_MODE_FILTER, _SPEC_ALLOW = 1, 4
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CAPABILITY_VERSION, _OPEN_FILES = 0x20080522, 1 << 1 | 1 << 2
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25

_EXECUTE, _WRITE, _READ, _LIST, _MAKE, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 8, 1 << 14
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | 1 << 15
_RIGHTS = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1)
"""Of files, by landlock's version: all that it knows are ruled, the last entry from that version on."""
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/nix/store", "/gnu/store", "/snap"),
    "/home/linuxbrew/.linuxbrew",
    *("/proc", "/sys", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/var/cache/fontconfig"),
)
"""Programs, their libraries, fonts. Of /proc, other processes' secrets stay closed: landlock sees to it."""


def main() -> None:
    confinement, command = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    parent, cpu_s, cpu_hard_s, file_bytes, memory_bytes, nice, calls, binarys_calls, *paths = confinement
    # NOTE: ctypes and no `signal`: that module costs as much again as all of this. Python ignores these two, and what
    # is ignored stays so in the program.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.signal(_SIGPIPE, None)
    libc.signal(_SIGXFSZ, None)
    if sys.platform == "linux":
        libc.prctl(_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):
            os._exit(1)  # it died before it could be told of
    _limit(resource.RLIMIT_CORE, "0")
    _limit(resource.RLIMIT_CPU, cpu_s, cpu_hard_s)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    try:  # noqa: SIM105 - `contextlib` costs as much as the whole of Python's start
        os.nice(int(nice))
    except OSError:
        pass
    if sys.platform == "linux":
        libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _give_rights_up(libc)
        filters = [calls]
        if _is_binary(command[0]):
            filters.append(binarys_calls)
            if paths:
                _restrict_paths(libc, command[0], paths)
        for steps in filters:
            if steps != "-":
                _filter_calls(libc, bytes.fromhex(steps))
    _limit(resource.RLIMIT_AS, memory_bytes)
    try:
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode(errors="replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)  # as shells say it


def _limit(kind: int, soft: str, hard: str = "") -> None:
    """Set a limit, below one that is set already."""
    if soft == "-":
        return
    most = resource.getrlimit(kind)[1]
    pair = [int(soft), int(hard or soft)]
    if most != resource.RLIM_INFINITY:
        pair = [min(one, most) for one in pair]
    try:  # noqa: SIM105
        resource.setrlimit(kind, (pair[0], pair[1]))
    except (OSError, ValueError):
        pass


def _give_rights_up(libc: ctypes.CDLL) -> None:
    """Of root's rights keep that to open files, which may be another user's. Without new ones, none comes back."""
    head, rights = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(head, rights) == 0:
        effective, permitted = rights[0] & _OPEN_FILES, rights[1] & _OPEN_FILES
        libc.capset(head, (ctypes.c_uint32 * 6)(effective, permitted))


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _filter_calls(libc: ctypes.CDLL, steps: bytes) -> None:
    program = ctypes.byref(_Program(len(steps) // 8, steps))
    # Older kernels slow a filtered process down against leaks between parts of one process, which it has none of; only
    # the newer call can say so.
    number = _SECCOMP.get(os.uname().machine)
    if number is None or libc.syscall(number, _MODE_FILTER, _SPEC_ALLOW, program) != 0:
        libc.prctl(_SET_SECCOMP, 2, program, 0, 0)


def _is_binary(program: str) -> bool:
    """A script in a program's place may call any other, wherever that lies."""
    try:
        with open(program, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr; kernels take the part that they know."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr"""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _restrict_paths(libc: ctypes.CDLL, program: str, paths: list[str]) -> None:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    ruled = _RIGHTS[min(version, len(_RIGHTS) - 1)]
    # TCP from version 4 on, signals to others and abstract sockets from 6 on.
    attributes = _Ruleset(ruled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    if rules < 0:
        return
    look = _EXECUTE | _READ | _LIST
    told = {"+r": look, "+w": _READ | _WRITE | _TRUNCATE, "+d": _READ | _LIST | _WRITE | _TRUNCATE | _MAKE}
    for path in (*_SYSTEM, program, *_folders(program)):
        _allow(libc, rules, path, look & ruled)
    for mode, path in zip(paths[::2], paths[1::2], strict=True):
        _allow(libc, rules, path, told[mode] & ruled)
    _allow(libc, rules, os.devnull, (_READ | _WRITE | _TRUNCATE) & ruled)
    libc.syscall(_RESTRICT_SELF, rules, 0)
    os.close(rules)


def _folders(program: str) -> set[str]:
    """Where a program's own files lie: what stands beside it, or beside its `bin`, for libraries; those told of too."""
    homes = {os.path.dirname(path) for path in (program, os.path.realpath(program))}
    homes |= {os.path.dirname(folder) for folder in homes if os.path.basename(folder) == "bin"}
    found = {os.path.join(home, name) for home in homes for name in ("lib", "lib64", "share")}
    found |= set(os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    return {os.path.abspath(folder) for folder in found if folder} - {"/"}


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return
    if not os.path.isdir(path):
        rights &= _OF_FILES
    libc.syscall(_ADD_RULE, rules, 1, ctypes.byref(_Beneath(rights, handle)), 0)
    os.close(handle)


if __name__ == "__main__":
    main()
