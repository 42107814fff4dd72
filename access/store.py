"""The keys that were made on the command line, kept beside the jobs: digests alone, never a key."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from access.keys import Key, Scope, digest_of, id_of, new_key, owner_of
from jobs.database import Database
from jobs.tables import keys
from key_limits import Limits
from transcription.core import Priority


class KeyStore:
    """Keys in one database, which machines may share. Blocks: coroutines call it in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(
        self,
        name: str,
        scopes: Collection[Scope],
        *,
        lasts_s: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
        limits: Limits | None = None,
    ) -> tuple[str, Key]:
        """A new key, which nobody can be told again, and what is kept of it. *lasts_s*: None for ever.

        Raises StoreUnavailable, StorageFull.
        """
        key = new_key()
        digest = digest_of(key)
        with self._database.writing() as connection:
            now = self._database.now(connection)
            row = connection.execute(
                sa.insert(keys)
                .values(
                    id=id_of(digest),
                    name=name,
                    digest=digest.hex(),
                    scopes=",".join(sorted(scopes)),
                    priority=int(priority),
                    max_requests=limits and limits.max_requests,
                    max_audio_s_a_day=limits and limits.max_audio_s_a_day,
                    created_at=now,
                    expires_at=None if lasts_s is None else now + lasts_s,
                )
                .returning(keys)
            ).one()
        return key, _key_of(row)

    def all(self) -> list[Key]:
        """Oldest first, revoked ones too. Raises StoreUnavailable."""
        with self._database.reading() as connection:
            return [_key_of(row) for row in connection.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id))]

    def revoke(self, *, id: str | None = None, name: str | None = None) -> list[Key]:
        """The keys of that id or name that did open until now. Raises StoreUnavailable, StorageFull."""
        which = keys.c.id == id if id is not None else keys.c.name == name
        with self._database.writing() as connection:
            now = self._database.now(connection)
            revoked = sa.update(keys).where(which, keys.c.revoked_at.is_(None)).values(revoked_at=now).returning(keys)
            return [_key_of(row) for row in connection.execute(revoked)]


def _key_of(row: sa.Row[tuple[object, ...]]) -> Key:
    limits = None
    if row.max_requests is not None or row.max_audio_s_a_day is not None:
        limits = Limits(row.max_requests, row.max_audio_s_a_day)
    return Key(
        digest=bytes.fromhex(row.digest),
        owner=owner_of(row.name),
        scopes=frozenset(Scope(scope) for scope in row.scopes.split(",")),
        priority=Priority(row.priority),
        limits=limits,
        name=row.name,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
