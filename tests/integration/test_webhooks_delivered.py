"""Webhooks on their way: a real receiver, the real proxy before it, the real databases behind."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from downloads.egress import EgressProxy
from downloads.urls import AddressPolicy
from jobs import webhooks
from jobs.database import Database
from jobs.deliveries import WAITS_S, Outbox
from jobs.leases import Leases
from jobs.model import NewJob, State
from jobs.signatures import new_secret, secret_of
from jobs.store import JobStore
from jobs.tables import deliveries
from jobs.webhooks import Webhooks
from reservation import Work
from tests.databases import database_of_its_own, postgresql_server

SECRET = new_secret()
PATIENCE_S = 30.0
"""For what happens at once, on a machine that is busy."""


class Receiver:
    """A caller's server: gives the next of its answers to each request, the last one for ever."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers or (b"HTTP/1.1 204 No Content\r\n\r\n",))
        self.heard: asyncio.Queue[tuple[str, dict[str, str], bytes]] = asyncio.Queue()
        """Request line, headers and body of each."""
        self.go_on = asyncio.Event()
        """Nothing is answered before."""
        self.go_on.set()
        self.at_once = self.most_at_once = 0
        self.connections = 0
        self.port = 0

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.heard.put_nowait((first, headers, body))
            await self.go_on.wait()
            writer.write(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
            await writer.drain()
        self.at_once -= 1
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def next_heard(self) -> tuple[str, dict[str, str], bytes]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.heard.get()


def saying(status: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


@contextlib.asynccontextmanager
async def receiving(*answers: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(*answers)
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        receiver.go_on.set()
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def sending(
    database: Database, *allowed: str, addresses: Sequence[str] | None = None, **options: Any
) -> AsyncIterator[Webhooks]:
    """On leaving, what was being sent is written down."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        if addresses is None:
            raise OSError(f"no address for {host}")
        return addresses

    options = {"look_s": 0.01, "grace_s": PATIENCE_S, "spread": lambda: 0.5} | options
    async with (
        EgressProxy(AddressPolicy(allowed), resolver=resolve) as proxy,
        Webhooks(database, proxy, SECRET, **options) as hooks,
    ):
        yield hooks


@pytest.fixture
def clock() -> list[float]:
    return [time.time()]


@pytest.fixture
def database(tmp_path: Path, clock: list[float]) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}", lambda: clock[0])
    database.migrate()
    yield database
    database.close()


def ended(database: Database, url: str, key: str = "k") -> str:
    """The id of a job of *key* that has just succeeded, to be told to *url*."""
    new = NewJob(Work.DOWNLOAD, key, 0, {"url": "https://media.example/a"}, {}, callback_url=url)
    JobStore(database, lease_s=60).submit(new)
    leases = Leases(database, "me")
    job = leases.claim([Work.DOWNLOAD])
    assert job is not None
    leases.end(job, State.SUCCEEDED, result='{"file": "f"}')
    return job.id


def row_of(database: Database, job_id: str) -> dict[str, Any]:
    (row,) = JobStore(database, lease_s=60).deliveries_of(job_id)
    return row


async def tried(database: Database, job_id: str) -> dict[str, Any]:
    """The delivery, once its first attempt is over."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            row = await asyncio.to_thread(row_of, database, job_id)
            if row["status"] is not None or row["failure"] is not None:
                return row


async def test_a_receiver_can_verify_what_it_gets(database: Database, clock: list[float]) -> None:
    """With the scheme's own library, knowing the secret alone."""
    async with receiving() as receiver:
        job_id = ended(database, f"http://{receiver.authority}/hook?token=a%20b")
        async with sending(database, receiver.authority):
            line, headers, body = await receiver.next_heard()
    assert line == "POST /hook?token=a%20b HTTP/1.1"
    assert headers["content-type"] == "application/json"
    told = Webhook(SECRET).verify(body, headers)
    assert told["type"] == "job.succeeded"
    assert told["data"]["result_url"] == f"/jobs/{job_id}/result"
    row = row_of(database, job_id)
    assert headers["webhook-id"] == row["id"]
    assert (row["status"], row["attempts"], row["due_at"], row["delivered_at"]) == (204, 1, None, clock[0])


async def test_what_a_made_key_is_told_is_signed_for_it_alone(database: Database) -> None:
    """Another holder of a key knows another secret, and can pass nothing off as this server's."""
    async with receiving() as receiver:
        ended(database, f"http://{receiver.authority}/hook", key="@alice")
        async with sending(database, receiver.authority):
            _, headers, body = await receiver.next_heard()
    Webhook(secret_of("@alice", SECRET)).verify(body, headers)
    for secret in (SECRET, secret_of("@bob", SECRET)):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers)


async def test_a_failed_delivery_comes_again_under_the_same_id(database: Database, clock: list[float]) -> None:
    """Also after a restart; the id is how a receiver knows what it has had."""
    async with receiving(saying("503 Service Unavailable"), saying("200 OK", body=b"thanks")) as receiver:
        job_id = ended(database, f"http://{receiver.authority}/hook")
        async with sending(database, receiver.authority):
            _, first, _ = await receiver.next_heard()
        row = row_of(database, job_id)
        assert (row["status"], row["due_at"], row["delivered_at"]) == (503, clock[0] + WAITS_S[0], None)
        clock[0] += WAITS_S[0]
        async with sending(database, receiver.authority):
            _, second, body = await receiver.next_heard()
    assert second["webhook-id"] == first["webhook-id"]
    assert second["webhook-timestamp"] != first["webhook-timestamp"]
    Webhook(SECRET).verify(body, second)
    row = row_of(database, job_id)
    assert (row["status"], row["attempts"], row["due_at"], row["failure"]) == (200, 2, None, None)


async def test_a_receivers_retry_after_is_kept(database: Database, clock: list[float]) -> None:
    """It knows when it is back."""
    async with receiving(saying("429 Too Many Requests", "Retry-After: 90")) as receiver:
        job_id = ended(database, f"http://{receiver.authority}/hook")
        async with sending(database, receiver.authority):
            await receiver.next_heard()
    assert row_of(database, job_id)["due_at"] == clock[0] + 90


async def test_gone_is_gone(database: Database) -> None:
    """410 is how a receiver ends it."""
    async with receiving(saying("410 Gone")) as receiver:
        job_id = ended(database, f"http://{receiver.authority}/hook")
        async with sending(database, receiver.authority):
            await receiver.next_heard()
    row = row_of(database, job_id)
    assert (row["status"], row["due_at"], row["delivered_at"]) == (410, None, None)


async def test_redirects_are_not_followed(database: Database) -> None:
    """Where they lead was never agreed to; what is signed for one is not for another."""
    async with receiving() as other:
        async with receiving(saying("307 Temporary Redirect", f"Location: http://{other.authority}/")) as receiver:
            job_id = ended(database, f"http://{receiver.authority}/hook")
            async with sending(database, receiver.authority, other.authority):
                await tried(database, job_id)
        assert other.connections == 0
    assert row_of(database, job_id)["status"] == 307


async def test_a_name_that_leads_to_a_private_address_is_never_told(database: Database) -> None:
    """Whoever hands in a job owns names, and may let them lead anywhere."""
    async with receiving() as receiver:
        url = f"http://hook.example:{receiver.port}/hook"
        job_id = ended(database, url)
        # What is opened is that address; a name that merely leads there is not.
        async with sending(database, receiver.authority, addresses=["127.0.0.1"]) as hooks:
            hooks.check(url)
            row = await tried(database, job_id)
        assert receiver.connections == 0
    assert (row["failure"], row["due_at"], row["status"]) == (webhooks.NOT_ALLOWED, None, None)


async def test_an_address_that_is_no_longer_allowed_is_not_told(database: Database) -> None:
    """The operator may have closed it since."""
    async with receiving() as receiver:
        job_id = ended(database, f"http://{receiver.authority}/hook")
        async with sending(database):
            row = await tried(database, job_id)
        assert receiver.connections == 0
    assert (row["failure"], row["due_at"]) == (webhooks.NOT_ALLOWED, None)


async def test_a_receiver_that_cannot_be_found_is_looked_for_again(database: Database, clock: list[float]) -> None:
    """Names are moved, and servers restarted."""
    job_id = ended(database, "https://hook.example/hook")
    async with sending(database):
        row = await tried(database, job_id)
    assert (row["failure"], row["due_at"]) == (webhooks.UNREACHABLE, clock[0] + WAITS_S[0])


async def test_a_receiver_that_does_not_answer_in_time_is_asked_again(database: Database, clock: list[float]) -> None:
    """It holds a place here for so long only."""
    async with receiving() as receiver:
        receiver.go_on.clear()
        job_id = ended(database, f"http://{receiver.authority}/hook")
        async with sending(database, receiver.authority, timeout_s=0.05):
            row = await tried(database, job_id)
    assert (row["failure"], row["due_at"]) == (webhooks.TOO_SLOW, clock[0] + WAITS_S[0])


@pytest.mark.parametrize(
    ("answer", "failure"),
    [(b"", webhooks.BROKEN), (b"SMTP ready\r\n\r\n", webhooks.NOT_HTTP)],
    ids=["nothing", "another protocol"],
)
async def test_what_is_no_answer_is_asked_again(
    database: Database, clock: list[float], answer: bytes, failure: str
) -> None:
    """A proxy before it may be up while it is not."""
    async with receiving(answer) as receiver:
        job_id = ended(database, f"http://{receiver.authority}/hook")
        async with sending(database, receiver.authority):
            row = await tried(database, job_id)
    assert (row["failure"], row["due_at"]) == (failure, clock[0] + WAITS_S[0])


@pytest.mark.parametrize(
    "answer",
    [
        saying("200 OK", body=bytes(8 << 20)),
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk",
        saying("200 OK", "Content-Encoding: gzip", body=b"no gzip"),
    ],
    ids=["long", "half", "broken", "not packed"],
)
async def test_a_yes_counts_whatever_follows_it(database: Database, answer: bytes) -> None:
    """Nobody here reads what a receiver has to say."""
    async with receiving(answer) as receiver:
        job_id = ended(database, f"http://{receiver.authority}/hook")
        async with sending(database, receiver.authority):
            row = await tried(database, job_id)
    assert (row["status"], row["failure"], row["due_at"]) == (200, None, None)


async def test_a_slow_receiver_holds_nobody_else_up(database: Database, clock: list[float]) -> None:
    """All of its webhooks are due before the other's one."""
    async with receiving() as slow, receiving() as quick:
        slow.go_on.clear()
        for _ in range(webhooks.AT_ONCE + 2):
            ended(database, f"http://{slow.authority}/hook")
        clock[0] += 1
        ended(database, f"http://{quick.authority}/hook")
        async with sending(database, slow.authority, quick.authority):
            await quick.next_heard()
            slow.go_on.set()
            for _ in range(webhooks.AT_ONCE + 2):
                await slow.next_heard()
    assert slow.most_at_once <= webhooks.AT_ONCE_EACH


async def test_one_keys_silent_receivers_hold_no_other_key_up(database: Database, clock: list[float]) -> None:
    """A port or a name more costs its owner nothing; all that is told to them is due before the other's one."""
    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(receiving()) for _ in range(webhooks.AT_ONCE + 2)]
        quick = await stack.enter_async_context(receiving())
        for receiver in silent:
            receiver.go_on.clear()
            ended(database, f"http://{receiver.authority}/hook", key="@many")
        clock[0] += 1
        ended(database, f"http://{quick.authority}/hook", key="@one")
        allowed = (receiver.authority for receiver in [*silent, quick])
        async with sending(database, *allowed, timeout_s=2 * PATIENCE_S):
            await quick.next_heard()
            assert sum(receiver.connections for receiver in silent) <= webhooks.AT_ONCE_OWNER
            for receiver in silent:
                receiver.go_on.set()
            for receiver in silent:
                await receiver.next_heard()


async def test_no_more_are_sent_at_once_than_may_be(database: Database, clock: list[float]) -> None:
    """However many jobs end together."""
    async with contextlib.AsyncExitStack() as stack:
        receivers = [await stack.enter_async_context(receiving()) for _ in range(3)]
        told = []
        for receiver in receivers:
            receiver.go_on.clear()
            told.append(ended(database, f"http://{receiver.authority}/hook"))
            clock[0] += 1
        async with sending(database, *(receiver.authority for receiver in receivers), at_once=2) as hooks:
            await receivers[0].next_heard()
            await receivers[1].next_heard()
            assert repr(hooks) == "<Webhooks sending=2>"
            for _ in range(50):
                # Long enough for a sender that would go on.
                assert (await asyncio.to_thread(row_of, database, told[2]))["attempts"] == 0
            receivers[0].go_on.set()
            await receivers[2].next_heard()
            receivers[1].go_on.set()
            receivers[2].go_on.set()


async def test_neither_secrets_nor_a_receivers_query_are_logged(
    database: Database, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token in the query opens the receiver to whoever reads the log."""
    caplog.set_level(logging.DEBUG)
    async with receiving(saying("503 Service Unavailable")) as receiver:
        for path in ("/hook?token=t0ken", "/t0ken?token=t0ken"):
            job_id = ended(database, f"http://{receiver.authority}{path}")
        ended(database, "http://hook.example:99/?token=t0ken")
        async with sending(database, receiver.authority):
            await tried(database, job_id)
    printed = capsys.readouterr()
    told = caplog.text + printed.out + printed.err
    assert receiver.authority in told
    assert "t0ken" not in told
    assert SECRET.removeprefix("whsec_") not in told


# --- secure connections ----------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; its key is in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "receiver")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "receiver.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_secure_receivers_must_prove_who_they_are(
    database: Database, certificate: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    """Whoever stands between would read every webhook, and could say yes to each."""
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with receiving(tls=tls) as receiver:
        job_id = ended(database, f"https://{receiver.authority}/hook")
        async with sending(database, receiver.authority):
            row = await tried(database, job_id)
    if is_trusted:
        assert (row["status"], row["failure"]) == (204, None)
    else:
        assert (row["status"], row["failure"]) == (None, webhooks.NOT_SECURE)
        assert receiver.heard.empty()


# --- several machines ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[sa.URL]:
    with postgresql_server() as server:
        yield server


@pytest.fixture
def postgresql(server: sa.URL) -> Iterator[Database]:
    with database_of_its_own(server) as url:
        database = Database(url)
        database.migrate()
        yield database
        database.close()


async def test_what_another_machine_is_claiming_is_left_to_it(postgresql: Database) -> None:
    """It waits for nobody and gets the next one; passing receivers and owners over works there too."""
    for name in ("a", "b", "C"):
        ended(postgresql, f"https://{name}.example/hook")
    ended(postgresql, "https://d.example/hook", key="@busy")
    passed_over = ["https://c.example"], ["@busy"]
    first = sa.select(deliveries.c.id).order_by(deliveries.c.due_at).limit(1).with_for_update()
    outbox = Outbox(postgresql)
    with postgresql.writing() as elsewhere:
        elsewhere.execute(first)
        second = await asyncio.wait_for(asyncio.to_thread(outbox.claim, *passed_over), PATIENCE_S)
        nothing = await asyncio.wait_for(asyncio.to_thread(outbox.claim, *passed_over), PATIENCE_S)
    assert second is not None
    assert second.receiver == "https://b.example"
    assert nothing is None
    third = outbox.claim()
    assert third is not None
    assert third.receiver == "https://a.example"
    assert third.error is None


async def test_two_machines_send_each_webhook_once(postgresql: Database) -> None:
    """Both look into the same outbox all the time."""
    async with receiving() as one, receiving() as two:
        told = {ended(postgresql, f"http://{receiver.authority}/hook") for receiver in (one, two) for _ in range(10)}
        allowed = (one.authority, two.authority)
        async with sending(postgresql, *allowed), sending(postgresql, *allowed):
            rows = [await tried(postgresql, job_id) for job_id in told]
    assert one.heard.qsize() + two.heard.qsize() == 20
    assert [(row["attempts"], row["status"]) for row in rows] == [(1, 204)] * 20
