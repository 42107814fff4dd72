"""The gate as HTTP knows it: what a request says of its patience, and what is told of its key's limits."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Request
from starlette.types import Scope

from admission import AdmissionController
from api.security import key_name
from api.services import services
from errors import DeadlineTooNear, KeyBusy, QueueFull, QueueTimeout, QuotaUsed, TooLarge
from reservation import Reservation, Work
from transcription.core import Priority

GATE_ERRORS = (TooLarge, QueueFull, KeyBusy, QuotaUsed, QueueTimeout, DeadlineTooNear)
"""What every endpoint behind the gate may answer."""

LONGEST_TIMEOUT_S = 86_400


@dataclass(frozen=True, slots=True)
class Patience:
    """What the headers say of urgency and waiting."""

    priority: Priority
    no_wait: bool
    timeout_s: float | None


async def _patience(
    urgency: Annotated[
        Literal["interactive", "batch"] | None,
        Header(alias="X-Priority", description="batch: whoever waits for an answer goes first. Absent: interactive."),
    ] = None,
    no_wait: Annotated[
        bool | None, Header(alias="X-No-Wait", description="true: what cannot start at once is refused with 429.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        Header(
            alias="X-Request-Timeout",
            gt=0,
            le=LONGEST_TIMEOUT_S,
            allow_inf_nan=False,
            description="Seconds in which the answer is needed: refused where it cannot be, ended where it was not.",
        ),
    ] = None,
) -> Patience:
    return Patience(Priority[(urgency or "interactive").upper()], bool(no_wait), timeout_s)


Patient = Annotated[Patience, Depends(_patience)]
"""Parameter of an endpoint whose work passes the gate."""


@contextlib.asynccontextmanager
async def admitted(request: Request, work: Work, patience: Patience) -> AsyncIterator[Reservation]:
    """A place at the gate, for a request whose body has not been read. Raises what `reserve` raises; QueueTimeout
    when X-Request-Timeout is over, however far the work has come."""
    parts = services(request)
    key = key_name(request)
    place = parts.admission.reserve(
        work,
        key,
        max(patience.priority, parts.keys.ceiling(key)),
        timeout_s=patience.timeout_s,
        no_wait=patience.no_wait,
    )
    request.state.reservation = place
    with place:
        try:
            async with asyncio.timeout(patience.timeout_s):
                yield place
        except TimeoutError:
            raise QueueTimeout("The answer was not ready within X-Request-Timeout.") from None


def limit_headers(scope: Scope) -> dict[str, str]:
    """RateLimit-Policy and RateLimit of the key that came (IETF draft-ietf-httpapi-ratelimit-headers).

    Empty where no key was known yet, or none of its limits is set.
    """
    key = scope.get("state", {}).get("key_name")
    if key is None:
        return {}
    admission: AdmissionController = scope["app"].state.services.admission
    policies, left = [], []
    if (requests_left := admission.requests_left(key)) is not None:
        policies.append(f'"requests";q={admission.keys.max_requests(key)}')
        left.append(f'"requests";r={requests_left}')
    if (audio_left_s := admission.audio_left_s(key)) is not None:
        policies.append(f'"audio-seconds";q={math.floor(admission.keys.max_audio_s_a_day(key))};w=86400')
        left.append(f'"audio-seconds";r={math.floor(audio_left_s)};t={admission.quota_resets_in_s()}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)} if policies else {}


def told_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a request's log line tells of its key, by name, and of its way through the gate: seconds of waiting, and
    the service's peak."""
    told: dict[str, Any] = {"owner": state["key_name"]} if state.get("key_name") else {}
    place = state.get("reservation")
    if not isinstance(place, Reservation):
        return told
    told["wait_s"] = round(place.wait_s, 3)
    return told | {"peak_mib": round(place.peak_bytes / 2**20)} if place.peak_bytes else told
