"""`scripts/keys`: make, list and revoke keys. They open a running server within a second, and no longer than that."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from access.keys import USUAL, Key, Scope, checked_name, scopes_in
from access.store import KeyStore
from errors import ConfigurationError, InvalidRequest, ServiceError
from jobs.database import Database
from key_limits import Limits
from settings import Settings
from transcription.core import Priority

UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}

HELP = f"""\
scopes: {Scope.TRANSCRIBE} (recordings), {Scope.DOWNLOAD} (links), {Scope.ADMIN} (metrics, capacity and docs, as
ADMIN_ONLY says). Each key sees the jobs and files of its own name and no others: to replace a key, make one of the same
name and revoke the old one by its id.

examples:
  scripts/keys make alice
  scripts/keys make prometheus --scopes admin --expires 365d
  scripts/keys list
  scripts/keys revoke 4f1c2a9b03de
"""


def main(argv: Sequence[str] | None = None, settings: Settings | None = None) -> int:
    """The exit status: 0, or 1 where nothing was done, which is told."""
    asked = _arguments(argv)
    try:
        store = opened(settings or Settings())
        if asked.command == "make":
            make(store, asked)
        elif asked.command == "list":
            show(store)
        else:
            revoke(store, asked)
    except (ServiceError, ConfigurationError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def opened(settings: Settings) -> KeyStore:
    """The keys of the server that has these settings, which need not run."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings.database)
    database.migrate()
    return KeyStore(database)


def make(store: KeyStore, asked: argparse.Namespace) -> None:
    limits = None
    if asked.max_requests is not None or asked.max_audio_s_per_day is not None:
        limits = Limits(asked.max_requests, asked.max_audio_s_per_day)
    key, known = store.make(
        checked_name(asked.name),
        scopes_in(asked.scopes),
        lasts_s=asked.expires,
        priority=Priority.BATCH if asked.batch else Priority.INTERACTIVE,
        limits=limits,
    )
    until = f", until {_time(known.expires_at)}" if known.expires_at is not None else ""
    print(f"Key {known.id} of {known.name}{until}. It is shown this once:", file=sys.stderr)
    # Alone on stdout, so that it can be handed on.
    print(key)


def show(store: KeyStore) -> None:
    now = datetime.now(UTC).timestamp()
    rows = [("ID", "NAME", "SCOPES", "STATE", "MADE", "EXPIRES", "LIMITS")]
    rows += [
        (
            key.id,
            key.name,
            ",".join(sorted(key.scopes)),
            state_of(key, now),
            _time(key.created_at),
            "never" if key.expires_at is None else _time(key.expires_at),
            _limits_of(key),
        )
        for key in store.all()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def state_of(key: Key, now: float) -> str:
    """A word for what a key opens at *now*, in seconds since 1970."""
    if key.revoked_at is not None:
        return "revoked"
    return "open" if key.opens_at(now) else "expired"


def revoke(store: KeyStore, asked: argparse.Namespace) -> None:
    revoked = store.revoke(name=asked.name) if asked.name else store.revoke(id=asked.id)
    if not revoked:
        raise InvalidRequest("There is no such key that opens anything: scripts/keys list shows all.")
    for key in revoked:
        print(f"Key {key.id} of {key.name} opens nothing more.", file=sys.stderr)


def _limits_of(key: Key) -> str:
    told = ["batch"] if key.priority is Priority.BATCH else []
    if key.limits and key.limits.max_requests is not None:
        told.append(f"{key.limits.max_requests} requests")
    if key.limits and key.limits.max_audio_s_a_day is not None:
        told.append(f"{key.limits.max_audio_s_a_day:g} s a day")
    return ", ".join(told)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _lasting_s(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time, such as 30m, 12h or 90d")
    return int(found[1]) * UNITS_S[found[2]]


def _bound(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/keys",
        description="Make, list and revoke the keys of this server. Of a key, only a digest is kept.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="make | list | revoke")
    making = commands.add_parser("make", help="make a key, and show it this once", allow_abbrev=False)
    making.add_argument("name", metavar="NAME", help="whose jobs and files it sees")
    making.add_argument("--scopes", default=",".join(sorted(USUAL)), help="comma-separated; default: %(default)s")
    making.add_argument("--expires", type=_lasting_s, metavar="90d", help="after minutes (m), hours (h) or days (d)")
    making.add_argument("--max-requests", type=_bound, metavar="N", help="at once; 0: no limit; else the server's")
    making.add_argument("--max-audio-s-per-day", type=_bound, metavar="S", help="as above, seconds in a day (UTC)")
    making.add_argument("--batch", action="store_true", help="its requests wait for everybody else's")
    commands.add_parser("list", help="all keys, and what they open", allow_abbrev=False)
    revoking = commands.add_parser("revoke", help="end a key, or all of a name", allow_abbrev=False)
    which = revoking.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", metavar="ID", help="as list shows it")
    which.add_argument("--name", metavar="NAME", help="all keys of that name")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
