"""Errors as the caller sees them, rendered in this one place: RFC 9457 problem+json, or OpenAI's shape under /v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from api import openai_errors
from errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    Unauthorized,
)
from telemetry import current_request_id

MEDIA_TYPE = "application/problem+json"

MOST_FAULTS = 20
"""Told in one answer; the others are counted."""

MAX_NAME_CHARS = 100
MAX_LOGGED_CHARS = 2000
"""Of a refusal's sentence, in the log: who asks wrongly must not fill the disk."""

log = structlog.get_logger("api")


class Fault(BaseModel):
    """One parameter that was refused."""

    name: str = Field(examples=["beam_size"])
    detail: str = Field(examples=["Input should be less than or equal to 16"])


class Problem(BaseModel):
    """RFC 9457. `code` is stable: programs should look at it and at nothing else."""

    model_config = ConfigDict(title="Problem")

    type: str = Field("about:blank", description="Always about:blank: `code` says it all.")
    title: str = Field(description="The status in words.", examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(description="A sentence for people.", examples=["beam_size must be at most 16."])
    code: str = Field(description="Stable, upper case, for programs.", examples=["INVALID_REQUEST"])
    request_id: str = Field(description="Also in the X-Request-ID header and the server's log.", examples=["a1b2c3d4"])
    errors: list[Fault] | None = Field(
        None, description="The refused parameters, where there are any: the first of many."
    )


class InvalidParameters(InvalidRequest):
    """Several parameters may be wrong at once; the caller learns of all of them, or of the first *most*."""

    def __init__(self, faults: Sequence[tuple[str, str]], most: int = MOST_FAULTS) -> None:
        self.faults = tuple((_plain(name), detail) for name, detail in faults)
        self.told = self.faults[:most]
        sentences = [f"{name}: {detail}" for name, detail in self.told]
        if more := len(self.faults) - len(self.told):
            sentences.append(f"and {more} more")
        super().__init__("; ".join(sentences) + ".")


def _plain(name: str) -> str:
    """*name* as it can be told: what is sent as one may be endless, or in JSON hold halves of characters (\\ud800)."""
    short = name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…"
    return short.encode("utf-8", "backslashreplace").decode("utf-8")


class PasswordWanted(Unauthorized):
    """A person looks at this: a browser is to ask for the key, as a password."""


class ClientGone(Exception):
    """The caller hung up: no answer is written, the log says 499."""


def problem_of(error: ServiceError) -> Problem:
    faults = error.told if isinstance(error, InvalidParameters) else ()
    return Problem(
        type="about:blank",
        title=title_of(error.status),
        status=error.status,
        detail=error.message,
        code=error.code,
        request_id=current_request_id() or "",
        errors=[Fault(name=name, detail=detail) for name, detail in faults] or None,
    )


def title_of(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def answer(error: ServiceError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response to *error*."""
    headers = dict(headers or {})
    if isinstance(error, Unauthorized):
        ways = 'Bearer realm="stenogate", ApiKey header="X-API-Key"'
        headers["WWW-Authenticate"] = 'Basic realm="stenogate"' if isinstance(error, PasswordWanted) else ways
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return _Answer(error, headers)


class _Answer(JSONResponse):
    """Counted when it is sent: all problems pass here, whoever raised them. Only then is it known who asked, and in
    whose words to answer."""

    def __init__(self, error: ServiceError, headers: Mapping[str, str]) -> None:
        super().__init__(problem_of(error).model_dump(exclude_none=True), error.status, headers, MEDIA_TYPE)
        self._error = error
        self._told = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A server that is starting or has stopped has none.
        if parts := getattr(scope["app"].state, "services", None):
            parts.metrics.answered(self._error)
        if openai_errors.is_openais(scope):
            status, headers = openai_errors.status_of(self._error), {**self._told, **openai_errors.headers(self._error)}
            await JSONResponse(in_openais_shape(self._error), status, headers)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def in_openais_shape(error: ServiceError) -> dict[str, Any]:
    """*error* as OpenAI's SDKs read it."""
    faults = error.faults if isinstance(error, InvalidParameters) else ()
    return openai_errors.content(error, [name for name, _ in faults])


def install(app: FastAPI, allowed: Mapping[str, Set[str]]) -> None:
    """Answer every error of *app* as a problem. What nobody expected is the middleware's: it logs the trace.

    *allowed*: from each path, as its route has it, to the methods that it answers.
    """

    async def router_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        known: dict[int, ServiceError] = {404: NotFound(), 405: MethodNotAllowed()}
        told = dict(error.headers or {})
        if error.status_code == 405 and (methods := allowed.get(getattr(request.scope.get("route"), "path", ""))):
            told["Allow"] = ", ".join(sorted(methods))
        return answer(known.get(error.status_code) or InvalidRequest(str(error.detail)), told)

    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, router_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


async def _service_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    if error.status >= 500:
        # Where it was foreseen and nothing is behind it, a trace would only show the way to this line.
        unforeseen = error.status == ServiceError.status or error.__cause__ is not None
        log.error(error.message, code=error.code, exc_info=error if unforeseen else None)
    else:
        log.info(error.message[:MAX_LOGGED_CHARS], code=error.code)
    return answer(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(InvalidParameters(readable(error.errors())))


def readable(errors: Sequence[Any]) -> list[tuple[str, str]]:
    """Pydantic's errors as (parameter, sentence); never the value that was sent, which may be a secret."""
    return [(".".join(str(part) for part in e["loc"] if part not in ("query", "body")), e["msg"]) for e in errors]


def responses(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's words for *errors*: one entry a status, one example a code."""
    documented: dict[int | str, dict[str, Any]] = {}
    for error in openai_errors.with_implied(errors):
        entry = documented.setdefault(
            error.status,
            {"description": "", "content": {MEDIA_TYPE: {"schema": _SCHEMA, "examples": {}}}},
        )
        example = Problem(
            type="about:blank",
            title=title_of(error.status),
            status=error.status,
            detail=error.default_message(),
            code=error.code,
            request_id="a1b2c3d4",
            errors=None,
        )
        entry["content"][MEDIA_TYPE]["examples"][error.code] = {
            "summary": error.default_message(),
            "value": example.model_dump(exclude_none=True),
        }
        entry["description"] = " or ".join(entry["content"][MEDIA_TYPE]["examples"])
    return documented


_SCHEMA = {"$ref": "#/components/schemas/Problem"}
"""NOTE: FastAPI takes a model only as application/json; `api.document` puts the schema into the components."""
