"""What single runs add up to: medians over repeats, and what may be compared with what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.processes import TreeMemory
from benchmarks.tables import markdown, mebibytes

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
    latencies_s: tuple[float, ...]
    """Of each clip, from sending it to having its text."""

    @property
    def real_time_factor(self) -> float:
        """RTFx: seconds of audio per second of wall time."""
        return self.audio_s / self.wall_s


@dataclass(frozen=True, slots=True)
class Median:
    """The repeats of one workload through one system. Each figure is its own median; latencies are of all repeats."""

    system: str
    workload: str
    wall_s: float
    real_time_factor: float
    error_rate: float
    peak: TreeMemory
    p50_s: float
    p95_s: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of *values* that at least that share of them do not exceed (nearest rank)."""
    # Rounded: 0.07 of 100 values is 7.000000000000001 in floating point.
    return sorted(values)[max(math.ceil(round(share * len(values), 6)), 1) - 1]


def medians(runs: Sequence[Run]) -> list[Median]:
    """One for each (workload, system), in the order in which they were first seen, workloads first."""
    order = [(work, system) for work in _seen(r.workload for r in runs) for system in _seen(r.system for r in runs)]
    grouped = [(pair, [r for r in runs if (r.workload, r.system) == pair]) for pair in order]
    return [_median(group) for _, group in grouped if group]


def _seen(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _median(runs: Sequence[Run]) -> Median:
    latencies_s = [latency for run in runs for latency in run.latencies_s]
    return Median(
        runs[0].system,
        runs[0].workload,
        median(run.wall_s for run in runs),
        median(run.real_time_factor for run in runs),
        median(run.error_rate for run in runs),
        TreeMemory(int(median(run.peak.rss for run in runs)), int(median(run.peak.pss for run in runs))),
        percentile(latencies_s, 0.5),
        percentile(latencies_s, 0.95),
    )


def alike(line: Median, own: Median) -> bool:
    """Whether the two hear alike: who drops words is not fast."""
    return abs(own.error_rate - line.error_rate) <= LIKE_ACCURACY


def faster(own: Median, line: Median) -> float:
    """How many times as fast *own* is."""
    return own.real_time_factor / line.real_time_factor


def memory_cells(peak: TreeMemory) -> list[str]:
    return [mebibytes(peak.rss), mebibytes(peak.pss)]


MEMORY_HEADER = ["peak RSS MiB", "peak PSS MiB"]


def starts(began: Sequence[Start]) -> str:
    """The table of what loading takes, and what is held before the first clip."""
    cells = []
    for system in _seen(start.system for start in began):
        of_it = [start for start in began if start.system == system]
        rss, pss = (int(median(getattr(start.idle, kind) for start in of_it)) for kind in ("rss", "pss"))
        cells.append([system, f"{median(start.load_s for start in of_it):.1f}", mebibytes(rss), mebibytes(pss)])
    return markdown(["system", "loading s", "idle RSS MiB", "idle PSS MiB"], cells)
