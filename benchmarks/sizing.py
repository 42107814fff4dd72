"""The long file through engines laid out in several ways: what replicas, streams, cores and batches bring and cost."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.experiment import Aim, Plan, Report, say
from benchmarks.load import run
from benchmarks.plots import Panel, draw
from benchmarks.processes import tree_memory
from benchmarks.results import MEMORY_HEADER, Median, Run, medians, memory_cells
from benchmarks.server import DECIDED, EngineSettings, Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, mebibytes, percent

LAYOUTS = ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 1, 2))
"""(replicas, streams, cores)"""
BATCH_SIZES = (1, 2, 4, 8)
GRID = tuple(EngineSettings(*layout, size) for layout, size in itertools.product(LAYOUTS, BATCH_SIZES))
QUICK_GRID = (EngineSettings(1, 1, 2, 2), EngineSettings(1, 1, 2, 8))


def layout(settings: EngineSettings) -> str:
    return f"{settings.replicas} × {settings.streams}, {settings.cores} cores"


def measure_one(settings: EngineSettings, model: str, clip: Clip, warm: Clip) -> tuple[int, Run]:
    """(resident bytes before the first clip, the long file)"""
    with Server(model, settings) as server:
        idle = tree_memory(server.pid).rss
        server.hear(warm)
        return idle, run(model, str(settings), server.pid, server.hear, [clip])


def curves(lines: Sequence[tuple[EngineSettings, Median]], decided: Median) -> Panel:
    """Speed over batch size, a line for each layout."""
    points: dict[str, list[tuple[float, float]]] = {}
    for settings, line in lines:
        if settings != DECIDED:
            points.setdefault(layout(settings), []).append((settings.batch_size, line.real_time_factor))
    return Panel("audio s / s", points, {"decided by the server": decided.real_time_factor})


def measure(plan: Plan) -> Report:
    speech = SpeechSet(speech_dir())
    grid = list(dict.fromkeys((DECIDED, *(plan.settings or (QUICK_GRID if plan.quick else GRID)))))
    runs: list[Run] = []
    idle: dict[EngineSettings, list[int]] = {settings: [] for settings in grid}
    with tempfile.TemporaryDirectory(prefix="stenogate-sizing-") as folder:
        clip, warm = plan.long_clip(speech, Path(folder)), speech.short(1)[0]
        for repeat, settings in itertools.product(range(plan.repeats), grid):
            say(f"sizing, repeat {repeat + 1}: {settings.environment() or 'decided'}")
            held, done = measure_one(settings, plan.model, clip, warm)
            idle[settings].append(held)
            runs.append(done)
    lines = list(zip(grid, medians(runs), strict=True))
    cells = [
        [
            *(str(value) if value else "decided" for value in asdict(settings).values()),
            f"{line.real_time_factor:.1f}",
            percent(line.error_rate),
            mebibytes(int(median(idle[settings]))),
            *memory_cells(line.peak),
        ]
        for settings, line in lines
    ]
    header = ["replicas", "streams", "cores", "batch size", "audio s / s", "word error rate", "idle RSS MiB"]
    decided = lines[0][1]
    best, fastest = max(lines[1:], key=lambda pair: pair[1].real_time_factor)
    title = f"Layouts of {plan.model} over the long file"
    return Report(
        title,
        [markdown([*header, *MEMORY_HEADER], cells), f"Medians of {plan.repeats}."],
        [
            Aim(
                f"speed as the server decides, over the fastest ({layout(best)}, batches of {best.batch_size})",
                decided.real_time_factor / fastest.real_time_factor,
            )
        ],
        {"runs": [asdict(each) for each in runs]},
        draw(plan.plots, "sizing", title, "batch size", [curves(lines, decided)]),
    )
