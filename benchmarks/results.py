"""What single runs add up to: medians over repeats, and what may be compared with what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.processes import TreeMemory
from benchmarks.tables import markdown, mebibytes, percent

LIKE_ACCURACY = 0.02
"""Word error rates that lie this far apart at most are alike."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a system: seconds until it could transcribe, memory before the first clip."""

    system: str
    load_s: float
    idle: TreeMemory


@dataclass(frozen=True, slots=True)
class Run:
    """One workload through one system, once."""

    system: str
    workload: str
    wall_s: float
    audio_s: float
    error_rate: float
    peak: TreeMemory
    first_byte_s: tuple[float, ...]
    """Of each clip; empty for libraries."""

    @property
    def real_time_factor(self) -> float:
        """RTFx: seconds of audio per second of wall time."""
        return self.audio_s / self.wall_s


@dataclass(frozen=True, slots=True)
class Median:
    """The repeats of one workload through one system. Each figure is its own median."""

    system: str
    workload: str
    wall_s: float
    real_time_factor: float
    error_rate: float
    peak: TreeMemory
    first_byte_s: float | None


def medians(runs: Sequence[Run]) -> list[Median]:
    """One for each (workload, system), in the order in which they were first seen, workloads first."""
    order = [(work, system) for work in _seen(r.workload for r in runs) for system in _seen(r.system for r in runs)]
    grouped = [(pair, [r for r in runs if (r.workload, r.system) == pair]) for pair in order]
    return [_median(group) for _, group in grouped if group]


def _seen(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _median(runs: Sequence[Run]) -> Median:
    first_s = [first for run in runs for first in run.first_byte_s]
    return Median(
        runs[0].system,
        runs[0].workload,
        median(run.wall_s for run in runs),
        median(run.real_time_factor for run in runs),
        median(run.error_rate for run in runs),
        TreeMemory(int(median(run.peak.rss for run in runs)), int(median(run.peak.pss for run in runs))),
        median(first_s) if first_s else None,
    )


def rival_of(line: Median, lines: Sequence[Median], ours: str) -> Median | None:
    """Our own figures for the same clips and the same number at once; None where we did not run."""
    return next((other for other in lines if other.system == ours and other.workload == line.workload), None)


def factor(line: Median, own: Median | None) -> str:
    """How many times as fast *own* is; in brackets where the two do not hear alike."""
    if own is None or own.system == line.system:
        return ""
    times = f"{own.real_time_factor / line.real_time_factor:.2f}"
    return times if abs(own.error_rate - line.error_rate) <= LIKE_ACCURACY else f"({times})"


def comparison(runs: Sequence[Run], ours: str) -> str:
    """The table of all workloads and systems."""
    lines = medians(runs)
    header = ["workload", "system", "audio s / s", "wall s", "word error rate", "factor", "first byte s"]
    header += ["peak RSS MiB", "peak PSS MiB"]
    cells = [
        [
            line.workload,
            line.system,
            f"{line.real_time_factor:.1f}",
            f"{line.wall_s:.1f}",
            percent(line.error_rate),
            factor(line, rival_of(line, lines, ours)),
            "" if line.first_byte_s is None else f"{line.first_byte_s:.2f}",
            mebibytes(line.peak.rss),
            mebibytes(line.peak.pss),
        ]
        for line in lines
    ]
    return markdown(header, cells)


def starts(began: Sequence[Start]) -> str:
    """The table of what loading takes, and what is held before the first clip."""
    cells = []
    for system in _seen(start.system for start in began):
        of_it = [start for start in began if start.system == system]
        rss, pss = (int(median(getattr(start.idle, kind) for start in of_it)) for kind in ("rss", "pss"))
        cells.append([system, f"{median(start.load_s for start in of_it):.1f}", mebibytes(rss), mebibytes(pss)])
    return markdown(["system", "loading s", "idle RSS MiB", "idle PSS MiB"], cells)
