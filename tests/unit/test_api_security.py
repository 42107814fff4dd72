"""Keys: who gets in, and that a refusal costs nothing."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest
from fastapi import FastAPI

from access.addresses import is_loopback
from access.failures import Failures
from access.kept import kept_key
from access.keyring import Keys
from access.keys import Key, Scope, digest_of, owner_of
from api.application import assemble
from tests.fakes import AUTH, KEY, Caller, Parts, make_parts

PROTECTED = [
    ("POST", "/transcribe"),
    ("POST", "/download"),
    ("POST", "/extract-audio"),
    ("GET", "/files"),
    ("GET", "/files/x"),
    ("DELETE", "/files/x"),
    ("GET", "/models"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/audio/translations"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/x"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_every_endpoint_of_work_wants_a_key(app: FastAPI, method: str, path: str) -> None:
    """One forgotten endpoint is an open door."""
    caller = await Caller(path, method=method).call(app)
    assert caller.status == 401
    assert b'"UNAUTHORIZED"' in caller.body
    assert "www-authenticate" in caller.headers


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"X-API-Key", b"wrong")],
        [(b"X-API-Key", b"")],
        [(b"X-API-Key", KEY.encode() + b"x")],
        [(b"X-API-Key", KEY.upper().encode())],
        [(b"X-API-Key", "schlüssel".encode("latin-1"))],
        [(b"X-API-Key", b"\xff\xfe")],
        [(b"X-API-Key", KEY.encode()), (b"X-API-Key", KEY.encode())],
        [(b"X-API-Key", KEY.encode()), (b"X-API-Key", b"wrong")],
        [(b"Authorization", b"Bearer wrong")],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", KEY.encode())],
        [(b"Authorization", b"Basic " + KEY.encode())],
        [(b"Authorization", b"Bearer " + KEY.encode()), (b"Authorization", b"Bearer " + KEY.encode())],
        [(b"X-API-Key", KEY.encode()), (b"Authorization", b"Bearer wrong")],
        [(b"X-API-Key", b"wrong"), (b"Authorization", b"Bearer " + KEY.encode())],
    ],
)
async def test_anything_but_one_right_key_is_refused(app: FastAPI, headers: list[tuple[bytes, bytes]]) -> None:
    """Odd headers must end as 401, never as a 500 and never inside."""
    caller = await Caller("/models", method="GET", headers=headers).call(app)
    assert caller.status == 401


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Authorization", b"Bearer " + KEY.encode())],
        [(b"Authorization", b"bearer  " + KEY.encode())],
        [(b"X-API-Key", KEY.encode()), (b"Authorization", b"Bearer " + KEY.encode())],
        [(b"X-API-Key", KEY.encode()), (b"Authorization", b"Basic cHJveHk6cGFzcw==")],
    ],
)
@pytest.mark.parametrize("path", ["/models", "/v1/models", "/jobs"])
async def test_the_key_may_come_as_a_bearer_token(app: FastAPI, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    """OpenAI's SDKs send it so; another scheme belongs to a proxy on the way."""
    assert (await Caller(path, method="GET", headers=headers).call(app)).status == 200


async def test_both_ways_to_send_the_key_are_told(app: FastAPI) -> None:
    """A refused caller looks there first."""
    told = (await Caller("/models", method="GET").call(app)).headers["www-authenticate"]
    assert "Bearer" in told
    assert "X-API-Key" in told


async def test_each_of_several_keys_opens(tmp_path: Path) -> None:
    """API_KEYS is a list: keys are rotated one by one."""
    app = assemble()
    app.state.services = make_parts(tmp_path, keys=Keys(["first-key", "zweiter-schlüssel"])).services
    for key in (b"first-key", "zweiter-schlüssel".encode()):
        caller = await Caller("/files", method="GET", headers=[(b"X-API-Key", key)]).call(app)
        assert caller.status == 200


async def test_an_unauthorized_body_is_not_read(app: FastAPI, parts: Parts) -> None:
    """Strangers must not fill the disk or the line."""
    pieces = [b"x" * 65536] * 1000
    headers = {"Content-Length": str(65536 * 1000), "Content-Type": "audio/mpeg", "X-API-Key": "wrong"}
    caller = Caller("/transcribe", pieces, headers=headers)
    took_before_answer: list[int] = []
    caller.send = _noting(caller, took_before_answer)  # type: ignore[method-assign]
    await caller.call(app)
    assert caller.status == 401
    assert took_before_answer[0] == 0
    assert caller.taken < len(pieces)
    assert list(parts.work_folder.iterdir()) == []


def _noting(caller: Caller, taken: list[int]):  # type: ignore[no-untyped-def]
    async def send(message: dict[str, object]) -> None:
        taken.append(caller.taken)
        caller.messages.append(message)

    return send


async def test_health_and_docs_need_no_key(app: FastAPI) -> None:
    """Platforms probe without one, and a person must be able to read how to send one."""
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert (await Caller(path, method="GET").call(app)).status == 200, path


@pytest.mark.parametrize("server", [("192.168.1.5", 8000), ("10.0.0.1", 8000), ("2001:db8::1", 8000), None])
@pytest.mark.parametrize("path", ["/models", "/ready"])
async def test_the_made_key_opens_nothing_from_outside(
    tmp_path: Path, server: tuple[str, int] | None, path: str
) -> None:
    """`uvicorn main:app --host 0.0.0.0` would else offer a server that nobody has secured."""
    app = assemble()
    app.state.services = make_parts(tmp_path, keys=Keys([KEY], loopback_only=True)).services
    refused = await Caller(path, method="GET", headers=AUTH, server=server).call(app)
    assert refused.status == 503
    assert b"API_KEYS" in refused.body
    served = await Caller(path, method="GET", headers=AUTH, server=("127.0.0.1", 8000)).call(app)
    assert served.status == 200


async def test_a_chosen_key_opens_from_outside(app: FastAPI) -> None:
    """That is what API_KEYS are for."""
    caller = await Caller("/files", method="GET", headers=AUTH, server=("192.168.1.5", 8000)).call(app)
    assert caller.status == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "/run/stenogate.sock"])
def test_loopback_is_known_in_each_form(address: str) -> None:
    """Dual-stack sockets report mapped addresses."""
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.0.1", "::", "::ffff:8.8.8.8", "fe80::1%eth0", "testserver"])
def test_other_addresses_are_not_loopback(address: str) -> None:
    """In doubt the request comes from outside."""
    assert not is_loopback(address)


def test_the_made_key_is_private_and_stays(tmp_path: Path) -> None:
    """A restart must not lock out the scripts that hold the key, and other users must not read it."""
    path = tmp_path / "api-key"
    key = kept_key(path)
    assert len(key) >= 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept_key(path) == key
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_file_that_others_may_read_is_closed(tmp_path: Path) -> None:
    """A copied DATA_DIR often loses its modes."""
    path = tmp_path / "api-key"
    path.write_text("my-own-key\n")
    path.chmod(0o644)
    assert kept_key(path) == "my-own-key"
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_empty_key_file_is_made_anew(tmp_path: Path) -> None:
    """An empty key would open the server to a header without a value."""
    path = tmp_path / "api-key"
    path.touch()
    assert len(kept_key(path)) >= 43


# --- scopes ----------------------------------------------------------------------------------------------------------


class Stored:
    """One stored key of each scope, called as the scope is."""

    def all(self) -> list[Key]:
        return [Key(digest_of(scope), owner_of(scope), frozenset({scope}), name=scope) for scope in Scope]


@pytest.fixture
def scoped(tmp_path: Path) -> FastAPI:
    app = assemble()
    parts = make_parts(tmp_path, keys=Keys([KEY], store=Stored())).services
    app.state.services = dataclasses.replace(parts, admin_only=frozenset({"metrics", "capacity", "docs"}))
    return app


LINK = {"url": "http://127.0.0.1/x.mp3"}
FORM = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "body", "opened_by"),
    [
        ("POST", "/transcribe", None, {"transcribe"}),
        ("POST", "/transcribe", LINK, set()),
        ("POST", "/subtitle", None, {"transcribe"}),
        ("POST", "/extract-audio", None, {"transcribe"}),
        ("POST", "/v1/audio/transcriptions", None, {"transcribe"}),
        ("GET", "/vocabulary", None, {"transcribe"}),
        ("POST", "/jobs/batch", {"files": ["x"]}, {"transcribe"}),
        ("POST", "/jobs/batch", {"urls": ["http://127.0.0.1/"]}, set()),
        ("POST", "/download", LINK, {"download"}),
        ("GET", "/metrics", None, {"admin"}),
        ("GET", "/capacity", None, {"admin"}),
        ("GET", "/files", None, {"transcribe", "download", "admin"}),
        ("GET", "/jobs", None, {"transcribe", "download", "admin"}),
        ("GET", "/models", None, {"transcribe", "download", "admin"}),
    ],
)
async def test_a_key_opens_what_its_scopes_say(
    scoped: FastAPI, method: str, path: str, body: dict[str, object] | None, opened_by: set[str]
) -> None:
    """A key that leaks must not be good for everything. A link needs both: this server calls others for it."""
    opened = set()
    for scope in Scope:
        sent = [] if body is None else [json.dumps(body).encode()]
        headers = {"X-API-Key": str(scope)} | ({} if body is None else FORM | {"Content-Length": str(len(sent[0]))})
        caller = await Caller(path, sent, method=method, headers=headers).call(scoped)
        assert caller.status != 401, scope
        refused = caller.status == 403 and b"SCOPE_MISSING" in caller.body
        if not refused:
            opened.add(str(scope))
    assert opened == opened_by


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/docs/swagger-ui.css"])
async def test_a_browser_is_asked_for_the_key_to_hidden_docs(scoped: FastAPI, path: str) -> None:
    """It can send no header of ours when a page is opened: the key is the password."""
    strange = await Caller(path, method="GET").call(scoped)
    assert strange.status == 401
    assert strange.headers["www-authenticate"].startswith("Basic")
    for password, status in ((b"admin", 200), (b"transcribe", 401), (b"wrong", 401)):
        sent = b"Basic " + base64.b64encode(b"anybody:" + password)
        caller = await Caller(path, method="GET", headers=[(b"Authorization", sent)]).call(scoped)
        assert caller.status == status, password
    assert (await Caller(path, method="GET", headers=[(b"Authorization", b"Basic !")]).call(scoped)).status == 401
    assert (await Caller(path, method="GET", headers=AUTH).call(scoped)).status == 200


async def test_a_password_opens_nothing_but_the_docs(scoped: FastAPI) -> None:
    """A browser sends it with every request to the server, whoever's page asks for it."""
    sent = b"Basic " + base64.b64encode(b"anybody:admin")
    for path in ("/metrics", "/files"):
        assert (await Caller(path, method="GET", headers=[(b"Authorization", sent)]).call(scoped)).status == 401


async def test_wrong_keys_are_slowed_by_address(tmp_path: Path) -> None:
    """The header says when to come back; the right key is told no earlier."""
    app = assemble()
    app.state.services = make_parts(tmp_path, keys=Keys([KEY], failures=Failures(2))).services
    statuses = [(await Caller("/files", method="GET", headers={"X-API-Key": "x"}).call(app)).status for _ in range(3)]
    assert statuses == [401, 401, 429]
    late = await Caller("/files", method="GET", headers=AUTH).call(app)
    assert late.status == 429
    assert b"TOO_MANY_FAILURES" in late.body
    assert 1 <= int(late.headers["retry-after"]) <= 30


async def test_the_made_key_opens_nothing_from_outside_beside_stored_ones(tmp_path: Path) -> None:
    """Stored keys open the network's door, not the one that was printed in a terminal."""
    app = assemble()
    keys = Keys([KEY], loopback_only=True, store=Stored())
    await keys.look()
    app.state.services = make_parts(tmp_path, keys=keys).services
    outside = ("192.168.1.5", 8000)
    assert (await Caller("/files", method="GET", headers=AUTH, server=outside).call(app)).status == 401
    stored = {"X-API-Key": "transcribe"}
    assert (await Caller("/files", method="GET", headers=stored, server=outside).call(app)).status == 200
    assert (await Caller("/files", method="GET", headers=AUTH, server=("127.0.0.1", 80)).call(app)).status == 200


async def test_a_key_learns_what_signs_its_webhooks(scoped: FastAPI) -> None:
    """Its own secret, and nobody else's."""
    told = [
        json.loads((await Caller("/webhook-secret", method="GET", headers={"X-API-Key": key}).call(scoped)).body)[
            "secret"
        ]
        for key in ("transcribe", "download", KEY)
    ]
    assert len(set(told)) == 3
    assert all(secret.startswith("whsec_") for secret in told)
