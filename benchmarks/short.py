"""Short clips by several callers at once: how much is heard in a second, and how long each caller waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.load import run
from benchmarks.plots import Panel, draw
from benchmarks.processes import Library
from benchmarks.results import MEMORY_HEADER, Median, Run, faster, medians, memory_cells
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir, total_s
from benchmarks.tables import markdown, percent
from benchmarks.weights import weights_folder

OURS = "stenogate"
LIBRARY = "faster-whisper-batched"
AT_ONCE = (1, 4, 8, 16)
AIMED_AT = 8
QUICK_CLIPS = 16


def measure_server(clips: Sequence[Clip]) -> list[Run]:
    with Server(MODEL) as server:
        server.hear(clips[0])
        return [run(OURS, str(count), server.pid, server.hear, clips, count) for count in AT_ONCE]


def measure_library(threads: int, clips: Sequence[Clip]) -> list[Run]:
    with Library(LIBRARY, weights_folder(MODEL), threads) as library:

        def hear(clip: Clip) -> str:
            return library.transcribe(clip, clip.language)[0]

        hear(clips[0])
        return [run(LIBRARY, "1", library.pid, hear, clips)]


def table(lines: Sequence[Median], baseline: Median) -> str:
    cells = [
        [
            line.system,
            line.workload,
            f"{line.real_time_factor:.1f}",
            "" if line is baseline else f"{faster(line, baseline):.2f}",
            f"{line.p50_s:.2f}",
            f"{line.p95_s:.2f}",
            percent(line.error_rate),
            *memory_cells(line.peak),
        ]
        for line in lines
    ]
    header = ["system", "at once", "audio s / s", "times the library", "p50 s", "p95 s", "word error rate"]
    return markdown([*header, *MEMORY_HEADER], cells)


def aims(lines: Sequence[Median], baseline: Median) -> list[Aim]:
    found = []
    for line in lines:
        if line.system == OURS:
            least = 2.0 if line.workload == str(AIMED_AT) else None
            name = f"speed over the library one clip after another, {line.workload} at once"
            found.append(Aim(name, faster(line, baseline), least=least))
    worse = max(100 * (line.error_rate - baseline.error_rate) for line in lines if line.system == OURS)
    return [*found, Aim("word error rate above the library's, at any number at once", worse, most=0.5, unit="points")]


def measure(plan: Plan) -> Report:
    clips = SpeechSet(speech_dir()).short(QUICK_CLIPS) if plan.quick else SpeechSet(speech_dir()).short()
    runs: list[Run] = []
    both = [(OURS, partial(measure_server, clips)), (LIBRARY, partial(measure_library, plan.threads, clips))]
    for repeat in range(plan.repeats):
        for system, measured in both if repeat % 2 == 0 else reversed(both):
            say(f"short, repeat {repeat + 1}: {system}")
            runs += measured()
    lines = medians(sorted(runs, key=lambda each: each.system != OURS))
    baseline = next(line for line in lines if line.system == LIBRARY)
    ours = [line for line in lines if line.system == OURS]
    panels = [
        Panel(
            "audio s / s",
            {OURS: [(int(line.workload), line.real_time_factor) for line in ours]},
            {f"{LIBRARY}, one after another": baseline.real_time_factor},
        ),
        Panel(
            "p95 latency, s",
            {OURS: [(int(line.workload), line.p95_s) for line in ours]},
            {f"{LIBRARY}, one after another": baseline.p95_s},
        ),
    ]
    title = f"{len(clips)} clips of 2 to 15 s, {total_s(clips) / 60:.1f} min in all"
    return Report(
        title,
        [table(lines, baseline), f"Medians of {plan.repeats}; latencies are those of all repeats together."],
        aims(lines, baseline),
        {"runs": [asdict(each) for each in runs]},
        draw(plan.plots, "short", title, "callers at once", panels),
    )
