"""How the service is: alive, ready, what models it has, and figures for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse

from api.problems import responses
from api.schemas import Health, ModelList, ModelState, Readiness
from api.security import guarded, refuse_strange_bind, require_key
from api.services import services
from errors import NotReady, ShuttingDown, Unauthorized
from metrics import CONTENT_TYPE
from transcription.models import CATALOGUE

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Is the process alive?", responses=responses())
async def health(request: Request) -> Health:
    """Answers at once, whatever the engine does: for the platform that restarts dead processes. Needs no key.

    HEAD does as well, here and at /ready: that is how some watchers ask.
    """
    return Health(version=request.app.version)


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Can it transcribe now?", responses=responses(NotReady, ShuttingDown))
async def ready(request: Request) -> Readiness:
    """For the load balancer that sends requests. Needs no key."""
    refuse_strange_bind(request)
    parts = services(request)
    parts.admission.check_open()
    engine = parts.engine
    engine.check_ready()
    return Readiness(loaded=engine.loaded())


@router.get(
    "/models",
    summary="What models can be used",
    dependencies=[Depends(require_key)],
    responses=responses(Unauthorized, NotReady),
)
async def list_models(request: Request) -> ModelList:
    """Every name that model_size takes, and where its weights come from."""
    parts = services(request)
    # Looks into folders: not on the event loop.
    here = {model.name: model for model in await asyncio.to_thread(parts.library.available)}
    loaded = set(parts.engine.loaded())
    return ModelList(
        models=[
            ModelState(
                name=model.name,
                available=model.name in here,
                loaded=model.name in loaded,
                default=model.name == parts.default_model,
                english_only=model.english_only,
                translates=model.translates,
                bytes=here[model.name].bytes if model.name in here else model.weights_bytes,
                source=here[model.name].source if model.name in here else None,
            )
            for model in CATALOGUE
        ]
    )


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    dependencies=[Depends(guarded("metrics"))],
    response_class=PlainTextResponse,
    responses=responses(Unauthorized, NotReady),
)
async def metrics(request: Request) -> Response:
    """Waiting, stages, memory, batches, speed, refusals and errors, in Prometheus's text format. It sends the key where
    its `scrape_config` has `http_headers` (from 2.55 on)."""
    return Response(services(request).metrics.text(), media_type=CONTENT_TYPE)
