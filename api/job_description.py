"""A job as its caller sees it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.security import stream_token
from api.services import Services
from jobs.model import Job, Stage, State
from reservation import Work


class JobQueue(BaseModel):
    """Where a queued job stands."""

    model_config = ConfigDict(title="JobQueue")

    position: int = Field(description="Jobs that are likely to start before this one.", examples=[3])
    expected_start: datetime | None = Field(None, description="Where the speed is known.")
    expected_end: datetime | None = Field(None, description="Where the recording's length is known, too.")


class JobProgress(BaseModel):
    """How far a job has come."""

    model_config = ConfigDict(title="JobProgress")

    stage: Stage | None = Field(None, description="What it is at, while it runs.")
    stage_done: float | None = Field(
        None, description="Of the stage, from 0 to 1, where that is known.", examples=[0.4]
    )
    audio_seconds: float = Field(description="Heard so far.", examples=[73.2])
    of_audio_seconds: float | None = Field(
        None, description="The recording's length, where it is known.", examples=[834.1]
    )
    expected_end: datetime | None = Field(None, description="Where the speed is known.")


class JobError(BaseModel):
    """What ended a failed job."""

    model_config = ConfigDict(title="JobError")

    code: str = Field(description="Stable, as in a problem.", examples=["NO_MEDIA_AT_URL"])
    status: int = Field(description="What a call that waits would have had.", examples=[422])
    message: str = Field(examples=["No audio or video was found at the link."])


class JobDelivery(BaseModel):
    """A webhook about a job."""

    model_config = ConfigDict(title="JobDelivery")

    event: str = Field(examples=["job.succeeded"])
    attempts: int = Field(examples=[1])
    status: int | None = Field(None, description="The receiver's last answer.", examples=[204])
    delivered_at: datetime | None = None
    next_attempt_at: datetime | None = Field(None, description="null: delivered, or given up.")
    failure: str | None = Field(None, description="Why the last attempt was not taken.")


class JobDescription(BaseModel):
    """A piece of work that outlives its request."""

    model_config = ConfigDict(title="Job")

    id: str = Field(examples=["0f0c5d7e9a7b4f6c8d1e2a3b4c5d6e7f"])
    kind: Work
    state: State
    batch_id: str | None = None
    file_name: str | None = Field(None, description="Of an upload, as its sender named it.", examples=["talk.mp3"])
    file: str | None = Field(None, description="Id or path of a stored file.")
    url: str | None = Field(None, description="The link that is fetched.")
    options: dict[str, Any] = Field(description="What was asked for, the server's defaults filled in.")
    attempt: int = Field(description="How often it was begun.", examples=[1])
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queue: JobQueue | None = None
    progress: JobProgress | None = None
    timings: dict[str, float] | None = Field(None, description="Seconds of each stage.")
    error: JobError | None = None
    deliveries: list[JobDelivery] | None = Field(None, description="Webhooks to callback_url, oldest first.")
    result_url: str | None = Field(None, description="Where the result is, once there is one.")
    events_url: str = Field(description="Opens without a key, for a browser's EventSource: keep it as the job itself.")


async def described(parts: Services, job: Job) -> JobDescription:
    """*job*, with its place in the queue where it waits."""
    queue = None
    if job.state is State.QUEUED:
        position, amount = await asyncio.to_thread(parts.desk.store.ahead_of, job)
        starts_s, lasts_s = _until_turn_s(parts, job, amount), _lasts_s(parts, job, job.size)
        ends_s = None if starts_s is None or lasts_s is None else starts_s + lasts_s
        queue = JobQueue(position=position, expected_start=_after(starts_s), expected_end=_after(ends_s))
    return JobDescription(
        id=job.id,
        kind=job.work,
        state=job.state,
        batch_id=job.batch_id,
        file_name=job.source.get("name"),
        file=job.source.get("file"),
        url=job.source.get("url"),
        options=job.options,
        attempt=job.attempt,
        created_at=_moment(job.created_at),
        started_at=job.started_at and _moment(job.started_at),
        finished_at=job.finished_at and _moment(job.finished_at),
        queue=queue,
        progress=_progress(parts, job),
        timings={stage: round(seconds, 3) for stage, seconds in job.timings.items()} or None,
        error=JobError(**job.error) if job.error else None,
        deliveries=await _deliveries(parts, job) if job.callback_url else None,
        result_url=f"/jobs/{job.id}/result" if job.state is State.SUCCEEDED else None,
        events_url=f"/jobs/{job.id}/events?token={stream_token(parts, job.id)}",
    )


async def _deliveries(parts: Services, job: Job) -> list[JobDelivery]:
    return [
        JobDelivery(
            event=row["event"],
            attempts=row["attempts"],
            status=row["status"],
            delivered_at=row["delivered_at"] and _moment(row["delivered_at"]),
            next_attempt_at=row["due_at"] and _moment(row["due_at"]),
            failure=row["failure"],
        )
        for row in await asyncio.to_thread(parts.desk.store.deliveries_of, job.id)
    ]


def _progress(parts: Services, job: Job) -> JobProgress | None:
    if job.state is State.QUEUED:
        return None
    expected_end = None
    if job.state is State.RUNNING and job.size and job.stage in (Stage.DECODING, Stage.TRANSCRIBING):
        expected_end = _after(_lasts_s(parts, job, max(0.0, job.size - job.done)))
    return JobProgress(
        stage=job.stage,
        stage_done=job.stage_done,
        audio_seconds=round(job.done, 2),
        of_audio_seconds=job.size,
        expected_end=expected_end,
    )


def _until_turn_s(parts: Services, job: Job, amount_ahead: float) -> float | None:
    """Seconds until a queued job is likely to start: what is at work here, then what waits before it."""
    ahead_s = parts.admission.expected_wait_s(job.work, job.key, job.priority)
    waiting_s = parts.admission.lanes[job.work].speed.seconds_for(amount_ahead)
    return None if ahead_s is None or waiting_s is None else ahead_s + waiting_s


def _lasts_s(parts: Services, job: Job, amount: float | None) -> float | None:
    """Seconds that so much of its work takes, at the speed that was measured here."""
    return None if amount is None else parts.admission.lanes[job.work].speed.seconds_for(amount)


def _after(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(time.time() + seconds)


def _moment(seconds: float) -> datetime:
    """Whole milliseconds: nobody waits for less."""
    return datetime.fromtimestamp(round(seconds, 3), UTC)
