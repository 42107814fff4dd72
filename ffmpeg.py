"""ffmpeg as a child process that cannot run away: where it is, what it may open, how much it may use."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import ConfigurationError, MediaTimeout
from syscall_filter import process_filter, syscall_filter
from undisturbed import undisturbed

DEMUXERS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "dsf", "dts", "eac3", "flac", "flv"),
    *("loas", "matroska", "mov", "mp3", "mpeg", "mpegts", "mxf", "nistsphere", "ogg", "rm", "tta"),
    *("voc", "w64", "wav", "webm", "wv"),
)
"""What is opened: containers and streams that carry their own sound and tell what it is.

Left out on purpose: whatever names other files or addresses (hls, dash, concat, imf, sdp), devices (lavfi, tty),
pictures, subtitles and text, and raw samples, as which any file at all can be read.
"""

_TAIL_BYTES = 8192
_LINE_BYTES = 4096
_CPU_GRACE_S = 5
_OUT_OF_CPU = (f"received signal {signal.SIGXCPU.value}", "Received > 3 system signals")
"""What ffmpeg says when its CPU time is up: it catches the signal, which comes again each second, and ends in order."""

_CONFINED = Path(__file__).with_name("confined.py")
"""Sets the limits and becomes ffmpeg, in the same process: no code of ours runs between fork and exec."""

AT_WORK_NICE = 2
"""As the engine's processes: what is at work shares the cores evenly, behind the server itself."""
ARRIVING_NICE = 10
"""A crowd at the door must not slow down what is at work: while the engine has enough to do, headers can wait."""

_ENVIRONMENT = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
"""All that ffmpeg sees of ours: no keys, and no FFREPORT, which would have it write a log."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended: *returncode* is negative where a signal ended it; *stderr_tail* is the last of what it said."""

    returncode: int
    stderr_tail: str


def input_arguments(path: Path) -> list[str]:
    """The arguments that open *path*, and nothing but that file, whatever its name or content says.

    The name is made absolute and gets a scheme, so that none is read as an option or as an address.
    """
    return [
        *("-protocol_whitelist", "file,pipe"),
        *("-format_whitelist", ",".join(DEMUXERS)),
        *("-i", f"file:{os.path.abspath(path)}"),
    ]


def output_argument(path: Path) -> str:
    """The argument that names *path* as an output."""
    return f"file:{os.path.abspath(path)}"


class Pipe:
    """A child that reads what is written and writes what is to be read. Both wait for the slower side."""

    def __init__(self, process: asyncio.subprocess.Process, complaints: asyncio.Task[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in, self._out = process.stdin, process.stdout
        self._complaints = complaints
        self._broken = False

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more. What a child that has ended was to read is lost: `finished` tells."""
        if self._broken:
            return
        try:
            self._in.write(data)
            await self._in.drain()
        except (BrokenPipeError, ConnectionResetError):
            self._broken = True

    def end(self) -> None:
        """Nothing more is written."""
        self._in.close()

    async def read(self, most_bytes: int) -> bytes:
        """What there is, as soon as there is some; empty at the end."""
        return await self._out.read(most_bytes)

    async def finished(self) -> Finished:
        """How the child ended, once all was read."""
        tail = await self._complaints
        return Finished(await self._process.wait(), tail)


class FFmpeg:
    """Runs one ffmpeg binary. Stateless: any number of runs may be under way on any loop."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"FFmpeg({str(self.path)!r})"

    @classmethod
    def locate(cls, configured: str = "") -> FFmpeg:
        """The configured binary, else the system's, else the one in the imageio-ffmpeg package.

        Raises ConfigurationError that says what to do where there is none.
        """
        if configured:
            found = shutil.which(os.path.expanduser(configured))
            if found is None:
                raise ConfigurationError(
                    f"FFMPEG={configured} is no program that can be run. Set FFMPEG to the full path of an ffmpeg "
                    "binary, or leave it empty to have one found."
                )
            return cls(Path(found).absolute())
        found = shutil.which("ffmpeg") or _packaged()
        if found is None:
            raise ConfigurationError(
                "There is no ffmpeg here. Install it (apt-get install ffmpeg, brew install ffmpeg) or the Python "
                "package imageio-ffmpeg, or set FFMPEG to the full path of its binary."
            )
        return cls(Path(found).absolute())

    async def run(
        self,
        arguments: Sequence[str],
        *,
        wall_s: float,
        cpu_s: float,
        file_size_bytes: int | None = None,
        memory_bytes: int | None = None,
        nice: int = AT_WORK_NICE,
        reads: Sequence[Path] = (),
        writes: Sequence[Path] = (),
        on_stderr_line: Callable[[str], None] | None = None,
    ) -> Finished:
        """Run ffmpeg with *arguments* and wait for its end. Its stdin is empty and its stdout goes nowhere.

        Limits: seconds of wall clock and of CPU, the largest file it may write, its address space (where the system
        can limit that); *nice* is its priority. It has no network. With *reads* or *writes*, files that exist, it opens
        these and the system's own, and no others. On Linux, that is: elsewhere its arguments alone see to both.
        *on_stderr_line* gets each line as it comes, cut at 4 KiB. Whatever ends this call early (time, cancellation,
        an exception of *on_stderr_line*) kills the child and all it started, and waits for that.

        Raises MediaTimeout when either time is used up.
        """
        paths = [*(("+r", path) for path in reads), *(("+w", path) for path in writes)]
        process = await self._start(arguments, self._command(cpu_s, file_size_bytes, memory_bytes, nice, paths))
        try:
            async with asyncio.timeout(wall_s):
                assert process.stderr is not None
                tail = await _read(process.stderr, on_stderr_line)
                returncode = await process.wait()
        except TimeoutError:
            raise MediaTimeout from None
        finally:
            if process.returncode is None:
                await _kill(process)
        if returncode == -signal.SIGXCPU or (returncode > 0 and any(text in tail for text in _OUT_OF_CPU)):
            raise MediaTimeout
        return Finished(returncode, tail)

    @contextlib.asynccontextmanager
    async def piped(
        self, arguments: Sequence[str], *, cpu_s: float, memory_bytes: int | None = None, nice: int = AT_WORK_NICE
    ) -> AsyncIterator[Pipe]:
        """ffmpeg with *arguments* as a filter, from its stdin to its stdout, for as long as the context lasts.

        Limits as for `run`, but for wall time, which is the context's; it opens the system's own files alone. However
        that ends, the child and all it started are gone by then.
        """
        # Told of a file, it opens no others: this one is nobody's.
        command = self._command(cpu_s, 0, memory_bytes, nice, [("+r", Path(os.devnull))])
        process = await self._start(arguments, command, pipes=True)
        assert process.stderr is not None
        complaints = asyncio.create_task(_read(process.stderr, None))
        try:
            yield Pipe(process, complaints)
        finally:
            complaints.cancel()
            await undisturbed(asyncio.ensure_future(asyncio.gather(complaints, return_exceptions=True)))
            if process.stdin is not None:
                process.stdin.close()
            await _kill(process)

    async def _start(
        self, arguments: Sequence[str], command: Sequence[str], *, pipes: bool = False
    ) -> asyncio.subprocess.Process:
        """Start the child. It runs before this returns: cancelled meanwhile, it is killed like later."""
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *command,
                *arguments,
                stdin=asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                # NOTE: no session of its own: Linux shares the cores evenly among sessions, whatever their priorities.
                process_group=0,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
                | {"LC_ALL": "C", "AV_LOG_FORCE_NOCOLOR": "1"},
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await _kill(await undisturbed(starting))
            raise

    def _command(
        self,
        cpu_s: float,
        file_size_bytes: int | None,
        memory_bytes: int | None,
        nice: int,
        paths: Sequence[tuple[str, Path]] = (),
    ) -> list[str]:
        soft_s = math.ceil(cpu_s)
        return [
            *launcher(str(os.getpid()), soft_s, soft_s + _CPU_GRACE_S, file_size_bytes, memory_bytes, nice, paths),
            *(str(self.path), "-nostdin", "-hide_banner"),
        ]


def launcher(
    parent: str,
    cpu_s: int | None = None,
    cpu_end_s: int | None = None,
    file_size_bytes: int | None = None,
    memory_bytes: int | None = None,
    nice: int = 0,
    paths: Sequence[tuple[str, Path]] = (),
) -> list[str]:
    """What stands before a program that is to be confined, started by the process *parent*: see confined.py."""
    bounds = (cpu_s, cpu_end_s, file_size_bytes, memory_bytes, nice)
    return [
        *(sys.executable, "-I", "-S", str(_CONFINED), parent),
        *("-" if bound is None else str(bound) for bound in bounds),
        syscall_filter().hex() or "-",
        process_filter().hex() or "-",
        *(text for mode, path in paths for text in (mode, os.path.abspath(path))),
        "--",
    ]


def _packaged() -> str | None:
    """The binary in the imageio-ffmpeg wheel. There is no ffprobe beside it, so nothing here may need one."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


async def _read(stream: asyncio.StreamReader, on_line: Callable[[str], None] | None) -> str:
    """Read *stream* to its end and return its tail. Holds a few KiB however much comes, also without line ends."""
    tail = rest = b""
    while chunk := await stream.read(65_536):
        tail = (tail + chunk)[-_TAIL_BYTES:]
        if on_line is not None:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                on_line(_text(line[:_LINE_BYTES]))
            rest = rest[:_LINE_BYTES]
    if rest and on_line is not None:
        on_line(_text(rest))
    return _text(tail)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the child and all it started, and wait until it has ended and its pipe is closed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await undisturbed(asyncio.ensure_future(process.communicate()))
