"""GET /jobs/{id}/events: what happens to a job, told while it happens, as server-sent events."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from access.keys import Key
from api.event_stream import HEARTBEAT, HEARTBEAT_S, EventStream, documented, message, rounded
from api.job_description import JobProgress, JobQueue, described
from api.problems import responses
from api.security import require_key_or_token
from api.services import Services, services
from errors import InvalidRequest, JobNotFound, NotReady, ShuttingDown, StoreUnavailable, Unauthorized
from jobs.bells import heard_within
from jobs.desk import LOOK_S
from jobs.journal import SEGMENT_RESULT
from jobs.model import LANGUAGE, SEGMENT, Event, Job, State
from reservation import Work
from transcription.formats import segment_json

router = APIRouter(tags=["jobs"], dependencies=[Depends(require_key_or_token)])

PAGE = 100
"""Events that are read at once, and only when the caller has taken those before."""
RETRY_MS = 2000
"""What a caller waits before it comes back to a stream that broke off."""
LINE_LOOK_S = 5.0
"""How often a queued job's place is looked for: counting a long line costs more than reading one row."""
SAME_MOMENT = timedelta(seconds=5)
"""An expected start that moves by less is no news."""
LAST_NUMBER = 2**31 - 1

log = structlog.get_logger(__name__)

EXAMPLE = """retry: 2000

id: 2
event: running
data: {"attempt":1}

event: progress
data: {"stage":"transcribing","audio_seconds":0.0,"of_audio_seconds":11.0}

id: 3
event: segment
data: {"start":0.3,"end":7.9,"text":"And so, my fellow Americans,"}
"""

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events until the job is over.",
        "content": documented(EXAMPLE),
    },
    204: {"description": "The job is over, and the caller has had its last event."},
}


@router.get(
    "/jobs/{id}/events",
    summary="Follow a job",
    status_code=200,
    response_class=EventStream,
    responses=ANSWERS | responses(Unauthorized, JobNotFound, InvalidRequest, NotReady, StoreUnavailable),
)
async def get_events(
    request: Request,
    id: str,
    last_event_id: Annotated[
        int | None,
        Header(alias="Last-Event-ID", ge=0, le=LAST_NUMBER, description="Only what comes after that event."),
    ] = None,
    from_query: Annotated[
        int | None,
        Query(alias="last_event_id", ge=0, le=LAST_NUMBER, description="As Last-Event-ID, which goes before it."),
    ] = None,
) -> Response:
    """Server-sent events: `queued`, `running`, `language`, `segment`, `succeeded`, `failed` and `cancelled` have ids;
    a stream that broke off goes on after the one in Last-Event-ID. `queued` and `progress` without an id tell how the
    job stands just now."""
    parts = services(request)
    # Who has the job's token may read its events, whosever job it is.
    job = await asyncio.to_thread(parts.desk.store.get, id, request.state.key_name)
    opener: Key | None = request.state.key

    async def still_open() -> None:
        if opener:
            await parts.keys.check(opener)
        else:
            await parts.keys.check_owner(job.key)

    await still_open()
    # A browser that comes back sends its header, and still the query that it began with.
    after = min((from_query or 0) if last_event_id is None else last_event_id, job.events)
    if job.state.is_over and after == job.events:
        # NOTE: the one answer after which an EventSource does not come back.
        return Response(status_code=204)
    return EventStream(followed(parts, id, after, still_open))


async def followed(
    parts: Services,
    job_id: str,
    after: int,
    still_open: Callable[[], Awaitable[None]],
    *,
    look_s: float = LOOK_S,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[str]:
    """The job's events after the number *after*, and how it stands, until it is over, gone, or this server stops, or
    *still_open* raises Unauthorized."""
    following = _Following(parts, job_id, after, clock)
    with parts.desk.bells.listening(job_id) as news:
        yield f"retry: {RETRY_MS}\n\n"
        told_at = clock()
        while not _stops(parts):
            try:
                await still_open()
                messages = await following.look()
            except (JobNotFound, Unauthorized):
                return
            except StoreUnavailable as error:
                # NOTE: an EventSource that came back now would be refused, and give up.
                log.warning("a job cannot be followed", job=job_id, code=error.code)
                messages = []
            for one in messages:
                yield one
                told_at = clock()
            if following.behind:
                continue
            if following.over:
                return
            if clock() - told_at >= HEARTBEAT_S:
                yield HEARTBEAT
                told_at = clock()
            await heard_within(news, look_s)


def _stops(parts: Services) -> bool:
    """Whether this server is about to stop: whoever follows a job is to come back to the next one."""
    try:
        parts.admission.check_accepts(Work.EXTRACTION, "")
    except ShuttingDown:
        return True
    return False


class _Following:
    """How far one caller has been told of one job."""

    def __init__(self, parts: Services, job_id: str, after: int, clock: Callable[[], float]) -> None:
        self._parts = parts
        self._job_id = job_id
        self._after = after
        self._clock = clock
        self._shown: JobQueue | JobProgress | None = None
        self._line_seen_at = -math.inf
        self.behind = False
        """There are more events that are to be told at once."""
        self.over = False

    async def look(self) -> list[str]:
        """The next page of events; where there are no more, also how the job stands, if that is news.

        Raises JobNotFound, StoreUnavailable.
        """
        store = self._parts.desk.store
        self.behind = False
        job = await asyncio.to_thread(store.get, self._job_id)
        page = await asyncio.to_thread(store.events_of, job.id, self._after, PAGE) if self._after < job.events else []
        if page:
            self._after = page[-1].number
        # Events that were written since belong to the next look, which reads the row again.
        self.behind, self.over = bool(page) and self._after < job.events, job.state.is_over
        messages = [_written(event) for event in page]
        if not self.behind and (standing := await self._standing(job)):
            messages.append(standing)
        return messages

    async def _standing(self, job: Job) -> str | None:
        """Where it waits, or how far it has come; None where that is nothing new."""
        if job.state is State.QUEUED:
            if self._clock() - self._line_seen_at < LINE_LOOK_S:
                return None
            self._line_seen_at = self._clock()
        else:
            self._line_seen_at = -math.inf
        if job.state.is_over:
            return None
        description = await described(self._parts, job)
        standing = description.queue or description.progress
        if standing is None or _alike(self._shown, standing):
            return None
        self._shown = standing
        kind = "queued" if description.queue else "progress"
        return message(kind, standing.model_dump(mode="json", exclude_none=True))


def _alike(shown: JobQueue | JobProgress | None, now: JobQueue | JobProgress) -> bool:
    if isinstance(now, JobProgress):
        # When it is expected to end moves all the time.
        return isinstance(shown, JobProgress) and shown.model_copy(update={"expected_end": now.expected_end}) == now
    if not isinstance(shown, JobQueue) or shown.position != now.position:
        return False
    if shown.expected_start is None or now.expected_start is None:
        return shown.expected_start == now.expected_start
    return abs(shown.expected_start - now.expected_start) < SAME_MOMENT


def _written(event: Event) -> str:
    data: Mapping[str, Any] = event.body
    if event.kind == SEGMENT:
        data = segment_json(SEGMENT_RESULT.validate_python(event.body["segment"]))
    elif event.kind == LANGUAGE:
        data = {"language": event.body["code"], "language_probability": rounded(event.body["probability"], 4)}
    return message(event.kind, data, event.number)
