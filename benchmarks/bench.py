"""Speed and memory of Stenogate: one experiment a name, each held against a baseline of the same run.

  long     the long file beside the libraries: speed, words, memory, how busy the engine is
  short    short clips, 1 to 16 at once, beside faster-whisper one after another
  behind   a short clip behind the long file, and a caller who hangs up
  cold     twenty requests for a model that is not loaded
  memory   hundreds of short jobs: growth
  flat     ten hours in one request beside ten minutes: memory
  chaos    the engine killed again and again under load
  turns    twenty requests against room for five, and two keys of which one floods
  overload ten times the sustainable rate for ten minutes: what is answered, refused, and comes back
  bounded  a thousand mixed jobs in 1, 2, 4 and 8 GiB: nothing killed, nothing idle
  durable  three hundred jobs while the service is killed every few seconds: none lost, none done twice
  fleet    the same with two workers, PostgreSQL and Redis, each of them struck in turn
  backlog  thousands of jobs that take no time: what handing in and doing cost
  gate     what a refusal and a grant cost the gate, with ten thousand before it
  speakers who speaks: memory over hours, speed, errors
  sizing   replicas, streams, cores and batch sizes over the long file
  alignment  word times by forced alignment beside whisperx.align: speed, agreement, errors
  whole    words and speakers of the long file beside WhisperX's command line, and its first text
  fuzz     two thousand wrong recordings of all containers: a transcript or a reason each, nothing left behind
  soak     half an hour of callers who hang up at random: what grows
  all      all of them, in this order

Each system runs in a process of its own. Loading is in nobody's seconds; reading and decoding the file is in
everybody's. One clip is transcribed before the clock starts. Memory is the sum over the process and all its children,
sampled ten times a second (in flat five): RSS counts shared pages in each process that has them, PSS counts them once
(0 where the system does not tell). Servers decide their engines' layout themselves; ENGINE_REPLICAS, ENGINE_STREAMS,
CPU_THREADS and BATCH_SIZE in the environment reach them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from benchmarks import (
    alignment,
    backlog,
    behind,
    bounded,
    chaos,
    cold,
    durable,
    flat,
    fleet,
    fuzz,
    gate,
    long,
    memory,
    overload,
    short,
    sizing,
    soak,
    speakers,
    turns,
    whole,
)
from benchmarks.experiment import MODEL, Head, Plan, Report
from benchmarks.server import EngineSettings

EXPERIMENTS: dict[str, Callable[[Plan], Report]] = {
    room.__name__.rpartition(".")[2]: room.measure
    for room in (
        long,
        short,
        behind,
        cold,
        memory,
        flat,
        chaos,
        turns,
        overload,
        bounded,
        durable,
        fleet,
        backlog,
        gate,
        speakers,
        sizing,
        alignment,
        whole,
        fuzz,
        soak,
    )
}
MAX_REPEATS = 20


def parser() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("experiment", choices=(*EXPERIMENTS, "all"))
    asked.add_argument("--repeats", type=int, default=3, choices=range(1, MAX_REPEATS + 1), metavar="N")
    asked.add_argument("--quick", action="store_true", help="little of it, once: to see that it works")
    asked.add_argument("--threads", type=int, default=2, help="of the libraries (default: 2)")
    asked.add_argument("--json", type=Path, help="write every single measurement to this file, too")
    asked.add_argument("--plots", type=Path, metavar="FOLDER", help="draw curves into this folder")
    asked.add_argument("--hours", type=float, default=10.0, help="flat: length of the long request (default: 10)")
    asked.add_argument("--signal", choices=("KILL", "STOP"), default="KILL", help="chaos: what the engine gets")
    asked.add_argument("--model", default=MODEL, help=f"sizing: the model (default: {MODEL})")
    asked.add_argument(
        "--settings",
        type=EngineSettings.parse,
        nargs="+",
        default=(),
        metavar="REPLICAS:STREAMS:CORES:BATCH_SIZE",
        help="sizing: these in place of the grid; 0 lets the server decide",
    )
    return asked


def plan_of(arguments: argparse.Namespace) -> Plan:
    plan = {field.name: getattr(arguments, field.name) for field in fields(Plan)}
    return Plan(**plan | {"repeats": 1 if arguments.quick else arguments.repeats, "settings": tuple(plan["settings"])})


def main() -> None:
    arguments = parser().parse_args()
    # Ended from outside, the servers that were started are stopped all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    plan = plan_of(arguments)
    print(Head(shlex.join(["scripts/bench", *sys.argv[1:]]), plan).markdown(), flush=True)
    done = {}
    for name in EXPERIMENTS if arguments.experiment == "all" else [arguments.experiment]:
        report = EXPERIMENTS[name](plan)
        print(f"\n{report.markdown()}", flush=True)
        done[name] = report.document()
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(done, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
