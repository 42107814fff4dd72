"""Tables that read well on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f}" if size else "–"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned as text, too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])
