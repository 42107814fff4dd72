"""Curves as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: lines by their names, and levels that are drawn right across."""

    y: str
    lines: Mapping[str, Points]
    levels: Mapping[str, float] = field(default_factory=dict)
    marked: bool = True
    """Whether each point is shown, as single measurements want it."""


def draw(folder: Path | None, name: str, title: str, x: str, panels: Sequence[Panel]) -> Path | None:
    """Write *folder*/*name*.png, one panel below the other; without a folder nothing is drawn."""
    if folder is None:
        return None
    # Slow to import, and wanted by few runs. A Figure of its own draws with Agg and needs no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3 * len(panels) + 1), layout="constrained")
    figure.suptitle(title)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(len(panels), 1, number)
        for label, points in panel.lines.items():
            across, up = zip(*points, strict=True)
            axes.plot(across, up, marker="o" if panel.marked else None, label=label)
        for label, level in panel.levels.items():
            axes.axhline(level, linestyle="--", color="grey", label=label)
        axes.set(xlabel=x, ylabel=panel.y)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=110)
    return path
