"""The HTTP side put together: routes, middleware, errors, documentation. main.py gives it its services."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

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
    webhook_secret,
)
from api.cross_origin import CrossOrigin
from api.document import document
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
    webhook_secret,
    files,
    operations,
    capacity,
    openai,
)
"""In the order of the docs page."""


def assemble(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None, version: str = "unknown"
) -> FastAPI:
    """The application, without the services: `app.state.services` must be set before the first request."""
    app = FastAPI(
        title="Stenogate",
        version=version,
        description=DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own pages load their scripts from other people's servers.
        docs_url=None,
        redoc_url=None,
        # Served with the docs page, behind the same guard.
        openapi_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    for room in ROOMS:
        app.include_router(room.router)
    app.include_router(docs_page.router(app.title, lambda: _openapi(app)))
    problems.install(app, allowed_methods())
    # Inside: a browser's question beforehand gets an id and a line in the log, too.
    app.add_middleware(CrossOrigin)
    app.add_middleware(RequestMiddleware)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def allowed_methods() -> dict[str, set[str]]:
    """From each path to all methods that it answers: routers know those of one route, which may have fellows."""
    methods: dict[str, set[str]] = {}
    for room in ROOMS:
        for route in room.router.routes:
            if isinstance(route, APIRoute):
                methods.setdefault(route.path, set()).update(route.methods or ())
    return methods


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = document(app)
    return app.openapi_schema
