"""What was measured, as tables and sentences for people, as JSON, and as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.concurrency_advice import Advice, recommend
from benchmarks.concurrency_levels import Latency, Level
from benchmarks.machine import description
from benchmarks.plots import Panel, draw
from benchmarks.tables import markdown, mebibytes

SPEED_HEADER = ["at once", "total s", "audio s / s", "files / h", "min s", "average s", "p50 s", "p95 s", "max s"]
ANSWERS_HEADER = ["at once", "transcripts", "429", "503", "errors", "peak MiB", "memory in use", "CPU cores"]
BUSY = 1.0
"""Load average from which on other programs' work is in the figures."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A whole run."""

    server: str
    started_here: bool
    on_this_machine: bool
    model: str | None
    """None: the server's own choice."""
    recordings: str
    levels: tuple[Level, ...]
    load_before: float
    """Load average of the machine that sent."""

    @property
    def advice(self) -> Advice:
        return recommend(self.levels)

    def text(self) -> str:
        parts = ["\n".join(f"- {fact}" for fact in self._facts()), speeds(self.levels), answers(self.levels)]
        advice = self.advice
        sentences = list(advice.sentences)
        if self.on_this_machine and self.load_before >= BUSY:
            sentences.append("This machine was busy before the run: measure again when nothing else runs.")
        parts.append("\n".join(sentences))
        if advice.settings:
            lines = "\n".join(f"{name}={value}" for name, value in advice.settings.items())
            parts.append(f"The setting to put into .env, or the environment of the server:\n\n{lines}")
        return "\n\n".join(parts)

    def _facts(self) -> list[str]:
        how = ", started for this run, on the CPU" if self.started_here else ""
        facts = [f"{self.server}{how}; model: {self.model or 'the one it uses by default'}"]
        if self.on_this_machine:
            facts += [*description(), f"load average before: {self.load_before:.1f}"]
        return [*facts, self.recordings]

    def document(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        levels = [
            asdict(level) | {"audio_s_per_s": level.speed, "files_per_hour": level.files_per_hour}
            for level in self.levels
        ]
        return {
            "server": self.server,
            "started_here": self.started_here,
            "model": self.model,
            "recordings": self.recordings,
            "load_before": self.load_before,
            "levels": levels,
            "advice": asdict(self.advice),
        }


def speeds(levels: Sequence[Level]) -> str:
    return markdown(
        SPEED_HEADER,
        [
            [
                str(level.at_once),
                f"{level.wall_s:.1f}",
                f"{level.speed:.1f}",
                f"{level.files_per_hour:.0f}",
                *_latency_cells(level.latency),
            ]
            for level in levels
        ],
    )


def _latency_cells(latency: Latency | None) -> list[str]:
    if latency is None:
        return [""] * 5
    return [f"{seconds:.2f}" for seconds in asdict(latency).values()]


def answers(levels: Sequence[Level]) -> str:
    return markdown(ANSWERS_HEADER, [_answer_cells(level) for level in levels])


def _answer_cells(level: Level) -> list[str]:
    usage = level.usage
    fullest = usage.fullest
    return [
        str(level.at_once),
        f"{level.successes} of {level.requests}",
        *(str(count) for count in (level.answers_429, level.answers_503, level.errors)),
        "" if usage.tree_bytes is None else mebibytes(usage.tree_bytes),
        "" if fullest is None else f"{fullest.share:.0%} of {fullest.total_bytes / 2**30:.1f} GiB",
        "" if usage.cpu_cores is None else f"{usage.cpu_cores:.1f}",
    ]


def plot(path: Path, measured: Measured) -> None:
    """Curves over the levels at which something was transcribed, as *path*."""
    levels = [level for level in measured.levels if level.latency]
    if not levels:
        return
    panels = [
        Panel("audio s / s", {"speed": [(level.at_once, level.speed) for level in levels]}),
        Panel(
            "s from sending to transcript",
            {
                name: [(level.at_once, getattr(level.latency, f"{field}_s")) for level in levels]
                for name, field in (("p50", "p50"), ("p95", "p95"), ("longest", "max"))
            },
        ),
    ]
    held = [(float(level.at_once), level.usage.tree_bytes / 2**20) for level in levels if level.usage.tree_bytes]
    if held:
        panels.append(Panel("MiB, server and children", {"peak": held}))
    draw(path.parent, path.stem, "Requests at once", "at once", panels)
