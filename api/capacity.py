"""GET /capacity: what memory there is, what runs and waits, and why not more."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

import prices
from admission import AdmissionController
from api.problems import responses
from api.security import guarded
from api.services import Services, services
from errors import NotReady, Unauthorized
from jobs.fleet import Member
from lanes import Lane
from limits import Plan
from memory_watch import MemoryWatch
from reservation import Work

router = APIRouter(tags=["operations"], dependencies=[Depends(guarded("capacity"))])

WHY = {
    "cores": "The cores are the limit: more memory would not make it faster.",
    "memory": "The memory is the limit: with more of it, more would be decoded at once.",
    "setting": "ENGINE_REPLICAS, ENGINE_STREAMS or BATCH_SIZE is the limit.",
    "gpu": "The GPU is the limit: its batches are as large as is useful.",
}


class Pressure(BaseModel):
    """Of the time, how much is lost to waiting for memory, in percent (Linux's PSI)."""

    some_avg10_percent: float
    some_avg60_percent: float
    full_avg10_percent: float
    full_avg60_percent: float
    source: str = Field(examples=["cgroup v2"])


class Events(BaseModel):
    """How often this container met its limits since it was made."""

    oom_kill: int
    oom: int
    high: int
    max: int


class Device(BaseModel):
    """Bytes of main memory, or of one GPU."""

    device: str = Field(examples=["memory"])
    total_bytes: int = Field(examples=[2147483648])
    used_bytes: int
    free_bytes: int
    budget_bytes: int | None = Field(None, description="What requests may hold beside engine and server.")
    reserved_bytes: int | None = Field(None, description="What requests hold of it now, by their prices.")
    source: str = Field(description="What tells of the total.", examples=["cgroup v2"])
    pressure: Pressure | None = None
    events: Events | None = None


class PlanShown(BaseModel):
    """What one device runs."""

    device: str = Field(examples=["cpu"])
    replicas: int
    streams: int = Field(description="Batches that each replica decodes at the same time.")
    threads: int = Field(description="Of each stream.")
    express: bool = Field(description="Whether there is one stream more, for clips alone.")
    batch_size: int
    replica_bytes: int = Field(description="A replica's share of the memory.")
    limited_by: str = Field(examples=["cores"])
    why: str


class WorkShown(BaseModel):
    """One kind of work at the gate."""

    slots: int = Field(description="Pieces at once.")
    kept_for_clips: int = Field(description="Of these, for recordings of up to a minute alone.")
    active: int
    arriving: int = Field(description="Requests whose bodies are being read or whose files are looked at.")
    waiting: int
    oldest_wait_s: float | None
    expected_wait_s: float | None = Field(description="Of a newcomer; null before any speed was measured.")
    speed: float | None = Field(description="Measured: seconds of audio, or pieces, a second.")


class Queue(BaseModel):
    """The line for transcriptions."""

    waiting: int
    max_waiting: int
    oldest_wait_s: float | None
    expected_wait_s: float | None
    max_wait_s: float
    timeout_s: float
    waits_for_memory: bool = Field(description="Whether work waits because other processes hold the memory.")


class Speed(BaseModel):
    audio_s_per_s: float | None = Field(description="Seconds of audio a second, over the last minute of work.")


class SeenShown(BaseModel):
    """An engine with the default model alone: as it is planned, and as it was seen in this start and those before."""

    model: str = Field(examples=["base"])
    predicted_bytes: int = Field(description="The process at most, by the plan.")
    predicted_load_bytes: int = Field(description="Its weights, once loaded.")
    peak_bytes: int | None = Field(description="The largest process; null before the first look at one.")
    load_bytes: int | None = Field(description="What the last loading took; null before the first.")
    work_s: float = Field(description="At work while it was looked at.")


class Prices(BaseModel):
    """What work is expected to take, in bytes of main memory."""

    engines_bytes: int = Field(description="All engines at most, with the default model.")
    server_bytes: int
    transcription_bytes: int = Field(description="Of a recording of ten minutes, beside the engine.")
    download_bytes: int
    extraction_bytes: int
    seen: SeenShown | None = Field(description="null where other machines have the engines.")


class WorkerShown(BaseModel):
    """A process that does jobs, as it described itself within the last minute."""

    id: str
    host: str
    seen_s_ago: float
    devices: list[str] = Field(examples=[["cuda:0"]])
    plans: list[PlanShown]
    slots: dict[str, int] = Field(description="Jobs at once, by kind of work.")
    running: int
    loaded: list[str] = Field(description="Models in memory.")
    version: str


class Jobs(BaseModel):
    """Jobs of all machines; null while the database does not answer."""

    queued: dict[Work, int]
    running: dict[Work, int]
    oldest_s: float | None = Field(description="How long the first in line has waited.")


class Capacity(BaseModel):
    workers: list[WorkerShown]
    jobs: Jobs | None
    devices: list[Device]
    plans: list[PlanShown]
    work: dict[Work, WorkShown]
    queue: Queue
    speed: Speed
    prices: Prices
    service_bytes: int = Field(description="Resident memory of the server and its children now.")
    service_peak_bytes: int = Field(description="The most it was seen to hold since it started.")


@router.get("/capacity", summary="What runs, what waits, and why not more", responses=responses(Unauthorized, NotReady))
async def capacity(request: Request) -> Capacity:
    """For operators: the memory of each device, the plan and its limit, prices, and the lines at the gate."""
    parts = services(request)
    gate = parts.admission
    lane = gate.lanes[Work.TRANSCRIPTION]
    return Capacity(
        workers=[_worker(member) for member in parts.fleet.members],
        jobs=Jobs(**asdict(parts.fleet.backlog)) if parts.fleet.backlog else None,
        devices=_devices(gate, parts.memory),
        plans=[_plan(plan) for plan in parts.sizes.plans],
        work={work: _work(gate, work) for work in gate.lanes},
        queue=Queue(
            waiting=lane.waiting,
            max_waiting=gate.bounds.max_waiting,
            oldest_wait_s=gate.oldest_wait_s(lane),
            expected_wait_s=gate.expected_wait_s(Work.TRANSCRIPTION),
            max_wait_s=gate.bounds.max_wait_s,
            timeout_s=gate.bounds.timeout_s,
            waits_for_memory=gate.pressed,
        ),
        speed=Speed(audio_s_per_s=lane.speed.per_s),
        prices=_prices(parts),
        service_bytes=parts.memory.view.own_bytes,
        service_peak_bytes=parts.memory.peak_bytes,
    )


def _worker(member: Member) -> WorkerShown:
    facts = member.facts
    plans = [_plan(Plan(**plan)) for plan in facts.plans]
    own = {"id": member.id, "seen_s_ago": member.seen_s_ago, "plans": plans}
    return WorkerShown(**asdict(facts) | own)


def _devices(gate: AdmissionController, memory: MemoryWatch) -> list[Device]:
    view = memory.view
    shown = []
    for name, reading in view.devices.items():
        budget = gate.memory.get(name)
        device = Device(
            device=name,
            total_bytes=reading.total_bytes,
            used_bytes=reading.used_bytes,
            free_bytes=reading.free_bytes,
            source=reading.source,
            budget_bytes=budget and budget.budget_bytes,
            reserved_bytes=budget and budget.lent_bytes,
        )
        if name == prices.MEMORY:
            device.pressure = Pressure(**asdict(view.pressure)) if view.pressure else None
            device.events = Events(**asdict(view.events)) if view.events else None
        shown.append(device)
    return shown


def _plan(plan: Plan) -> PlanShown:
    limit = "gpu" if plan.limited_by == "cores" and plan.device != "cpu" else plan.limited_by
    return PlanShown(**asdict(plan) | {"limited_by": limit, "why": WHY[limit]})


def _work(gate: AdmissionController, work: Work) -> WorkShown:
    lane: Lane = gate.lanes[work]
    return WorkShown(
        slots=lane.slots,
        kept_for_clips=lane.kept,
        active=len(lane.active) - (lane.called is not None),
        arriving=lane.arriving,
        waiting=lane.waiting,
        oldest_wait_s=gate.oldest_wait_s(lane),
        expected_wait_s=gate.expected_wait_s(work),
        speed=lane.speed.per_s,
    )


def _prices(parts: Services) -> Prices:
    return Prices(
        engines_bytes=parts.sizes.engine_bytes,
        server_bytes=prices.SERVER_BYTES,
        transcription_bytes=prices.transcription_bytes(600.0),
        download_bytes=prices.DOWNLOAD_BYTES,
        extraction_bytes=prices.FFMPEG_BYTES,
        seen=None if parts.sizes.elsewhere else _seen(parts),
    )


def _seen(parts: Services) -> SeenShown:
    model = parts.default_model
    seen = parts.seen.of(*parts.sizes.key(model))
    return SeenShown(
        model=model,
        predicted_bytes=parts.sizes.most_bytes(model),
        predicted_load_bytes=parts.sizes.weights_bytes(model),
        peak_bytes=seen.peak_bytes or None,
        load_bytes=seen.load_bytes,
        work_s=seen.work_s,
    )
