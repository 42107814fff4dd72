"""scripts/keys, on a real database: what is shown once, what is kept, and what is told of mistakes."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from access.__main__ import main
from access.keyring import Keys
from access.store import KeyStore
from errors import ConfigurationError, Unauthorized
from jobs.database import Database
from settings import Settings
from wiring import known_keys, refuse_unguarded


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def keys(settings: Settings, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs scripts/keys; what it says on stdout."""

    def run(*arguments: str, status: int = 0) -> str:
        assert main(arguments, settings) == status, capsys.readouterr().err
        said = capsys.readouterr()
        return said.err if status else said.out

    return run


def ring(settings: Settings) -> Keys:
    return Keys([], store=KeyStore(Database(settings.database)))


async def test_a_key_that_was_made_opens_until_it_is_revoked(keys, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    """The whole life of a key."""
    key = keys("make", "alice", "--scopes", "transcribe,admin").strip()
    known = await ring(settings).admit([key.encode()])
    assert (known.owner, known.scopes) == ("@alice", {"transcribe", "admin"})
    assert known.id in keys("list")
    keys("revoke", known.id)
    with pytest.raises(Unauthorized):
        await ring(settings).admit([key.encode()])
    assert "revoked" in keys("list")


async def test_all_keys_of_a_name_are_revoked_at_once(keys, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    """Whoever leaves takes none along."""
    first, second, other = (keys("make", name).strip() for name in ("alice", "alice", "bob"))
    keys("revoke", "--name", "alice")
    for key in (first, second):
        with pytest.raises(Unauthorized):
            await ring(settings).admit([key.encode()])
    await ring(settings).admit([other.encode()])


def test_only_a_digest_is_kept(keys, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    """Whoever steals the database has no key."""
    key = keys("make", "alice").strip()
    assert key not in keys("list")
    files = [file.read_bytes() for file in settings.data_dir.iterdir()]
    assert not any(key.encode() in content for content in files)
    (kept,) = sqlite3.connect(settings.data_dir / "jobs.db").execute("SELECT digest FROM keys").fetchone()
    assert kept == hashlib.sha256(key.encode()).hexdigest()


async def test_a_key_has_what_it_was_made_with(keys, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    """Limits and class come back from the database as they were asked for."""
    arguments = ("--max-requests", "2", "--max-audio-s-per-day", "600", "--batch", "--expires", "90d")
    key = keys("make", "alice", *arguments).strip()
    known = await ring(settings).admit([key.encode()])
    assert known.limits is not None
    assert (known.limits.max_requests, known.limits.max_audio_s_a_day) == (2, 600)
    assert known.expires_at is not None
    assert known.expires_at - known.created_at == 90 * 86_400
    assert "2 requests, 600 s a day" in keys("list")
    assert "batch" in keys("list")


async def test_an_expired_key_is_told_as_such(keys, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    """Else somebody looks for the reason elsewhere."""
    key = keys("make", "alice", "--expires", "1m").strip()
    with sqlite3.connect(settings.data_dir / "jobs.db") as database:
        database.execute("UPDATE keys SET expires_at = created_at")
    assert "expired" in keys("list")
    with pytest.raises(Unauthorized):
        await ring(settings).admit([key.encode()])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("make", "Alice!"), "no name for a key"),
        (("make", "a" * 49), "no name for a key"),
        (("make", "alice", "--scopes", "everything"), "Scopes are"),
        (("make", "alice", "--scopes", ""), "Scopes are"),
        (("revoke", "0123456789ab"), "no such key"),
        (("revoke", "--name", "nobody"), "no such key"),
    ],
)
def test_mistakes_are_told(keys, arguments: tuple[str, ...], told: str) -> None:  # type: ignore[no-untyped-def]
    """A sentence, and no trace."""
    assert told in keys(*arguments, status=1)


@pytest.mark.parametrize("arguments", [("make", "alice", "--expires", "soon"), ("make", "a", "--max-requests", "-1")])
def test_what_is_no_number_is_refused(arguments: tuple[str, ...], settings: Settings) -> None:
    """As argparse does it."""
    with pytest.raises(SystemExit) as ended:
        main(arguments, settings)
    assert ended.value.code == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
async def test_any_other_address_needs_a_key_and_says_how(keys, settings: Settings, host: str) -> None:  # type: ignore[no-untyped-def]
    """The sentence must tell what to do; a key that was made beforehand is one."""
    keys("list")
    reachable = settings.model_copy(update={"host": host})
    known = await known_keys(reachable, ["made"], Database(settings.database))
    with pytest.raises(ConfigurationError, match=r"scripts/keys make.*set API_KEYS"):
        refuse_unguarded(reachable, known)
    key = keys("make", "alice").strip()
    known = await known_keys(reachable, ["made"], Database(settings.database))
    refuse_unguarded(reachable, known)
    assert (await known.admit([key.encode()])).name == "alice"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
async def test_loopback_needs_no_key(keys, settings: Settings, host: str) -> None:  # type: ignore[no-untyped-def]
    """One is made there."""
    keys("list")
    here = settings.model_copy(update={"host": host})
    known = await known_keys(here, ["made"], Database(settings.database))
    refuse_unguarded(here, known)
    assert (await known.admit([b"made"])).made_here
