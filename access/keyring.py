"""The keys that open this server: those of its settings, and those that were made since, without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from access.failures import Failures
from access.keys import Key, configured, digest_of, id_of
from errors import StoreUnavailable, Unauthorized
from key_limits import Limits
from transcription.core import Priority

FRESH_S = 1.0
"""A key that was revoked opens nothing after so long."""
UNKNOWN_S = 0.2
"""A key that was just made opens at once; strangers cost no more than so many looks at the store."""
STALE_S = 60.0
"""For so long the stored keys are believed while nobody can look whether one was revoked."""
PATIENCE_S = 1.0
"""A caller waits no longer for a store that does not answer."""

log = structlog.get_logger(__name__)


class Stored(Protocol):
    """Where further keys are. Blocks."""

    def all(self) -> list[Key]:
        """Raises StoreUnavailable."""


class Keys:
    """Tells whose key was sent. Holds digests only, so that no trace and no log can show a key."""

    def __init__(
        self,
        keys: Iterable[str],
        *,
        batch_keys: Iterable[str] = (),
        loopback_only: bool = False,
        store: Stored | None = None,
        failures: Failures | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """*keys*: the settings' own; *batch_keys*: those of them whose requests are never interactive, whatever they
        say. *loopback_only*: the server has made these itself."""
        batch = {digest_of(key) for key in batch_keys}
        own = [configured(key, batch=digest_of(key) in batch, made_here=loopback_only) for key in keys]
        self._own = {key.id: key for key in own}
        self._store = store
        self._stored: dict[str, Key] = {}
        self._owners: dict[str, Key] = {}
        """Of each owner's stored keys the newest that is not revoked: its limits and its class are the owner's."""
        self._read_at = -STALE_S if store else clock()
        self._reading: asyncio.Task[None] | None = None
        self._familiar: set[bytes] = set()
        """Digests of keys that have opened: whoever shares an address with a stranger is not shut out with him."""
        self._failures = Failures() if failures is None else failures
        self._clock = clock
        self._wall_clock = wall_clock

    def __repr__(self) -> str:
        return f"<Keys own={len(self._own)} stored={len(self._stored)}>"

    async def admit(self, sent: list[bytes], address: str = "") -> Key:
        """The key that was sent, if once. *address*: the caller's, which may fail only so often.

        Raises Unauthorized, TooManyFailures, StoreUnavailable. Takes as long for a wrong key as for a right one.
        """
        if not sent:
            raise Unauthorized
        digest = digest_of(sent[0])
        is_guess = digest not in self._familiar
        if is_guess:
            self._failures.check(address)
        key = await self._found(digest) if len(sent) == 1 else None
        # Nothing is awaited from here on: those that came at once, and waited for one look, are counted one by one.
        if is_guess:
            self._failures.check(address)
        if key is None:
            self._familiar.discard(digest)
            self._failures.note(address)
            raise Unauthorized
        self._familiar.add(digest)
        return key

    async def _found(self, digest: bytes) -> Key | None:
        if own := _matching(self._own, digest):
            return own
        await self._look(FRESH_S if _matching(self._stored, digest) else UNKNOWN_S)
        stored = _matching(self._stored, digest)
        return stored if stored and stored.opens_at(self._wall_clock()) else None

    async def check(self, key: Key) -> None:
        """Whether *key*, which has opened before, still does: for what lasts. Raises Unauthorized, StoreUnavailable."""
        if await self._found(key.digest) is None:
            raise Unauthorized("The key opens nothing any more.")

    async def check_owner(self, owner: str) -> None:
        """Whether any key of *owner* still opens: for what lasts and was opened by a token. Raises as `check`."""
        if owner in self._own:
            return
        await self._look(FRESH_S)
        if not any(key.owner == owner and key.opens_at(self._wall_clock()) for key in self._stored.values()):
            raise Unauthorized

    async def _look(self, at_most_s: float) -> None:
        """As `look`. Raises StoreUnavailable where nobody could look for so long that keys are not believed."""
        await self.look(at_most_s)
        if self._clock() - self._read_at > STALE_S:
            raise StoreUnavailable

    async def look(self, at_most_s: float = 0.0) -> None:
        """Read the stored keys, unless they were read in the last *at_most_s* seconds. One look serves all callers."""
        if self._store is None or self._clock() - self._read_at < at_most_s:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(self._store), name="keys")
        # Whoever leaves meanwhile leaves the others their look.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reading), PATIENCE_S)

    async def _read(self, store: Stored) -> None:
        begun = self._clock()
        try:
            found = await asyncio.to_thread(store.all)
        except StoreUnavailable as error:
            log.warning("the stored keys cannot be read", code=error.code)
            return
        self._stored = {key.id: key for key in found}
        self._owners = {key.owner: key for key in found if key.revoked_at is None}
        self._read_at = begun

    # --- what follows from a key, by its owner -----------------------------------------------------------------------

    def ceiling(self, owner: str) -> Priority:
        """The most urgent class that the owner's keys may ask for."""
        known = self._own.get(owner) or self._owners.get(owner)
        return known.priority if known else Priority.INTERACTIVE

    def limits(self, owner: str) -> Limits | None:
        """What the owner may have; None: as everybody."""
        known = self._owners.get(owner)
        return known.limits if known else None

    @property
    def several(self) -> bool:
        """Whether more than one owner may come."""
        return len(self._own) + len(self._owners) > 1

    @property
    def loopback_only(self) -> bool:
        """Whether nothing opens this server but the key that it made itself."""
        return not self._owners and all(key.made_here for key in self._own.values())


def _matching(keys: dict[str, Key], digest: bytes) -> Key | None:
    """Digests are looked for, and compared whole: neither a key's place nor its first letters can be timed."""
    found = keys.get(id_of(digest))
    same = hmac.compare_digest(found.digest if found else bytes(len(digest)), digest)
    return found if same else None
