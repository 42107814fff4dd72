"""What the kernel refuses to a child that reads strangers' files: a seccomp filter, as bytes. Pure.

Such a child opens no socket of any kind, no second way to one (io_uring), and touches no other process, no mount, no
namespace, no file's owner, mode or times, no kernel interface that decoding has no use for. What it asks for all the
same fails with EPERM.
"""

from __future__ import annotations

import errno
import functools
import platform
import struct

# Source: linux/audit.h; the tables of system calls, asm/unistd_64.h and asm-generic/unistd.h.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMNS = ("x86_64", "aarch64")
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "kcmp": (312, 272),
    # Signals, to itself as well: a filter cannot tell whose number it is. abort() ends in a trap instead.
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    # What the scheduler thinks of others. To itself ffmpeg may be refused it: encoders ask, and do not mind.
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    # Ways out of the group that is killed in the end.
    "setsid": (112, 157),
    "setpgid": (109, 154),
    # Landlock rules what is read and written, and nothing of these.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # Memory shared by numbers outlives whoever made it.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
}
_CLONE, _CLONE3, _FORKS = (56, 220), (435, 435), ((57, None), (58, None))
_PRLIMIT, _FCNTL = (302, 261), (72, 25)
_NEW_NAMESPACES = 0x7E020000
"""The CLONE_NEW* flags of linux/sched.h that clone(2) takes."""
_NEW_THREAD = 0x10000
"""CLONE_THREAD: no process of its own."""
_SIGNALLED = (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX of fcntl(2): to whom the kernel sends which signal when a pipe is ready."""
_X32 = 0x40000000
"""Set in the number of a call by the x32 ABI, a second table behind the same architecture word."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_AT, _SECOND_AT = 0, 4, 16, 24
"""Offsets in struct seccomp_data; the last two are the lower halves of the first arguments (little-endian)."""
_ALLOW, _FAIL, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

_Step = tuple[int, int, int, int]
_ALLOWED: _Step = (_RETURN, 0, 0, _ALLOW)
_REFUSE: _Step = (_RETURN, 0, 0, _FAIL | errno.EPERM)


@functools.cache
def syscall_filter(machine: str = platform.machine()) -> bytes:
    """The filter for *machine* as the kernel takes it, an array of struct sock_filter; empty where none is known.

    A process that speaks to the kernel in another architecture's words (32 bit beside 64) is killed at its first one.
    """
    if machine not in _ARCHITECTURES:
        return b""
    column = _COLUMNS.index(machine)
    steps = _beginning(machine)
    for numbers in _REFUSED.values():
        steps += _refuse(numbers[column])
    steps += [
        # Its flags lie in memory, where no filter sees them: as if the kernel were too old for it, and C libraries
        # take clone instead.
        (_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        *_judge(_CLONE[column], _FIRST_AT, (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _REFUSE),
        *_judge(_PRLIMIT[column], _FIRST_AT, (_EQUAL, 1, 0, 0), _REFUSE),  # 0: its own
        *_judge(_FCNTL[column], _SECOND_AT, *(step for command in _SIGNALLED for step in _refuse(command))),
        _ALLOWED,
    ]
    return _packed(steps)


@functools.cache
def process_filter(machine: str = platform.machine()) -> bytes:
    """The filter, beside the other one, of what stays a single process: it starts threads alone, as ffmpeg does.

    What forks could go on doing so until nobody else can.
    """
    if machine not in _ARCHITECTURES:
        return b""
    column = _COLUMNS.index(machine)
    steps = _beginning(machine)
    for numbers in _FORKS:
        steps += _refuse(numbers[column])
    steps += [*_judge(_CLONE[column], _FIRST_AT, (_ANY_BIT, 1, 0, _NEW_THREAD), _REFUSE), _ALLOWED]
    return _packed(steps)


def _beginning(machine: str) -> list[_Step]:
    """The number of the call is at hand after these, and one of this machine's own table."""
    return [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        _REFUSE,
    ]


def _refuse(number: int | None) -> list[_Step]:
    """Refuse what has this number; None stands for what a table does not have."""
    return [] if number is None else [(_EQUAL, 0, 1, number), _REFUSE]


def _judge(number: int, argument_at: int, *steps: _Step) -> list[_Step]:
    """Have *steps* judge that call by an argument; what they let pass is allowed."""
    judged = [(_LOAD, 0, 0, argument_at), *steps, _ALLOWED]
    return [(_EQUAL, 0, len(judged), number), *judged]


def _packed(steps: list[_Step]) -> bytes:
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
