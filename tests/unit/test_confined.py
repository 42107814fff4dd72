"""What ffmpeg cannot do, seen from inside: programs in its place try, and say what came of it."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from ffmpeg import FFmpeg, input_arguments, output_argument
from syscall_filter import _REFUSED, syscall_filter

CONFINED = Path(__file__).parents[2] / "confined.py"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Elsewhere there are limits, and nothing more.")
filtered = pytest.mark.skipif(not syscall_filter(), reason="No filter is known for this processor.")

ATTEMPTS = """
import ctypes, errno, json, os, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
told = {line.split(":")[0]: line.split()[-1] for line in open("/proc/self/status") if len(line.split()) > 1}
death = ctypes.c_int()
libc.prctl(2, ctypes.byref(death), 0, 0, 0)
port, numbers = int(sys.argv[-2]), json.loads(sys.argv[-1])

def outcome(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def call(number, *arguments):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *arguments) == -1 else "done"

network = {"connect": outcome(socket.create_connection, ("127.0.0.1", port), 5)}
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        network[f"{family.name} {kind.name}"] = outcome(socket.socket, family, kind)
network["pair"] = outcome(socket.socketpair)
report = {
    "no_new_privs": told["NoNewPrivs"],
    "seccomp": told["Seccomp"],
    "dies_with_parent": death.value,
    "network": network,
    "calls": {name: call(number, 0, 0, 0, 0, 0) for name, number in numbers.items()},
    "child": os.spawnv(os.P_WAIT, "/bin/sh", ["sh", "-c", "exit 7"]),
}
print(json.dumps(report), file=sys.stderr)
"""


async def reported(folder: Path, numbers: dict[str, int]) -> dict[str, Any]:
    """What the attempts come to, made as ffmpeg's; a listener on loopback must see none of them."""
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable} -I\n{ATTEMPTS}")
    program.chmod(0o700)
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        arguments = [str(canary.getsockname()[1]), json.dumps(numbers)]
        finished = await FFmpeg(program).run(arguments, wall_s=60, cpu_s=60)
        with pytest.raises(BlockingIOError):
            canary.accept()
    assert finished.returncode == 0, finished.stderr_tail
    report: dict[str, Any] = json.loads(finished.stderr_tail)
    return report


@on_linux
@filtered
async def test_what_reads_strangers_files_has_no_network_and_gets_no_new_rights(tmp_path: Path) -> None:
    """Whoever takes a decoder over by a file's bytes must be able to ask nobody, inside or outside."""
    column = ("x86_64", "aarch64").index(platform.machine())
    numbers = {name: pair[column] for name, pair in _REFUSED.items() if name not in ("socket", "socketpair")}
    report = await reported(tmp_path, numbers)
    assert report["no_new_privs"] == "1"
    assert report["seccomp"] == "2"
    assert report["dies_with_parent"] == signal.SIGKILL
    assert set(report["network"].values()) == {"EPERM"}
    assert {name for name, outcome in report["calls"].items() if outcome != "EPERM"} == set()
    assert report["child"] == 7, "Encoders that start helpers, and scripts in ffmpeg's place, still can."


# --- the files that it opens -----------------------------------------------------------------------------------------


def has_landlock() -> bool:

    return sys.platform == "linux" and int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)) > 0


@pytest.mark.skipif(not has_landlock(), reason="This kernel has no landlock.")
async def test_told_its_files_it_opens_no_others(tmp_path: Path) -> None:
    """What lies beside a recording is others' recordings, and keys."""
    source, neighbour, target, other = (tmp_path / name for name in ("a.wav", "b.wav", "out.wav", "other.wav"))
    for path in (source, neighbour):
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(bytes(3200))
    target.touch()
    other.touch()

    async def run(read: Path, written: Path) -> tuple[int, str]:
        arguments = ["-loglevel", "error", *input_arguments(read), "-y", output_argument(written)]
        finished = await FFmpeg.locate().run(arguments, wall_s=60, cpu_s=60, reads=[source], writes=[target])
        return finished.returncode, finished.stderr_tail

    assert await run(source, target) == (0, "")
    assert target.stat().st_size > 3200
    for read, written in ((neighbour, target), (source, other), (source, tmp_path / "new.wav")):
        code, said = await run(read, written)
        assert code != 0
        assert "Permission denied" in said
    assert other.stat().st_size == 0
    assert not (tmp_path / "new.wav").exists()


# --- the script ------------------------------------------------------------------------------------------------------


def confined(*arguments: str, parent: int | None = None) -> subprocess.CompletedProcess[str]:
    bounds = [str(os.getpid() if parent is None else parent), "60", "65", "-", "-", "0", "-"]
    command = [sys.executable, "-I", "-S", str(CONFINED), *bounds, "--", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_program_that_is_not_there_is_told_of_as_shells_do(tmp_path: Path) -> None:
    """It may go between the start of the server and a request."""
    (tmp_path / "notes").write_text("no program")
    assert confined(str(tmp_path / "gone")).returncode == 127
    assert confined(str(tmp_path / "notes")).returncode == 126


def test_signals_end_the_program_as_ever() -> None:
    """Python ignores two of them, and what it ignores stays so: a file past its bound would be a plain error."""
    assert confined("/bin/sh", "-c", "kill -XFSZ $$").returncode == -signal.SIGXFSZ
    assert confined("/bin/sh", "-c", "kill -PIPE $$").returncode == -signal.SIGPIPE


@on_linux
def test_whose_parent_has_gone_does_not_begin() -> None:
    """The kernel tells of a death that is still to come, not of one that was."""
    gone = confined("/bin/echo", "begun", parent=1)
    assert (gone.returncode, gone.stdout) == (1, "")


# --- the filter ------------------------------------------------------------------------------------------------------

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def verdict(program: bytes, architecture: int, number: int, first_argument: int = 0) -> int:
    """What the kernel would say: the few steps of its packet filters that are used, done here."""

    data = struct.pack("<IIQ6Q", number, architecture, 0, first_argument, 0, 0, 0, 0, 0)
    steps, at, word = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        match code:
            case 0x06:
                return int(value)
            case 0x20:
                (word,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += if_true if word == value else if_false
            case 0x35:
                at += if_true if word >= value else if_false
            case 0x45:
                at += if_true if word & value else if_false


@pytest.mark.parametrize(
    ("machine", "architecture", "socket_call", "clone", "read", "other"),
    [("x86_64", 0xC000003E, 41, 56, 0, 0x40000003), ("aarch64", 0xC00000B7, 198, 220, 63, 0x40000028)],
)
def test_the_filter_reads_the_numbers_of_its_processor(
    machine: str, architecture: int, socket_call: int, clone: int, read: int, other: int
) -> None:
    """The same number means another call in another table, of which processors have several."""
    program = syscall_filter(machine)
    assert verdict(program, architecture, socket_call) == EPERM
    assert verdict(program, architecture, read) == ALLOW
    assert verdict(program, architecture, clone, 0x3D0F00) == ALLOW, "a thread"
    assert verdict(program, architecture, clone, signal.SIGCHLD) == ALLOW, "a process"
    assert verdict(program, architecture, clone, 0x10000000 | signal.SIGCHLD) == EPERM, "a namespace"
    assert verdict(program, architecture, 435) == ENOSYS, "clone3: its flags are out of sight"
    assert verdict(program, other, read) == KILL
    assert verdict(program, architecture, 0x40000000 | read) == EPERM, "x32"


def test_for_an_unknown_processor_there_is_none() -> None:
    """Wrong numbers would close what is needed, and open the rest."""
    assert syscall_filter("riscv64") == b""
