"""What Prometheus is told: counted as it happens, read as it stands, documented to the last name."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
from fastapi import FastAPI
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

import prices
from admission import AdmissionController, Bounds
from api.gate import GATE_ERRORS
from errors import InvalidRequest, NoAudio, QueueFull, ServiceError, ShuttingDown, WorkerCrashed
from jobs.database import Database
from jobs.fleet import Backlog, Facts, Fleet, FleetWatch, Member
from jobs.fleet_metrics import FleetState
from limits import MemorySemaphore
from memory import MemoryReading
from memory_watch import MemoryView, MemoryWatch
from metrics import REFUSALS, Metrics, State
from reservation import Work
from tests.fakes import AUTH, MIB, Caller, Parts
from tests.gates import Clock
from tests.unit.test_docs import rows
from transcription.core import Task, Transcript

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/metrics.md"


def families(metrics: Metrics) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}


def value(metrics: Metrics, sample: str, **labels: str) -> float | None:
    """Of the series of that name and exactly those labels; None where there is none."""
    found = [one for family in families(metrics).values() for one in family.samples if one.name == sample]
    return next((one.value for one in found if one.labels == labels), None)


def transcript(model: str = "base", **timings_s: float) -> Transcript:
    return Transcript((), "en", 0.9, 30.0, Task.TRANSCRIBE, model, "cpu", "int8", timings_s)


# --- what happens ----------------------------------------------------------------------------------------------------


def test_waits_are_told_by_the_kind_of_work() -> None:
    """A download that waits says nothing of transcriptions; 15 minutes is the last bound, as it is the longest wait."""
    metrics = Metrics()
    metrics.waited(Work.DOWNLOAD, 3.0)
    metrics.waited(Work.DOWNLOAD, 899.0)

    def waits_up_to(bound: str, work: str) -> float | None:
        return value(metrics, "stenogate_queue_wait_seconds_bucket", le=bound, work=work)

    assert [waits_up_to(bound, "download") for bound in ("2.5", "5.0", "900.0")] == [0, 1, 2]
    assert value(metrics, "stenogate_queue_wait_seconds_sum", work="download") == 902.0
    assert value(metrics, "stenogate_queue_wait_seconds_count", work="transcription") == 0


def test_stages_are_told_apart_and_the_total_is_none_of_them() -> None:
    """A sum over stages must not count the total again, nor the wait, which is counted when it ends."""
    metrics = Metrics()
    metrics.transcribed(transcript(queue=7.0, decode=1.0, transcribe=2.0, total=12.0))
    metrics.transcribed(transcript(decode=3.0, total=4.0))
    stages = [one.labels["stage"] for one in families(metrics)["stenogate_stage_seconds"].samples]
    assert set(stages) == {"decode", "transcribe"}
    assert value(metrics, "stenogate_stage_seconds_sum", stage="decode") == 4.0
    assert value(metrics, "stenogate_stage_seconds_count", stage="transcribe") == 1
    assert value(metrics, "stenogate_transcription_seconds_sum") == 16.0


def test_speed_is_told_by_model() -> None:
    """Audio a second of work, as the answer says it: waiting for a turn is no work."""
    metrics = Metrics()
    metrics.transcribed(transcript("base", queue=7.0, total=10.0))
    metrics.transcribed(transcript("large-v3", total=60.0))
    assert value(metrics, "stenogate_real_time_factor_sum", model="base") == 10.0
    assert value(metrics, "stenogate_real_time_factor_sum", model="large-v3") == 0.5
    assert value(metrics, "stenogate_audio_seconds_total", model="base") == 30.0


def test_batches_are_told_by_how_full_they_are() -> None:
    """Three of four places and one of four: half of them are used."""
    metrics = Metrics()
    metrics.batch(3, of=4)
    metrics.batch(1, of=4)
    assert value(metrics, "stenogate_batch_fill_ratio_bucket", le="0.25") == 1
    assert value(metrics, "stenogate_batch_fill_ratio_sum") == 1.0
    assert value(metrics, "stenogate_batch_fill_ratio_count") == 2


def test_refusals_are_told_apart_from_errors() -> None:
    """More capacity helps against the one, not against the other."""
    metrics = Metrics()
    metrics.answered(QueueFull(retry_after_s=3))
    for error in (NoAudio(), WorkerCrashed(), WorkerCrashed()):
        metrics.answered(error)
    assert value(metrics, "stenogate_refusals_total", code="QUEUE_FULL", status="429") == 1
    assert value(metrics, "stenogate_errors_total", code="QUEUE_FULL", status="429") is None
    assert value(metrics, "stenogate_errors_total", code="WORKER_CRASHED", status="503") == 2
    assert value(metrics, "stenogate_errors_total", code="NO_AUDIO", status="422") == 1


def test_an_error_of_a_finer_kind_counts_under_its_code() -> None:
    """Callers know codes; what the service calls it inside is its own affair."""

    class Finer(InvalidRequest):
        pass

    metrics = Metrics()
    metrics.answered(Finer("beam_size: too large."))
    assert value(metrics, "stenogate_errors_total", code="INVALID_REQUEST", status="422") == 1


def test_the_first_of_a_kind_is_an_increase() -> None:
    """A series that begins at 1 has no increase in Prometheus's eyes: the first crash would raise no alert."""
    metrics = Metrics()
    assert value(metrics, "stenogate_errors_total", code="WORKER_CRASHED", status="503") == 0
    assert value(metrics, "stenogate_errors_total", code="INTERNAL_ERROR", status="500") == 0
    assert value(metrics, "stenogate_refusals_total", code="QUEUE_FULL", status="429") == 0


def test_refusals_are_what_the_gate_answers() -> None:
    """A new refusal of the gate's would be counted as a failure of the service."""
    assert set(REFUSALS) == {*GATE_ERRORS, ShuttingDown}


def test_two_servers_share_nothing() -> None:
    """Tests and tools make several in one process."""
    first, second = Metrics(), Metrics()
    first.batch(1, of=4)
    assert value(second, "stenogate_batch_fill_ratio_count") == 0


# --- how things stand ------------------------------------------------------------------------------------------------


class Engines:
    resident_bytes = 700 * MIB


def gate(clock: Clock, **bounds: int) -> AdmissionController:
    slots = {Work.TRANSCRIPTION: 1, Work.DOWNLOAD: 2, Work.EXTRACTION: 3, Work.LIVE: 4}
    return AdmissionController({prices.MEMORY: MemorySemaphore(500 * MIB)}, Bounds(slots, **bounds), clock=clock)


def view(*gpus: MemoryReading, own_bytes: int = 900 * MIB) -> MemoryView:
    devices = {prices.MEMORY: MemoryReading(2048 * MIB, 1024 * MIB, "host")}
    devices |= {f"cuda:{index}": reading for index, reading in enumerate(gpus)}
    return MemoryView(devices, None, None, own_bytes)


def watched(controller: AdmissionController, seen: MemoryView, watch: MemoryWatch | None = None) -> Metrics:
    watch = watch or MemoryWatch(lambda: seen, controller)
    watch.view = seen
    metrics = Metrics()
    metrics.show(State(controller, watch, Engines(), engines_bytes=800 * MIB))
    return metrics


async def test_slots_work_and_waiting_are_read_at_the_gate() -> None:
    """As they are at that moment: nothing is counted up and down."""
    clock = Clock()
    controller = gate(clock)
    metrics = watched(controller, view())

    def told(name: str) -> list[float | None]:
        return [value(metrics, f"stenogate_{name}", work=str(work)) for work in Work]

    with controller.reserve(Work.TRANSCRIPTION) as working, controller.reserve(Work.TRANSCRIPTION) as waiting:
        await working.granted({prices.MEMORY: 100 * MIB})
        queued = asyncio.create_task(waiting.granted({prices.MEMORY: 100 * MIB}))
        await asyncio.sleep(0)
        clock.now_s += 40.0
        assert told("slots") == [1, 2, 3, 4, 0]
        assert told("active") == [1, 0, 0, 0, 0]
        assert told("waiting") == [1, 0, 0, 0, 0]
        assert told("oldest_wait_seconds") == [40.0, 0, 0, 0, 0]
        assert value(metrics, "stenogate_memory_reserved_bytes", device="memory") == 100 * MIB
        queued.cancel()
    assert (told("active"), told("waiting")) == ([0] * 5, [0] * 5)
    assert value(metrics, "stenogate_memory_reserved_bytes", device="memory") == 0


async def test_who_waits_for_memory_is_not_at_work_yet() -> None:
    """It has a slot already; what it does is wait, and when others hold the memory, that is told."""
    controller = gate(Clock())
    controller.observe({prices.MEMORY: 50 * MIB}, 0)
    metrics = watched(controller, view())
    with controller.reserve(Work.TRANSCRIPTION) as place:
        queued = asyncio.create_task(place.granted({prices.MEMORY: 100 * MIB}))
        await asyncio.sleep(0)
        assert value(metrics, "stenogate_active", work="transcription") == 0
        assert value(metrics, "stenogate_waiting", work="transcription") == 1
        assert value(metrics, "stenogate_memory_pressed") == 1
        queued.cancel()
    await asyncio.gather(queued, return_exceptions=True)
    assert value(metrics, "stenogate_memory_pressed") == 0


async def test_the_measured_speed_is_absent_until_there_is_one() -> None:
    """A zero would look like a server that stands still."""
    clock = Clock()
    controller = gate(clock)
    metrics = watched(controller, view())
    assert value(metrics, "stenogate_speed_ratio") is None
    with controller.reserve(Work.TRANSCRIPTION) as place:
        await place.granted({}, amount=60.0)
        clock.now_s += 2.0
        place.advance(60.0)
        assert value(metrics, "stenogate_speed_ratio") == 30.0


def test_memory_is_told_by_device_gpus_included() -> None:
    """What requests may hold is known of main memory alone."""
    metrics = watched(gate(Clock()), view(MemoryReading(8192 * MIB, 2048 * MIB, "driver")))

    def told(device: str) -> list[float | None]:
        names = ("total", "used", "free", "budget", "reserved")
        return [value(metrics, f"stenogate_memory_{name}_bytes", device=device) for name in names]

    assert told("memory") == [2048 * MIB, 1024 * MIB, 1024 * MIB, 500 * MIB, 0]
    assert told("cuda:0") == [8192 * MIB, 2048 * MIB, 6144 * MIB, None, None]


async def test_memory_predicted_stands_beside_memory_seen() -> None:
    """The engines alone, and everything: engines, server, and what the work at the moment has reserved."""
    controller = gate(Clock())
    metrics = watched(controller, view())
    assert value(metrics, "stenogate_engine_predicted_bytes") == 800 * MIB
    assert value(metrics, "stenogate_engine_resident_bytes") == 700 * MIB
    assert value(metrics, "stenogate_service_resident_bytes") == 900 * MIB
    assert value(metrics, "stenogate_service_predicted_bytes") == 800 * MIB + prices.SERVER_BYTES
    with controller.reserve(Work.DOWNLOAD) as place:
        await place.granted({prices.MEMORY: 100 * MIB})
        assert value(metrics, "stenogate_service_predicted_bytes") == 900 * MIB + prices.SERVER_BYTES


async def test_the_peak_stays_when_memory_is_given_back() -> None:
    """A peak between two scrapes would be seen by nobody."""
    seen = [view(own_bytes=900 * MIB)]
    controller = gate(Clock())
    async with MemoryWatch(lambda: seen[0], controller) as watch:
        metrics = watched(controller, view(own_bytes=300 * MIB), watch)
    assert value(metrics, "stenogate_service_resident_bytes") == 300 * MIB
    assert value(metrics, "stenogate_service_peak_resident_bytes") == 900 * MIB


def fleet() -> FleetWatch:
    """As it sees one worker with one device, and an empty queue."""
    facts = Facts("host", ["cpu"], [], {Work.TRANSCRIPTION: 4}, 0, "base", ["base"], "0.1.0")
    watch = FleetWatch(Fleet(Database("sqlite://")))
    watch.members, watch.backlog = [Member("host:1", 0.0, facts)], Backlog({}, {}, None)
    return watch


# --- the document ----------------------------------------------------------------------------------------------------


def test_every_metric_stands_in_the_document_with_its_type_and_labels() -> None:
    """Queries are written from the table; one that names what is not there is silent for ever."""
    metrics = watched(gate(Clock()), view())
    metrics.transcribed(transcript(decode=1.0, total=2.0))
    metrics.show(FleetState(fleet()))
    told = {}
    for cells in rows(DOCUMENT.read_text("utf-8"), "metric"):
        told[cells[0].strip("`")] = (cells[1], set(re.findall(r"`(\w+)`", cells[2])))
    text = metrics.text().decode()
    there = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M):
        labels = set(re.findall(r"(\w+)=\"", "".join(re.findall(rf"^{name}(?:_bucket)?\{{(.*)\}}", text, re.M))))
        there[name] = (kind, labels - {"le"})
    assert told == there


def test_every_query_in_the_document_names_what_is_there() -> None:
    """An alert on a name that is spelt wrong never rings."""
    text = watched(gate(Clock()), view()).text().decode()
    named = set(
        re.findall(r"\bstenogate_\w+", " ".join(re.findall(r"```promql\n(.*?)```", DOCUMENT.read_text(), re.S)))
    )
    assert named
    assert [name for name in named if not re.search(rf"^{name}\b", text, re.M)] == []


# --- over HTTP -------------------------------------------------------------------------------------------------------


async def test_prometheus_reads_them_with_a_key(client: httpx.AsyncClient) -> None:
    """In the format that every version of it takes."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'stenogate_slots{work="transcription"} 5.0\n' in answer.text
    assert (await client.get("/metrics", headers={"X-API-Key": "wrong"})).status_code == 401


async def test_a_transcript_is_counted_with_its_wait(client: httpx.AsyncClient, parts: Parts) -> None:
    """One request, one of each."""
    await client.post("/transcribe", files={"file": ("a.wav", b"hello")})
    metrics = parts.services.metrics
    assert value(metrics, "stenogate_queue_wait_seconds_count", work="transcription") == 1
    assert value(metrics, "stenogate_stage_seconds_sum", stage="transcribe") == 0.5
    assert value(metrics, "stenogate_audio_seconds_total", model="base") == 1.0


async def test_the_wait_of_a_link_is_counted_apart(client: httpx.AsyncClient, parts: Parts) -> None:
    """It stands in two lines, one after the other; its download is a stage."""
    await client.post("/transcribe", json={"url": "http://host.example/a.mp3"})
    metrics = parts.services.metrics
    assert value(metrics, "stenogate_queue_wait_seconds_count", work="download") == 1
    assert value(metrics, "stenogate_queue_wait_seconds_count", work="transcription") == 1
    assert value(metrics, "stenogate_stage_seconds_count", stage="download") == 1


async def test_what_is_let_in_and_fails_has_waited_too(client: httpx.AsyncClient, parts: Parts) -> None:
    """The wait is over when work begins, not when it ends; there is no transcript to count."""
    parts.transcriber.error = WorkerCrashed()
    await client.post("/transcribe", files={"file": ("a.wav", b"hello")})
    metrics = parts.services.metrics
    assert value(metrics, "stenogate_queue_wait_seconds_count", work="transcription") == 1
    assert value(metrics, "stenogate_transcription_seconds_count") == 0
    assert value(metrics, "stenogate_errors_total", code="WORKER_CRASHED", status="503") == 1


async def test_each_answer_with_a_problem_counts_once(client: httpx.AsyncClient, parts: Parts) -> None:
    """Whoever raised it: an endpoint, the router, the parameters' model, the key's check, or nobody who was asked."""
    parts.transcriber.error = ZeroDivisionError()
    await client.post("/transcribe")
    await client.get("/nowhere")
    await client.post("/transcribe", params={"beam_size": "99"})
    await client.get("/files", headers={"X-API-Key": "wrong"})
    await client.post("/transcribe", files={"file": ("a.wav", b"hello")})
    family = families(parts.services.metrics)["stenogate_errors"]
    counted = {one.labels["code"]: one.value for one in family.samples if one.value}
    assert counted == dict.fromkeys(
        ("NO_AUDIO", "NOT_FOUND", "INVALID_REQUEST", "UNAUTHORIZED", ServiceError.code), 1.0
    )


async def test_a_refusal_at_the_door_is_counted(app: FastAPI, parts: Parts) -> None:
    """Nothing of its body was read; it must be seen all the same."""
    parts.services.admission.close()
    caller = await Caller("/transcribe", [b"hello"], headers=AUTH | {"Content-Type": "audio/wav"}).call(app)
    assert caller.status == 503
    assert value(parts.services.metrics, "stenogate_refusals_total", code="SHUTTING_DOWN", status="503") == 1


async def test_a_problem_before_the_services_are_there_is_answered(app: FastAPI) -> None:
    """A server that starts has no metrics yet; that must not be a second failure."""
    del app.state.services
    caller = await Caller("/nowhere", method="GET").call(app)
    assert caller.status == 404
