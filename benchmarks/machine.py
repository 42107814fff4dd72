"""What the figures were measured on: without it no figure can be compared with another."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("ctranslate2", "faster-whisper", "whisperx", "torch", "onnxruntime", "numpy")
VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp")


def cpu(cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    """(model name, the vector instructions that decide int8 speed) out of /proc/cpuinfo's text."""
    fields = [line.partition(":") for line in cpuinfo.splitlines() if ":" in line]
    names = [value.strip() for key, _, value in fields if key.strip() == "model name"]
    flags = {flag for key, _, value in fields if key.strip() in ("flags", "Features") for flag in value.split()}
    return names[0] if names else platform.processor() or platform.machine(), tuple(
        flag for flag in VECTOR_FLAGS if flag in flags
    )


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def description() -> list[str]:
    """One fact a line."""
    path = Path("/proc/cpuinfo")
    name, flags = cpu(path.read_text(encoding="utf-8") if path.exists() else "")
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    return [
        f"{cores} cores of {name} ({', '.join(flags) or 'vector instructions unknown'}), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        ", ".join(f"{package} {installed(package)}" for package in PACKAGES),
    ]


def others_load() -> float:
    """Processes that wanted a core over the last minute: near 0 before a run that is worth keeping."""
    return os.getloadavg()[0]
