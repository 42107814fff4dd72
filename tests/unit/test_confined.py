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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffmpeg import FFmpeg, input_arguments, launcher, output_argument
from syscall_filter import _REFUSED, process_filter, syscall_filter

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
    numbers = {name: number for name, pair in _REFUSED.items() if (number := pair[column]) is not None}
    del numbers["socket"], numbers["socketpair"]
    report = await reported(tmp_path, numbers)
    assert report["no_new_privs"] == "1"
    assert report["seccomp"] == "2"
    assert report["dies_with_parent"] == signal.SIGKILL
    assert set(report["network"].values()) == {"EPERM"}
    assert {name for name, outcome in report["calls"].items() if outcome != "EPERM"} == set()
    assert report["child"] == 7, "Encoders that start helpers, and scripts in ffmpeg's place, still can."


# --- other processes -------------------------------------------------------------------------------------------------

ON_OTHERS = """
import fcntl, json, os, resource, subprocess, sys, threading

victim, path, acts = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def outcome(act):
    try:
        return repr(eval(act))
    except OSError as error:
        return error.strerror

print(json.dumps({act: outcome(act) for act in acts}))
"""
PYTHON = os.path.realpath(sys.executable)
"""A program and no script, as ffmpeg is."""


def outcomes(acts: list[str], victim: int, path: Path) -> set[str]:
    """What became of *acts*, done by a confined program that no rule for files holds."""
    command = [*launcher(str(os.getpid())), PYTHON, "-I", "-S", "-c", ON_OTHERS, str(victim), str(path)]
    said = subprocess.run([*command, json.dumps(acts)], capture_output=True, text=True, check=True, timeout=60).stdout
    return {f"{act}: {outcome}" for act, outcome in json.loads(said).items()}


@pytest.fixture
def victim() -> Iterator[int]:
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        yield process.pid
        process.kill()


@on_linux
@filtered
def test_it_does_nothing_to_other_processes_and_starts_none(victim: int, tmp_path: Path) -> None:
    """The server runs as the same user: a limit of its CPU time, set from below, would end it."""
    (tmp_path / "key").write_text("secret")
    (tmp_path / "key").chmod(0o600)
    acts = [
        "resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1))",
        "resource.prlimit(victim, resource.RLIMIT_CPU)",
        "os.setpriority(os.PRIO_PROCESS, victim, 19)",
        "os.sched_setaffinity(victim, os.sched_getaffinity(victim))",
        "os.sched_setscheduler(victim, os.SCHED_BATCH, os.sched_param(0))",
        "os.kill(victim, 0)",
        "os.killpg(os.getpgid(victim), 0)",
        "os.pidfd_open(victim)",
        "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, victim)",
        "fcntl.fcntl(os.pipe()[0], 10, 9)",
        "os.fork() or os._exit(0)",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "subprocess.call(['/bin/true'])",
        "os.setsid()",
        "os.setpgid(0, 0)",
        "os.chmod(path, 0o666)",
        "os.fchmod(os.open(path, os.O_RDONLY), 0o666)",
        "os.chown(path, os.getuid(), os.getgid())",
        "os.lchown(path, os.getuid(), os.getgid())",
        "os.utime(path)",
        "os.setxattr(path, 'user.a', b'1')",
        "os.removexattr(path, 'user.a')",
    ]
    assert outcomes(acts, victim, tmp_path / "key") == {f"{act}: Operation not permitted" for act in acts}
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@on_linux
@filtered
def test_what_decoding_needs_is_open(tmp_path: Path) -> None:
    """A filter that refuses everything would pass the test above."""
    acts = {
        "threading.Thread(target=print, args=('',), kwargs={'end': ''}).start()": "None",
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))": "None",
        "len(os.sched_getaffinity(0)) > 0": "True",
        "fcntl.fcntl(0, fcntl.F_GETFL) >= 0": "True",
    }
    assert outcomes(list(acts), 0, tmp_path) == {f"{act}: {outcome}" for act, outcome in acts.items()}


@on_linux
@filtered
def test_what_aborts_ends_all_the_same() -> None:
    """A failed assertion in a library must not go on because the signal that it sends itself is refused."""
    command = [*launcher(str(os.getpid())), PYTHON, "-I", "-S", "-c", "import os; os.abort(); print('on')"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode < 0
    assert ended.stdout == ""


def rights(status: str) -> int:
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapPrm")), 16)


@on_linux
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="Others have no rights to lose.")
def test_as_root_it_has_no_rights_but_to_open_files(tmp_path: Path) -> None:
    """Containers run as root more often than they should; DATA_DIR may be another user's."""
    theirs = tmp_path / "theirs"
    theirs.write_text("open")
    theirs.chmod(0o600)
    os.chown(theirs, 65534, 65534)
    code = "import sys; print(open(sys.argv[1]).read()); print(open('/proc/self/status').read())"
    command = [*launcher(str(os.getpid())), PYTHON, "-I", "-S", "-c", code, str(theirs)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    to_open_files = 1 << 1 | 1 << 2
    assert rights(said) == rights(Path("/proc/self/status").read_text()) & to_open_files
    assert said.startswith("open") or not rights(said)


# --- the files that it opens -----------------------------------------------------------------------------------------


def has_landlock() -> bool:

    return sys.platform == "linux" and int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)) > 0


with_landlock = pytest.mark.skipif(not has_landlock(), reason="This kernel has no landlock.")


def recording(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    return path


@with_landlock
async def test_told_its_files_it_opens_no_others(tmp_path: Path) -> None:
    """What lies beside a recording is others' recordings, and keys."""
    source, neighbour, target, other = (tmp_path / name for name in ("a.wav", "b.wav", "out.wav", "other.wav"))
    for path in (source, neighbour):
        recording(path)
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


@with_landlock
async def test_between_pipes_it_opens_no_files(tmp_path: Path) -> None:
    """Live text reads and writes none: there is nothing of ours that it has to see."""
    source, target = recording(tmp_path / "a.wav"), tmp_path / "out.wav"
    target.touch()

    async def run(*arguments: str) -> tuple[int, str, bytes]:
        async with FFmpeg.locate().piped(["-loglevel", "error", *arguments], cpu_s=60) as pipe:
            await pipe.write(source.read_bytes())
            pipe.end()
            heard = b""
            while chunk := await pipe.read(65_536):
                heard += chunk
            finished = await pipe.finished()
            return finished.returncode, finished.stderr_tail, heard

    assert await run("-i", "pipe:0", "-f", "s16le", "pipe:1") == (0, "", bytes(3200))
    for arguments in (
        ["-i", f"file:{source}", "-f", "s16le", "pipe:1"],
        ["-i", "pipe:0", "-y", output_argument(target)],
        ["-i", "pipe:0", "-y", output_argument(tmp_path / "new.wav")],
    ):
        code, said, heard = await run(*arguments)
        assert (code != 0, heard) == (True, b"")
        assert "Permission denied" in said
    assert target.stat().st_size == 0


@with_landlock
async def test_what_lies_beside_the_program_is_not_its_own(tmp_path: Path) -> None:
    """Who unpacks ffmpeg into the folder of the service has the data there, too."""
    app, told = tmp_path / "app", recording(tmp_path / "told.wav")
    (app / "bin").mkdir(parents=True)
    (app / "bin" / "ffmpeg").symlink_to(FFmpeg.locate().path)

    async def said(read: Path) -> str:
        arguments = ["-loglevel", "error", *input_arguments(read), "-f", "null", "-"]
        finished = await FFmpeg(app / "bin" / "ffmpeg").run(arguments, wall_s=60, cpu_s=60, reads=[told])
        return finished.stderr_tail

    assert await said(told) == ""
    for name in ("lib/a.wav", "lib64/a.wav", "share/ffmpeg/a.wav", "bin/lib/a.wav"):
        assert await said(recording(app / name)) == ""
    for name in ("data/a.wav", "bin/a.wav", "a.wav"):
        assert "Permission denied" in await said(recording(app / name))


# --- the script ------------------------------------------------------------------------------------------------------


def confined(*arguments: str, parent: int | None = None) -> subprocess.CompletedProcess[str]:
    bounds = [str(os.getpid() if parent is None else parent), "60", "65", "-", "-", "0", "-", "-"]
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


def verdict(program: bytes, architecture: int, number: int, first: int = 0, second: int = 0) -> int:
    """What the kernel would say: the few steps of its packet filters that are used, done here."""

    data = struct.pack("<IIQ6Q", number, architecture, 0, first, second, 0, 0, 0, 0)
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


@pytest.mark.parametrize(
    ("machine", "architecture", "prlimit", "fcntl", "refused"),
    [
        (
            "x86_64",
            0xC000003E,
            302,
            72,
            {62, 200, 234, 129, 297, 141, 203, 112, 109, 90, 91, 268, 92, 93, 260, 280, 188},
        ),
        ("aarch64", 0xC00000B7, 261, 25, {129, 130, 131, 138, 240, 140, 122, 157, 154, 52, 53, 55, 54, 88, 5}),
    ],
)
def test_what_reaches_other_processes_is_refused_by_its_number(
    machine: str, architecture: int, prlimit: int, fcntl: int, refused: set[int]
) -> None:
    """Signals, priorities, sessions, modes and owners, by the tables of both processors; limits by whose they are."""
    program = syscall_filter(machine)
    assert {number for number in refused if verdict(program, architecture, number) != EPERM} == set()
    assert verdict(program, architecture, prlimit, 0) == ALLOW, "its own"
    assert verdict(program, architecture, prlimit, 4711) == EPERM
    for command in (8, 10, 15):
        assert verdict(program, architecture, fcntl, 3, command) == EPERM, "signals by way of a pipe"
    assert verdict(program, architecture, fcntl, 8, 4) == ALLOW, "F_SETFL"


@pytest.mark.parametrize(
    ("machine", "architecture", "clone", "forks", "others"),
    [("x86_64", 0xC000003E, 56, (57, 58), (0, 59)), ("aarch64", 0xC00000B7, 220, (), (57, 58, 63, 221))],
)
def test_a_single_process_starts_threads_alone(
    machine: str, architecture: int, clone: int, forks: tuple[int, ...], others: tuple[int, ...]
) -> None:
    """57 and 58 are fork and vfork to one processor, close and vhangup to the other."""
    program = process_filter(machine)
    assert verdict(program, architecture, clone, 0x3D0F00) == ALLOW, "a thread"
    assert verdict(program, architecture, clone, signal.SIGCHLD) == EPERM, "a process"
    assert verdict(program, architecture, clone, 0x4100 | signal.SIGCHLD) == EPERM, "a process that borrows memory"
    assert {verdict(program, architecture, number) for number in forks} <= {EPERM}
    assert {verdict(program, architecture, number) for number in others} == {ALLOW}
    assert verdict(program, 0x40000003, 0) == KILL
    assert verdict(program, architecture, 0x40000000 | clone, 0x3D0F00) == EPERM, "x32"


def test_for_an_unknown_processor_there_is_none() -> None:
    """Wrong numbers would close what is needed, and open the rest."""
    assert syscall_filter("riscv64") == process_filter("riscv64") == b""
