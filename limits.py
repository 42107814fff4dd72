"""How much of a machine the engine gets (replicas, streams, threads, batch size), and who holds the rest of its memory.

Knows nothing of transcription: what a model takes comes as a Footprint, and decisions are pure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from errors import TooLarge
from memory import MemoryReading

LimitedBy = Literal["cores", "memory", "setting"]

RESERVE_SHARE = 4
LEAST_RESERVE_BYTES = 160 * 2**20
MOST_RESERVE_BYTES = 2 * 2**30
"""Of main memory a quarter is left to the server and everything else. The least is what a 512 MB container's server and
its ffmpeg were seen to take beside the engine (docs/deploy-railway.md). The most is the 2 GB that a desktop's other
programs and file cache want; from 8 GB on it does not grow, since the server does not."""

CUDA_RESERVE_SHARE = 16
"""Of a device's memory a sixteenth stays free: CTranslate2's allocator holds blocks of several sizes and loses some."""

MOST_STREAMS = 4
"""On the CPU. Streams beat threads (tiny.en, 2 cores, batches of one: 80 audio seconds a second by two streams of one
thread, 30 by one of two), but a short clip alone runs in one stream, on that stream's threads only: on many cores they
must not be too few."""

CPU_BATCH_SIZE = 4
"""Of 104 audio seconds a second with batches of 8, batches of 4 give 99 (two streams), in less memory."""

CUDA_BATCH_SIZE = 16
"""faster-whisper's own choice for its GPU benchmarks; larger ones gain little and decode as long as their longest."""


HEADROOM_BYTES = 16 * 2**20
"""Of the memory that is free at the moment, so much is left: a reading is half a second old, and the kernel's counters
lag behind by some pages a core."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that one model takes in one child process, on the device where it runs."""

    weights_bytes: int
    """As loaded; shared by all streams."""
    process_bytes: int
    """The child without a model: interpreter and libraries; on CUDA, the context."""
    batch_bytes: tuple[int, ...]
    """What a stream takes at most whose batches hold up to 1, 2, 3 … segments. Each segment beyond those takes as much
    as the last of them takes more."""
    retry_bytes: int = 0
    """What a stream takes that does a segment again, in place of its batch."""
    loading_bytes: int = 0
    """While the model is being loaded, in place of all but the process: large models then take most."""
    seen_ratio: float = 1.0
    """Of what the streams take by the figures above, so much was seen (`transcription.seen_memory`)."""

    def total_bytes(self, streams: int, batch_size: int) -> int:
        """What a child takes at most which decodes *streams* batches of *batch_size* at the same time."""
        working = self.weights_bytes + self.working_bytes(streams, batch_size)
        return self.process_bytes + max(self.loading_bytes, working)

    def working_bytes(self, streams: int, batch_size: int) -> int:
        """Of that, what the streams take: all have their largest batch, but for one that does a segment again.

        Several streams were seen at their largest at once; to do a segment again is too seldom for two to meet.
        """
        batch = self._batch_bytes(batch_size)
        return round(self.seen_ratio * ((streams - 1) * batch + max(batch, self.retry_bytes)))

    def _batch_bytes(self, batch_size: int) -> int:
        if batch_size <= len(self.batch_bytes):
            return self.batch_bytes[batch_size - 1]
        last_but_one, last = (0, *self.batch_bytes)[-2:]
        return last + (batch_size - len(self.batch_bytes)) * (last - last_but_one)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one device runs."""

    device: str
    replicas: int
    """Child processes, each with its own copy of the weights."""
    streams: int
    """Batches that each replica decodes at the same time."""
    threads: int
    """Of each stream."""
    express: bool
    """Whether each replica has one stream more, for clips alone: they wait for no long file's batch."""
    batch_size: int
    """Segments decoded together at most."""
    replica_bytes: int
    """A replica's share of the device's memory: one that takes more is to be replaced."""
    limited_by: LimitedBy
    """What kept the plan from being larger: "memory" where it did, else what was set, else the cores (or the GPU)."""


def plan(
    memory: MemoryReading,
    cores: int,
    device: str,
    model: Footprint,
    *,
    replicas: int = 0,
    streams: int = 0,
    batch_size: int = 0,
) -> Plan:
    """The plan for one device, "cpu" or "cuda…"; *memory* is that device's, read before the engine starts.

    *replicas*, *streams* and *batch_size* are upper bounds that somebody set; 0 leaves them to be decided. Memory gives
    replicas first, then streams, then the batch (two streams at a batch of one are faster than one at eight), and
    the next only where it gave all of the one before, so that more memory never means less work at once. One of each is
    the least: whether to start at all where *replica_bytes* is below even `total_bytes(1, 1)` is not decided here.
    """
    on_cpu = device == "cpu"
    most_replicas = replicas or 1
    most_streams = streams or (max(1, min(MOST_STREAMS, cores // most_replicas)) if on_cpu else 1)
    most_segments = batch_size or (CPU_BATCH_SIZE if on_cpu else CUDA_BATCH_SIZE)
    budget_bytes = max(0, min(memory.total_bytes - reserve_bytes(memory.total_bytes, device), memory.free_bytes))
    steps = [
        *((count, 1, 1) for count in range(1, most_replicas + 1)),
        *((most_replicas, count, 1) for count in range(2, most_streams + 1)),
        *((most_replicas, most_streams, size) for size in range(2, most_segments + 1)),
    ]
    fitting = list(takewhile(lambda step: step[0] * model.total_bytes(*step[1:]) <= budget_bytes, steps))
    chosen_replicas, chosen_streams, chosen_size = fitting[-1] if fitting else (1, 1, 1)
    with_express = chosen_replicas * model.total_bytes(chosen_streams + 1, chosen_size)
    limited_by: LimitedBy = "setting" if replicas or streams or batch_size else "cores"
    return Plan(
        device=device,
        replicas=chosen_replicas,
        streams=chosen_streams,
        threads=max(1, cores // (chosen_replicas * chosen_streams)) if on_cpu else 1,
        express=on_cpu and with_express <= budget_bytes,
        batch_size=chosen_size,
        replica_bytes=budget_bytes // chosen_replicas,
        limited_by=limited_by if len(fitting) == len(steps) else "memory",
    )


def reserve_bytes(total_bytes: int, device: str) -> int:
    """What is kept from the engine, of main memory or of a CUDA device's."""
    if device != "cpu":
        return total_bytes // CUDA_RESERVE_SHARE
    return min(MOST_RESERVE_BYTES, max(LEAST_RESERVE_BYTES, total_bytes // RESERVE_SHARE))


class MemorySemaphore:
    """Bytes of one device, lent to the work that runs: never more than *budget_bytes* together. Lives on one loop.

    First come, first served: what is large and waits is not passed by what is small. Nothing is lent either where
    the device has not so much free at the moment, because other processes have eaten it.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.lent_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._seen_free_bytes: int | None = None
        self._lent_since_bytes = 0

    def __repr__(self) -> str:
        return f"<MemorySemaphore {self.lent_bytes} of {self.budget_bytes}, waiting={len(self._waiting)}>"

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for their bytes."""
        return len(self._waiting)

    @property
    def pressed(self) -> bool:
        """Whether somebody waits though the budget has room for it: other processes have its memory."""
        return bool(self._waiting) and self._has_room(self._waiting[0][0]) and not self._is_free(self._waiting[0][0])

    def fits(self, amount_bytes: int) -> bool:
        """Whether so much would be lent at once."""
        return not self._waiting and self._has_room(amount_bytes) and self._is_free(amount_bytes)

    def observe(self, free_bytes: int) -> None:
        """Tell what the device has free now, as it was read."""
        self._seen_free_bytes = free_bytes
        self._lent_since_bytes = 0
        self._lend()

    def check(self, amount_bytes: int) -> None:
        """Raises TooLarge where the whole budget does not suffice."""
        if amount_bytes > self.budget_bytes:
            raise TooLarge(
                f"This needs {amount_bytes / 2**20:.0f} MiB, and this server has {self.budget_bytes / 2**20:.0f} MiB."
            )

    async def acquire(self, amount_bytes: int) -> None:
        """Wait until *amount_bytes* are lent. Raises TooLarge where they never will be."""
        self.check(amount_bytes)
        if self.fits(amount_bytes):
            self._take(amount_bytes)
            return
        lent = asyncio.get_running_loop().create_future()
        waiting = (amount_bytes, lent)
        self._waiting.append(waiting)
        try:
            await lent
        except asyncio.CancelledError:
            if not lent.cancelled():
                self.release(amount_bytes)
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
                self._lend()
            raise

    def release(self, amount_bytes: int) -> None:
        self.lent_bytes -= amount_bytes
        self._lend()

    def _has_room(self, amount_bytes: int) -> bool:
        return self.lent_bytes + amount_bytes <= self.budget_bytes

    def _is_free(self, amount_bytes: int) -> bool:
        if self._seen_free_bytes is None:
            return True
        return self._lent_since_bytes + amount_bytes + HEADROOM_BYTES <= self._seen_free_bytes

    def _take(self, amount_bytes: int) -> None:
        self.lent_bytes += amount_bytes
        self._lent_since_bytes += amount_bytes

    def _lend(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][0]) and self._is_free(self._waiting[0][0]):
            amount_bytes, lent = self._waiting.popleft()
            if not lent.done():
                self._take(amount_bytes)
                lent.set_result(None)


class SharedMemory:
    """Bytes that several pieces of work hold together, such as a process that serves them all: lent to the first of
    them, given back by the last. Lives on one loop.

    NOTE: who asks for the same name must do so one after another, as one lane of the gate does.
    """

    def __init__(self, memory: MemorySemaphore) -> None:
        self._memory = memory
        self._holders: dict[str, int] = {}
        self._held_bytes: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<SharedMemory {self._holders}>"

    def missing_bytes(self, wanted: Mapping[str, int]) -> int:
        """What would have to be lent besides, by name."""
        return sum(amount for name, amount in wanted.items() if name not in self._holders)

    async def acquire(self, name: str, amount_bytes: int) -> None:
        """Raises TooLarge where so much will never be lent."""
        if name not in self._holders:
            await self._memory.acquire(amount_bytes)
            self._held_bytes[name] = amount_bytes
        self._holders[name] = self._holders.get(name, 0) + 1

    def release(self, name: str) -> None:
        self._holders[name] -= 1
        if not self._holders[name]:
            del self._holders[name]
            self._memory.release(self._held_bytes.pop(name))


if __name__ == "__main__":
    from planning import main

    raise SystemExit(main())
