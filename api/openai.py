"""OpenAI's interface: /v1/audio/transcriptions, /v1/audio/translations and /v1/models, for programs that speak it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from api import openai_answers
from api.event_stream import documented
from api.gate import GATE_ERRORS, Patience, Patient
from api.handing_in import JOB_ERRORS, IdempotencyKey, Wanted, handed_in
from api.openai_errors import responses
from api.openai_parameters import (
    ALIASES,
    NOT_RECOGNIZED,
    SpeechParameters,
    TranscriptionParameters,
    TranslationParameters,
    alias_of,
    speech_options,
)
from api.openai_stream import DeltaTeller
from api.parameters import documentation
from api.problems import InvalidParameters
from api.security import may_transcribe
from api.services import Services, services
from api.uploads import Upload
from errors import (
    AmbiguousAudio,
    AudioTooLong,
    DiarizationUnavailable,
    EmptyMedia,
    EngineFailed,
    GpuOutOfMemory,
    InvalidRequest,
    MediaTimeout,
    ModelUnavailable,
    NoAudio,
    NoAudioStream,
    NotReady,
    OutOfMemory,
    ShuttingDown,
    StorageFull,
    Unauthorized,
    UnknownModel,
    UnsupportedLanguage,
    UnsupportedMedia,
    UploadTooLarge,
    WorkerCrashed,
)
from jobs.crew import OPTIONS, Outcome
from reservation import Work
from transcription import models
from transcription.core import Transcript, TranscriptionOptions
from transcription.models import AvailableModel

router = APIRouter(prefix="/v1", tags=["OpenAI's interface"], dependencies=[Depends(may_transcribe)])

_ERRORS = responses(
    *(Unauthorized, InvalidRequest, NoAudio, AmbiguousAudio, UnknownModel, ModelUnavailable, UnsupportedLanguage),
    *(DiarizationUnavailable, UploadTooLarge, AudioTooLong, EmptyMedia, UnsupportedMedia, NoAudioStream, MediaTimeout),
    *(WorkerCrashed, OutOfMemory, GpuOutOfMemory, EngineFailed, NotReady, ShuttingDown, StorageFull),
    *(*GATE_ERRORS, *JOB_ERRORS),
)
_SAID = "And so, my fellow Americans, ask not what your country can do for you."


class OpenAIModel(BaseModel):
    """A model in OpenAI's words."""

    id: str = Field(examples=["base"])
    object: str = Field("model", examples=["model"])
    created: int = Field(
        description="When its weights came to this machine, in seconds since 1970; 0: they have yet to come.",
        examples=[1762777777],
    )
    owned_by: str = Field(description="Whose repository its weights come from.", examples=["Systran"])


class OpenAIModelList(BaseModel):
    object: str = Field("list", examples=["list"])
    data: list[OpenAIModel]


def _documented(model: type[SpeechParameters]) -> dict[str, Any]:
    """OpenAPI's words for the form."""
    described = documentation(model, example={}, file="The recording: audio or video in any usual format.")
    form = described["requestBody"]["content"]["multipart/form-data"]["schema"]
    properties = {
        f"{name}[]" if name in model.lists else name: schema
        for name, schema in form["properties"].items()
        if name in ("file", *model.own_fields())
    }
    # Here an empty one is one that is missing.
    properties["model"] = properties["model"] | {"minLength": 1}
    schema = form | {"required": ["file", "model"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _answers(*, streamed: bool) -> dict[int | str, dict[str, Any]]:
    text = {"schema": {"type": "string"}, "example": f"{_SAID}\n"}
    content = {
        "application/json": {"schema": {"type": "object"}, "example": {"text": _SAID}},
        "text/plain": text,
    }
    if streamed:
        content |= documented(f'data: {{"type":"transcript.text.delta","delta":"{_SAID}"}}\n\n')
    return {200: {"description": "The transcript, as response_format says.", "content": content}, **_ERRORS}


@router.post(
    "/audio/transcriptions",
    summary="OpenAI: transcribe a recording",
    response_class=Response,
    responses=_answers(streamed=True),
    openapi_extra=_documented(TranscriptionParameters),
)
async def openai_transcription(request: Request, patience: Patient, idempotency_key: IdempotencyKey = None) -> Response:
    """As OpenAI's reference has it; a form with the recording as `file`."""
    return await _handed_in(request, patience, idempotency_key, TranscriptionParameters)


@router.post(
    "/audio/translations",
    summary="OpenAI: translate a recording into English",
    response_class=Response,
    responses=_answers(streamed=False),
    openapi_extra=_documented(TranslationParameters),
)
async def openai_translation(request: Request, patience: Patient, idempotency_key: IdempotencyKey = None) -> Response:
    """As OpenAI's reference has it; refused where the model cannot translate."""
    return await _handed_in(request, patience, idempotency_key, TranslationParameters)


async def _handed_in(
    request: Request, patience: Patience, idempotency_key: str | None, model: type[SpeechParameters]
) -> Response:
    parts = services(request)
    try:
        return await handed_in(
            request,
            Work.TRANSCRIPTION,
            patience,
            idempotency_key,
            None,
            model,
            max_bytes=parts.max_upload_bytes,
            check=partial(_options, parts=parts),
            want=partial(_wanted, parts=parts),
            answer=_answer,
            telling=_teller,
        )
    except InvalidParameters as error:
        # A recording in a field is too long for one, which is not what its sender should hear first.
        faults = [
            (name, NOT_RECOGNIZED if name.startswith("known_speaker_references") else detail)
            for name, detail in error.faults
        ]
        raise InvalidParameters(faults) from None


def _options(asked: SpeechParameters, parts: Services) -> TranscriptionOptions:
    """Raises what `speech_options` raises, and TooLarge for a model that no engine here can hold."""
    options = speech_options(asked, default_model=parts.default_model, default_beam_size=parts.default_beam_size)
    parts.sizes.check_fits(options.model)
    return options


def _wanted(asked: SpeechParameters, upload: Upload | None, parts: Services) -> Wanted:
    if upload is None:
        raise NoAudio("No recording was given: send it as file.")
    if upload.bytes == 0:
        raise EmptyMedia
    given = {"name": upload.name} if upload.name is not None else {}
    options = OPTIONS.dump_python(_options(asked, parts), mode="json")
    return Wanted(given | {"response_format": asked.response_format.own}, options)


async def _answer(asked: SpeechParameters, outcome: Outcome) -> Response:
    assert isinstance(outcome, Transcript)
    content = await asyncio.to_thread(openai_answers.written, outcome, asked)
    if isinstance(content, str):
        return Response(content, media_type="text/plain; charset=utf-8")
    return JSONResponse(content)


def _teller(asked: SpeechParameters) -> DeltaTeller | None:
    return DeltaTeller(asked) if isinstance(asked, TranscriptionParameters) and asked.stream else None


@router.get("/models", summary="OpenAI: what models can be used", responses=responses(Unauthorized, NotReady))
async def openai_models(request: Request) -> OpenAIModelList:
    """Those whose weights are here or can be fetched, then OpenAI's names, which stand for the default model."""
    return OpenAIModelList(data=await _listed(services(request)))


@router.get(
    "/models/{id}", summary="OpenAI: one model", responses=responses(Unauthorized, UnknownModel, ModelUnavailable)
)
async def openai_model(request: Request, id: str) -> OpenAIModel:
    """By any name that `model` takes."""
    name = alias_of(id) or models.spec(id).name
    for model in await _listed(services(request)):
        if model.id == name:
            return model.model_copy(update={"id": id})
    raise ModelUnavailable


async def _listed(parts: Services) -> list[OpenAIModel]:
    here = await asyncio.to_thread(parts.library.available)
    listed = [
        OpenAIModel(
            id=model.name,
            created=await asyncio.to_thread(_arrived, model),
            owned_by=models.spec(model.name).repository.partition("/")[0],
        )
        for model in here
    ]
    default = next((model for model in listed if model.id == models.spec(parts.default_model).name), None)
    if default is None:
        return listed
    return listed + [default.model_copy(update={"id": alias}) for alias in ALIASES]


def _arrived(model: AvailableModel) -> int:
    try:
        return 0 if model.path is None else int(model.path.stat().st_mtime)
    except OSError:
        return 0
