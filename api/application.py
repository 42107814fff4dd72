"""The HTTP side put together: routes, middleware, errors, documentation. main.py gives it its services."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import (
    batch,
    capacity,
    docs_page,
    events,
    files,
    jobs,
    live,
    media,
    openai,
    operations,
    problems,
    subtitle,
    transcribe,
    vocabulary,
)
from api.middleware import RequestMiddleware

DESCRIPTION = """Transcribes recordings, videos and links on your own machine.

Send the key as `X-API-Key`, or as `Authorization: Bearer`. Every error is an RFC 9457 problem with a stable `code`,
under `/v1` in OpenAI's shape; every answer carries its `X-Request-ID`.
"""


ROOMS = (
    transcribe,
    live,
    media,
    subtitle,
    vocabulary,
    batch,
    jobs,
    events,
    files,
    operations,
    capacity,
    openai,
)
"""In the order of the docs page."""


def assemble(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None) -> FastAPI:
    """The application, without the services: `app.state.services` must be set before the first request."""
    app = FastAPI(
        title="Stenogate",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own pages load their scripts from other people's servers.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    for room in ROOMS:
        app.include_router(room.router)
    app.include_router(docs_page.router(app.title, app.openapi_url or ""))
    problems.install(app)
    app.add_middleware(RequestMiddleware)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _version() -> str:
    try:
        return importlib.metadata.version("stenogate")
    except importlib.metadata.PackageNotFoundError:
        return "0.1.0"


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= problem.pop("$defs", {}) | {"Problem": problem}
        _without_fastapi_errors(document)
        app.openapi_schema = document
    return app.openapi_schema


def _without_fastapi_errors(document: dict[str, Any]) -> None:
    """FastAPI promises its own error shape wherever a path has a parameter; here all errors are problems."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for operations_of_path in document["paths"].values():
        for operation in operations_of_path.values():
            refused = operation["responses"].get("422", {})
            if "HTTPValidationError" in str(refused):
                del operation["responses"]["422"]
