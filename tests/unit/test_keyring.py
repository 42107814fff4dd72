"""Which key opens, from when to when, and that what nobody can look up is not believed for ever."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest

from access.failures import Failures
from access.keyring import FRESH_S, STALE_S, UNKNOWN_S, Keys
from access.keys import EVERYTHING, USUAL, Key, Scope, digest_of, new_key, owner_of
from errors import StoreUnavailable, TooManyFailures, Unauthorized
from key_limits import Limits
from transcription.core import Priority


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """Stored keys, which can be out of reach."""

    def __init__(self, *keys: Key) -> None:
        self.keys = list(keys)
        self.looks = 0
        self.away = False
        self.hangs: threading.Event | None = None

    def all(self) -> list[Key]:
        self.looks += 1
        if self.hangs:
            self.hangs.wait(10)
        if self.away:
            raise StoreUnavailable
        return list(self.keys)


def stored(key: str, name: str = "alice", **facts: object) -> Key:
    return Key(digest_of(key), owner_of(name), USUAL, name=name, **facts)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ring(shelf: Shelf | None, clock: Clock, own: tuple[str, ...] = ("own-key",), **more: object) -> Keys:
    return Keys(own, store=shelf, clock=clock, wall_clock=clock, **more)  # type: ignore[arg-type]


def test_keys_are_256_random_bits_and_never_the_same() -> None:
    """Guessing is hopeless then."""
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("sg_") and len(key) == 3 + 43 for key in made)


async def test_a_key_of_the_settings_opens_everything_without_a_store(clock: Clock) -> None:
    """It is the operator's own, and it opens also while the database is away."""
    shelf = Shelf()
    shelf.away = True
    key = await ring(shelf, clock).admit([b"own-key"])
    assert key.scopes == EVERYTHING
    assert shelf.looks == 0


async def test_a_key_that_was_just_made_opens_at_once(clock: Clock) -> None:
    """Whoever has made one pastes the next command."""
    shelf = Shelf()
    keys = ring(shelf, clock)
    await keys.look()
    clock.now += UNKNOWN_S
    shelf.keys.append(stored("new-key"))
    assert (await keys.admit([b"new-key"])).owner == "@alice"


async def test_a_revoked_key_opens_nothing_after_a_second(clock: Clock) -> None:
    """Keys leak: no restart may be needed to be rid of one, also of one that has opened before."""
    shelf = Shelf(stored("a-key"))
    keys = ring(shelf, clock)
    await keys.admit([b"a-key"])
    shelf.keys[0] = dataclasses.replace(shelf.keys[0], revoked_at=clock.now)
    await keys.admit([b"a-key"])
    clock.now += FRESH_S
    with pytest.raises(Unauthorized):
        await keys.admit([b"a-key"])


async def test_a_key_opens_until_it_expires(clock: Clock) -> None:
    """By the clock, whether or not the store is looked at."""
    keys = ring(Shelf(stored("a-key", expires_at=clock.now + 0.5)), clock)
    await keys.admit([b"a-key"])
    clock.now += 0.5
    with pytest.raises(Unauthorized):
        await keys.admit([b"a-key"])


async def test_many_requests_cost_one_look(clock: Clock) -> None:
    """The database is for jobs."""
    shelf = Shelf(stored("a-key"))
    keys = ring(shelf, clock)
    for _ in range(50):
        await keys.admit([b"a-key"])
    assert shelf.looks == 1


async def test_strangers_cost_few_looks(clock: Clock) -> None:
    """However many wrong keys come."""
    shelf = Shelf()
    keys = ring(shelf, clock)
    for number in range(50):
        with pytest.raises(Unauthorized):
            await keys.admit([str(number).encode()])
    assert shelf.looks == 1


async def test_stored_keys_are_believed_for_a_minute_without_a_store(clock: Clock) -> None:
    """A restart of the database shuts nobody out; nor can it be waited for until a leaked key is forgotten."""
    shelf = Shelf(stored("a-key"))
    keys = ring(shelf, clock)
    await keys.admit([b"a-key"])
    shelf.away = True
    clock.now += STALE_S
    await keys.admit([b"a-key"])
    clock.now += 1
    with pytest.raises(StoreUnavailable):
        await keys.admit([b"a-key"])
    await keys.admit([b"own-key"])


async def test_a_store_that_hangs_holds_no_caller_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not answer is no reason for a server that does not."""
    monkeypatch.setattr("access.keyring.PATIENCE_S", 0.01)
    shelf = Shelf(stored("a-key"))
    keys = ring(shelf, clock)
    await keys.admit([b"a-key"])
    clock.now += FRESH_S
    shelf.hangs = threading.Event()
    try:
        await keys.admit([b"a-key"])
        await keys.admit([b"a-key"])
        assert shelf.looks == 2
    finally:
        shelf.hangs.set()


async def test_keys_of_one_name_have_one_owner(clock: Clock) -> None:
    """A leaked key is replaced without losing what belongs to it."""
    keys = ring(Shelf(stored("old-key"), stored("new-key")), clock)
    assert (await keys.admit([b"old-key"])).owner == (await keys.admit([b"new-key"])).owner


async def test_no_name_is_taken_for_a_key_of_the_settings(clock: Clock) -> None:
    """Else a key made under the other's id would see its jobs."""
    own = await ring(None, clock).admit([b"own-key"])
    assert owner_of(own.owner) != own.owner


async def test_limits_and_class_are_those_of_the_newest_key(clock: Clock) -> None:
    """A key that was made to change the limits changes them."""
    older = stored("old-key", limits=Limits(5), priority=Priority.INTERACTIVE)
    newer = stored("new-key", limits=Limits(2, 60.0), priority=Priority.BATCH)
    revoked = stored("leaked-key", limits=Limits(9), revoked_at=1.0)
    keys = ring(Shelf(older, newer, revoked), clock)
    await keys.look()
    assert keys.limits("@alice") == Limits(2, 60.0)
    assert keys.ceiling("@alice") is Priority.BATCH
    assert keys.limits("@bob") is None


async def test_several_owners_share_the_line(clock: Clock) -> None:
    """Only then must none fill it."""
    shelf = Shelf()
    keys = ring(shelf, clock)
    assert not keys.several
    shelf.keys.append(stored("a-key"))
    await keys.look()
    assert keys.several


async def test_the_made_key_is_no_key_for_a_network(clock: Clock) -> None:
    """A stored one is."""
    shelf = Shelf()
    keys = ring(shelf, clock, loopback_only=True)
    await keys.look()
    assert keys.loopback_only
    shelf.keys.append(stored("a-key"))
    await keys.look()
    assert not keys.loopback_only
    assert (await keys.admit([b"own-key"])).made_here
    shelf.keys[0] = dataclasses.replace(shelf.keys[0], revoked_at=1.0)
    await keys.look()
    assert keys.loopback_only


@pytest.mark.parametrize("sent", [[], [b""], [b"own-key", b"own-key"], [b"\xff\xfe"], ["schlüssel".encode()]])
async def test_anything_but_one_key_is_refused(clock: Clock, sent: list[bytes]) -> None:
    """Odd bytes, too."""
    with pytest.raises(Unauthorized):
        await ring(Shelf(), clock).admit(sent)


async def test_whoever_guesses_has_to_wait(clock: Clock) -> None:
    """Past the bound not even a right key is looked at, else a guess would cost nothing; and a minute heals it."""
    keys = ring(Shelf(stored("a-key")), clock, failures=Failures(3, clock))
    for number in range(3):
        with pytest.raises(Unauthorized):
            await keys.admit([str(number).encode()], "192.0.2.1")
    with pytest.raises(TooManyFailures) as refused:
        await keys.admit([b"a-key"], "192.0.2.1")
    assert refused.value.retry_after_s == 20
    assert (await keys.admit([b"a-key"], "192.0.2.2")).owner == "@alice"
    clock.now += 20
    with pytest.raises(Unauthorized):
        await keys.admit([b"one more"], "192.0.2.1")


async def test_whoever_shares_an_address_with_a_stranger_is_not_shut_out(clock: Clock) -> None:
    """Behind a proxy all callers may have one."""
    keys = ring(None, clock, failures=Failures(1, clock))
    await keys.admit([b"own-key"], "192.0.2.1")
    with pytest.raises(Unauthorized):
        await keys.admit([b"wrong"], "192.0.2.1")
    with pytest.raises(TooManyFailures):
        await keys.admit([b"wrong"], "192.0.2.1")
    await keys.admit([b"own-key"], "192.0.2.1")


async def test_guesses_that_come_at_once_are_counted_at_once(clock: Clock) -> None:
    """Each waits for a look at the store: whoever sends all before the first is over gets no more of them."""
    keys = ring(Shelf(stored("a-key")), clock, failures=Failures(3, clock))
    guesses = [keys.admit([str(number).encode()], "192.0.2.1") for number in range(10)]
    told = await asyncio.gather(*guesses, return_exceptions=True)
    assert [type(one) for one in told] == [Unauthorized] * 3 + [TooManyFailures] * 7


async def test_right_keys_may_come_many_at_once(clock: Clock) -> None:
    """An office opens its connections together, after a restart of this server; and a right guess costs nothing."""
    names = [f"key-{number}" for number in range(10)]
    keys = ring(Shelf(*map(stored, names)), clock, failures=Failures(1, clock))
    came = await asyncio.gather(*(keys.admit([name.encode()], "192.0.2.1") for name in names * 2))
    assert {key.owner for key in came} == {"@alice"}
    with pytest.raises(Unauthorized):
        await keys.admit([b"wrong"], "192.0.2.1")


async def test_a_guess_that_nobody_could_look_up_costs_nothing(clock: Clock) -> None:
    """The store's failure is not the caller's."""
    shelf = Shelf(stored("a-key"))
    keys = ring(shelf, clock, failures=Failures(1, clock))
    shelf.away = True
    with pytest.raises(StoreUnavailable):
        await keys.admit([b"a-key"], "192.0.2.1")
    shelf.away = False
    assert await keys.admit([b"a-key"], "192.0.2.1")


async def test_an_owner_has_a_key_as_long_as_one_opens(clock: Clock) -> None:
    """What a token has opened ends with the last of them."""
    first, second = stored("first"), stored("second", expires_at=clock.now + 100)
    shelf = Shelf(first, second)
    keys = ring(shelf, clock)
    await keys.check_owner("@alice")
    shelf.keys[0] = dataclasses.replace(first, revoked_at=1.0)
    clock.now += FRESH_S
    await keys.check_owner("@alice")
    clock.now += 100
    with pytest.raises(Unauthorized):
        await keys.check_owner("@alice")
    await keys.check_owner((await keys.admit([b"own-key"])).owner)
    with pytest.raises(Unauthorized):
        await keys.check_owner("@nobody")


async def test_a_request_without_a_key_is_no_guess(clock: Clock) -> None:
    """A browser that looks at a page has not tried anything."""
    keys = ring(None, clock, failures=Failures(1, clock))
    for _ in range(5):
        with pytest.raises(Unauthorized):
            await keys.admit([], "192.0.2.1")


async def test_nothing_shows_a_key(clock: Clock) -> None:
    """Traces and logs show what an object says of itself."""
    keys = ring(Shelf(stored("a-key")), clock)
    shown = repr(keys) + repr(await keys.admit([b"a-key"])) + repr(vars(keys))
    assert "a-key" not in shown
    assert "own-key" not in shown


def test_scopes_are_told_apart() -> None:
    """Who may download need not be an operator."""
    assert Scope.ADMIN not in USUAL
    assert frozenset(Scope) == EVERYTHING
