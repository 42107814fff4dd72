"""Webhooks that are to lead inside, and deliveries that somebody on the way keeps, changes or makes up."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from typing import Any

import httpx
import pytest
import standardwebhooks.webhooks
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from jobs.webhooks import NOT_ALLOWED, UNREACHABLE
from tests.acceptance import sounds
from tests.acceptance.attacks.canary import Canary
from tests.acceptance.attacks.receiver import Receiver, Told
from tests.acceptance.attacks.table import KEY, WEBHOOK_SECRET, assert_refused
from tests.acceptance.server import Server
from tests.media_server import MediaServer

TOKEN = "token-4c1d88f2"
"""In the address of a receiver, which may hold one."""
TAKEN = f"/taken?token={TOKEN}"

REFUSED = {
    "loopback": ("http://127.0.0.1:{port}/hook", 403, "URL_NOT_ALLOWED"),
    "one number": ("http://2130706433:{port}/hook", 403, "URL_NOT_ALLOWED"),
    "IPv6, mapped": ("http://[::ffff:127.0.0.1]:{port}/hook", 403, "URL_NOT_ALLOWED"),
    "localhost": ("http://localhost:{port}/hook", 403, "URL_NOT_ALLOWED"),
    "metadata": ("http://169.254.169.254/latest/meta-data/", 403, "URL_NOT_ALLOWED"),
    "metadata's name": ("http://metadata.google.internal/", 403, "URL_NOT_ALLOWED"),
    "this server": ("{server}/jobs", 403, "URL_NOT_ALLOWED"),
    "denied by the operator": ("https://denied.example.com/hook", 403, "URL_NOT_ALLOWED"),
    "file": ("file:///tmp/hook", 422, "INVALID_URL"),
    "gopher": ("gopher://127.0.0.1:{port}/1", 422, "INVALID_URL"),
    "user": ("http://good@127.0.0.1:{port}/", 422, "INVALID_URL"),
    "line end": ("http://good.example.com/\r\nX-API-Key: a", 422, "INVALID_URL"),
    "too long": ("http://good.example.com/" + "a" * 2_000, 422, "INVALID_REQUEST"),
}

ASTRAY = {
    "302": "{receiver}/redirect/302?to=http://127.0.0.1:{port}/hook",
    "307": "{receiver}/redirect/307?to=http://private.example.com:{port}/hook",
    "name": "http://private.example.com:{port}/hook",
    "one of two addresses": "http://mixed.example.com:{port}/hook",
    "changes": "http://changing-hook.example.com:{port}/hook",
}
"""They look well when they are handed in."""


def filled(address: str, server: Server, receiver: Receiver, canary: Canary) -> str:
    return address.format(server=server.address, receiver=receiver.at(""), port=canary.port)


@pytest.fixture(scope="module", autouse=True)
def jobs(server: Server, client: httpx.Client, receiver: Receiver, canary: Canary) -> dict[str, str]:
    """A job for each address, all handed in at the start: what is tried again comes seconds later."""
    addresses = {name: filled(address, server, receiver, canary) for name, address in ASTRAY.items()}
    addresses |= {"later": receiver.at("/later"), "taken": receiver.at(TAKEN)}
    made = {}
    for name, address in addresses.items():
        asked = {"mode": "async", "callback_url": address}
        answer = client.post("/extract-audio", params=asked, files={"file": ("a.wav", sounds.silence(0.05))})
        assert answer.status_code == 202, answer.text
        made[name] = answer.headers["location"]
    return made


def delivery(client: httpx.Client, job: str) -> dict[str, Any]:
    (found,) = client.get(job).json()["deliveries"] or [{}]
    return dict(found)


def tried(server: Server, client: httpx.Client, job: str) -> dict[str, Any]:
    """The delivery, once an attempt has failed."""
    server.wait_until(lambda: bool(delivery(client, job).get("failure")))
    return delivery(client, job)


# --- inside ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "status", "code"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("path", ["/download", "/jobs/batch"])
def test_an_address_inside_is_refused_before_there_is_a_job(
    server: Server,
    client: httpx.Client,
    web: MediaServer,
    receiver: Receiver,
    canary: Canary,
    path: str,
    address: str,
    status: int,
    code: str,
) -> None:
    """A webhook is a request that this server sends for somebody else: the walls are those of links."""
    link, before, jobs = web.at("/clip.mp3"), len(web.paths), client.get("/jobs").json()
    asked = {"mode": "async", "url": link} if path == "/download" else {"urls": [link]}
    answer = client.post(path, json=asked | {"callback_url": filled(address, server, receiver, canary)})
    assert_refused(answer, status, code)
    assert len(web.paths) == before
    assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == [job["id"] for job in jobs["jobs"]]


@pytest.mark.parametrize("status", ["302", "307"])
def test_a_redirect_is_not_followed(
    server: Server,
    client: httpx.Client,
    receiver: Receiver,
    canary: Canary,
    jobs: Mapping[str, str],
    status: str,
) -> None:
    """The receiver was checked; where it points has not been."""
    path = filled(ASTRAY[status], server, receiver, canary).removeprefix(receiver.at(""))
    receiver.wait_for(path)
    found = tried(server, client, jobs[status])
    assert (found["status"], found["failure"]) == (int(status), f"The receiver answered with status {status}.")


@pytest.mark.parametrize("name", ["name", "one of two addresses"])
def test_a_name_that_leads_inside_is_told_nothing(
    server: Server, client: httpx.Client, jobs: Mapping[str, str], name: str
) -> None:
    """Nobody has looked it up at the door."""
    found = tried(server, client, jobs[name])
    assert found["failure"] == NOT_ALLOWED
    assert found.get("next_attempt_at") is None


def test_a_name_that_leads_inside_by_the_time_of_delivery_is_told_nothing(
    server: Server, client: httpx.Client, jobs: Mapping[str, str]
) -> None:
    """It was a public host's at the first attempt, and is looked up again at each."""
    assert tried(server, client, jobs["changes"])["failure"] in (UNREACHABLE, NOT_ALLOWED)
    # An attempt that has begun is counted already, and the failure still the last one's.
    server.wait_until(lambda: delivery(client, jobs["changes"])["failure"] != UNREACHABLE)
    found = delivery(client, jobs["changes"])
    assert (found["attempts"], found["failure"], found.get("next_attempt_at")) == (2, NOT_ALLOWED, None)


# --- kept, changed, made up ------------------------------------------------------------------------------------------


@pytest.fixture
def told(receiver: Receiver, jobs: Mapping[str, str]) -> Told:
    """A delivery as anybody on its way sees it."""
    return receiver.wait_for(TAKEN)[0]


def test_a_delivery_is_known_by_the_secret_that_its_key_is_told(
    client: httpx.Client, told: Told, jobs: Mapping[str, str]
) -> None:
    """With the scheme's own library. It holds nothing that opens this server."""
    assert client.get("/webhook-secret").json()["secret"] == WEBHOOK_SECRET
    assert Webhook(WEBHOOK_SECRET).verify(told.body, told.headers)["data"]["id"] == jobs["taken"].rpartition("/")[2]
    assert not [secret for secret in (KEY, WEBHOOK_SECRET) if secret in f"{told.headers} {told.body!r}"]


def changed(told: Told, what: str) -> tuple[bytes, dict[str, str]]:
    body, headers = told.body, dict(told.headers)
    match what:
        case "body":
            body = body.replace(b"succeeded", b"cancelled")
        case "space":
            body += b" "
        case "id":
            headers["webhook-id"] = "another"
        case "time":
            headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) + 1)
        case "signature":
            headers["webhook-signature"] = "v1," + base64.b64encode(bytes(32)).decode()
        case "none":
            del headers["webhook-signature"]
        case "version":
            headers["webhook-signature"] = headers["webhook-signature"].replace("v1,", "v0,")
    return body, headers


@pytest.mark.parametrize("what", ["body", "space", "id", "time", "signature", "none", "version"])
def test_a_delivery_that_was_changed_is_known_as_false(told: Told, what: str) -> None:
    """Everything that a receiver acts upon is signed."""
    body, headers = changed(told, what)
    assert (body, headers) != (told.body, told.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(WEBHOOK_SECRET).verify(body, headers)


def test_a_delivery_signed_by_somebody_else_is_known_as_false(told: Told) -> None:
    """Whoever knows how this is done lacks the secret."""
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(bytes(32)).decode()).verify(told.body, told.headers)


def test_a_delivery_that_was_kept_is_known_as_old(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is signed too, and a receiver's library takes none that is older than five minutes."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(minutes=6)

    monkeypatch.setattr(standardwebhooks.webhooks, "datetime", Later)
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(WEBHOOK_SECRET).verify(told.body, told.headers)


def test_a_delivery_that_comes_again_is_known_by_its_id(told: Told, receiver: Receiver) -> None:
    """Twice the same is told apart from two, and each attempt is signed for its own time."""
    first, second = receiver.wait_for("/later", 2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] != told.headers["webhook-id"]
    assert first.body == second.body
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    for one in (first, second):
        Webhook(WEBHOOK_SECRET).verify(one.body, one.headers)


def test_the_log_tells_of_a_delivery_and_not_its_address(server: Server, receiver: Receiver, told: Told) -> None:
    """A receiver's path and query may hold what opens it."""
    taken = f'"receiver": "http://{receiver.authority}"'
    server.wait_until(lambda: taken in server.log.read_text())
    log = server.log.read_text()
    assert [secret for secret in (TOKEN, told.headers["webhook-signature"], WEBHOOK_SECRET) if secret in log] == []
