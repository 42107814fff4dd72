"""Processes that are measured: started, watched with all their children for memory and CPU, ended by their own id."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.speech_set import ROOT, Clip

STOP_AFTER_S = 20.0
QUIET_CPU_S = 0.05
"""CPU-seconds within one second below which nothing is being worked on: what is left is waiting and health checks."""


@dataclass(frozen=True, slots=True)
class TreeMemory:
    """Bytes of a process and all its children. Shared pages count once in *pss*, in each process in *rss*."""

    rss: int = 0
    pss: int = 0
    """0 where the system does not tell (only Linux does)."""


def tree(pid: int) -> list[psutil.Process]:
    """The process and all that descend from it; empty where it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def tree_memory(pid: int) -> TreeMemory:
    """What the tree holds now. Processes that end meanwhile are left out."""
    rss = pss = 0
    for process in tree(pid):
        try:
            full = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        rss += full.rss
        pss += getattr(full, "pss", 0)
    return TreeMemory(rss, pss)


def tree_cpu_s(pid: int) -> float:
    """CPU-seconds the tree has used so far. Children that have ended count: their parent keeps their times."""
    used_s = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used_s += times.user + times.system + times.children_user + times.children_system
    return used_s


class NeverQuiet(Exception):
    """The processes went on working for longer than was waited."""


def cpu_until_quiet(pid: int, longest_s: int = 60) -> float:
    """CPU-seconds that the tree uses from now until a second in which it uses none to speak of. Raises NeverQuiet."""
    before_s = last_s = tree_cpu_s(pid)
    for _ in range(longest_s):
        time.sleep(1)
        now_s = tree_cpu_s(pid)
        if now_s - last_s < QUIET_CPU_S:
            return now_s - before_s
        last_s = now_s
    raise NeverQuiet(f"still working after {longest_s} s")


class MemoryWatch:
    """Samples a tree's memory while the block runs."""

    def __init__(self, pid: int, every_s: float = 0.1) -> None:
        self._pid = pid
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[tuple[float, TreeMemory]] = []
        """(seconds since the block began, what the tree held)."""

    @property
    def peak(self) -> TreeMemory:
        """The most that was seen at any one time."""
        seen = [memory for _, memory in self.samples]
        return TreeMemory(max(memory.rss for memory in seen), max(memory.pss for memory in seen))

    def _watch(self) -> None:
        began = time.perf_counter()
        while True:
            self.samples.append((time.perf_counter() - began, tree_memory(self._pid)))
            if self._done.wait(self._every_s):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def stop(process: subprocess.Popen[Any]) -> None:
    """Ask the process to stop; after STOP_AFTER_S make it, and its children with it."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(STOP_AFTER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=3)


class LibraryFailed(Exception):
    """A library's process ended before it answered; its own words follow."""


class Library:
    """One library of `benchmarks.baselines` in its own process, asked clip by clip. A context manager."""

    def __init__(self, system: str, weights: Path, threads: int, beam_size: int = 5, batch_size: int = 8) -> None:
        self.system = system
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._path = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.baselines", system, "--weights", str(weights)),
                *("--threads", str(threads), "--beam-size", str(beam_size), "--batch-size", str(batch_size)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(Path(self._path.name), threads),
        )
        self.load_s: float = self._read()["seconds"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def transcribe(self, clip: Clip, language: str | None) -> tuple[str, float]:
        """The text and the seconds it took. Raises LibraryFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"path": str(clip.path), "language": language}).encode() + b"\n")
        self._process.stdin.flush()
        reply = self._read()
        return reply["text"], reply["seconds"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise LibraryFailed(f"{self.system}: {self._log.read().decode(errors='replace')[-2000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()
        self._path.cleanup()


def environment(folder: Path, threads: int = 0) -> dict[str, str]:
    """What every measured process gets: no network, an `ffmpeg` on its path (for WhisperX), *threads* where given."""
    own = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PATH": os.pathsep.join([*ffmpeg_folder(folder), os.environ.get("PATH", os.defpath)]),
    }
    if threads:
        own |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **own}


def ffmpeg_folder(folder: Path) -> Sequence[str]:
    """A folder to put before PATH so that `ffmpeg` is found: none where the system has it."""
    if shutil.which("ffmpeg"):
        return []
    import imageio_ffmpeg

    link = folder / "ffmpeg"
    if not link.exists():
        link.symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return [str(folder)]
