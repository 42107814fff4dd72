"""From this machine's memory and cores to its engines: what each device runs, and how large batches may be. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from errors import ConfigurationError, TooLarge
from limits import Footprint, Plan, plan
from memory import MemoryReading
from transcription.footprint import CPU_BATCH_S, footprint
from transcription.models import CATALOGUE, ModelSpec, spec
from transcription.placement import Placement
from transcription.seen_memory import UNSEEN, Key, Seen, corrected

OVER_PLAN = 1.5
"""A process that takes so many times what was planned for it is replaced even where its share of the memory is less:
below that, a prediction that is a little off would have it replaced after every batch."""

UNKNOWN_GPU = MemoryReading(8 * 2**30, 0, "assumed")
"""A GPU whose memory its driver does not tell. Batches that do not fit are halved anyhow."""


HOST_BYTES_OF_CUDA_ENGINE = 2 * 2**30
"""Main memory of a process that computes on a GPU: CUDA's libraries, the weights on their way. Assumed."""

CUDA_BATCHES_AHEAD = 2
"""Requests worth so many batches are worked on beside a GPU: it must not wait for voice activity."""

LEAST_SLOTS = 2
"""Requests at once: one that is long, and a clip beside it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody has set; zeros and "auto" leave it to the plan."""

    devices: Sequence[str] = ("auto",)
    compute_type: str = "auto"
    replicas: int = 0
    streams: int = 0
    batch_size: int = 0
    beam_size: int = 5
    """Where the caller names none."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """The engines of this machine and what may share a batch on them."""

    plans: tuple[Plan, ...]
    placements: tuple[Placement, ...]
    batch_size: int
    batch_s: float
    smaller_batches: dict[tuple[str, str], int]
    """By device and model, where less fits than *batch_size*."""

    engine_bytes: int
    """Main memory that all engines are expected to take at most, with the first model."""

    costs: Mapping[str, Footprint]
    """What each model takes on the first engine's device, corrected by what was seen."""

    elsewhere: bool = False
    """Other machines have the engines: nothing of this one says what they can hold."""

    @property
    def slots(self) -> int:
        """Requests that keep the engines' batches full."""
        return max(LEAST_SLOTS, sum(map(slots, self.plans)))

    def check_fits(self, name: str) -> None:
        """Raises TooLarge where the model of that name can be loaded nowhere here, not even for one segment."""
        if self.elsewhere:
            return
        most_bytes = max(plan.replica_bytes for plan in self.plans)
        first = self.placements[0]
        needed_bytes = self.cost(name).total_bytes(1, 1)
        if needed_bytes > max(most_bytes, first.bound_bytes or 0):
            raise TooLarge(
                f"The model {name} needs {needed_bytes / 2**20:.0f} MiB, and this server has "
                f"{most_bytes / 2**20:.0f} MiB for a model: choose a smaller one."
            )

    def together(self, device: str, one: str, other: str) -> bool:
        """Whether an engine on *device* holds both models at the same time."""
        place = next((place for place in self.placements if place.device == device), self.placements[0])
        return self.weights_bytes(one) + self.weights_bytes(other) <= place.models_bytes

    def weights_bytes(self, name: str) -> int:
        """What the model of that name takes once it is loaded, before it decodes anything."""
        return self.cost(name).weights_bytes

    def cost(self, name: str) -> Footprint:
        """What the model of that name, or alias, takes."""
        return self.costs[spec(name).name]

    def key(self, name: str) -> Key:
        """By which it is known what that model was seen to take."""
        first = self.placements[0]
        return _key(spec(name), first.compute_type, first.device.partition(":")[0])

    def busiest(self, name: str) -> tuple[int, int]:
        """Streams of the first engine, that for clips included, and segments in their batches of that model."""
        first = self.placements[0]
        smaller = self.smaller_batches.get((self.plans[0].device, spec(name).name), self.batch_size)
        return first.streams + first.express, min(smaller, self.batch_size)

    def most_bytes(self, name: str) -> int:
        """What one engine's process is expected to take at most, with that model alone."""
        return self.cost(name).total_bytes(*self.busiest(name))


def sized(
    model: ModelSpec,
    wish: Wish,
    ram: MemoryReading,
    cuda: Sequence[MemoryReading],
    cores: int,
    seen: Mapping[Key, Seen] | None = None,
) -> Sizing:
    """*model*: what is loaded first. *cuda*: one reading a device; *cores*: of all engines together.

    *seen*: what models were seen to take before.
    """
    names = devices(wish.devices, len(cuda))
    plans: list[Plan] = []
    placements: list[Placement] = []
    engine_bytes = 0
    smaller: dict[tuple[str, str], int] = {}
    costs: list[dict[str, Footprint]] = []
    for name in names:
        kind, _, index = name.partition(":")
        memory = ram if kind == "cpu" else dict(enumerate(cuda)).get(int(index), UNKNOWN_GPU)
        cost = {other.name: priced(other, wish, kind, seen or {}) for other in CATALOGUE}
        costs.append(cost)

        def planned(
            which: str,
            name: str = name,
            replicas: int = wish.replicas if kind == "cpu" else 1,
            memory: MemoryReading = memory,
            cost: dict[str, Footprint] = cost,
        ) -> Plan:
            knobs = {"replicas": replicas, "streams": wish.streams, "batch_size": wish.batch_size}
            return plan(memory, cores, name, cost[which], **knobs)

        chosen = planned(model.name)
        plans.append(chosen)
        placements += [placement(chosen, cost[model.name], wish)] * chosen.replicas
        replica_bytes = planned_bytes(chosen, cost[model.name]) if kind == "cpu" else HOST_BYTES_OF_CUDA_ENGINE
        engine_bytes += chosen.replicas * replica_bytes
        smaller |= {(name, other): planned(other).batch_size for other in cost}
    batch_size = min(chosen.batch_size for chosen in plans)
    return Sizing(
        plans=tuple(plans),
        placements=tuple(placements),
        batch_size=batch_size,
        batch_s=CPU_BATCH_S if any(name == "cpu" for name in names) else math.inf,
        smaller_batches={which: size for which, size in smaller.items() if size < batch_size},
        engine_bytes=engine_bytes,
        costs=costs[0],
    )


def priced(model: ModelSpec, wish: Wish, kind: str, seen: Mapping[Key, Seen]) -> Footprint:
    """What *model* takes on that kind of device, by its dimensions and by what was seen of it."""
    predicted = footprint(model, wish.compute_type, kind, wish.beam_size)
    if kind != "cpu":
        return predicted
    return corrected(predicted, seen.get(_key(model, wish.compute_type, kind), UNSEEN))


def _key(model: ModelSpec, compute_type: str, kind: str) -> Key:
    if compute_type == "auto":
        compute_type = "int8" if kind == "cpu" else "float16"
    return kind, compute_type, model.name


def placement(chosen: Plan, model: Footprint, wish: Wish) -> Placement:
    """One of *chosen*'s replicas. What its first model does not take is room for others beside it."""
    on_cpu = chosen.device == "cpu"
    needed_bytes = planned_bytes(chosen, model)
    return Placement(
        device=chosen.device,
        compute_type=wish.compute_type,
        streams=chosen.streams,
        express=chosen.express,
        threads=chosen.threads,
        models_bytes=max(0, chosen.replica_bytes - needed_bytes) + model.weights_bytes,
        # A GPU's models do not lie in main memory.
        bound_bytes=max(chosen.replica_bytes, round(OVER_PLAN * needed_bytes)) if on_cpu else None,
    )


def planned_bytes(chosen: Plan, model: Footprint) -> int:
    """What one of *chosen*'s replicas is expected to take at most."""
    return model.total_bytes(chosen.streams + chosen.express, chosen.batch_size)


def slots(chosen: Plan) -> int:
    """Requests that keep *chosen*'s batches full."""
    ahead = 1 if chosen.device == "cpu" else CUDA_BATCHES_AHEAD
    return chosen.replicas * (ahead * chosen.streams * chosen.batch_size + chosen.express)


def devices(wanted: Sequence[str], cuda_devices: int) -> list[str]:
    """Names as engines know them: "cpu", "cuda:0" …; "auto": every GPU, else the CPU. Raises ConfigurationError."""
    wrong = [name for name in wanted if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name)]
    if wrong or not wanted or ("auto" in wanted and len(wanted) > 1):
        raise ConfigurationError(f"DEVICES={','.join(wanted)}: it takes auto, cpu, or GPUs such as cuda:0,cuda:1.")
    if list(wanted) == ["auto"]:
        return [f"cuda:{index}" for index in range(cuda_devices)] or ["cpu"]
    return [f"{name}:0" if name == "cuda" else name for name in wanted]
