"""What an experiment is given and what it gives back: a plan in, a report out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import description, others_load
from benchmarks.server import EngineSettings
from benchmarks.speech_set import Clip, SpeechSet
from benchmarks.tables import markdown

MODEL = "tiny.en"
QUICK_S = 90.0
"""Of the long file, where only a look is wanted."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked of this run."""

    repeats: int
    quick: bool
    threads: int
    """Of the libraries; the server decides for itself."""
    plots: Path | None
    hours: float
    signal: str
    model: str
    settings: tuple[EngineSettings, ...]

    def long_clip(self, speech: SpeechSet, folder: Path) -> Clip:
        """The long file, or its start in *folder* where only a look is wanted."""
        return speech.long_start(folder, QUICK_S) if self.quick else speech.long()


@dataclass(frozen=True, slots=True)
class Aim:
    """One figure against a baseline of the same run, and what it should be at least or at most."""

    figure: str
    value: float | None
    """None: it could not be measured."""
    least: float | None = None
    most: float | None = None
    unit: str = "times"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.least is None and self.most is None:
            return ""
        above = self.least is None or self.value >= self.least
        below = self.most is None or self.value <= self.most
        return "met" if above and below else "missed"

    def row(self) -> list[str]:
        bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", self.least), ("≤", self.most)) if bound is not None]
        number = "" if self.value is None else f"{self.value:.2f}" if isinstance(self.value, float) else str(self.value)
        return [self.figure, f"{number} {self.unit}".strip() if number else "", " and ".join(bounds), self.verdict]


@dataclass(frozen=True, slots=True)
class Report:
    """What one experiment found."""

    title: str
    tables: Sequence[str]
    """Markdown: tables, and sentences between them."""
    aims: Sequence[Aim]
    measured: Any
    """Every single measurement, as JSON takes it."""
    plot: Path | None = None

    def markdown(self) -> str:
        parts = [f"### {self.title}", *self.tables]
        parts.append(markdown(["against the baseline", "measured", "aim", ""], [aim.row() for aim in self.aims]))
        if self.plot:
            parts.append(f"![{self.title}]({self.plot})")
        return "\n\n".join(parts)

    def document(self) -> dict[str, Any]:
        aims = [asdict(aim) | {"verdict": aim.verdict} for aim in self.aims]
        return {"title": self.title, "aims": aims, "measured": self.measured}


@dataclass(frozen=True, slots=True)
class Head:
    """What all figures of a run stand under: the command, the machine, how busy it was before."""

    command: str
    plan: Plan
    load_before: float = field(default_factory=others_load)

    def markdown(self) -> str:
        told = [f"{name}={os.environ[name]}" for name in ENGINE_KNOBS if name in os.environ]
        facts = [
            f"`{self.command}`",
            *description(),
            f"int8, beam 5; libraries: {self.plan.threads} threads, batches of 8; the server: "
            f"{', '.join(told) or 'what it decides itself'}; load average before: {self.load_before:.1f}",
        ]
        if self.plan.quick:
            facts.append("quick: this shows that it works, not how fast it is")
        return "\n".join(f"- {fact}" for fact in facts)


ENGINE_KNOBS = tuple(EngineSettings(1, 1, 1, 1).environment())


def say(text: str) -> None:
    """Tell the person who waits what is being done."""
    print(text, file=sys.stderr, flush=True)
