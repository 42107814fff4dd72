"""The store of keys, on SQLite; tests/integration runs all of it on PostgreSQL, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from access.keys import EVERYTHING, USUAL, digest_of
from access.store import KeyStore
from key_limits import Limits
from tests.databases import Place, jobs_on, sqlite_in
from transcription.core import Priority


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with jobs_on(sqlite_in(tmp_path)) as place:
        yield place


def test_what_is_kept_of_a_key_is_all_but_the_key(place: Place) -> None:
    store = KeyStore(place.database)
    key, made = store.make("alice", USUAL, lasts_s=60, priority=Priority.BATCH, limits=Limits(3, None))
    plain, _ = store.make("bob", EVERYTHING)
    assert (made.digest, made.owner, made.name, made.scopes) == (digest_of(key), "@alice", "alice", USUAL)
    assert (made.limits, made.priority) == (Limits(3, None), Priority.BATCH)
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == 60
    first, second = sorted(store.all(), key=lambda kept: kept.name)
    assert first == made
    assert (second.digest, second.limits, second.expires_at) == (digest_of(plain), None, None)


def test_a_key_is_revoked_once(place: Place) -> None:
    """By its id or its name; what is revoked already is not told again."""
    store = KeyStore(place.database)
    keys = [store.make(name, USUAL)[1] for name in ("alice", "alice", "bob")]
    (revoked,) = store.revoke(id=keys[0].id)
    assert revoked.revoked_at is not None
    assert [kept.id for kept in store.revoke(name="alice")] == [keys[1].id]
    assert store.revoke(name="alice") == store.revoke(id="0" * 12) == []
    assert [kept.name for kept in store.all() if kept.revoked_at is None] == ["bob"]
