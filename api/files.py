"""The files that /download, /extract-audio and /subtitle leave, to their keys: listed, sent (ranges too), deleted."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from api.problems import answer, responses
from api.schemas import FileList, StoredFile
from api.security import key_name, require_key
from api.services import services
from downloads.stored_files import MediaFile
from errors import MediaNotFound, NotReady, RangeNotSatisfiable, Unauthorized

_CONTENT: dict[str, Any] = {"audio/*": {}, "video/*": {}}
_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": _CONTENT},
    206: {"description": "The range of it that was asked for.", "content": _CONTENT},
}

router = APIRouter(prefix="/files", tags=["files"], dependencies=[Depends(require_key)])


def described(media: MediaFile) -> StoredFile:
    return StoredFile(
        id=media.id,
        path=media.path.name,
        file_name=media.name,
        media_type=media.media_type,
        bytes=media.bytes,
        duration=media.duration_s,
    )


@router.get("", summary="List the stored files", responses=responses(Unauthorized, NotReady))
async def list_files(request: Request) -> FileList:
    """Those of the key that asks, newest first."""
    found = await asyncio.to_thread(services(request).media.list, key_name(request))
    return FileList(files=[described(item) for item in found])


@router.get(
    "/{id}",
    summary="Fetch a stored file, or a range of it",
    response_class=FileResponse,
    responses=_FILE_RESPONSES | responses(Unauthorized, MediaNotFound, RangeNotSatisfiable, NotReady),
)
async def send_file(request: Request, id: str) -> Response:
    """Understands Range, so that players can seek and broken downloads go on."""
    store, owner = services(request).media, key_name(request)
    media = await asyncio.to_thread(store.get, id, owner)
    path = await asyncio.to_thread(store.resolve, id, owner)
    try:
        stat = await asyncio.to_thread(os.stat, path)
    except FileNotFoundError as error:
        raise MediaNotFound from error
    return _MediaResponse(path, media_type=media.media_type, filename=media.name, stat_result=stat)


@router.delete(
    "/{id}", summary="Delete a stored file", status_code=204, responses=responses(Unauthorized, MediaNotFound, NotReady)
)
async def delete_file(request: Request, id: str) -> None:
    await asyncio.to_thread(services(request).media.delete, id, key_name(request))


class _MediaResponse(FileResponse):
    """A file whose refusals of a range are problems like all others: Starlette answers those in plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def watch(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refused = True
            if not refused:
                await send(message)

        await super().__call__(scope, receive, watch)
        if refused:
            size = self.stat_result.st_size if self.stat_result else 0
            await answer(RangeNotSatisfiable(), {"Content-Range": f"bytes */{size}"})(scope, receive, send)
