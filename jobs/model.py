"""A job: a piece of work that outlives its request, and the states that it passes through. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from reservation import OF_AUDIO, Work

MAX_ATTEMPTS = 5
"""How often a job's owner may die of it, or beside it, before the job is given up. More than a segment's three: an
owner dies for the sake of every job that it holds, and only one of them may be at fault."""


class State(StrEnum):
    """`queued -> running -> succeeded | failed | cancelled`; a lost or returned job is queued again."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


OVER = tuple(state for state in State if state.is_over)


class Stage(StrEnum):
    """What a running job is at."""

    WAITING = "waiting"
    """For its turn at the gate."""
    DOWNLOADING = "downloading"
    DECODING = "decoding"
    """It still may be, while the first segments are transcribed."""
    TRANSCRIBING = "transcribing"
    EXTRACTING = "extracting"
    SUBTITLING = "subtitling"


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is asked, validated: only what can be done is written down."""

    work: Work
    key: str
    """Its owner: the API key's name."""
    priority: int
    source: dict[str, Any]
    """One of `upload` (where it is kept), `file` (id or path of a stored file), `url`; also what the caller calls it
    (`name`) and how the result is to be written (`response_format`)."""
    options: dict[str, Any]
    """As JSON: what the kind of work makes of its parameters."""
    size: float | None = None
    """Of the work, where it is known: seconds of audio."""
    attended: bool = False
    """A caller waits for it on an open connection: without that caller it is not done."""
    reuse: bool = False
    """Whether a finished transcript of the same samples and options may stand in."""
    callback_url: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    """Digest of all that was sent: the same key with another one is a mistake."""
    batch_id: str | None = None
    parent_id: str | None = None
    """The job of which it is a part: some segments of a long recording, in `source` as `spans`."""
    not_for: str | None = None
    """Who does not want it: a part's parent's owner, who does the rest of it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the store knows it. Times are seconds since 1970, UTC."""

    id: str
    work: Work
    key: str
    priority: int
    state: State
    source: dict[str, Any]
    options: dict[str, Any]
    size: float | None
    attended: bool
    reuse: bool
    callback_url: str | None
    idempotency_key: str | None
    fingerprint: str | None
    batch_id: str | None
    parent_id: str | None
    not_for: str | None
    stage: Stage | None
    stage_done: float | None
    """Of the stage, from 0 to 1, where that is known."""
    done: float
    """Of the work: seconds of audio heard."""
    attempt: int
    """The number of its owner: whoever holds another has lost it."""
    owner: str | None
    lease_until: float | None
    cancelling: bool
    """Its owner has been asked to stop."""
    content_hash: str | None
    events: int
    """How many have been written."""
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: dict[str, Any] | None
    """`code`, `message` and `status` of the ServiceError that ended it."""
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def makes_file(self) -> bool:
        """Whether it comes to a stored file, and not to a transcript."""
        return self.work not in OF_AUDIO or bool(self.source.get("video"))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job, in order. Kinds: a State's value, or "segment"."""

    job_id: str
    number: int
    """1, 2, 3 …"""
    kind: str
    body: dict[str, Any]
    at: float


SEGMENT = "segment"
"""The kind of an event that brings a finished segment."""

LANGUAGE = "language"
"""The kind of an event that brings the language which was detected."""
