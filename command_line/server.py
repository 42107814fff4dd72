"""A running server: a job for each recording, followed by its events, cancelled with the command."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from command_line.files import Source
from command_line.transcribing import REFUSALS, Exit, Failed, Made, Shown, as_bytes, with_words
from transcription.core import ResponseFormat

AT_ONCE = 4
"""Recordings: the server shares its batches among them, and lets others go in between."""

TIMEOUT = httpx.Timeout(60.0, connect=5.0, pool=None)
"""NOTE: a stream of events has a sign of life each 15 s."""

PROBE_S = 2.0
LOOKS = 5
"""A stream of events that breaks off is taken up again so often in a row."""
AGAIN_S = 2.0
CANCEL_S = 5.0
UNKNOWN_WAIT_S = 10.0
LONGEST_WAIT_S = 120.0


async def answers(address: str) -> bool:
    """Whether a server of this kind listens at *address*. Sends no key."""
    try:
        async with httpx.AsyncClient(timeout=PROBE_S) as client:
            told = (await client.get(f"{address}/health")).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return isinstance(told, dict) and told.get("status") == "ok" and "version" in told


class Server:
    """Transcribes at *address*. A context manager."""

    at_once = AT_ONCE

    def __init__(
        self,
        address: str,
        key: str | None,
        *,
        wait: bool,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """*wait*: what is refused for now is sent again."""
        self._address = address
        self._wait = wait
        self._sleep = sleep
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"X-API-Key": key} if key else {},
            timeout=TIMEOUT,
            follow_redirects=False,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def transcribe(
        self, source: Source, parameters: Mapping[str, str], formats: Sequence[ResponseFormat], shown: Shown
    ) -> Made:
        try:
            job_id = await self._handed_in(source, with_words(parameters, formats), shown)
            try:
                await self._followed(job_id, shown)
                shown.stage("writing")
                told = (await self._result(job_id, ResponseFormat.JSON)).json()
                contents = {one: _content(await self._result(job_id, one)) for one in formats}
            except asyncio.CancelledError:
                await self._cancelled(job_id)
                raise
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise Failed(f"The server at {self._address} went away: {why}.", exit=Exit.NOBODY) from error
        return Made(contents, told.get("warnings", ()))

    # --- handing in ------------------------------------------------------------------------------------------------

    async def _handed_in(self, source: Source, parameters: Mapping[str, str], shown: Shown) -> str:
        """The id of the job that was made of *source*. Raises Failed."""
        while True:
            shown.stage("sending")
            answer = await self._sent(source, parameters)
            if answer.status_code == 202:
                return str(answer.json()["id"])
            if not (self._wait and answer.status_code in REFUSALS):
                raise _failure(answer, refused=answer.status_code in REFUSALS)
            shown.stage("waiting for the server")
            await self._sleep(_wait_s(answer))

    async def _sent(self, source: Source, parameters: Mapping[str, str]) -> httpx.Response:
        query = {"mode": "async"}
        if source.path is None:
            return await self._client.post("/transcribe", params=query, data={**parameters, "url": source.url or ""})
        with _opened(source.path) as file:
            parts = {"file": (source.path.name, file)}
            return await self._client.post("/transcribe", params=query, data=dict(parameters), files=parts)

    # --- following -------------------------------------------------------------------------------------------------

    async def _followed(self, job_id: str, shown: Shown) -> None:
        """Show how the job stands until it is over."""
        last_id, failures = "0", 0
        while True:
            try:
                async for event in self._events(job_id, last_id):
                    failures = 0
                    last_id = event.get("id", last_id)
                    if event["event"] in ("succeeded", "failed", "cancelled"):
                        return
                    _show(event["event"], json.loads(event["data"]), shown)
                answer = await self._client.get(f"/jobs/{job_id}")
                if answer.status_code != 200:
                    raise _failure(answer)
                if answer.json()["state"] in ("succeeded", "failed", "cancelled"):
                    return
            except httpx.TransportError:
                failures += 1
                if failures > LOOKS:
                    raise
            await self._sleep(AGAIN_S)

    async def _events(self, job_id: str, after: str) -> AsyncGenerator[dict[str, str]]:
        """Server-sent events of the job: their fields."""
        headers = {"Last-Event-ID": after, "Accept": "text/event-stream"}
        async with self._client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
            if answer.status_code == 204:
                return
            if answer.status_code != 200:
                await answer.aread()
                raise _failure(answer)
            event: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(":")
                if name:
                    event[name] = value.removeprefix(" ")
                elif not line:
                    if "event" in event and "data" in event:
                        yield event
                    event = {}

    async def _result(self, job_id: str, response_format: ResponseFormat) -> httpx.Response:
        answer = await self._client.get(f"/jobs/{job_id}/result", params={"response_format": response_format.value})
        if answer.status_code != 200:
            raise _failure(answer)
        return answer

    async def _cancelled(self, job_id: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            await self._client.delete(f"/jobs/{job_id}", timeout=CANCEL_S)


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise Failed(f"{error.strerror}.") from error


def _show(kind: str, told: Mapping[str, Any], shown: Shown) -> None:
    if kind == "queued" and "position" in told:
        shown.stage(f"{told['position']} before it")
    elif kind == "progress":
        shown.length(told.get("of_audio_seconds"))
        shown.heard(told.get("audio_seconds") or 0.0)
        if stage := told.get("stage"):
            shown.stage(str(stage))
    elif kind == "segment":
        shown.heard(told.get("end") or 0.0)


def _content(answer: httpx.Response) -> bytes:
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return as_bytes(answer.json()) if is_json else answer.content


def _wait_s(answer: httpx.Response) -> float:
    told = answer.headers.get("retry-after", "")
    return min(LONGEST_WAIT_S, float(told)) if told.isdecimal() else UNKNOWN_WAIT_S


def _failure(answer: httpx.Response, *, refused: bool = False) -> Failed:
    """What a problem document says, or a proxy in between."""
    try:
        problem = answer.json()
        message, code = str(problem["detail"]), str(problem["code"])
    except (ValueError, KeyError, TypeError):
        message, code = f"The server answered {answer.status_code} {answer.reason_phrase}.", ""
    return Failed(message, code, exit=Exit.REFUSED if refused else Exit.FAILED)
