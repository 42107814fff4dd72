"""`python -m limits plan`: what a machine would run, one's own or one that is not there. Starts and loads nothing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import classic
from cores import available_cores
from errors import ServiceError
from limits import MOST_STREAMS, Footprint, Plan, plan
from memory import MemoryReading, cuda_memory, read_ram
from transcription.footprint import footprint
from transcription.models import CATALOGUE, ModelSpec, spec

MIB, GIB = 2**20, 2**30

DEFAULT_MODEL = "base"
ASSUMED_CORES = 2

RAILWAY_MB = (512, 1024, 2048, 4096, 8192, 16384, 32768)
RAILWAY_MODELS = ("tiny.en", "base", "small", "medium", "turbo", "large-v2", "large-v3")

UNITS = {"": MIB, "MB": MIB, "MIB": MIB, "GB": GIB, "GIB": GIB}
"""Memory is sold and limited in powers of two, whatever it is called; MEMORY_LIMIT_MB counts so, too."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with what went into it."""

    model: ModelSpec
    memory: MemoryReading
    cores: int
    cost: Footprint
    plan: Plan

    @property
    def fits(self) -> bool:
        """Whether one batch of one segment finds room; `limits.plan` gives that much in any case."""
        return self.cost.total_bytes(1, 1) <= self.plan.replica_bytes

    @property
    def idle_bytes(self) -> int:
        """The engine with its model loaded and nothing to do."""
        return self.cost.process_bytes + self.cost.weights_bytes

    @property
    def most_bytes(self) -> int:
        """Every stream with a full batch, or while the model is loaded, whichever is more."""
        return self.cost.total_bytes(self.plan.streams + self.plan.express, self.plan.batch_size)

    @property
    def segments(self) -> int:
        """Decoded at the same time, the express stream's not counted."""
        return self.plan.streams * self.plan.batch_size


def planned(model: ModelSpec, memory: MemoryReading, cores: int, device: str) -> Planned:
    """The server's own plan where nothing is set: one engine, compute type "auto"."""
    cost = footprint(model, "auto", device)
    return Planned(model, memory, cores, cost, plan(memory, cores, device, cost))


def next_smaller(too_large: Planned) -> Planned | None:
    """The largest model below *too_large*'s that fits the same machine and knows more than English where it does."""
    least_bytes = too_large.cost.total_bytes(1, 1)
    fitting = [
        other
        for model in CATALOGUE
        if model.english_only == too_large.model.english_only
        if (other := planned(model, too_large.memory, too_large.cores, too_large.plan.device)).fits
        if other.cost.total_bytes(1, 1) < least_bytes
    ]
    return max(fitting, key=lambda other: other.cost.total_bytes(1, 1), default=None)


# --- one machine -----------------------------------------------------------------------------------------------------


def described(made: Planned) -> str:
    """The plan in lines for people, the classic rule below it; or why there is none and what fits instead."""
    if not made.fits:
        return "\n".join([_machine(made), "", _refusal(made)])
    chosen = made.plan
    threads = f"{_count(chosen.streams, 'stream')} of {_count(chosen.threads, 'thread')}"
    share_bytes = chosen.replica_bytes
    rows = {
        "engine": f"{_count(chosen.replicas, 'replica')}, which holds the weights once",
        "decodes": f"{threads if chosen.device == 'cpu' else '1 stream'}, batches of up to {chosen.batch_size}",
        "for clips": "one stream more, the express stream" if chosen.express else "no stream of their own",
        "limited by": _limit(made),
        "memory": f"{shown(made.idle_bytes)} idle, up to {shown(made.most_bytes)} at work or while it loads",
        "for requests": f"{shown(share_bytes - made.idle_bytes)} beside the idle engine, "
        f"{shown(share_bytes - made.most_bytes)} beside the busiest",
    }
    return "\n".join([_machine(made), "", *(f"{name:<13} {text}" for name, text in rows.items()), "", _compared(made)])


def _machine(made: Planned) -> str:
    memory, kind = made.memory, "main memory" if made.plan.device == "cpu" else "GPU memory"
    used = f", {shown(memory.used_bytes)} in use" if memory.used_bytes else ""
    engine = f"{shown(made.plan.replica_bytes)} for the engine"
    cores = f", {_count(made.cores, 'core')}" if made.plan.device == "cpu" else ""
    return f"{made.model.name} in {shown(memory.total_bytes)} of {kind} ({memory.source}{used}; {engine}){cores}"


def _refusal(made: Planned) -> str:
    needs = f"{made.model.name} does not fit: it takes {shown(made.cost.total_bytes(1, 1))} at the least."
    if smaller := next_smaller(made):
        return f"{needs} The next smaller model that fits is {smaller.model.name}."
    return f"{needs} No smaller model fits either."


def _limit(made: Planned) -> str:
    chosen = made.plan
    if chosen.limited_by == "memory":
        return "memory: with more of it, more streams or larger batches"
    if chosen.device != "cpu":
        return "the largest batch that pays on a GPU: more memory would add nothing"
    if not chosen.express:
        return "memory: with more of it, a stream for clips"
    if chosen.streams == MOST_STREAMS < made.cores:
        return f"the most streams that pay, {MOST_STREAMS}: more cores give each more threads, more memory adds nothing"
    return "the cores: more memory would add nothing"


def _compared(made: Planned) -> str:
    """The classic rule's engines beside the plan's one, and what the difference is by the same footprints."""
    if made.plan.device != "cpu":
        return "The classic rule has no figures for GPUs."
    size_mb = classic.size_mb(made.model.name)
    if size_mb is None:
        return f"The classic rule has no figure for {made.model.name}."
    memory_mb = made.memory.total_bytes // MIB
    desktop = classic.on_desktop(memory_mb, size_mb)
    container = classic.in_container(memory_mb, size_mb)
    engines = max(desktop.at_most, container)
    lines = [
        f"Classic rule  at most {_count(desktop.at_most, 'engine')} on a desktop ({desktop.recommended} recommended), "
        f"{container} in a container,",
        f"              each with its own copy of the weights ({size_mb / 1000:g} GB) and one recording at a time",
        f"The plan      {shown(made.cost.weights_bytes)} of weights once; "
        f"{_count(made.segments, 'segment')} at a time, of all recordings in turn",
    ]
    if made.segments > 1:
        lines.append(
            f"              A segment takes {shown(made.cost.total_bytes(1, 1))} in an engine of its own, "
            f"{shown(made.most_bytes // made.segments)} among those (both as the plan predicts)"
        )
    else:
        lines.append("              With so little memory that is no more than one engine of the rule's")
    if engines > made.cores:
        lines.append(f"              {engines} engines on {_count(made.cores, 'core')} would wait for each other")
    return "\n".join(lines)


# --- Railway's sizes -------------------------------------------------------------------------------------------------


def railway(cores: int) -> str:
    """Markdown: the plan for each of Railway's sizes and each model, and the classic rule's engines below it."""

    def cell(memory_mb: int, name: str) -> str:
        made = planned(spec(name), MemoryReading(memory_mb * MIB, 0, "assumed"), cores, "cpu")
        if not made.fits:
            return "no"
        return f"{made.plan.streams} × {made.plan.batch_size}{'+' * made.plan.express}, {shown(made.most_bytes)}"

    def engines(memory_mb: int, name: str) -> str:
        size_mb = classic.size_mb(name)
        return "" if size_mb is None else str(classic.in_container(memory_mb, size_mb))

    return "\n".join(
        [
            f"The plan with {_count(cores, 'core')}; how many a service gets is not known here (--cores).",
            "Streams × segments in a batch, + for a stream for clips; what the engine takes at most; no: does not fit.",
            "",
            *_table(cell),
            "",
            "The classic rule's engines in such a container, each with its own weights and one recording at a time:",
            "",
            *_table(engines),
        ]
    )


def _table(cell: Callable[[int, str], str]) -> list[str]:
    rows = [["memory", *RAILWAY_MODELS], ["---"] * (1 + len(RAILWAY_MODELS))]
    rows += [[_railway_size(mb), *(cell(mb, name) for name in RAILWAY_MODELS)] for mb in RAILWAY_MB]
    return [f"| {' | '.join(row)} |" for row in rows]


def _railway_size(memory_mb: int) -> str:
    return f"{memory_mb} MB" if memory_mb < 1024 else f"{memory_mb // 1024} GB"


# --- the command -----------------------------------------------------------------------------------------------------


def shown(size_bytes: int) -> str:
    """For people: "352 MiB", "1.9 GiB"."""
    return f"{size_bytes / MIB:.0f} MiB" if size_bytes < GIB else f"{size_bytes / GIB:.1f} GiB"


def bytes_of(text: str) -> int:
    """Bytes of "512MB", "8GB", "2GiB", or of a plain number, which counts MiB. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]I?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    found = int(float(match[1]) * UNITS[(match[2] or "").upper()]) if match else 0
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512MB, 8GB or 2GiB; a plain number counts MiB")
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _cores(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of cores")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m limits", description="How much of the engine a machine gets.")
    command = parser.add_subparsers(required=True, metavar="plan").add_parser(
        "plan",
        help="what a machine would run",
        description="What a machine would run; without --ram, this one. Exit status 1 where the model does not fit.",
        epilog="Sizes: 512MB, 8GB, 2GiB; a plain number counts MiB. MB and GB are powers of two here.",
    )
    command.add_argument(
        "--ram", type=bytes_of, metavar="SIZE", help="main memory of the machine or container; default: this one's"
    )
    command.add_argument("--vram", type=bytes_of, metavar="SIZE", help="memory of its GPU; the engine runs on that")
    command.add_argument(
        "--cores", type=_cores, metavar="N", help=f"default: this machine's, or {ASSUMED_CORES} for another machine"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one, else the CPU")
    command.add_argument("--model", metavar="NAME", help=f"default: {DEFAULT_MODEL}")
    command.add_argument(
        "--railway",
        "--table",
        action="store_true",
        help="Railway's sizes by model, as Markdown; how many cores they have is not known: name --cores",
    )
    command.set_defaults(refuse=command.error)
    return parser


def main(
    arguments: Sequence[str] | None = None,
    *,
    ram: Callable[[], MemoryReading] = read_ram,
    cuda: Callable[[], Sequence[MemoryReading]] = cuda_memory,
    own_cores: Callable[[], int] = available_cores,
) -> int:
    """Prints what is asked for and returns the exit status; raises SystemExit (2) for arguments that are wrong."""
    given = _parser().parse_args(arguments)
    if given.railway:
        if given.ram or given.vram or given.device or given.model:
            given.refuse("--railway goes with --cores only")
        print(railway(given.cores or ASSUMED_CORES))
        return 0
    elsewhere = given.ram is not None or given.vram is not None
    if given.vram and given.device == "cpu":
        given.refuse("--vram goes with --device cuda")
    try:
        model = spec(given.model or DEFAULT_MODEL)
        gpus = [MemoryReading(given.vram, 0, "assumed")] if given.vram else [] if elsewhere else list(cuda())
        if given.device == "cuda" and not gpus:
            given.refuse("there is no GPU to plan for: name its memory, --vram 24GB")
        device = given.device or ("cuda" if gpus else "cpu")
        main_memory = MemoryReading(given.ram, 0, "assumed") if given.ram else None
        memory = gpus[0] if device == "cuda" else main_memory or ram()
    except ServiceError as error:
        given.refuse(error.message)
    made = planned(model, memory, given.cores or (ASSUMED_CORES if elsewhere else own_cores()), device)
    print(described(made))
    return 0 if made.fits else 1
