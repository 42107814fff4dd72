"""From this machine's memory and cores to its engines: what each device runs, and how large batches may be. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from errors import ConfigurationError
from limits import Footprint, Plan, plan
from memory import MemoryReading
from transcription.footprint import footprint
from transcription.models import CATALOGUE, ModelSpec, spec
from transcription.placement import Placement

CPU_BATCH_S = 40.0
"""Audio in a batch on a CPU, where it takes as long as its audio: four segments of the shortest window's length."""

OVER_PLAN = 1.5
"""A process that takes so many times what was planned for it is replaced even where its share of the memory is less:
below that, a prediction that is a little off would have it replaced after every batch."""

UNKNOWN_GPU = MemoryReading(8 * 2**30, 0, "assumed")
"""A GPU whose memory its driver does not tell. Batches that do not fit are halved anyhow."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody has set; zeros and "auto" leave it to the plan."""

    devices: Sequence[str] = ("auto",)
    compute_type: str = "auto"
    replicas: int = 0
    streams: int = 0
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class Sizing:
    """The engines of this machine and what may share a batch on them."""

    plans: tuple[Plan, ...]
    placements: tuple[Placement, ...]
    batch_size: int
    batch_s: float
    smaller_batches: dict[tuple[str, str], int]
    """By device and model, where less fits than *batch_size*."""

    def weights_bytes(self, name: str) -> int:
        """What the model of that name takes once it is loaded, before it decodes anything."""
        first = self.placements[0]
        return footprint(spec(name), first.compute_type, first.device).weights_bytes


def sized(model: ModelSpec, wish: Wish, ram: MemoryReading, cuda: Sequence[MemoryReading], cores: int) -> Sizing:
    """*model*: what is loaded first. *cuda*: one reading a device; *cores*: of all engines together."""
    names = devices(wish.devices, len(cuda))
    plans: list[Plan] = []
    placements: list[Placement] = []
    smaller: dict[tuple[str, str], int] = {}
    for name in names:
        kind, _, index = name.partition(":")
        memory = ram if kind == "cpu" else dict(enumerate(cuda)).get(int(index), UNKNOWN_GPU)

        def planned(which: ModelSpec, name: str = name, kind: str = kind, memory: MemoryReading = memory) -> Plan:
            replicas = wish.replicas if kind == "cpu" else 1
            cost = footprint(which, wish.compute_type, kind)
            return plan(memory, cores, name, cost, replicas=replicas, streams=wish.streams, batch_size=wish.batch_size)

        chosen = planned(model)
        plans.append(chosen)
        placements += [placement(chosen, footprint(model, wish.compute_type, kind), wish)] * chosen.replicas
        smaller |= {(name, other.name): planned(other).batch_size for other in CATALOGUE}
    batch_size = min(chosen.batch_size for chosen in plans)
    return Sizing(
        plans=tuple(plans),
        placements=tuple(placements),
        batch_size=batch_size,
        batch_s=CPU_BATCH_S if any(name == "cpu" for name in names) else math.inf,
        smaller_batches={which: size for which, size in smaller.items() if size < batch_size},
    )


def placement(chosen: Plan, model: Footprint, wish: Wish) -> Placement:
    """One of *chosen*'s replicas. What its first model does not take is room for others beside it."""
    on_cpu = chosen.device == "cpu"
    planned_bytes = model.total_bytes(chosen.streams + chosen.express, chosen.batch_size)
    return Placement(
        device=chosen.device,
        compute_type=wish.compute_type,
        streams=chosen.streams,
        express=chosen.express,
        threads=chosen.threads,
        models_bytes=max(0, chosen.replica_bytes - planned_bytes) + model.weights_bytes,
        # A GPU's models do not lie in main memory.
        bound_bytes=max(chosen.replica_bytes, round(OVER_PLAN * planned_bytes)) if on_cpu else None,
    )


def devices(wanted: Sequence[str], cuda_devices: int) -> list[str]:
    """Names as engines know them: "cpu", "cuda:0" …; "auto": every GPU, else the CPU. Raises ConfigurationError."""
    wrong = [name for name in wanted if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name)]
    if wrong or not wanted or ("auto" in wanted and len(wanted) > 1):
        raise ConfigurationError(f"DEVICES={','.join(wanted)}: it takes auto, cpu, or GPUs such as cuda:0,cuda:1.")
    if list(wanted) == ["auto"]:
        return [f"cuda:{index}" for index in range(cuda_devices)] or ["cpu"]
    return [f"{name}:0" if name == "cuda" else name for name in wanted]
