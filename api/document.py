"""The OpenAPI document: FastAPI's, and what FastAPI cannot know of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import problems

_OF_A_JOB = ("get_job", "transcription_status", "get_result", "get_events", "cancel_job", "retry_job")
_MAKES_A_JOB = {"202": [(operation, {"id": "$response.body#/id"}) for operation in _OF_A_JOB]}
_MAKES_A_FILE = {
    "200": [(operation, {"id": "$response.body#/id"}) for operation in ("send_file", "delete_file")],
}
_OF_A_BATCH = [(operation, {"batch_id": "$response.body#/batch_id"}) for operation in ("get_batch", "cancel_batch")]

LINKS: Mapping[str, Mapping[str, list[tuple[str, dict[str, str]]]]] = {
    "transcribe": _MAKES_A_JOB,
    "download": _MAKES_A_JOB | _MAKES_A_FILE,
    "extract_audio": _MAKES_A_JOB | _MAKES_A_FILE,
    "subtitle": _MAKES_A_JOB | _MAKES_A_FILE,
    "submit_batch": {"202": [*_OF_A_BATCH, ("get_job", {"id": "$response.body#/jobs/0"})]},
    "list_jobs": {"200": [("get_job", {"id": "$response.body#/jobs/0/id"})]},
    "retry_job": {"200": [("get_job", {"id": "$response.body#/id"}), ("cancel_job", {"id": "$response.body#/id"})]},
    "list_files": {"200": [("send_file", {"id": "$response.body#/files/0/id"})]},
    "openai_models": {"200": [("openai_model", {"id": "$response.body#/data/0/id"})]},
}
"""From an operation and its answer's status to the operations that can follow, and what they take from the answer."""

_TEXT = {"type": "string"}
HEADERS: Mapping[str, Any] = {
    "X-Request-ID": {
        "description": "The request's id: the caller's own where it sent a usable one. It is in the log, too.",
        "required": True,
        "schema": _TEXT,
    },
    "WWW-Authenticate": {"description": "How to send a key.", "required": True, "schema": _TEXT},
    "Retry-After": {
        "description": "Seconds after which to come back, where that is known.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Location": {"description": "Where to ask how it stands.", "required": True, "schema": _TEXT},
}
"""What answers bring besides their bodies."""

_HEADERS_OF_STATUS = {"202": ["Location"], "401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}


def document(app: FastAPI) -> dict[str, Any]:
    """The description of *app*, with its errors, its headers and the links from answer to request."""
    described = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = described.setdefault("components", {})
    problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = components.setdefault("schemas", {})
    schemas |= problem.pop("$defs", {}) | {"Problem": problem}
    components["headers"] = dict(HEADERS)
    _without_fastapi_errors(described)
    _without_null(described)
    for operation in _operations(described):
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {}).values():
                if "itemSchema" in content:
                    # FastAPI's own, of every answer that is no JSON.
                    content.pop("schema", None)
            names = ("X-Request-ID", *_HEADERS_OF_STATUS.get(status, ()))
            references = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
            answer["headers"] = answer.get("headers", {}) | references
            if links := LINKS.get(operation["operationId"], {}).get(status):
                answer["links"] = {
                    target: {"operationId": target, "parameters": parameters} for target, parameters in links
                }
    return described


def _operations(described: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for operations in described["paths"].values():
        yield from operations.values()


def _without_fastapi_errors(described: dict[str, Any]) -> None:
    """FastAPI promises its own error shape wherever a path has a parameter; here all errors are problems."""
    for name in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(name, None)
    for operation in _operations(described):
        refused = operation["responses"].get("422", {})
        if "HTTPValidationError" in str(refused):
            del operation["responses"]["422"]


def _without_null(described: Mapping[str, Any]) -> None:
    """A query or a header cannot say null, whatever FastAPI promises of optional ones: it is there, or it is not."""
    for operation in _operations(described):
        for parameter in operation.get("parameters", ()):
            options = [option for option in parameter["schema"].pop("anyOf", ()) if option != {"type": "null"}]
            if len(options) == 1:
                parameter["schema"] |= options[0]
            elif options:
                parameter["schema"]["anyOf"] = options
