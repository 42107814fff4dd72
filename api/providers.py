"""Who does a request's work, this server or its upstream, and at which place of the gate."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from fastapi import Request

from api.gate import Patience, admitted
from api.problems import InvalidParameters
from api.security import key_name
from api.services import Services, services
from api.uploads import brings_no_fields
from errors import DeadlineTooNear, ProviderNotAllowed, QueueFull
from jobs.crew import OPTIONS
from reservation import Reservation, Work
from transcription.core import Provider, TranscriptionOptions
from transcription.upstream_answers import undoable


def check_provider(options: TranscriptionOptions, parts: Services) -> None:
    """Whether it may be done by whom the caller names. Raises ProviderNotAllowed, InvalidParameters, TooLarge."""
    if options.provider is not Provider.OPENAI:
        parts.sizes.check_fits(options.model)
    if options.provider is Provider.LOCAL:
        return
    if parts.upstream is None:
        raise ProviderNotAllowed
    if options.provider is Provider.AUTO and not parts.upstream.when_full:
        raise ProviderNotAllowed("This server hands nothing on by itself: choose provider=local or provider=openai.")
    if options.provider is Provider.OPENAI and (faults := undoable(options)):
        raise InvalidParameters(faults)


def work_of(options: TranscriptionOptions) -> Work:
    """What a job with these options is, once it is decided who does it."""
    return Work.UPSTREAM if options.provider is Provider.OPENAI else Work.TRANSCRIPTION


def decided(options: TranscriptionOptions, *, full: bool) -> Provider:
    """Who does it. *full*: this server would refuse it."""
    if options.provider is not Provider.AUTO:
        return options.provider
    return Provider.OPENAI if full and not undoable(options) else Provider.LOCAL


class Door:
    """One request's way to its place at the gate. Parameters may come with the body, and who does it with them: until
    they are known, it has a place here where there is one, else one among those whose work is handed on."""

    def __init__(
        self, request: Request, work: Work, patience: Patience, stack: AsyncExitStack, *, chooses: bool
    ) -> None:
        """*stack*: holds the place. *chooses*: whether callers may say who does it."""
        self._request = request
        self._work = work
        self._patience = patience
        self._stack = stack
        self._parts = services(request)
        self._chooses = chooses and work is Work.TRANSCRIPTION and self._parts.upstream is not None
        self._refusal: QueueFull | DeadlineTooNear | None = None
        self.place: Reservation | None = None
        """None for a job that nobody waits for."""

    async def enter(self) -> None:
        """Raises what `admitted` raises."""
        try:
            self.place = await self._admitted(self._work)
        except (QueueFull, DeadlineTooNear) as refusal:
            if not self._may_be_handed_on():
                raise
            self._refusal = refusal
            self.place = await self._admitted(Work.UPSTREAM)

    async def decided(self, options: Mapping[str, Any]) -> tuple[Work, dict[str, Any]]:
        """What kind of work it is, and *options* that say so; from now on the place is of that kind.

        Raises the refusal of who must be served here, and what `admitted` raises.
        """
        if not self._chooses:
            return self._work, dict(options)
        wanted = OPTIONS.validate_python(options)
        full = self._refusal is not None or (
            wanted.provider is Provider.AUTO and self.place is None and self._is_full()
        )
        provider = decided(wanted, full=full)
        if provider is Provider.LOCAL:
            if self._refusal is not None:
                raise self._refusal
            return self._work, {**options, "provider": provider.value}
        if self.place is not None and self.place.work is not Work.UPSTREAM:
            self.place.leave()
            self.place = await self._admitted(Work.UPSTREAM)
        return Work.UPSTREAM, {**options, "provider": provider.value}

    async def _admitted(self, work: Work) -> Reservation:
        return await self._stack.enter_async_context(admitted(self._request, work, self._patience))

    def _may_be_handed_on(self) -> bool:
        """As far as can be told before the body is read."""
        if not self._chooses:
            return False
        named = self._request.query_params.get("provider")
        if named:
            return named != Provider.LOCAL
        return not brings_no_fields(self._request.scope["headers"])

    def _is_full(self) -> bool:
        """Whether somebody who waits would be refused just now."""
        key = key_name(self._request)
        priority = max(self._patience.priority, self._parts.keys.ceiling(key))
        try:
            with self._parts.admission.reserve(self._work, key, priority, counted=False):
                return False
        except (QueueFull, DeadlineTooNear):
            return True
