"""An answer that begins before the work is over: what is heard is sent as it is heard, then the whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, Protocol

import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from api.event_stream import HEARTBEAT, HEARTBEAT_S, EventStream
from errors import ServiceError
from jobs.crew import Outcome
from jobs.journal import Told

log = structlog.get_logger("api")

FIRST_WORD_S = 10.0
"""So long an error may still have a status of its own; then the caller learns that it has been let in."""


class Teller(Protocol):
    """Writes events in an interface's own words."""

    def heard(self, told: Told) -> Iterable[str]:
        """Of a language or a segment, while the work goes on."""

    async def over(self, outcome: Outcome) -> Iterable[str]:
        """Of all that was heard."""

    def failed(self, error: ServiceError) -> Iterable[str]:
        """Of what ended the work."""


class Stream:
    """Between the work, which tells, and the answer, which sends. Lives on one event loop."""

    def __init__(self) -> None:
        self._teller: Teller | None = None
        self._messages: asyncio.Queue[str] = asyncio.Queue()
        self._opened = asyncio.Event()
        self._speaks = asyncio.Event()

    def open(self, teller: Teller) -> None:
        """The caller wants events."""
        self._teller = teller
        self._opened.set()

    def hear(self, told: Told) -> None:
        if self._teller is not None:
            self._send(self._teller.heard(told))

    def _send(self, messages: Iterable[str]) -> None:
        for message in messages:
            self._messages.put_nowait(message)
            self._speaks.set()

    async def answered(self, work: Coroutine[Any, Any, Response | Outcome]) -> Response:
        """What *work* answers; or, where it has opened the stream, its events as they come, and the whole at its end.

        What fails before the first event is raised.
        """
        working = asyncio.create_task(work)
        speaking = asyncio.create_task(self._begun())
        try:
            await asyncio.wait({working, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if working.done() and isinstance(answer := working.result(), Response):
                return answer
        except BaseException:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            raise
        finally:
            speaking.cancel()
        return _TellingStream(self._lines(working), working)

    async def _begun(self) -> None:
        """There is something to send, or there has been nothing for long and the caller should hear of that."""
        await self._opened.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._speaks.wait(), FIRST_WORD_S)

    async def _lines(self, working: asyncio.Task[Response | Outcome]) -> AsyncGenerator[str]:
        working.add_done_callback(lambda _: self._messages.put_nowait(""))
        while not working.done() or not self._messages.empty():
            try:
                line = await asyncio.wait_for(self._messages.get(), HEARTBEAT_S)
            except TimeoutError:
                line = HEARTBEAT
            if line:
                yield line
        for line in await self._ending(working):
            yield line

    async def _ending(self, working: asyncio.Task[Response | Outcome]) -> Iterable[str]:
        assert self._teller is not None
        try:
            outcome = working.result()
            assert not isinstance(outcome, Response)
            return await self._teller.over(outcome)
        except ServiceError as error:
            log.info(error.message, code=error.code)
            return self._teller.failed(error)
        except Exception:
            log.exception("a stream's work failed")
            return self._teller.failed(ServiceError())


class _TellingStream(EventStream):
    """Ends the work when its caller is gone, also before the first event was asked for."""

    def __init__(self, lines: AsyncGenerator[str], working: asyncio.Task[Response | Outcome]) -> None:
        super().__init__(lines)
        self._working = working

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._working.cancel()
            # Files must be gone and the engine's place free before the request counts as over.
            await asyncio.gather(self._working, return_exceptions=True)


Telling = Callable[[Any], Teller | None]
"""From an endpoint's parameters to who writes its events; None: none are wanted."""
