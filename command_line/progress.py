"""Bars on the terminal, by seconds of audio heard; nothing where nobody looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bars:
    """A bar for each recording that is at work. Standard error's, so that texts can be piped on."""

    def __init__(self, *, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not shown,
            transient=True,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self._progress:
            yield

    @contextlib.contextmanager
    def bar(self, name: str) -> Iterator[Bar]:
        task = self._progress.add_task(escape(name), total=None, told="")
        try:
            yield Bar(self._progress, task)
        finally:
            self._progress.remove_task(task)

    def say(self, line: str) -> None:
        """*line* on standard error, above the bars."""
        if self._progress.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bar:
    """One recording's."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._stage = ""
        self._length_s: float | None = None
        self._heard_s = 0.0

    def stage(self, name: str) -> None:
        self._stage = name
        self._show()

    def length(self, audio_s: float | None) -> None:
        self._length_s = audio_s or self._length_s
        self._show()

    def heard(self, audio_s: float) -> None:
        # Two witnesses tell of it, and one of them is late.
        self._heard_s = max(self._heard_s, audio_s)
        self._show()

    def _show(self) -> None:
        self._progress.update(
            self._task,
            total=self._length_s,
            completed=self._heard_s,
            told=told(self._stage, self._heard_s, self._length_s),
            # News is rare, and what is done at once would otherwise never be seen.
            refresh=True,
        )


def told(stage: str, heard_s: float, length_s: float | None) -> str:
    """What stands beside a bar."""
    if not heard_s:
        return stage
    return f"{clock(heard_s)} of {clock(length_s)}" if length_s else clock(heard_s)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
