"""WS /transcribe/live: sound in as it is spoken, text out as it is understood (docs/live.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter, WebSocket
from pydantic import Field
from starlette.websockets import WebSocketDisconnect, WebSocketState

import prices
from access.keys import Key, Scope
from api.cross_origin import may_open
from api.event_stream import rounded
from api.parameters import Pairs, Parameters, parse
from api.problems import ClientGone, InvalidParameters, answer, problem_of
from api.security import opened, sent_keys
from api.services import Services, services
from api.transcribe import TranscribeParameters, options_of
from errors import (
    ClientStalled,
    InvalidRequest,
    NotReady,
    OriginNotAllowed,
    QuotaUsed,
    ServiceError,
    ShuttingDown,
    Unauthorized,
    UploadTooLarge,
)
from reservation import Work
from telemetry import current_request_id, request_bound, request_id
from transcription import formats
from transcription.core import SAMPLE_RATE, Caller, Priority, TranscriptionOptions
from transcription.live import LiveText
from transcription.live_session import Heard, LiveSession, Partial
from transcription.live_sound import Encoding, LiveSound
from transcription.protocol import Language

router = APIRouter(tags=["transcription"])

log = structlog.get_logger("api")

PATH = "/transcribe/live"

MAX_MESSAGE_BYTES = 1024 * 1024
"""Of one message: half a minute of samples."""

KEY_S = 10.0
"""Whoever brings no key in a header has so long to send it."""

LAST_WORD_S = 2.0
"""An error is told to who reads; who does not is cut off after so long."""

ALIKE = (
    *("model_size", "language", "task", "word_timestamps", "beam_size", "temperature", "initial_prompt", "hotwords"),
    *("multilingual", "filter_fillers", "filter_profanity"),
)
"""Parameters that mean what they mean to POST /transcribe."""

SERVICE_RESTART = 1012
INTERNAL_ERROR = 1011
OWN_CODES = 4000
"""RFC 6455 leaves the codes from here to applications."""


class LiveParameters(Parameters):
    """What only live sound needs to be told."""

    encoding: Encoding = Field(Encoding.PCM, description="What the binary messages hold.")
    sample_rate: int = Field(SAMPLE_RATE, ge=8_000, le=192_000, description="Of raw samples.")
    partials: bool = Field(True, description="Tell what speech that goes on sounds like so far.")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address says, checked."""

    sound: LiveSound
    partials: bool
    options: TranscriptionOptions


def asked_in(query: Pairs, parts: Services) -> Asked:
    """Raises InvalidParameters, UnknownModel, UnsupportedLanguage, TooLarge."""
    own = [(name, value) for name, value in query if name in LiveParameters.model_fields]
    alike = [(name, value) for name, value in query if name in ALIKE]
    known = ", ".join((*LiveParameters.model_fields, *ALIKE))
    unknown = [name for name, _ in query if name not in LiveParameters.model_fields and name not in ALIKE]
    if unknown:
        # NOTE: without its value, which may be a key that somebody took for a parameter.
        raise InvalidParameters([(name, f"unknown parameter; there are {known}") for name in dict.fromkeys(unknown)])
    live = parse(LiveParameters, own)
    options = options_of(
        parse(TranscribeParameters, alike),
        default_model=parts.default_model,
        default_beam_size=parts.default_beam_size,
    )
    parts.sizes.check_fits(options.model)
    return Asked(LiveSound(live.encoding, live.sample_rate), live.partials, options)


def close_code(error: ServiceError) -> int:
    """4000 and the status; where RFC 6455 has a code of its own for it, that."""
    if isinstance(error, ShuttingDown):
        return SERVICE_RESTART
    return INTERNAL_ERROR if error.status == ServiceError.status else OWN_CODES + error.status


@router.websocket(PATH)
async def live(websocket: WebSocket) -> None:
    """A session of live text, from its first message to its last."""
    proposed = websocket.headers.getlist("x-request-id")
    with request_bound(request_id(proposed[0] if len(proposed) == 1 else None)):
        await _Conversation(websocket, services(websocket)).held()


class _Conversation:
    """One connection and what is said on it."""

    def __init__(self, websocket: WebSocket, parts: Services) -> None:
        self._websocket = websocket
        self._parts = parts
        self._session: LiveSession | None = None

    async def held(self) -> None:
        """All of it, and its one line in the log. Raises nothing."""
        begun = time.monotonic()
        code = SERVICE_RESTART
        try:
            code = await self._held()
        except asyncio.CancelledError:
            # NOTE: uvicorn's, when its grace period is over; it would log it as a crash. Nothing runs after this.
            pass
        finally:
            session = self._session
            heard = {"audio_s": round(session.duration_s, 2), "segments": session.segments} if session else {}
            log.info(
                f"WS {PATH} {code}",
                method="WS",
                path=PATH,
                code=code,
                duration_ms=round((time.monotonic() - begun) * 1000, 1),
                **heard,
            )

    async def _held(self) -> int:
        """The code with which the connection was closed; 1006 where it was lost."""
        try:
            if not self._from_allowed_origin():
                return await self._shut_out(OriginNotAllowed())
            await self._websocket.accept()
            await self._spoken()
            return await self._close(1000)
        except (ClientGone, WebSocketDisconnect):
            return 1006
        except ServiceError as error:
            return await self._refused(error)
        except Exception as error:
            log.exception("unexpected exception", exc_info=error)
            return await self._refused(ServiceError())

    def _from_allowed_origin(self) -> bool:
        headers = self._websocket.headers
        return may_open(headers.get("origin"), headers.get("host"), self._parts.cors_origins)

    async def _shut_out(self, error: ServiceError) -> int:
        """Refuse the connection itself, with *error* as its answer."""
        log.info(error.message, code=error.code)
        await self._websocket.send_denial_response(answer(error, {"X-Request-ID": current_request_id() or ""}))
        return close_code(error)

    async def _refused(self, error: ServiceError) -> int:
        """Tell of *error* and close."""
        if error.status >= 500:
            log.error(error.message, code=error.code, exc_info=error)
        else:
            log.info(error.message, code=error.code)
        self._parts.metrics.answered(error)
        told = problem_of(error).model_dump(exclude_none=True, exclude={"type", "title"})
        if error.retry_after_s is not None:
            told["retry_after"] = error.retry_after_s
        try:
            await self._send("error", told, LAST_WORD_S)
            return await self._close(close_code(error))
        except (ServiceError, WebSocketDisconnect):
            # Who does not read cannot be told.
            return 1006

    async def _spoken(self) -> None:
        """The conversation as it goes where nothing goes wrong."""
        parts, admission = self._parts, self._parts.admission
        opens = await self._key()
        key = opens.owner
        asked = asked_in(self._websocket.query_params.multi_items(), parts)
        if parts.live is None:
            raise NotReady("This server has no engine of its own, which live text needs.")
        parts.engine.check_ready()
        parts.disk.check_room(0)
        admission.check_accepts(Work.TRANSCRIPTION, key)
        # Whoever speaks cannot wait: no line, and nothing held while a model is fetched.
        await parts.live.prepare(asked.options.model)
        priority = parts.keys.ceiling(key)
        with admission.reserve(Work.LIVE, key, priority, no_wait=True) as place:
            await place.granted({prices.MEMORY: asked.sound.price_bytes}, short=True)
            async with parts.live.session(
                asked.sound,
                asked.options,
                self._tell,
                Caller(key, Priority(priority)),
                partials=asked.partials,
                count=self._counted(key, asked.options.model),
            ) as session:
                self._session = session
                await self._send("ready", _ready(asked, parts.live))
                await self._listen(session, opens, parts.live.idle_s)
        await self._send(
            "end", {"duration": rounded(session.duration_s, 3), "language": session.language, "text": session.text}
        )

    async def _key(self) -> Key:
        """The key that came in a header, or else comes in the first message. Raises what `opened` raises."""
        sent = sent_keys(self._websocket)
        if not sent:
            first = await self._received(KEY_S)
            said = _command(first) if isinstance(first, str) else {}
            if said.get("type") != "start" or not isinstance(said.get("key"), str):
                raise Unauthorized('Send the key in a header, or {"type":"start","key":"…"} as the first message.')
            # NOTE: JSON can hold half a character, which is in no key.
            sent = [said["key"].encode(errors="surrogatepass")]
        return await opened(self._websocket, sent, Scope.TRANSCRIBE)

    def _counted(self, key: str, model: str) -> Callable[[float], None]:
        """Counts the seconds that are heard, and refuses more than the key may have in a day."""
        admission, metrics = self._parts.admission, self._parts.metrics

        def count(seconds: float) -> None:
            if admission.audio_left_s(key) == 0:
                raise QuotaUsed
            admission.keys.charge(key, seconds)
            metrics.heard(model, seconds)

        return count

    async def _listen(self, session: LiveSession, key: Key, idle_s: float) -> None:
        """Hear what comes, until the caller stops."""
        while True:
            message = await self._received(idle_s)
            # A session may last for hours, and a key be revoked meanwhile.
            await self._parts.keys.check(key)
            if isinstance(message, bytes):
                await session.feed(message)
                continue
            match _command(message).get("type"):
                case "flush":
                    await session.flush()
                case "stop":
                    await session.stop()
                    return
                case "ping":
                    await self._send("pong", {})
                case "start":
                    # Who has sent the key in a header, too.
                    pass
                case other:
                    raise InvalidRequest(f"There is no message of type {other!r:.40}: flush, ping and stop are known.")

    async def _received(self, limit_s: float) -> str | bytes:
        """The next message. Raises ClientStalled, ClientGone, UploadTooLarge."""
        try:
            async with asyncio.timeout(limit_s):
                message = await self._websocket.receive()
        except TimeoutError:
            raise ClientStalled(f"Nothing was sent for {limit_s:g} s; send silence, or ping.") from None
        if message["type"] == "websocket.disconnect":
            raise ClientGone
        content: str | bytes = message.get("bytes") or message.get("text") or b""
        if len(content) > MAX_MESSAGE_BYTES:
            raise UploadTooLarge(f"A message is larger than {MAX_MESSAGE_BYTES} bytes.")
        return content

    async def _tell(self, heard: Heard) -> None:
        if isinstance(heard, Language):
            told = {"language": heard.code, "language_probability": rounded(heard.probability, 4)}
            await self._send("language", told)
        elif isinstance(heard, Partial):
            times = {"start": rounded(heard.start, 3), "end": rounded(heard.end, 3)}
            await self._send("partial", times | {"text": heard.text.strip()})
        else:
            await self._send("segment", formats.segment_json(heard))

    async def _send(self, kind: str, data: dict[str, Any], limit_s: float | None = None) -> None:
        """Raises ClientStalled where it is not read, and WebSocketDisconnect where the caller has left."""
        text = json.dumps({"type": kind} | data, ensure_ascii=False, separators=(",", ":"))
        if limit_s is None:
            limit_s = self._parts.live.idle_s if self._parts.live else KEY_S
        try:
            async with asyncio.timeout(limit_s):
                # NOTE: the server takes what the connection holds, some 64 KiB, and waits while it holds more.
                await self._websocket.send_text(text)
        except TimeoutError:
            raise ClientStalled("What is sent is not read.") from None

    async def _close(self, code: int) -> int:
        if self._websocket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(RuntimeError, TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    await self._websocket.close(code)
        return code


def _ready(asked: Asked, live: LiveText) -> dict[str, Any]:
    return {
        "request_id": current_request_id(),
        "model": asked.options.model,
        "language": asked.options.language,
        "encoding": asked.sound.encoding.value,
        "sample_rate": asked.sound.sample_rate if asked.sound.encoding is Encoding.PCM else None,
        "max_duration": live.max_duration_s,
        "idle_timeout": live.idle_s,
    }


def _command(message: str) -> dict[str, Any]:
    """What a text message says. Raises InvalidRequest."""
    try:
        said = json.loads(message)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise InvalidRequest("A text message is a JSON object with a type.")
    return said
