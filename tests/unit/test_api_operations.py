"""Health, readiness, models, and a documentation that tells all."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import errors
from errors import ServiceError
from tests.fakes import Parts
from transcription.core import ResponseFormat

NEVER_SENT = {
    "CONFIGURATION_ERROR": "ends the start of the server",
    "NOT_FOUND": "belongs to no endpoint",
    "METHOD_NOT_ALLOWED": "belongs to no endpoint",
    "ORIGIN_NOT_ALLOWED": "is told to a WebSocket, which OpenAPI does not know",
    "MALFORMED_REQUEST": "comes before any endpoint is known",
    "ADDRESS_TOO_LONG": "comes before any endpoint is known",
    "HEADERS_TOO_LARGE": "comes before any endpoint is known",
    "TOO_MANY_CONNECTIONS": "comes before any endpoint is known",
}


async def test_health_needs_nothing_but_the_process(client: httpx.AsyncClient, parts: Parts) -> None:
    """A platform restarts what is not healthy; a loading model is no reason."""
    parts.engine.ready = False
    answer = await client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"


async def test_readiness_follows_the_engine(client: httpx.AsyncClient, parts: Parts) -> None:
    """A balancer must not send work to a server that cannot do it."""
    assert (await client.get("/ready")).json() == {"status": "ready", "loaded": ["tiny.en"]}
    parts.engine.ready = False
    answer = await client.get("/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "NOT_READY")


async def test_a_server_that_stops_is_not_ready(client: httpx.AsyncClient, parts: Parts) -> None:
    """A load balancer must send nothing more to it."""
    parts.services.admission.close()
    answer = await client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["code"] == "SHUTTING_DOWN"


async def test_models_tell_which_is_the_default(client: httpx.AsyncClient) -> None:
    """And which are loaded."""
    models = (await client.get("/models")).json()["models"]
    assert [model["name"] for model in models if model["default"]] == ["base"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("GET", "/transcribe", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/files", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_the_routers_own_errors_are_problems(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """One shape for all errors."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (problem["status"], problem["code"]) == (status, code)
    if status == 405:
        assert "allow" in answer.headers


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/vocabulary", "DELETE, GET, PUT"),
        ("/files/5e0d7c1b9a3f4e21", "DELETE, GET"),
        ("/jobs/0f0c5d7e9a7b4f6c", "DELETE, GET"),
        ("/jobs/batch/5b1f0c9d3e7a4f6c", "DELETE, GET"),
        ("/transcribe", "POST"),
    ],
)
async def test_a_refused_method_is_told_all_methods_of_the_address(
    client: httpx.AsyncClient, path: str, allowed: str
) -> None:
    """RFC 9110: Allow lists what the resource supports; the router lists what the first of its routes does."""
    assert (await client.options(path)).headers["allow"] == allowed


def documented_codes(document: dict[str, Any]) -> set[str]:
    return {
        code
        for path in document["paths"].values()
        for operation in path.values()
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }


def test_every_error_is_documented_or_listed_as_never_sent(app: FastAPI) -> None:
    """A program can only handle the codes it can look up."""
    codes = {
        error.code for error in vars(errors).values() if isinstance(error, type) and issubclass(error, ServiceError)
    }
    assert codes - documented_codes(app.openapi()) == set(NEVER_SENT)


def test_the_docs_page_offers_file_and_fields(app: FastAPI) -> None:
    """FastAPI does not know the body that we read ourselves; the page must show it all the same."""
    operation = app.openapi()["paths"]["/transcribe"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert form["file"]["format"] == "binary"
    named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert named | {"file"} == set(form)
    assert {"audio_file", "url", "model_size", "language", "task", "response_format", "beam_size"} <= named
    assert form["response_format"]["enum"] == [one.value for one in ResponseFormat]
    assert operation["security"]


def test_the_document_refers_to_nothing_that_is_not_there(app: FastAPI) -> None:
    """Generators of clients stumble over it."""
    document = app.openapi()
    schemas = document["components"]["schemas"]
    references = set(_references(document))
    assert references
    there = {f"#/components/{kind}/{name}" for kind, all in document["components"].items() for name in all}
    assert references <= there
    assert "HTTPValidationError" not in schemas


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [reference for value in node.values() for reference in _references(value)]
    return [reference for value in node for reference in _references(value)] if isinstance(node, list) else []
