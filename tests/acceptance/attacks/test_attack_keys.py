"""Keys that do not open, keys that open too little, and what one key may see of another's: nothing."""

from __future__ import annotations

import re
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from access.keys import Scope
from access.store import KeyStore
from jobs.database import Database
from settings import Settings
from tests.acceptance import sounds
from tests.acceptance.attacks.table import KEY, OTHER_KEY, assert_refused, uploads
from tests.acceptance.server import ROOT, Server, command, environment

STRANGER = {"X-Forwarded-For": "203.0.113.7"}
"""Behind a proxy: how often a stranger has failed is not held against the other rows."""
OPEN_TO_ALL = {"/health", "/ready"}


# --- keys that do not open -------------------------------------------------------------------------------------------

WRONG: dict[str, list[tuple[bytes, bytes]]] = {
    "none": [],
    "empty": [(b"X-API-Key", b"")],
    "wrong": [(b"X-API-Key", b"wrong")],
    "cut": [(b"X-API-Key", KEY[:-1].encode())],
    "longer": [(b"X-API-Key", f"{KEY}0".encode())],
    "in capitals": [(b"X-API-Key", KEY.upper().encode())],
    "not ASCII": [(b"X-API-Key", "ключ".encode())],
    "no text": [(b"X-API-Key", b"\xff\xfe")],
    "quoted": [(b"X-API-Key", f'"{KEY}"'.encode())],
    "all of them": [(b"X-API-Key", f"{KEY},{OTHER_KEY}".encode())],
    "twice": [(b"X-API-Key", KEY.encode())] * 2,
    "two": [(b"X-API-Key", KEY.encode()), (b"X-API-Key", OTHER_KEY.encode())],
    "one wrong": [(b"X-API-Key", KEY.encode()), (b"X-API-Key", b"wrong")],
    "a wrong bearer": [(b"X-API-Key", KEY.encode()), (b"Authorization", b"Bearer wrong")],
    "as a password": [(b"Authorization", b"Basic " + KEY.encode())],
    "as a cookie": [(b"Cookie", b"X-API-Key=" + KEY.encode())],
    "very long": [(b"X-API-Key", b"x" * 50_000)],
    "SQL": [(b"X-API-Key", b"' OR '1'='1")],
}


@pytest.fixture(scope="module")
def stranger(server: Server) -> Iterator[httpx.Client]:
    """Who has no key of its own."""
    with httpx.Client(base_url=server.address, headers=STRANGER, timeout=60.0) as client:
        yield client


@pytest.mark.parametrize("sent", WRONG.values(), ids=WRONG)
def test_a_key_that_is_none(stranger: httpx.Client, sent: list[tuple[bytes, bytes]]) -> None:
    """One right key, in one place, or nothing."""
    headers = [(name, value) for name, value in sent]
    # Each from an address of its own: strangers may guess only so often.
    headers.append((b"X-Forwarded-For", f"198.51.100.{list(WRONG.values()).index(sent)}".encode()))
    assert_refused(stranger.get("/models", headers=headers), 401, "UNAUTHORIZED")


def test_a_key_in_the_address(stranger: httpx.Client) -> None:
    """Addresses are written to logs on the way."""
    for name in ("api_key", "key", "X-API-Key", "token", "access_token"):
        assert_refused(stranger.get("/models", params={name: KEY}), 401, "UNAUTHORIZED")


def test_nothing_opens_without_a_key(client: httpx.Client, stranger: httpx.Client) -> None:
    """All that the documentation names, but for the two that say whether the server is well."""
    paths = client.get("/openapi.json").json()["paths"]
    told = {
        (method, path): stranger.request(method, re.sub(r"{\w+}", "0" * 32, path)).status_code
        for path, methods in paths.items()
        for method in methods
        if path not in OPEN_TO_ALL
    }
    assert len(told) > 20
    assert [place for place, status in told.items() if status != 401] == []


# --- keys that are made while the server runs ------------------------------------------------------------------------


def opens(client: httpx.Client, key: str) -> int:
    return client.get("/models", headers={"X-API-Key": key}).status_code


@pytest.fixture(scope="module")
def keys(server: Server) -> KeyStore:
    """Those of the server that runs."""
    return KeyStore(Database(Settings(data_dir=server.data_dir).database))


def test_a_key_opens_and_is_revoked_without_a_start(server: Server, keys: KeyStore, stranger: httpx.Client) -> None:
    """Each takes a second at most. The key is told this once, and kept nowhere."""
    settings = environment(server.data_dir, PYTHONPATH=str(ROOT))
    made = subprocess.run(
        command("-m", "access", "make", "alice"), cwd=server.data_dir, env=settings, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    server.wait_until(lambda: opens(stranger, key) == 200, 5)
    (known,) = keys.revoke(name="alice")
    server.wait_until(lambda: opens(stranger, key) == 401, 5)
    assert known.id in made.stderr
    assert_in_no_place(server, stranger, key)


def test_a_key_that_has_expired(server: Server, keys: KeyStore, stranger: httpx.Client) -> None:
    """It was right until then."""
    key, _ = keys.make("expiring", {Scope.ADMIN}, lasts_s=3)
    server.wait_until(lambda: opens(stranger, key) == 200, 2)
    server.wait_until(lambda: opens(stranger, key) == 401, 10)


@pytest.fixture(scope="module")
def limited(server: Server, keys: KeyStore, stranger: httpx.Client) -> dict[Scope, str]:
    """For each scope a key that has it alone."""
    made = {scope: keys.make(f"only-{scope}", {scope})[0] for scope in Scope}
    for key in made.values():
        server.wait_until(lambda key=key: opens(stranger, key) == 200, 5)
    return made


@pytest.mark.parametrize(
    ("scope", "method", "path", "sent"),
    [
        (Scope.ADMIN, "POST", "/transcribe", None),
        (Scope.ADMIN, "POST", "/v1/audio/transcriptions", None),
        (Scope.ADMIN, "POST", "/extract-audio", None),
        (Scope.ADMIN, "POST", "/subtitle", None),
        (Scope.ADMIN, "POST", "/download", None),
        (Scope.ADMIN, "POST", "/jobs/batch", {"files": ["x"]}),
        (Scope.ADMIN, "PUT", "/vocabulary", None),
        (Scope.TRANSCRIBE, "POST", "/download", {"url": "http://example.com/a.mp3"}),
        (Scope.TRANSCRIBE, "POST", "/transcribe", {"url": "http://example.com/a.mp3"}),
        (Scope.TRANSCRIBE, "POST", "/jobs/batch", {"urls": ["http://example.com/a.mp3"]}),
        (Scope.DOWNLOAD, "POST", "/transcribe", {"audio_file": "x"}),
        (Scope.TRANSCRIBE, "GET", "/metrics", None),
        (Scope.DOWNLOAD, "GET", "/capacity", None),
    ],
)
def test_a_key_without_the_scope(
    limited: dict[Scope, str], stranger: httpx.Client, scope: Scope, method: str, path: str, sent: object
) -> None:
    """It is known, and opens other things."""
    answer = stranger.request(method, path, json=sent, headers={"X-API-Key": limited[scope]})
    if path.startswith("/v1"):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "SCOPE_MISSING")
    else:
        assert_refused(answer, 403, "SCOPE_MISSING")


# --- another key's jobs and files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Possessions:
    """What one key has."""

    job: str
    batch: str
    file: str
    path: Path


@pytest.fixture(scope="module")
def theirs(server: Server, client: httpx.Client, allowed_folder: Path) -> Iterator[Possessions]:
    """What the first key has: a job that is over, a batch, a file."""
    (recording := allowed_folder / "theirs.wav").write_bytes(sounds.silence(1))
    job = client.post("/transcribe", json={"audio_file": str(recording), "mode": "async"}).json()["id"]
    batch = client.post("/jobs/batch", json={"files": [str(recording)]}).json()
    for one in (job, *batch["jobs"]):
        server.wait_until(lambda one=one: client.get(f"/jobs/{one}").json()["state"] == "succeeded")
    made = client.post("/extract-audio", json={"video_file": str(recording)}).json()
    yield Possessions(job, batch["batch_id"], made["id"], server.data_dir / "media" / made["path"])
    client.delete(f"/files/{made['id']}")
    recording.unlink()


@pytest.fixture(scope="module")
def other(server: Server) -> Iterator[httpx.Client]:
    """Who has a key, and none of that."""
    with httpx.Client(base_url=server.address, headers={"X-API-Key": OTHER_KEY}, timeout=60.0) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs/{job}"),
        ("GET", "/transcribe/{job}/status"),
        ("GET", "/jobs/{job}/result"),
        ("GET", "/jobs/{job}/events"),
        ("DELETE", "/jobs/{job}"),
        ("POST", "/jobs/{job}/retry"),
        ("GET", "/jobs/batch/{batch}"),
        ("DELETE", "/jobs/batch/{batch}"),
        ("GET", "/jobs?after={job}"),
    ],
)
def test_another_keys_job(
    other: httpx.Client, client: httpx.Client, theirs: Possessions, method: str, path: str
) -> None:
    """There is none, and nothing happens to it."""
    before = client.get(f"/jobs/{theirs.job}").json()
    assert_refused(other.request(method, path.format(job=theirs.job, batch=theirs.batch)), 404, "JOB_NOT_FOUND")
    assert client.get(f"/jobs/{theirs.job}").json() == before


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_another_keys_file(other: httpx.Client, client: httpx.Client, theirs: Possessions, method: str) -> None:
    """There is none, and nothing happens to it."""
    assert_refused(other.request(method, f"/files/{theirs.file}"), 404, "FILE_NOT_FOUND")
    assert client.get(f"/files/{theirs.file}").status_code == 200


NAMED = ("{file}", "{path.name}", "{path}", "./{path.name}", "../media/{path.name}")


@pytest.mark.parametrize("name", NAMED)
def test_another_keys_file_by_any_name(other: httpx.Client, theirs: Possessions, name: str) -> None:
    """By its id, and by its path, for all work."""
    named = name.format(file=theirs.file, path=theirs.path)
    for path, parameter in (
        ("/transcribe", "audio_file"),
        ("/extract-audio", "video_file"),
        ("/subtitle", "video_file"),
    ):
        assert_refused(other.post(path, json={parameter: named}), 404, "FILE_NOT_FOUND")
    assert_refused(other.post("/transcribe", json={"audio_file": named, "mode": "async"}), 404, "FILE_NOT_FOUND")
    batch = other.post("/jobs/batch", json={"files": [named]})
    assert (batch.status_code, "FILE_NOT_FOUND" in batch.json()["detail"]) == (422, True)


def test_its_own_key_finds_it_by_all_of_these(client: httpx.Client, theirs: Possessions) -> None:
    """Were they no names of the file, the rows above would show nothing."""
    for name in NAMED:
        named = name.format(file=theirs.file, path=theirs.path)
        assert client.post("/transcribe", json={"audio_file": named}).status_code == 200


def test_lists_show_a_keys_own(other: httpx.Client, client: httpx.Client, theirs: Possessions) -> None:
    """All pages of them."""
    jobs = {job["id"] for job in client.get("/jobs", params={"limit": 100}).json()["jobs"]}
    assert theirs.job in jobs
    assert not jobs & {job["id"] for job in other.get("/jobs", params={"limit": 100}).json()["jobs"]}
    assert theirs.file in client.get("/files").text
    assert theirs.file not in other.get("/files").text


def test_another_jobs_token_opens_no_events(
    server: Server, stranger: httpx.Client, client: httpx.Client, theirs: Possessions
) -> None:
    """A token is one job's."""
    (sibling,) = (job["id"] for job in client.get(f"/jobs/batch/{theirs.batch}").json()["jobs"])
    link = client.get(f"/jobs/{theirs.job}").json()["events_url"]
    assert stranger.get(link).status_code == 200
    for token in (link.partition("token=")[2], "", "0" * 32, "\u00e9"):
        answer = stranger.get(f"/jobs/{sibling}/events", params={"token": token})
        assert_refused(answer, 401, "UNAUTHORIZED")


def test_ids_cannot_be_guessed(client: httpx.Client, theirs: Possessions, allowed_folder: Path) -> None:
    """128 bits, and what comes next is not to be told from what came before."""
    named = [str(allowed_folder / "theirs.wav")] * 8
    ids = [theirs.job, theirs.batch, theirs.file]
    ids += client.post("/jobs/batch", json={"files": named}).json()["jobs"]
    assert [one for one in ids if not re.fullmatch("[0-9a-f]{32}", one)] == []
    # Of 32 digits two are the same by chance.
    alike = [sum(a == b for a, b in zip(one, two, strict=True)) for one in ids for two in ids if one < two]
    assert max(alike) < 16


# --- idempotency keys ------------------------------------------------------------------------------------------------


def handed_in(client: httpx.Client, content: bytes) -> httpx.Response:
    headers = {"Idempotency-Key": "the-same", "Content-Type": "audio/wav"}
    return client.post("/transcribe?mode=async", content=content, headers=headers)


def test_an_idempotency_key_is_its_keys_own(server: Server, client: httpx.Client, other: httpx.Client) -> None:
    """The same body is the same job, another body none; another key's is its own. Nothing is kept but what each job
    needs."""
    before = uploads(server)
    first, again = handed_in(client, sounds.silence(1)), handed_in(client, sounds.silence(1))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert_refused(handed_in(client, sounds.silence(2)), 409, "IDEMPOTENCY_CONFLICT")
    theirs = handed_in(other, sounds.silence(2))
    assert theirs.status_code == 202
    assert theirs.json()["id"] != first.json()["id"]
    assert len(uploads(server) - before) <= 2


# --- where no key is -------------------------------------------------------------------------------------------------


def assert_in_no_place(server: Server, client: httpx.Client, key: str) -> None:
    """Neither in the log, nor in a row of the database, nor in a file, nor in the metrics."""
    assert key not in server.log.read_text()
    with sqlite3.connect(f"file:{server.data_dir}/jobs.db?mode=ro", uri=True) as database:
        assert key not in "\n".join(database.iterdump())
    database.close()
    files = [path for path in server.data_dir.rglob("*") if path.is_file()]
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    assert key not in client.get("/metrics", headers={"X-API-Key": KEY}).text


def test_no_key_is_told_or_written(server: Server, client: httpx.Client, other: httpx.Client) -> None:
    """Whatever was done with it; that it was used shows in each of these places under another name."""
    for asker in (client, other):
        assert asker.get("/jobs/nothing").status_code == 404
        assert asker.get("/models", params={"key": KEY}).status_code == 200
    for key in (KEY, OTHER_KEY):
        assert_in_no_place(server, client, key)
        assert key not in client.get("/capacity").text
