"""What a level of concurrency comes to: single requests in, one line of figures out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Self

from benchmarks.concurrency_calls import Asked
from benchmarks.results import percentile


@dataclass(frozen=True, slots=True)
class Device:
    """A device's memory: the machine's or container's ("memory"), or a GPU's."""

    name: str
    used_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        return self.used_bytes / self.total_bytes


@dataclass(frozen=True, slots=True)
class Capacity:
    """What GET /capacity told at one time; None: it did not say."""

    devices: tuple[Device, ...] = ()
    slots: int | None = None
    """Transcriptions that the server works on at once."""
    waiting: int | None = None
    max_waiting: int | None = None
    max_wait_s: float | None = None

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Read the answer. What is absent or of another shape is left out: older and newer servers can be measured."""
        told = document if isinstance(document, Mapping) else {}
        devices = [
            Device(str(entry.get("device")), entry["used_bytes"], entry["total_bytes"])
            for entry in _entries(told.get("devices"))
            if _number(entry, "used_bytes") is not None and _number(entry, "total_bytes")
        ]
        slots = _number(_part(_part(told, "work"), "transcription"), "slots")
        queue = _part(told, "queue")
        waiting, max_waiting = _number(queue, "waiting"), _number(queue, "max_waiting")
        return cls(
            tuple(devices),
            None if slots is None else int(slots),
            None if waiting is None else int(waiting),
            None if max_waiting is None else int(max_waiting),
            _number(queue, "max_wait_s"),
        )


def _part(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = told.get(name)
    return part if isinstance(part, Mapping) else {}


def _entries(told: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in told if isinstance(entry, Mapping)] if isinstance(told, list) else []


def _number(told: Mapping[str, Any], name: str) -> float | None:
    value = told.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a level took of the server; None: it could not be seen from here."""

    devices: tuple[Device, ...] = ()
    """Each at its fullest. Everything in that memory counts, other programs too."""
    tree_bytes: int | None = None
    """The most that the server and its children held themselves."""
    cpu_cores: float | None = None
    """Cores that the server and its children kept busy on average."""
    slots: int | None = None
    most_waiting: int | None = None
    max_waiting: int | None = None
    max_wait_s: float | None = None

    @property
    def fullest(self) -> Device | None:
        return max(self.devices, key=lambda device: device.share, default=None)


def usage_of(seen: Sequence[Capacity], tree_bytes: int | None, cpu_cores: float | None, total_bytes: int) -> Usage:
    """The peaks of all that was seen. *total_bytes*: this machine's, for a server that does not tell its own memory."""
    fullest: dict[str, Device] = {}
    for device in (device for capacity in seen for device in capacity.devices):
        before = fullest.setdefault(device.name, device)
        fullest[device.name] = max(before, device, key=lambda one: one.share)
    if not fullest and tree_bytes:
        fullest["memory"] = Device("memory", tree_bytes, total_bytes)
    last = seen[-1] if seen else Capacity()
    waiting = [capacity.waiting for capacity in seen if capacity.waiting is not None]
    return Usage(
        tuple(fullest.values()),
        tree_bytes,
        cpu_cores,
        last.slots,
        max(waiting, default=None),
        last.max_waiting,
        last.max_wait_s,
    )


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from sending a recording to having its transcript, over those that were transcribed."""

    min_s: float
    mean_s: float
    p50_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Level:
    """One number of requests at once."""

    at_once: int
    requests: int
    wall_s: float
    audio_s: float
    """Of the recordings that were transcribed."""
    successes: int
    answers_429: int
    """Counted each time: a request that is sent again may be refused again, and succeed in the end."""
    answers_503: int
    errors: int
    """Requests that ended with neither a transcript nor one of those two."""
    codes: Mapping[str, int]
    """How often each problem came, refusals included."""
    latency: Latency | None
    """None: nothing was transcribed."""
    usage: Usage

    @property
    def speed(self) -> float:
        """Audio-seconds per second."""
        return self.audio_s / self.wall_s

    @property
    def files_per_hour(self) -> float:
        return 3_600 * self.successes / self.wall_s

    @property
    def p95_s(self) -> float:
        return self.latency.p95_s if self.latency else 0.0

    @property
    def all_served(self) -> bool:
        return self.successes == self.requests


def level_of(at_once: int, wall_s: float, asked: Sequence[Asked], usage: Usage) -> Level:
    replies = [reply for request in asked for reply in request.replies]
    served = [request for request in asked if request.succeeded]
    return Level(
        at_once=at_once,
        requests=len(asked),
        wall_s=wall_s,
        audio_s=sum(request.last.audio_s for request in served),
        successes=len(served),
        answers_429=sum(reply.status == 429 for reply in replies),
        answers_503=sum(reply.status == 503 for reply in replies),
        errors=sum(not request.succeeded and not request.last.is_refusal for request in asked),
        codes=dict(Counter(reply.code for reply in replies if reply.code)),
        latency=_latency(request.seconds for request in served),
        usage=usage,
    )


def _latency(seconds: Iterable[float]) -> Latency | None:
    values = list(seconds)
    if not values:
        return None
    return Latency(min(values), mean(values), percentile(values, 0.5), percentile(values, 0.95), max(values))
