"""Webhooks without a network: what is sent, when again, and by whom."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from downloads.egress import EgressProxy
from downloads.urls import AddressPolicy
from errors import ConfigurationError, InvalidLink, LinkNotAllowed
from jobs.database import Database
from jobs.deliveries import (
    CLAIM_S,
    JITTER,
    MAX_ATTEMPTS,
    MAX_RETRY_AFTER_S,
    WAITS_S,
    Answer,
    Delivery,
    Outbox,
    Verdict,
    answered,
    body_of,
    judged,
)
from jobs.leases import Leases
from jobs.model import NewJob, State
from jobs.signatures import new_secret, secret_of, signed, signing_key
from jobs.store import JobStore
from jobs.webhooks import Webhooks
from reservation import Work

NOW = 1_790_000_000.0
ERROR = {"code": "NO_MEDIA_AT_URL", "status": 422, "message": "No audio or video was found at the link."}
TAKEN = Verdict(None, None)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path, clock: Clock) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}", clock)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


def ended(
    database: Database, url: str | None = "https://a.example/hook", state: State = State.FAILED, key: str = "k"
) -> str:
    """The id of a job of *key* that has just ended in *state*, to be told to *url*."""
    store, leases = JobStore(database, lease_s=60), Leases(database, "me")
    new = NewJob(
        work=Work.TRANSCRIPTION, key=key, priority=0, source={"file": "f"}, options={"model": "base"}, callback_url=url
    )
    job, _ = store.submit(new)
    if state is State.CANCELLED:
        return store.cancel(job.id).id
    claimed = leases.claim([Work.TRANSCRIPTION])
    assert claimed is not None
    assert claimed.id == job.id
    if state is State.FAILED:
        leases.end(claimed, state, error=ERROR)
    else:
        leases.end(claimed, state, result="{}")
    return job.id


def row_of(database: Database, job_id: str) -> dict[str, Any]:
    (row,) = JobStore(database, lease_s=60).deliveries_of(job_id)
    return row


# --- the signature ---------------------------------------------------------------------------------------------------


def test_the_published_example_has_the_published_signature() -> None:
    """Receivers check with libraries that others have written. Source: the tests of the scheme's own libraries."""
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert signed(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}') == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_secret_that_is_made_here_can_be_signed_with() -> None:
    """The server makes one where none is set."""
    assert len(signing_key(new_secret())) == 32
    assert new_secret() != new_secret()


@pytest.mark.parametrize(
    "secret",
    [
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_not base64 at all, and no shorter than one",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSé",
        "whsec_",
    ],
)
def test_what_is_no_secret_is_refused_and_not_shown(secret: str) -> None:
    """A weak one would sign all the same, and the message ends in a log."""
    with pytest.raises(ConfigurationError) as caught:
        signing_key(secret)
    assert secret.removeprefix("whsec_") not in caught.value.message or secret == "whsec_"


def test_each_owner_has_a_secret_of_its_own() -> None:
    """With one for all, every key's holder could send a webhook that another one takes for real."""
    server = new_secret()
    assert secret_of("0123456789ab", server) == server
    secrets = {secret_of(owner, server) for owner in ("@alice", "@bob", "0123456789ab")}
    assert len(secrets) == 3
    assert all(len(signing_key(secret)) == 32 for secret in secrets)
    assert secret_of("@alice", server) == secret_of("@alice", server) != secret_of("@alice", new_secret())


# --- the body --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "error"), [(State.SUCCEEDED, None), (State.FAILED, ERROR), (State.CANCELLED, None)], ids=str
)
def test_the_body_says_how_the_job_ended(
    database: Database, outbox: Outbox, state: State, error: dict[str, Any] | None
) -> None:
    """Small and without the transcript: who wants that asks for it, with the key."""
    job_id = ended(database, state=state)
    delivery = outbox.claim()
    assert delivery is not None
    assert json.loads(body_of(delivery)) == {
        "type": f"job.{state}",
        "timestamp": datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "data": {
            "id": job_id,
            "kind": "transcription",
            "state": state,
            "error": error,
            "result_url": f"/jobs/{job_id}/result" if state is State.SUCCEEDED else None,
        },
    }


def test_a_webhook_tells_what_was_when_it_was_written(database: Database, outbox: Outbox, clock: Clock) -> None:
    """The job may have been tried again while its receiver was away, and have failed of something else."""
    job_id = ended(database)
    clock.now += 100
    JobStore(database, lease_s=60).retry(job_id)
    leases = Leases(database, "me")
    again = leases.claim([Work.TRANSCRIPTION])
    assert again is not None
    other = ERROR | {"code": "EMPTY_FILE"}
    leases.end(again, State.FAILED, error=other)
    told = [outbox.claim(), outbox.claim()]
    assert [json.loads(body_of(one))["data"]["error"] for one in told if one] == [ERROR, other]
    assert [one.ended_at for one in told if one] == [NOW, NOW + 100]


# --- what follows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_success_ends_it(status: int) -> None:
    """Receivers differ in how they say yes."""
    assert judged(answered(status, None, NOW), 1, 0.5) == TAKEN


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422])
def test_a_refusal_ends_it(status: int) -> None:
    """The same request would be refused again."""
    verdict = judged(answered(status, "5", NOW), 1, 0.5)
    assert verdict.wait_s is None
    assert str(status) in (verdict.failure or "")


@pytest.mark.parametrize("status", [101, 301, 307, 408, 409, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_tried_again(status: int) -> None:
    """An outage, a restart, a wrong redirect that somebody mends."""
    verdict = judged(answered(status, None, NOW), 1, 0.5)
    assert verdict.wait_s == WAITS_S[0]
    assert str(status) in (verdict.failure or "")


def test_no_answer_is_tried_again_unless_it_is_hopeless() -> None:
    """A private address stays private; a server that is away comes back."""
    assert judged(Answer(failure="away"), 1, 0.5) == Verdict("away", WAITS_S[0])
    assert judged(Answer(failure="private", hopeless=True), 1, 0.5) == Verdict("private", None)


def test_waits_grow_and_the_tenth_attempt_is_the_last() -> None:
    """Hours for an outage, and an end."""
    waits = [judged(Answer(503, "no"), attempt, 0.5).wait_s for attempt in range(1, MAX_ATTEMPTS + 2)]
    assert waits == [*WAITS_S, None, None]
    assert list(WAITS_S) == sorted(WAITS_S)
    assert MAX_ATTEMPTS == 10


@pytest.mark.parametrize(("spread", "share"), [(0.0, 1 - JITTER), (0.5, 1.0), (1.0, 1 + JITTER)])
def test_waits_differ_by_chance(spread: float, share: float) -> None:
    """What failed together would overrun the receiver together."""
    assert judged(Answer(503, "no"), 3, spread).wait_s == pytest.approx(WAITS_S[2] * share)


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        ("60", 60),
        ("1", WAITS_S[0]),
        ("999999999999", MAX_RETRY_AFTER_S),
        ("Mon, 21 Sep 2026 14:15:20 GMT", 120),
        ("Mon, 21 Sep 2020 14:15:20 GMT", WAITS_S[0]),
        ("soon", WAITS_S[0]),
        ("-3", WAITS_S[0]),
        ("Mon, 21 Sep 99999999999999999999 14:15:20 GMT", WAITS_S[0]),
        (None, WAITS_S[0]),
    ],
)
def test_retry_after_puts_the_next_attempt_off_within_bounds(retry_after: str | None, wait_s: float) -> None:
    """A receiver knows best when it is back; it may not keep us for weeks, nor use up all attempts in seconds."""
    assert judged(answered(503, retry_after, NOW), 1, 0.5).wait_s == pytest.approx(wait_s)


# --- the outbox ------------------------------------------------------------------------------------------------------


def claimed(outbox: Outbox, *passed_over: str) -> Delivery:
    delivery = outbox.claim(passed_over)
    assert delivery is not None
    return delivery


def test_a_job_without_an_address_is_told_to_nobody(database: Database, outbox: Outbox) -> None:
    """Most jobs have none."""
    ended(database, url=None)
    assert outbox.claim() is None


def test_of_two_senders_one_gets_it(database: Database, outbox: Outbox) -> None:
    """Every server of a fleet looks into the same outbox."""
    ended(database)
    assert claimed(outbox).attempt == 1
    assert Outbox(database).claim() is None


def test_those_due_for_longest_come_first(database: Database, outbox: Outbox, clock: Clock) -> None:
    """Nobody is overtaken for ever."""
    first = ended(database)
    clock.now += 1
    second = ended(database)
    assert [claimed(outbox).job_id, claimed(outbox).job_id] == [first, second]


def test_what_a_dead_sender_had_is_due_again(database: Database, outbox: Outbox, clock: Clock) -> None:
    """A crash must not lose a webhook."""
    ended(database)
    first = claimed(outbox)
    clock.now += CLAIM_S - 1
    assert outbox.claim() is None
    clock.now += 1
    second = claimed(outbox)
    assert (second.id, second.attempt) == (first.id, 2)


def test_a_sender_that_was_away_too_long_writes_nothing(database: Database, outbox: Outbox, clock: Clock) -> None:
    """Its late failure would undo the other one's success."""
    job_id = ended(database)
    late = claimed(outbox)
    clock.now += CLAIM_S
    assert outbox.write_down(claimed(outbox), 200, TAKEN)
    assert not outbox.write_down(late, 503, Verdict("no", 5.0))
    assert row_of(database, job_id)["status"] == 200


def test_a_delivery_that_was_taken_is_over(database: Database, outbox: Outbox, clock: Clock) -> None:
    """Once taken, never sent again."""
    job_id = ended(database)
    delivery = claimed(outbox)
    clock.now += 2
    outbox.write_down(delivery, 204, TAKEN)
    row = row_of(database, job_id)
    assert (row["attempts"], row["status"], row["failure"]) == (1, 204, None)
    assert (row["due_at"], row["delivered_at"]) == (None, NOW + 2)
    clock.now += 1e6
    assert outbox.claim() is None


def test_a_delivery_that_failed_is_due_when_its_wait_is_over(database: Database, outbox: Outbox, clock: Clock) -> None:
    """Neither sooner nor never; the caller can see why it waits."""
    job_id = ended(database)
    outbox.write_down(claimed(outbox), 503, Verdict("busy", 30.0))
    row = row_of(database, job_id)
    assert (row["due_at"], row["status"], row["failure"], row["delivered_at"]) == (NOW + 30, 503, "busy", None)
    clock.now += 29
    assert outbox.claim() is None
    clock.now += 1
    assert claimed(outbox).attempt == 2


def test_a_delivery_that_was_given_up_is_over(database: Database, outbox: Outbox, clock: Clock) -> None:
    """It stays on the job, with the reason."""
    job_id = ended(database)
    outbox.write_down(claimed(outbox), 410, Verdict("gone", None))
    row = row_of(database, job_id)
    assert (row["due_at"], row["failure"], row["delivered_at"]) == (None, "gone", None)
    clock.now += 1e6
    assert outbox.claim() is None


def test_a_delivery_of_a_job_that_is_gone_is_written_down_nowhere(database: Database, outbox: Outbox) -> None:
    """Old jobs are removed, whoever is just being told of them."""
    ended(database)
    delivery = claimed(outbox)
    assert not outbox.write_down(dataclasses.replace(delivery, id="0" * 32), 200, TAKEN)


@pytest.mark.parametrize(
    ("url", "is_passed_over"),
    [
        ("https://a.example", True),
        ("https://a.example/hook?x=1", True),
        ("https://a.example?x=1", True),
        ("HTTPS://A.example/Hook", True),
        ("https://a.example.org/hook", False),
        ("https://a.example:8443/hook", False),
        ("http://a.example/hook", False),
        ("https://b.example/hook", False),
        ("https://b.example/?back=https://a.example/", False),
        ("https://axexample/hook", False),
    ],
)
def test_busy_receivers_are_passed_over_and_no_others(
    database: Database, outbox: Outbox, url: str, is_passed_over: bool
) -> None:
    """Whose name only resembles a slow receiver's must not wait with it."""
    ended(database, url)
    assert (outbox.claim(["https://a.example", "https://c_example"]) is None) == is_passed_over


def test_a_pattern_in_a_receivers_name_matches_nobody_else(database: Database, outbox: Outbox) -> None:
    """Names come from callers; `%` and `_` mean something to a database."""
    ended(database, "https://b.example/hook")
    assert claimed(outbox, "https://%", "https://_.example").url == "https://b.example/hook"


def test_busy_owners_are_passed_over_and_no_others(database: Database, outbox: Outbox, clock: Clock) -> None:
    """Wherever theirs are to be told; they come first again when they are not."""
    for url in ("https://a.example/hook", "https://b.example/hook"):
        ended(database, url, key="@busy")
    clock.now += 1
    other = ended(database, key="@bus")
    found = outbox.claim((), ["@busy", "@nobody"])
    assert found is not None
    assert (found.job_id, found.owner) == (other, "@bus")
    assert outbox.claim((), ["@busy"]) is None
    assert claimed(outbox, "https://a.example").url == "https://b.example/hook"
    assert claimed(outbox).owner == "@busy"


def test_a_receiver_is_named_without_what_may_be_secret(database: Database, outbox: Outbox) -> None:
    """It is logged."""
    ended(database, "https://A.example:8443/hook/t0p?token=s3cret#f")
    delivery = claimed(outbox)
    assert delivery.receiver == "https://a.example:8443"
    assert "s3cret" not in repr(delivery)


# --- refused when it is handed in ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://a.example/hook", InvalidLink),
        ("https://user:password@a.example/hook", InvalidLink),
        ("a.example/hook", InvalidLink),
        ("http://127.0.0.1:9000/hook", LinkNotAllowed),
        ("https://169.254.169.254/latest", LinkNotAllowed),
        ("https://intranet/hook", LinkNotAllowed),
    ],
)
def test_what_will_never_be_told_is_refused(database: Database, url: str, error: type[Exception]) -> None:
    """Better at once than on the tenth attempt; what an operator has opened is taken."""
    webhooks = Webhooks(database, EgressProxy(AddressPolicy(("10.0.0.5:8080",))), new_secret())
    webhooks.check("https://a.example/hook")
    webhooks.check("http://10.0.0.5:8080/hook")
    with pytest.raises(error):
        webhooks.check(url)
