"""The long file in one request, beside the libraries: speed, words, memory, and how busy the engine is meanwhile."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.baselines import SYSTEMS
from benchmarks.engine_log import Busy, busy
from benchmarks.experiment import MODEL, QUICK_S, Aim, Plan, Report, say
from benchmarks.load import ask_all, run
from benchmarks.processes import Library, tree_memory
from benchmarks.results import (
    LIKE_ACCURACY,
    MEMORY_HEADER,
    Median,
    Run,
    Start,
    alike,
    faster,
    medians,
    memory_cells,
    starts,
)
from benchmarks.scoring import Score, score, total
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, percent
from benchmarks.weights import weights_folder

OURS = "stenogate"
WORKLOAD = "long file"


def measure_server(clip: Clip, warm: Clip, utterances: Sequence[Clip]) -> tuple[Start, Run, Busy, Score]:
    """The file, then *utterances* one by one."""
    with Server(MODEL, log_level="debug") as server:
        start = Start(OURS, server.load_s, tree_memory(server.pid))
        server.hear(warm)
        mark = server.log_end()
        whole = run(OURS, WORKLOAD, server.pid, server.hear, [clip])
        worked = busy(server.events("batch decoded", mark), len(server.engines()), whole.wall_s)
        singles = ask_all(server.hear, utterances, at_once=1)
        return start, whole, worked, total(score(heard.clip.text, heard.text, "en") for heard in singles)


def measure_library(system: str, threads: int, clip: Clip, warm: Clip) -> tuple[Start, Run]:
    with Library(system, weights_folder(MODEL), threads) as library:
        start = Start(system, library.load_s, tree_memory(library.pid))

        def hear(asked: Clip) -> str:
            return library.transcribe(asked, asked.language)[0]

        hear(warm)
        return start, run(system, WORKLOAD, library.pid, hear, [clip])


def table(lines: Sequence[Median], own: Median) -> str:
    cells = []
    for line in lines:
        times = "" if line is own else f"{faster(own, line):.2f}"
        row = [line.system, f"{line.real_time_factor:.1f}", f"{line.wall_s:.1f}", percent(line.error_rate)]
        cells.append([*row, times if alike(line, own) else f"({times})", *memory_cells(line.peak)])
    return markdown(["system", "audio s / s", "wall s", "word error rate", "factor", *MEMORY_HEADER], cells)


def aims(lines: Sequence[Median], own: Median, singles: Score, worked: Sequence[Busy]) -> list[Aim]:
    factors = {line.system: faster(own, line) for line in lines if line is not own}
    rivals = [line.system for line in lines if line is not own and line.error_rate <= own.error_rate + LIKE_ACCURACY]
    best = min(rivals, key=lambda system: factors[system], default=None)
    gap = 100 * (own.error_rate - singles.error_rate)
    shares = [each.share for each in worked if each.share is not None]
    return [
        Aim("speed over WhisperX", factors.get("whisperx"), least=2.0),
        Aim(f"speed over the fastest library of like accuracy ({best or 'none'})", factors.get(best or ""), least=1.5),
        Aim("word error rate, whole over its utterances one by one", gap, most=1.5, unit="points"),
        Aim("streams busy, of the wall time", median(shares) if shares else None, least=0.9, unit=""),
    ]


def measure(plan: Plan) -> Report:
    speech = SpeechSet(speech_dir())
    warm = speech.short(1)[0]
    began: list[Start] = []
    runs: list[Run] = []
    worked: list[Busy] = []
    singles = Score()
    with tempfile.TemporaryDirectory(prefix="stenogate-long-") as name:
        folder = Path(name)
        clip = plan.long_clip(speech, folder)
        utterances = speech.long_utterances(folder, QUICK_S if plan.quick else math.inf)
        for repeat in range(plan.repeats):
            systems = [OURS, *SYSTEMS]
            # There and back: what the machine does to the first or the last falls on each in turn.
            for system in systems if repeat % 2 == 0 else reversed(systems):
                say(f"long, repeat {repeat + 1}: {system}")
                if system == OURS:
                    start, done, busy_then, heard = measure_server(clip, warm, [] if repeat else utterances)
                    worked.append(busy_then)
                    singles += heard
                else:
                    start, done = measure_library(system, plan.threads, clip, warm)
                began.append(start)
                runs.append(done)
    lines = medians(runs)
    own = next(line for line in lines if line.system == OURS)
    notes = [
        f"Medians of {plan.repeats}. Factor: how many times as fast Stenogate is. In brackets where the word error "
        f"rates lie more than {100 * LIKE_ACCURACY:.0f} points apart: who drops words is not fast.",
        f"Its {len(utterances)} utterances one by one: {percent(singles.error_rate)}. Batches: {worked[0].batches}, "
        f"in {worked[0].streams} streams.",
    ]
    return Report(
        f"The long file ({clip.duration_s / 60:.1f} min), one request",
        [table(lines, own), *notes, starts(began)],
        aims(lines, own, singles, worked),
        {
            "starts": [asdict(start) for start in began],
            "runs": [asdict(each) for each in runs],
            "busy": [asdict(each) for each in worked],
            "utterances_error_rate": singles.error_rate,
        },
    )
