"""Speed and memory of Stenogate beside the libraries: same weights (tiny.en), threads, int8 and beam, in one run.

Each system runs in a process of its own, started anew for every repeat, and the systems take turns within a repeat.
Loading is in nobody's seconds (it has a table of its own); reading and decoding the file is in everybody's. One clip is
transcribed before the clock starts. Libraries take one file at a time; the server takes several at once, too.

Memory is the sum over the process and all its children, sampled ten times a second: RSS counts shared pages in each
process that has them, PSS counts them once (0 where the system does not tell).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.baselines import SYSTEMS
from benchmarks.machine import description, others_load
from benchmarks.processes import Library, MemoryWatch, tree_memory
from benchmarks.results import LIKE_ACCURACY, Run, Start, comparison, starts
from benchmarks.scoring import score, total
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir, total_s
from benchmarks.weights import weights_folder

MODEL = "tiny.en"
OURS = "stenogate"
AT_ONCE = (1, 4, 8)
MAX_REPEATS = 20

Heard = tuple[str, float | None]
"""(text, seconds until its first byte; None for libraries, which hand over objects)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Clips, and how many of them are asked for at the same time."""

    name: str
    clips: list[Clip]
    at_once: int = 1


def workloads(speech: SpeechSet, wanted: Sequence[str], quick: bool) -> list[Workload]:
    short = speech.short(8 if quick else 24)
    chosen = []
    if "long" in wanted and not quick:
        chosen.append(Workload("long file", [speech.long()]))
    if "short" in wanted:
        chosen += [Workload(f"{len(short)} short clips, {count} at once", short, count) for count in AT_ONCE]
    return chosen


def run(system: str, pid: int, hear: Callable[[Clip], Heard], work: Workload) -> Run:
    """Hear the workload's clips and measure it."""
    with MemoryWatch(pid) as watch, ThreadPoolExecutor(work.at_once) as callers:
        started = time.perf_counter()
        heard = list(callers.map(hear, work.clips))
        wall_s = time.perf_counter() - started
    scored = total(score(clip.text, text, clip.language) for clip, (text, _) in zip(work.clips, heard, strict=True))
    first_s = [first for _, first in heard if first is not None]
    return Run(system, work.name, wall_s, total_s(work.clips), scored.error_rate, watch.peak, tuple(first_s))


def measure_server(threads: int, works: Sequence[Workload], warm: Clip) -> tuple[Start, list[Run]]:
    with Server(MODEL, threads) as server:
        start = Start(OURS, server.load_s, tree_memory(server.pid))

        def hear(clip: Clip) -> Heard:
            answer = server.client.transcribe(clip, MODEL, clip.language)
            return answer.text, answer.first_byte_s

        hear(warm)
        return start, [run(OURS, server.pid, hear, work) for work in works]


def measure_library(system: str, threads: int, works: Sequence[Workload], warm: Clip) -> tuple[Start, list[Run]]:
    with Library(system, weights_folder(MODEL), threads) as library:
        start = Start(system, library.load_s, tree_memory(library.pid))

        def hear(clip: Clip) -> Heard:
            return library.transcribe(clip, clip.language)[0], None

        hear(warm)
        return start, [run(system, library.pid, hear, work) for work in works if work.at_once == 1]


def measure(arguments: argparse.Namespace) -> tuple[list[Start], list[Run]]:
    """All systems, repeat by repeat. After --minutes no further one is started."""
    speech = SpeechSet(speech_dir())
    works = workloads(speech, arguments.only or ("long", "short"), arguments.quick)
    warm = speech.short(1)[0]
    began: list[Start] = []
    runs: list[Run] = []
    until = time.monotonic() + 60 * arguments.minutes
    for repeat in range(1 if arguments.quick else arguments.repeats):
        for system in arguments.system or (OURS, *SYSTEMS):
            if time.monotonic() > until:
                print(f"Stopped after {arguments.minutes} minutes, in repeat {repeat + 1}.", file=sys.stderr)
                return began, runs
            print(f"repeat {repeat + 1}: {system}", file=sys.stderr)
            start, done = (
                measure_server(arguments.threads, works, warm)
                if system == OURS
                else measure_library(system, arguments.threads, works, warm)
            )
            began.append(start)
            runs += done
    return began, runs


def report(arguments: argparse.Namespace, began: Sequence[Start], runs: Sequence[Run], load_before: float) -> str:
    command = shlex.join(["scripts/bench", *sys.argv[1:]])
    repeats = max((sum(start.system == other.system for other in began) for start in began), default=0)
    facts = [
        f"`{command}`",
        *description(),
        f"{MODEL}, int8, beam 5, {arguments.threads} threads, batches of 8; medians of {repeats}; "
        f"load average before: {load_before:.1f}",
    ]
    return "\n\n".join(
        [
            "\n".join(f"- {fact}" for fact in facts),
            comparison(runs, OURS),
            "Factor: how many times as fast Stenogate is on the same clips. In brackets where the word error "
            f"rates lie more than {100 * LIKE_ACCURACY:.0f} points apart: who drops words is not fast.",
            starts(began),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("long", "short"), action="append", help="this workload alone")
    parser.add_argument(
        "--system", choices=(OURS, *SYSTEMS), action="append", help="this system alone; may be repeated"
    )
    parser.add_argument("--repeats", type=int, default=3, choices=range(1, MAX_REPEATS + 1), metavar="N")
    parser.add_argument("--quick", action="store_true", help="8 short clips, once: to see that it works")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=90, help="start nothing more after so long")
    parser.add_argument("--json", type=Path, help="write every single run to this file, too")
    arguments = parser.parse_args()

    load_before = others_load()
    began, runs = measure(arguments)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"starts": [asdict(start) for start in began], "runs": [asdict(run) for run in runs]}
        arguments.json.write_text(json.dumps(document, indent=2), encoding="utf-8")
    print(report(arguments, began, runs, load_before))


if __name__ == "__main__":
    main()
