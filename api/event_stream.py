"""Server-sent events as an answer, whoever writes them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Send

HEARTBEAT_S = 15.0
"""Proxies close connections on which nothing comes, the strictest of the usual ones after 30 s."""

HEARTBEAT = ": \n\n"
"""A comment, which readers pass over."""


class EventStream(StreamingResponse):
    """Closes what it streams as soon as the caller is gone, and not when the garbage is collected."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[str]) -> None:
        super().__init__(lines, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._lines = lines

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(self._lines):
            await super().stream_response(send)


def documented(example: str) -> dict[str, Any]:
    """OpenAPI's words for such an answer.

    NOTE: itemSchema is a word of OpenAPI 3.2; FastAPI, too, uses it in a document of 3.1, which has none for events.
    """
    properties = {
        "id": {"type": "string", "description": "Its number, where a stream that broke off can go on after it."},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer", "description": "Milliseconds until a reader should come back."},
    }
    item = {"type": "object", "properties": properties, "required": ["data"], "additionalProperties": False}
    return {"text/event-stream": {"itemSchema": item, "example": example}}


def message(kind: str | None, data: Mapping[str, Any], number: int | None = None) -> str:
    """One event. Without *kind* it has no name: browsers take it for a `message`."""
    head = ("" if number is None else f"id: {number}\n") + ("" if kind is None else f"event: {kind}\n")
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def rounded(value: float | str | None, decimals: int) -> float | None:
    """JSON has no NaN: null says that the number is not known."""
    number = float("nan" if value is None else value)
    return round(number, decimals) if math.isfinite(number) else None
