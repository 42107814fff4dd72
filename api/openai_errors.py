"""Errors in OpenAI's shape, for callers who speak its interface: what its SDKs read, and when they try again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Scope

from errors import (
    AmbiguousAudio,
    AudioTooLong,
    ClientStalled,
    DiarizationUnavailable,
    EmptyMedia,
    EngineFailed,
    IdempotencyConflict,
    MediaTimeout,
    ModelUnavailable,
    NoAudio,
    NoAudioStream,
    OutOfMemory,
    QuotaUsed,
    ScopeMissing,
    ServiceError,
    StoreUnavailable,
    TooManyFailures,
    Unauthorized,
    UnknownModel,
    UnsupportedLanguage,
    UnsupportedMedia,
    UploadTooLarge,
    WorkerCrashed,
)

PREFIX = "/v1/"
"""Everything under it is answered in OpenAI's words."""

RETRY_AFTER_S = 5
"""Told where the error itself does not know: SDKs would come back within a second."""

_PARAMETER: dict[type[ServiceError], str] = {
    UnknownModel: "model",
    ModelUnavailable: "model",
    UnsupportedLanguage: "language",
    DiarizationUnavailable: "response_format",
    **dict.fromkeys((NoAudio, AmbiguousAudio, EmptyMedia, UnsupportedMedia, NoAudioStream, MediaTimeout), "file"),
    **dict.fromkeys((UploadTooLarge, AudioTooLong), "file"),
}
"""Which parameter an error is about."""

_IN_VAIN = (QuotaUsed, IdempotencyConflict, WorkerCrashed, OutOfMemory, EngineFailed)
"""The same request would end the same: SDKs, which try again after any 409, 429 and 5xx, are told not to."""


def is_openais(scope: Scope) -> bool:
    """Whether a request is to be answered in OpenAI's words."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).startswith(PREFIX)


def status_of(error: ServiceError) -> int:
    """The status that OpenAI answers with: 404 for a model that is not here, 400 for what is wrong with a request."""
    if isinstance(error, (UnknownModel, ModelUnavailable)):
        return 404
    return 400 if error.status in (415, 422) else error.status


def content(error: ServiceError, parameters: Sequence[str] = ()) -> dict[str, Any]:
    """The answer's body. *parameters*: those that were refused; the shape has room for the first."""
    refused = (
        re.split(r"[.\[]", parameters[0].removeprefix("header."))[0] if parameters else _PARAMETER.get(type(error))
    )
    return {"error": {"message": error.message, "type": _kind(error), "param": refused, "code": error.code}}


def _kind(error: ServiceError) -> str:
    if isinstance(error, QuotaUsed):
        return "insufficient_quota"
    if error.status == 429:
        return "rate_limit_error"
    return "server_error" if error.status >= 500 else "invalid_request_error"


def headers(error: ServiceError) -> dict[str, str]:
    """When to try again, if ever: what SDKs look at."""
    if isinstance(error, _IN_VAIN):
        return {"X-Should-Retry": "false"}
    if error.status in (429, 503):
        return {"Retry-After": str(error.retry_after_s or RETRY_AFTER_S)}
    return {}


def with_implied(errors: Sequence[type[ServiceError]]) -> tuple[type[ServiceError], ...]:
    """*errors*, and what comes with them wherever they do."""
    # Whoever looks at a key may find more amiss with it.
    of_keys = (ScopeMissing, TooManyFailures, StoreUnavailable) if Unauthorized in errors else ()
    # What takes a body waits for it.
    of_bodies = (ClientStalled,) if UploadTooLarge in errors else ()
    return tuple(dict.fromkeys((*errors, *of_keys, *of_bodies, ServiceError)))


def responses(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's words for *errors*: one entry a status, one example a code."""
    documented: dict[int | str, dict[str, Any]] = {}
    for kind in with_implied(errors):
        error = kind()
        entry = documented.setdefault(
            status_of(error), {"description": "", "content": {"application/json": {"schema": _SCHEMA, "examples": {}}}}
        )
        examples = entry["content"]["application/json"]["examples"]
        examples[error.code] = {"summary": error.message, "value": content(error)}
        entry["description"] = " or ".join(examples)
    return documented


def _text(description: str, *, nullable: bool = False) -> Mapping[str, Any]:
    return {"type": ["string", "null"] if nullable else "string", "description": description}


_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _text("A sentence for people."),
                "type": _text("invalid_request_error, rate_limit_error, insufficient_quota or server_error."),
                "param": _text("The parameter that was refused.", nullable=True),
                "code": _text("Stable, upper case, for programs."),
            },
        }
    },
}
