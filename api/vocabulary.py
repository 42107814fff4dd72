"""PUT, GET and DELETE /vocabulary: the words that the key's recordings are likely to hold."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse

from api.problems import responses
from api.security import key_name, may_transcribe
from api.services import services
from api.uploads import read_text
from errors import (
    InvalidRequest,
    NotReady,
    StorageFull,
    StoreUnavailable,
    Unauthorized,
    UploadTooLarge,
    VocabularyNotFound,
)
from jobs.vocabulary import MAX_BYTES, read_words

router = APIRouter(prefix="/vocabulary", tags=["transcription"], dependencies=[Depends(may_transcribe)])

_PRINTED = r"[^\x00-\x08\x0b\x0c\x0e-\x1f]"
_WORDS = rf"^({_PRINTED}*[\r\n])?[^\S\r\n\x00-\x1f]*(?![#\s\ufeff]){_PRINTED}+$"
"""No control characters, and a line that says something."""

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "text/plain": {
                "schema": {"type": "string", "pattern": _WORDS, "maxLength": MAX_BYTES},
                "example": "Stenogate\nDr. Grünwald\n",
            }
        },
    }
}


@router.put(
    "",
    summary="Write this key's vocabulary",
    status_code=204,
    responses=responses(Unauthorized, InvalidRequest, UploadTooLarge, NotReady, StoreUnavailable, StorageFull),
    openapi_extra=_BODY,
)
async def write_vocabulary(request: Request) -> None:
    """One word or phrase a line, the likeliest first. From then on the key's recordings are heard with them."""
    text = read_words(await read_text(request, MAX_BYTES))
    await asyncio.to_thread(services(request).vocabularies.write, key_name(request), text)


@router.get(
    "",
    summary="Read this key's vocabulary",
    response_class=PlainTextResponse,
    responses=responses(Unauthorized, VocabularyNotFound, NotReady, StoreUnavailable),
)
async def read_vocabulary(request: Request) -> Response:
    text = await asyncio.to_thread(services(request).vocabularies.text, key_name(request))
    if not text:
        raise VocabularyNotFound
    return PlainTextResponse(text)


@router.delete(
    "",
    summary="Forget this key's vocabulary",
    status_code=204,
    responses=responses(Unauthorized, VocabularyNotFound, NotReady, StoreUnavailable, StorageFull),
)
async def remove_vocabulary(request: Request) -> None:
    await asyncio.to_thread(services(request).vocabularies.remove, key_name(request))
