"""The way of all work: its request is read, a job made of it, and that is waited for or left to be asked for later."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from access.keys import Scope
from api.gate import Patience
from api.hangup import while_connected
from api.job_description import JobDescription, described
from api.parameters import Parameters, read_request
from api.providers import Door
from api.security import check_scope, key_name
from api.services import Services, services
from api.streaming import Stream, Telling
from api.uploads import Upload
from errors import IdempotencyConflict, StoreUnavailable, UploadGone
from jobs.crew import Outcome
from jobs.model import NewJob
from jobs.vocabulary import hotwords
from reservation import OF_AUDIO, Work
from workfolder import private_folder

JOB_ERRORS = (IdempotencyConflict, StoreUnavailable, UploadGone)
"""What every endpoint that makes a job may answer besides its own."""

ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "The job, with mode=async or Prefer: respond-async: ask for it later.",
        "model": JobDescription,
        "headers": {"Preference-Applied": {"schema": {"const": "respond-async"}}},
    }
}
"""What every endpoint answers that makes a job of what is not waited for."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key with the same request gives the same job, however often it is sent.",
    ),
]
Prefer = Annotated[str | None, Header(alias="Prefer", description="respond-async: as mode=async.")]


class JobParameters(Parameters):
    """What may be asked of any work."""

    mode: Literal["sync", "async"] = Field(
        "sync", description="async: answer with a job at once, to be asked for later."
    )
    callback_url: str | None = Field(
        None, max_length=2000, description="Where to send a signed webhook when the job is over."
    )


P = TypeVar("P", bound=JobParameters)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request comes to, checked: the job's own part of it."""

    source: dict[str, Any]
    options: dict[str, Any]
    reuse: bool = False


async def handed_in(
    request: Request,
    work: Work,
    patience: Patience,
    idempotency_key: str | None,
    prefer: str | None,
    model: type[P],
    *,
    max_bytes: int,
    check: Callable[[P], object],
    want: Callable[[P, Upload | None], Wanted],
    answer: Callable[[P, Outcome], Awaitable[Response]],
    telling: Telling = lambda asked: None,
) -> Response:
    """The answer to a request for *work*: what has come of it, or 202 and the job, or events while it goes on.

    *check* looks at the parameters, before the body is read where that brings none; *want* makes a job of them and of
    the file; *telling* says who writes the events that they ask for. Raises what these raise, what the gate raises,
    and the errors of the work itself.
    """
    stream = Stream()

    async def done() -> Response | Outcome:
        parts, key = services(request), key_name(request)
        declared = request.headers.get("content-length", "")
        parts.disk.check_room(min(int(declared), max_bytes) if declared.isdecimal() else 0)
        background = request.query_params.get("mode") == "async" or _prefers_async(prefer)
        async with contextlib.AsyncExitStack() as stack:
            door = Door(request, work, patience, stack, chooses="provider" in model.model_fields)
            if background:
                parts.admission.check_accepts(work, key)
            else:
                await door.enter()
            folder = stack.enter_context(private_folder(parts.work_folder))
            asked, upload = await read_request(request, model, folder / "upload", max_bytes, check)
            wanted = want(asked, upload)
            if url := wanted.source.get("url"):
                check_scope(request, Scope.DOWNLOAD)
                parts.fetcher.check(url)
            if work is Work.TRANSCRIPTION and (words := await asyncio.to_thread(parts.vocabularies.text, key)):
                own = {"hotwords": hotwords(wanted.options.get("hotwords"), words)}
                wanted = replace(wanted, options=wanted.options | own)
            kind, options = await door.decided(wanted.options)
            place = door.place
            path = upload.path if upload else None
            if asked.callback_url is not None:
                parts.webhooks.check(asked.callback_url)
            new = NewJob(
                work=kind,
                key=key,
                priority=max(patience.priority, parts.keys.ceiling(key)),
                source=wanted.source,
                options=options,
                reuse=wanted.reuse,
                callback_url=asked.callback_url,
                idempotency_key=idempotency_key,
            )
            if idempotency_key is not None:
                new = replace(new, fingerprint=await asyncio.to_thread(_fingerprint, new, path))
            if place is None or asked.mode == "async":
                return await _accepted(parts, new, path)
            if teller := telling(asked):
                stream.open(teller)
                return await parts.desk.attend(new, path, folder, place, stream.hear)
            outcome = await while_connected(request, parts.desk.attend(new, path, folder, place))
        return await answer(asked, outcome)

    return await stream.answered(done())


async def _accepted(parts: Services, new: NewJob, upload: Path | None) -> Response:
    """202 and the job, which is safe now. What cannot be transcribed is refused at once."""
    is_here = not new.source.get("url")
    if is_here and new.work in OF_AUDIO:
        named = contextlib.nullcontext(upload) if upload else parts.media.opened(new.source["file"], new.key)
        async with named as source:
            size_s = await parts.transcriber.measure(source, new.key, new.priority)
        parts.admission.check_accepts(new.work, new.key, size_s)
        new = replace(new, size=size_s)
    elif is_here and upload is None:
        await asyncio.to_thread(parts.media.check, new.source["file"], new.key)
    job = await parts.desk.submit(new, upload)
    content = (await described(parts, job)).model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, 202, {"Location": f"/jobs/{job.id}", "Preference-Applied": "respond-async"})


def _prefers_async(prefer: str | None) -> bool:
    """RFC 7240: preferences are separated by commas, and each may have parameters."""
    return any(
        preference.partition(";")[0].strip().lower() == "respond-async" for preference in (prefer or "").split(",")
    )


def _fingerprint(new: NewJob, upload: Path | None) -> str:
    """Digest of all that was asked."""
    asked = [new.work, new.source, new.options, new.reuse, new.callback_url]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    if upload is not None:
        with upload.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
