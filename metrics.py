"""What Prometheus reads at GET /metrics: what has happened since the start, and how things stand at the moment.

Nothing global: each server has one `Metrics`, and so has each test. docs/metrics.md says what each metric means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import prices
from admission import AdmissionController
from errors import (
    DeadlineTooNear,
    KeyBusy,
    QueueFull,
    QueueTimeout,
    QuotaUsed,
    ServiceError,
    ShuttingDown,
    TooLarge,
)
from memory_watch import MemoryWatch
from reservation import Work
from transcription.core import Transcript

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REFUSALS = (TooLarge, QueueFull, KeyBusy, QuotaUsed, QueueTimeout, DeadlineTooNear, ShuttingDown)
"""Work that was not let in, or not in time: more capacity would help. Everything else is an error."""

WAIT_BUCKETS_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900)
"""Up to QUEUE_TIMEOUT_S as it is where nothing is set: nobody waits longer."""

STAGE_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800, 3600, 7200, 14400)
"""From a clip's decoding to a day's recording on a small machine."""

FILL_BUCKETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)

SPEED_BUCKETS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
"""From a large model on a small CPU to a small one on a GPU."""


class Metrics:
    """Counts what happens. `show` adds what is read when Prometheus asks."""

    def __init__(self) -> None:
        # NOTE: the library's own switch, for the whole process. Each counter would have a second series with its birth.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._waits = self._histogram(
            "stenogate_queue_wait_seconds", "Waiting in the line, of work that was let in.", WAIT_BUCKETS_S, "work"
        )
        self._stages = self._histogram(
            "stenogate_stage_seconds", "Stages of a transcription. They overlap.", STAGE_BUCKETS_S, "stage"
        )
        self._totals = self._histogram(
            "stenogate_transcription_seconds", "From the body to the transcript, waiting included.", STAGE_BUCKETS_S
        )
        self._speeds = self._histogram(
            "stenogate_real_time_factor", "Seconds of audio a second of a request's work.", SPEED_BUCKETS, "model"
        )
        self._fills = self._histogram(
            "stenogate_batch_fill_ratio", "Segments in a batch, of those that may share it.", FILL_BUCKETS
        )
        self._audio = self._counter("stenogate_audio_seconds_total", "Audio that was transcribed.", "model")
        self._refusals = self._counter("stenogate_refusals_total", "Work that was not let in.", "code", "status")
        self._errors = self._counter("stenogate_errors_total", "Other problems answered.", "code", "status")
        # A series that begins with its first event never shows it: rate() sees no increase.
        for work in Work:
            self._waits.labels(work)
        for kind in _kinds(ServiceError):
            self._problems(kind)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def _problems(self, kind: type[ServiceError]) -> Counter:
        counter = self._refusals if issubclass(kind, REFUSALS) else self._errors
        return counter.labels(kind.code, kind.status)

    def waited(self, work: Work, seconds: float) -> None:
        """A piece of work was let in after so long."""
        self._waits.labels(work).observe(seconds)

    def transcribed(self, transcript: Transcript) -> None:
        for stage, seconds in transcript.timings_s.items():
            if stage == "total":
                self._totals.observe(seconds)
            elif stage != "queue":  # `waited` knows it, and of what was let in and failed, too
                self._stages.labels(stage).observe(seconds)
        self._audio.labels(transcript.model).inc(transcript.duration_s)
        self._speeds.labels(transcript.model).observe(transcript.real_time_factor)

    def heard(self, model: str, duration_s: float) -> None:
        """So much audio was heard in a session of live text."""
        self._audio.labels(model).inc(duration_s)

    def batch(self, segments: int, of: int) -> None:
        """A batch goes to an engine; *of* is how many may share one there."""
        self._fills.observe(segments / of)

    def answered(self, error: ServiceError) -> None:
        """A caller was told of *error*."""
        self._problems(type(error)).inc()

    def show(self, state: Collector) -> None:
        """From now on *state* is read, too, each time that somebody asks."""
        self._registry.register(state)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)


class EngineMemory(Protocol):
    @property
    def resident_bytes(self) -> int:
        """Main memory of all engines' processes, as it was last seen."""


class State(Collector):
    """How things stand, read when somebody asks. NOTE: on the gate's event loop, where nothing changes meanwhile."""

    def __init__(
        self, gate: AdmissionController, memory: MemoryWatch, engines: EngineMemory, *, engines_bytes: int
    ) -> None:
        """*engines_bytes*: main memory that the engines are expected to take at most."""
        self._gate = gate
        self._memory = memory
        self._engines = engines
        self._engines_bytes = engines_bytes

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._of_the_gate()
        yield from self._of_devices()
        yield from self._of_the_service()

    def _of_the_gate(self) -> Iterator[GaugeMetricFamily]:
        gate, lanes = self._gate, self._gate.lanes.items()
        slots = {work: lane.slots for work, lane in lanes}
        active = {work: len(lane.active) - (lane.called is not None) for work, lane in lanes}
        waiting = {work: lane.waiting for work, lane in lanes}
        oldest_s = {work: gate.oldest_wait_s(lane) or 0.0 for work, lane in lanes}
        speed = gate.lanes[Work.TRANSCRIPTION].speed.per_s
        yield gauges("stenogate_slots", "Pieces of work at once.", "work", slots)
        yield gauges("stenogate_active", "Pieces of work under way.", "work", active)
        yield gauges("stenogate_waiting", "Pieces of work in the line.", "work", waiting)
        yield gauges("stenogate_oldest_wait_seconds", "Of who is in the line; 0: nobody is.", "work", oldest_s)
        yield gauge("stenogate_speed_ratio", "Seconds of audio a second, over a minute of work.", speed)
        yield gauge("stenogate_memory_pressed", "1 while work waits for memory that others hold.", gate.pressed)

    def _of_devices(self) -> Iterator[GaugeMetricFamily]:
        devices, lent = self._memory.view.devices.items(), self._gate.memory.items()
        total_bytes = {name: reading.total_bytes for name, reading in devices}
        used_bytes = {name: reading.used_bytes for name, reading in devices}
        free_bytes = {name: reading.free_bytes for name, reading in devices}
        budget_bytes = {name: memory.budget_bytes for name, memory in lent}
        reserved_bytes = {name: memory.lent_bytes for name, memory in lent}
        yield gauges("stenogate_memory_total_bytes", "Memory that may be used.", "device", total_bytes)
        yield gauges("stenogate_memory_used_bytes", "Of it, used by anybody.", "device", used_bytes)
        yield gauges("stenogate_memory_free_bytes", "Of it, free.", "device", free_bytes)
        yield gauges("stenogate_memory_budget_bytes", "What requests may reserve.", "device", budget_bytes)
        yield gauges("stenogate_memory_reserved_bytes", "What requests have reserved.", "device", reserved_bytes)

    def _of_the_service(self) -> Iterator[GaugeMetricFamily]:
        predicted_bytes, seen = self._engines_bytes, self._memory
        expected_bytes = predicted_bytes + prices.SERVER_BYTES + self._gate.memory[prices.MEMORY].lent_bytes
        yield gauge("stenogate_engine_predicted_bytes", "Engines' main memory, at most.", predicted_bytes)
        yield gauge("stenogate_engine_resident_bytes", "Engines' main memory, seen.", self._engines.resident_bytes)
        yield gauge("stenogate_service_predicted_bytes", "Engines, server and reservations.", expected_bytes)
        yield gauge("stenogate_service_resident_bytes", "Server and its children, seen.", seen.view.own_bytes)
        yield gauge("stenogate_service_peak_resident_bytes", "The most that they were seen to hold.", seen.peak_bytes)


def gauge(name: str, meaning: str, value: float | None) -> GaugeMetricFamily:
    """Without a series where there is no value yet."""
    return GaugeMetricFamily(name, meaning, value)


def gauges(name: str, meaning: str, label: str, values: Mapping[Any, float]) -> GaugeMetricFamily:
    """One for each value of *label*."""
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for which, value in values.items():
        family.add_metric([str(which)], value)
    return family


def _kinds(parent: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield parent
    for child in parent.__subclasses__():
        yield from _kinds(child)
