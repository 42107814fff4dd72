"""/jobs/batch: many recordings handed in at once with the same options, looked at and cancelled together."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from access.keys import Scope
from api.handing_in import IdempotencyKey
from api.hangup import while_connected
from api.job_description import described
from api.parameters import Parameters, Reference, documentation, parse
from api.problems import InvalidParameters, responses
from api.providers import check_provider, decided, work_of
from api.security import check_scope, key_name, require_key
from api.services import Services, services
from api.transcribe import TranscribeParameters, options_of
from api.uploads import MAX_FORM_BYTES, MAX_PARTS, JsonObject, read_body
from errors import (
    IdempotencyConflict,
    InvalidLink,
    InvalidRequest,
    JobNotFound,
    LinkNotAllowed,
    NoAudio,
    NotReady,
    ProviderNotAllowed,
    QueueFull,
    QuotaUsed,
    ServiceError,
    ShuttingDown,
    StorageFull,
    StoreUnavailable,
    TooLarge,
    Unauthorized,
    UnknownModel,
    UnsupportedLanguage,
    UploadTooLarge,
)
from jobs.crew import OPTIONS
from jobs.model import Job, NewJob, State
from jobs.rows import new_id
from reservation import Work
from transcription.core import Priority

router = APIRouter(tags=["jobs"], dependencies=[Depends(require_key)])

MOST_ENTRIES = 1000
MOST_LOOKS = 4
"""Entries that are looked at at once, each in a thread: some cost 40 ms of CPU, and others need threads, too."""

_OF_THE_BATCH = frozenset({"file", "audio_file", "url", "mode", "callback_url"})
"""What a batch says outside of its options, or not at all."""

_TOO_MANY = f"a batch has at most {MOST_ENTRIES} entries, in urls and files together"
_EXAMPLE = {
    "urls": ["https://example.com/one.mp3", "https://example.com/two.mp3"],
    "options": {"language": "en", "word_timestamps": True},
}


def _pairs(value: Any) -> Any:
    """The body's reader gives an object as its pairs, so that a name that comes twice is seen."""
    if isinstance(value, JsonObject) and len(value) > MAX_PARTS:
        raise ValueError(f"must be at most {MAX_PARTS} parameters")
    if isinstance(value, JsonObject) or value in ([], {}):
        return list(value)
    raise ValueError("must be an object of parameters")


class BatchParameters(Parameters):
    """What a batch is made of."""

    urls: list[Reference] = Field(
        [], max_length=MOST_ENTRIES, description="Links to audio or video: each is fetched, then transcribed."
    )
    files: list[Reference] = Field(
        [], max_length=MOST_ENTRIES, description="Ids or paths of files on the server, as `audio_file` takes them."
    )
    options: Annotated[
        list[tuple[str, Any]], BeforeValidator(_pairs), WithJsonSchema({"type": "object", "default": {}})
    ] = Field([], description="Parameters of /transcribe, the same for all.")
    callback_url: str | None = Field(
        None, max_length=2000, description="Where to send a signed webhook, one for each job that is over."
    )


class BatchAccepted(BaseModel):
    """A batch that will be done."""

    batch_id: str = Field(examples=["5b1f0c9d3e7a4f6c8d1e2a3b4c5d6e7f"])
    jobs: list[str] = Field(description="The jobs' ids: those of the urls in their order, then those of the files.")
    status_url: str


class BatchJob(BaseModel):
    """One job of a batch."""

    id: str
    state: State


class BatchSummary(BaseModel):
    """How a batch stands."""

    batch_id: str
    states: dict[State, int] = Field(
        description="How many jobs are in each state.",
        examples=[{"queued": 6, "running": 1, "succeeded": 3, "failed": 0, "cancelled": 0}],
    )
    audio_seconds: float = Field(description="Heard so far.", examples=[1873.2])
    of_audio_seconds: float = Field(
        description="The recordings' lengths, as far as they are known: a link's only once it is fetched.",
        examples=[5210.7],
    )
    expected_end: datetime | None = Field(None, description="Of the whole batch, where it can be told.")
    jobs: list[BatchJob] = Field(description="In the order of the request.")


Urgency = Annotated[
    Literal["interactive", "batch"],
    Header(alias="X-Priority", description="interactive: take turns with those who wait for an answer."),
]

OWN = (Unauthorized, JobNotFound, NotReady, StoreUnavailable)


def _documented() -> dict[str, Any]:
    """OpenAPI's words for the body: its options are those of /transcribe."""
    schema = BatchParameters.model_json_schema()
    body = documentation(TranscribeParameters, example={})["requestBody"]["content"]["application/json"]["schema"]
    options = {name: one for name, one in body["properties"].items() if name not in _OF_THE_BATCH}
    schema["properties"]["options"]["properties"] = options
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": _EXAMPLE}}}}


@router.post(
    "/jobs/batch",
    summary="Transcribe many recordings",
    status_code=202,
    responses=responses(
        *(Unauthorized, InvalidRequest, NoAudio, UnknownModel, UnsupportedLanguage, InvalidLink, LinkNotAllowed),
        *(TooLarge, UploadTooLarge, QueueFull, QuotaUsed, IdempotencyConflict, NotReady, ShuttingDown, StorageFull),
        ProviderNotAllowed,
        StoreUnavailable,
    ),
    openapi_extra=_documented(),
)
async def submit_batch(
    request: Request, response: Response, urgency: Urgency = "batch", idempotency_key: IdempotencyKey = None
) -> BatchAccepted:
    """One job for each link and each stored file, all or none: what is wrong with an entry is told before any is made.

    Uploads are handed in one by one, with `mode=async`.
    """
    parts, key = services(request), key_name(request)
    check_scope(request, Scope.TRANSCRIBE)
    parts.admission.check_accepts(Work.TRANSCRIPTION, key)
    asked = await _read(request)
    if asked.urls:
        check_scope(request, Scope.DOWNLOAD)
    if asked.callback_url is not None:
        parts.webhooks.check(asked.callback_url)
    pattern = replace(
        _pattern(parts, asked),
        key=key,
        priority=max(Priority[urgency.upper()], parts.keys.ceiling(key)),
        batch_id=new_id(),
    )
    entries = [_Entry("urls", n, url) for n, url in enumerate(asked.urls)]
    entries += [_Entry("files", n, file) for n, file in enumerate(asked.files)]
    sizes_s = await while_connected(request, _checked(parts, pattern, entries))
    parts.admission.check_accepts(Work.TRANSCRIPTION, key, sum(size_s or 0.0 for size_s in sizes_s))
    new = [
        replace(pattern, source=pattern.source | {entry.source: entry.reference}, size=size_s)
        for entry, size_s in zip(entries, sizes_s, strict=True)
    ]
    if idempotency_key is not None:
        # The first one stands for all.
        new[0] = replace(new[0], idempotency_key=idempotency_key, fingerprint=_fingerprint(new))
    made = await parts.desk.submit_many(new)
    batch_id = made[0].batch_id or ""
    response.headers["Location"] = status_url = f"/jobs/batch/{batch_id}"
    return BatchAccepted(batch_id=batch_id, jobs=[job.id for job in made], status_url=status_url)


@router.get("/jobs/batch/{batch_id}", summary="How a batch stands", responses=responses(*OWN))
async def get_batch(request: Request, batch_id: str) -> BatchSummary:
    """All its jobs in one: where they are, how much is done, and when the last one is likely to end."""
    parts = services(request)
    return await _summary(parts, batch_id, await _jobs_of(parts, batch_id, key_name(request)))


@router.delete("/jobs/batch/{batch_id}", summary="Cancel a batch", responses=responses(*OWN))
async def cancel_batch(request: Request, batch_id: str) -> BatchSummary:
    """Its queued jobs end at once, those that run within a batch of segments; those that are over stay as they are."""
    parts, key = services(request), key_name(request)
    found = [job for job in await _jobs_of(parts, batch_id, key) if not job.state.is_over]
    # Those that wait first: none is to begin because another one has ended.
    for job in sorted(found, key=lambda job: job.state is State.RUNNING):
        with contextlib.suppress(JobNotFound):
            await parts.desk.cancel(job.id, key)
    return await _summary(parts, batch_id, await _jobs_of(parts, batch_id, key))


# --- handing in ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """One recording, and where in the request it stands."""

    field: Literal["urls", "files"]
    number: int
    reference: str

    @property
    def source(self) -> str:
        """As a job calls it."""
        return self.field.removesuffix("s")


async def _read(request: Request) -> BatchParameters:
    """Raises InvalidRequest, NoAudio, UploadTooLarge, ClientGone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest("A batch is sent as JSON (Content-Type: application/json).")
    # JSON is never written to a file.
    body = await read_body(request, services(request).work_folder / "unused", MAX_FORM_BYTES)
    asked = parse(BatchParameters, [*request.query_params.multi_items(), *body.fields])
    if not asked.urls and not asked.files:
        raise NoAudio("No audio was given: name links in urls, or stored files in files.")
    if len(asked.urls) + len(asked.files) > MOST_ENTRIES:
        raise InvalidParameters([("files" if asked.files else "urls", _TOO_MANY)])
    return asked


def _pattern(parts: Services, asked: BatchParameters) -> NewJob:
    """What the jobs of a batch have in common. Raises what options can raise, each fault with its place."""
    foreign = [name for name, _ in asked.options if name in _OF_THE_BATCH]
    if foreign:
        raise InvalidParameters([(f"options.{name}", "does not belong into a batch's options") for name in foreign])
    try:
        wanted = parse(TranscribeParameters, asked.options)
    except InvalidParameters as error:
        raise InvalidParameters([(f"options.{name}", detail) for name, detail in error.faults]) from None
    options = options_of(wanted, default_model=parts.default_model, default_beam_size=parts.default_beam_size)
    check_provider(options, parts)
    # A batch is for the time when there is room: nothing of it is handed on by itself.
    options = replace(options, provider=decided(options, full=False))
    return NewJob(
        work=work_of(options),
        key="",
        priority=Priority.BATCH,
        source={"response_format": wanted.response_format},
        options=OPTIONS.dump_python(options, mode="json"),
        reuse=wanted.reuse,
        callback_url=asked.callback_url,
    )


async def _checked(parts: Services, pattern: NewJob, entries: Sequence[_Entry]) -> list[float | None]:
    """Each entry's length in seconds, where it is known. Raises InvalidParameters that names all that are refused."""
    looks = asyncio.Semaphore(MOST_LOOKS)
    found = await asyncio.gather(*(_size_s(parts, pattern, entry, looks) for entry in entries), return_exceptions=True)
    faults: list[tuple[str, str]] = []
    sizes_s: list[float | None] = []
    for entry, one in zip(entries, found, strict=True):
        if isinstance(one, ServiceError) and one.status < 500:
            faults.append((f"{entry.field}.{entry.number}", f"{one.code}: {one.message.removesuffix('.')}"))
        elif isinstance(one, BaseException):
            raise one
        else:
            sizes_s.append(one)
    if faults:
        raise InvalidParameters(faults, most=MOST_ENTRIES)
    return sizes_s


async def _size_s(parts: Services, pattern: NewJob, entry: _Entry, looks: asyncio.Semaphore) -> float | None:
    """Raises what can be told of one entry before it is done."""
    async with looks:
        if entry.field == "urls":
            await asyncio.to_thread(parts.fetcher.check, entry.reference)
            return None
        path = await asyncio.to_thread(parts.media.resolve, entry.reference, pattern.key)
    return await parts.transcriber.measure(path, pattern.key, pattern.priority)


def _fingerprint(new: Sequence[NewJob]) -> str:
    """Digest of all that was asked."""
    first = new[0]
    asked = [[one.source for one in new], first.options, first.reuse, first.callback_url]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


# --- looking ---------------------------------------------------------------------------------------------------------


async def _jobs_of(parts: Services, batch_id: str, key: str) -> list[Job]:
    """In the order of the request. Raises JobNotFound, also for another key's batch."""
    found = await asyncio.to_thread(parts.desk.store.listed, key, batch_id=batch_id, limit=MOST_ENTRIES)
    if not found:
        raise JobNotFound("There is no batch of that id.")
    return found[::-1]


async def _summary(parts: Services, batch_id: str, jobs: Sequence[Job]) -> BatchSummary:
    counts = Counter(job.state for job in jobs)
    return BatchSummary(
        batch_id=batch_id,
        states={state: counts[state] for state in State},
        audio_seconds=round(sum(_heard_s(job) for job in jobs), 2),
        of_audio_seconds=round(sum(job.size or 0.0 for job in jobs), 2),
        expected_end=await _expected_end(parts, jobs),
        jobs=[BatchJob(id=job.id, state=job.state) for job in jobs],
    )


def _heard_s(job: Job) -> float:
    return job.size or job.done if job.state is State.SUCCEEDED else job.done


async def _expected_end(parts: Services, jobs: Sequence[Job]) -> datetime | None:
    """When the last one is likely to be over: by what is left of the batch, and by the line before its last job.

    A length that is not known counts as the mean of those that are. None where none is, or no speed is known.
    """
    open_jobs = [job for job in jobs if not job.state.is_over]
    known_s = [job.size for job in jobs if job.size is not None]
    if not open_jobs or not known_s:
        return None
    mean_s = sum(known_s) / len(known_s)
    speed = parts.admission.lanes[Work.TRANSCRIPTION].speed
    left_s = speed.seconds_for(sum(max(0.0, (job.size or mean_s) - job.done) for job in open_jobs))
    if left_s is None:
        return None
    ends = [datetime.fromtimestamp(round(time.time() + left_s, 3), UTC)]
    waiting = [job for job in open_jobs if job.state is State.QUEUED]
    if waiting and (queue := (await described(parts, waiting[-1])).queue) and queue.expected_start:
        own_s = speed.seconds_for(waiting[-1].size or mean_s) or 0.0
        ends.append(queue.expected_start + timedelta(seconds=own_s))
    return max(ends)
