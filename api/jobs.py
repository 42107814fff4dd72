"""Jobs: listed, looked at, fetched, cancelled, tried again."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from access.keys import Scope
from api.job_description import JobDescription, described
from api.media import downloaded, extracted
from api.problems import responses
from api.schemas import TRANSCRIPTION_RESPONSES, DownloadedFile, ExtractedFile, SubtitledFile
from api.security import check_scope, key_name, require_key
from api.services import Services, services
from api.subtitle import subtitled_file
from api.transcribe import rendered
from errors import (
    AlignmentUnavailable,
    AudioTooLong,
    DiarizationUnavailable,
    DownloadFailed,
    DownloadTimeout,
    DownloadTooLarge,
    EmptyMedia,
    EngineFailed,
    GpuOutOfMemory,
    InvalidLink,
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    JobNotOver,
    LinkNotAllowed,
    MediaNotFound,
    MediaTimeout,
    ModelUnavailable,
    NoAudioStream,
    NoMediaAtLink,
    NotReady,
    NotRetryable,
    OutOfMemory,
    PathNotAllowed,
    ProviderNotAllowed,
    QueueFull,
    QuotaUsed,
    ShuttingDown,
    StorageFull,
    StoreUnavailable,
    TooLarge,
    Unauthorized,
    UnsupportedLanguage,
    UnsupportedMedia,
    UploadGone,
    UpstreamFailed,
    UpstreamTimeout,
    VoiceActivityUnavailable,
    WorkerCrashed,
)
from jobs.crew import Outcome
from jobs.model import Job, State
from reservation import OF_AUDIO, Work
from telemetry import current_request_id
from transcription.core import ResponseFormat, Transcript

router = APIRouter(tags=["jobs"], dependencies=[Depends(require_key)])

ERRORS = (Unauthorized, JobNotFound, NotReady, StoreUnavailable)
MOST_LISTED = 200

_ENDINGS = (
    *(MediaNotFound, PathNotAllowed, InvalidLink, LinkNotAllowed, NoMediaAtLink, DownloadFailed, DownloadTooLarge),
    *(DownloadTimeout, AudioTooLong, EmptyMedia, UnsupportedMedia, NoAudioStream, MediaTimeout, UploadGone, TooLarge),
    *(ModelUnavailable, UnsupportedLanguage, VoiceActivityUnavailable, AlignmentUnavailable, DiarizationUnavailable),
    *(ProviderNotAllowed, UpstreamFailed, UpstreamTimeout, QuotaUsed, WorkerCrashed, OutOfMemory, GpuOutOfMemory),
    *(EngineFailed, ShuttingDown, StorageFull),
)
"""What can end a job, and is its result then."""

_TRANSCRIPT = TRANSCRIPTION_RESPONSES[200]
_RESULTS: dict[int | str, dict[str, Any]] = {
    200: _TRANSCRIPT
    | {
        "description": "The transcript, in the response format that was asked for; or the file that was stored.",
        "model": _TRANSCRIPT["model"] | DownloadedFile | ExtractedFile | SubtitledFile,
    }
}


class JobList(BaseModel):
    """Some of a key's jobs, newest first."""

    jobs: list[JobDescription]
    next: str | None = Field(None, description="Give it as `after` for the next page; null on the last one.")


@router.get("/jobs", summary="List jobs", responses=responses(*ERRORS, InvalidRequest))
async def list_jobs(
    request: Request,
    state: Annotated[list[State] | None, Query(description="Only jobs in one of these states.")] = None,
    kind: Annotated[Work | None, Query(description="Only jobs of this kind.")] = None,
    batch_id: Annotated[str | None, Query(description="Only jobs of this batch.")] = None,
    after: Annotated[str | None, Query(description="The `next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="Jobs on a page.")] = 50,
) -> JobList:
    """Those of the key that asks, newest first."""
    parts = services(request)
    found = await asyncio.to_thread(
        parts.desk.store.listed,
        key_name(request),
        states=state or (),
        work=kind,
        batch_id=batch_id,
        before=after,
        limit=limit + 1,
    )
    page = found[:limit]
    return JobList(jobs=[await described(parts, job) for job in page], next=page[-1].id if len(found) > limit else None)


@router.get("/jobs/{id}", summary="How a job stands", responses=responses(*ERRORS))
@router.get(
    "/transcribe/{id}/status", summary="How a job stands", name="transcription_status", responses=responses(*ERRORS)
)
async def get_job(request: Request, id: str) -> JobDescription:
    """Its state, its place in the queue, how far it has come, and what ended it."""
    parts = services(request)
    return await described(parts, await _job(parts, request, id))


@router.get(
    "/jobs/{id}/result",
    summary="What a job has come to",
    response_class=Response,
    responses=_RESULTS | responses(*ERRORS, InvalidRequest, JobNotOver, JobCancelled, *_ENDINGS),
)
async def get_result(
    request: Request,
    id: str,
    response_format: Annotated[
        ResponseFormat | None, Query(description="How a transcript is written; absent: as the job's request said.")
    ] = None,
) -> Response:
    """What the call that made the job would have had, had it waited: also its error."""
    parts = services(request)
    job = await _job(parts, request, id)
    outcome = await parts.desk.outcome(job, job.key)
    return await asyncio.to_thread(_written, job, outcome, response_format, current_request_id() or "")


@router.delete("/jobs/{id}", summary="Cancel a job", responses=responses(*ERRORS))
async def cancel_job(request: Request, id: str) -> JobDescription:
    """A queued job ends at once, a running one within a batch; one that is over stays as it is."""
    parts = services(request)
    return await described(parts, await parts.desk.cancel(id, key_name(request)))


@router.post(
    "/jobs/{id}/retry",
    summary="Try a failed or cancelled job again",
    responses=responses(*ERRORS, NotRetryable, QueueFull, UploadGone),
)
async def retry_job(request: Request, id: str) -> JobDescription:
    """What was finished of it is not done again."""
    parts = services(request)
    if (await _job(parts, request, id)).source.get("url"):
        check_scope(request, Scope.DOWNLOAD)
    return await described(parts, await parts.desk.retry(id, key_name(request)))


async def _job(parts: Services, request: Request, id: str) -> Job:
    return await asyncio.to_thread(parts.desk.store.get, id, key_name(request))


def _written(job: Job, outcome: Outcome, asked: ResponseFormat | None, request_id: str) -> Response:
    if isinstance(outcome, Transcript):
        return rendered(outcome, asked or ResponseFormat(job.source["response_format"]), request_id)
    if job.work in OF_AUDIO:
        answer: Any = subtitled_file(outcome)
    else:
        answer = downloaded(outcome) if job.work is Work.DOWNLOAD else extracted(outcome)
    return JSONResponse(answer.model_dump(mode="json"))
