"""All engines of this server as one: when they are ready, and weights found once for all who wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Self

from errors import NotReady
from transcription.engine import Engine
from transcription.placement import Placement, Weights
from transcription.seen_memory import Sight


class WeightsFinder:
    """Finds each model's weights once, however many wait for them: a download takes minutes, and threads are few."""

    def __init__(self, find: Callable[[str], Weights]) -> None:
        """*find* may block: it runs in a thread."""
        self._find = find
        self._found: dict[str, Weights] = {}
        self._searches: dict[str, asyncio.Task[Weights]] = {}

    async def __call__(self, model: str) -> Weights:
        """Raises what *find* raises: ModelUnavailable, UnknownModel, StorageFull."""
        if (found := self._found.get(model)) and found.path.exists():
            return found
        if model not in self._searches:
            search = self._searches[model] = asyncio.create_task(asyncio.to_thread(self._find, model))
            search.add_done_callback(lambda done: self._end(model, done))
        # NOTE: shielded: the first who asked may hang up, the others still wait.
        return await asyncio.shield(self._searches[model])

    def _end(self, model: str, search: asyncio.Task[Weights]) -> None:
        del self._searches[model]
        if not search.cancelled() and not search.exception():
            self._found[model] = search.result()


class Replicas:
    """The engines, one a placement. Use as an async context manager."""

    def __init__(
        self,
        find: Callable[[str], Weights],
        placements: Iterable[Placement],
        *,
        model: str,
        model_ttl_s: float = 0.0,
        log_level: str = "info",
        on_seen: Callable[[Sight], None] | None = None,
    ) -> None:
        """*find*: a model's weights, fetched if need be. *model* is loaded before an engine is ready. *on_seen*: what
        an engine's process holds, told every second."""
        self._weights = WeightsFinder(find)
        self.engines = [
            Engine(
                self._weights,
                model=model,
                placement=placement,
                model_ttl_s=model_ttl_s,
                log_level=log_level,
                on_seen=on_seen,
            )
            for placement in placements
        ]
        self._stack = contextlib.AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Replicas {self.engines}>"

    async def __aenter__(self) -> Self:
        for engine in self.engines:
            await self._stack.enter_async_context(engine)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def device(self) -> str:
        """What kind they compute on: "cpu" or "cuda"."""
        return self.engines[0].device.partition(":")[0]

    @property
    def compute_type(self) -> str:
        return self.engines[0].compute_type

    @property
    def resident_bytes(self) -> int:
        """Main memory of all engines' processes, as it was last seen."""
        return sum(engine.resident_bytes for engine in self.engines)

    def loaded(self) -> list[str]:
        """Names of the models that some engine has in memory."""
        return list(dict.fromkeys(name for engine in self.engines for name in engine.loaded()))

    def check_ready(self) -> None:
        """One engine is enough. Raises NotReady, with the reason where it is known."""
        if not any(engine.ready for engine in self.engines):
            raise NotReady(next((engine.failure for engine in self.engines if engine.failure), None))

    async def find_weights(self, model: str) -> None:
        """Have *model* on disk, fetched where it must be. Raises ModelUnavailable, UnknownModel."""
        await self._weights(model)
