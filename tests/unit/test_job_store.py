"""Jobs as their callers see them. `place` is SQLite here; tests/integration runs the same on PostgreSQL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from errors import IdempotencyConflict, JobNotFound, JobNotOver, NotRetryable, QueueFull, QuotaUsed
from jobs.model import MAX_ATTEMPTS, Job, State
from jobs.store import Counts, JobStore
from jobs.tables import deliveries, events, jobs, results
from key_limits import DAY_S
from reservation import Work
from tests.databases import ALL, LEASE_S, Place, at_once, commit, jobs_on, new_job, sqlite_in


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with jobs_on(sqlite_in(tmp_path)) as place:
        yield place


# --- written down ----------------------------------------------------------------------------------------------------


def test_a_job_is_kept_as_it_was_handed_in(place: Place) -> None:
    new = new_job(
        "k",
        1,
        work=Work.EXTRACTION,
        source={"url": "https://example.org/", "name": "Küche 📻"},
        options={"b": [1, None], "a": {"deep": 0.1}},
        size=12.5,
        reuse=True,
        callback_url="https://example.org/hook",
        idempotency_key="once",
        fingerprint="f" * 64,
        batch_id="0" * 32,
    )
    job, created = place.store.submit(new)
    assert created
    assert {name: getattr(job, name) for name in dataclasses.asdict(new)} == dataclasses.asdict(new)
    assert (job.state, job.attempt, job.owner, job.created_at) == (State.QUEUED, 0, None, place.clock())
    assert (job.started_at, job.finished_at, job.error, job.done, job.timings) == (None, None, None, 0.0, {})
    assert place.store.get(job.id) == job


def test_a_job_whose_caller_waits_is_its_servers_at_once(place: Place) -> None:
    job = place.submit(owner="a")
    assert (job.state, job.attempt, job.owner) == (State.RUNNING, 1, "a")
    assert (job.started_at, job.lease_until) == (place.clock(), place.clock() + LEASE_S)
    assert place.owner("b").claim(ALL) is None
    commit(place.owner("a"), job)
    assert place.store.get(job.id).state is State.SUCCEEDED


def test_the_same_idempotency_key_gives_the_same_job(place: Place) -> None:
    """Whatever has become of it."""
    new = new_job(idempotency_key="once", fingerprint="f")
    job, _ = place.store.submit(new)
    assert place.store.submit(new) == (job, False)
    commit(place.owner(), place.claimed(place.owner(), job))
    again, created = place.store.submit(new, "b")
    assert (again.id, again.state, created) == (job.id, State.SUCCEEDED, False)
    assert len(place.rows(jobs)) == 1


def test_an_idempotency_key_that_named_another_request_is_refused(place: Place) -> None:
    place.submit(idempotency_key="once", fingerprint="f")
    with pytest.raises(IdempotencyConflict):
        place.store.submit(new_job(idempotency_key="once", fingerprint="g"))
    assert len(place.rows(jobs)) == 1


def test_idempotency_keys_are_each_callers_own(place: Place) -> None:
    ours = place.submit("k", idempotency_key="once", fingerprint="f")
    theirs = place.submit("other", idempotency_key="once", fingerprint="g")
    assert ours.id != theirs.id
    assert place.submit().id != place.submit().id, "who sends none hands in a new job each time"


def test_a_request_sent_twice_at_the_same_moment_makes_one_job(place: Place) -> None:
    for attempt in range(5):
        new = new_job(idempotency_key=f"once {attempt}", fingerprint="f")
        answers = at_once(4, lambda _, new=new: place.store.submit(new))
        assert len({job.id for job, _ in answers}) == 1
        assert sum(created for _, created in answers) == 1
    assert len(place.rows(jobs)) == 5


def test_a_full_queue_takes_nothing_more_until_something_leaves_it(place: Place) -> None:
    store = place.store_of(max_queued=2)
    first, _ = store.submit(new_job(idempotency_key="once", fingerprint="f"))
    store.submit(new_job("other"))
    with pytest.raises(QueueFull):
        store.submit(new_job())
    assert store.submit(new_job(idempotency_key="once", fingerprint="f")) == (first, False), (
        "it is in the queue already"
    )
    _, created = store.submit(new_job(), owner="a")
    assert created, "a caller who waits has a place at the gate, and none in the queue"
    assert place.owner().claim(ALL)
    _, created = store.submit(new_job())
    assert created
    with pytest.raises(QueueFull):
        store.submit(new_job())


def test_a_crowd_does_not_overfill_the_queue(place: Place) -> None:
    store = place.store_of(max_queued=3)

    def submit(_: int) -> bool:
        try:
            return store.submit(new_job())[1]
        except QueueFull:
            return False

    assert sum(at_once(8, submit)) == 3
    assert len(place.rows(jobs)) == 3


@pytest.mark.parametrize(("several_keys", "taken"), [(True, 6), (False, 9)])
def test_no_key_fills_the_queue_where_others_come_too(place: Place, several_keys: bool, taken: int) -> None:
    """However much one sends, a third stays open to the others; who is alone has it all."""
    store = place.store_of(max_queued=9, several_keys=several_keys)
    for _ in range(taken):
        store.submit(new_job(key="greedy"))
    with pytest.raises(QueueFull):
        store.submit(new_job(key="greedy"))
    if several_keys:
        for _ in range(2):
            store.submit(new_job(key="other"))
        with pytest.raises(QueueFull):
            store.submit(new_job(key="greedy"))


def test_a_batch_has_no_more_than_its_keys_share(place: Place) -> None:
    """Sent one by one, its last job would have been refused."""
    store = place.store_of(max_queued=9, several_keys=True)
    with pytest.raises(QueueFull):
        store.submit_many([new_job(key="greedy") for _ in range(7)])
    store.submit_many([new_job(key="greedy") for _ in range(6)])


def test_a_keys_jobs_of_a_day_come_to_so_much_audio(place: Place) -> None:
    """Those that wait and those that are over, whatever became of them; the next day, and for others, as much again."""
    first = place.submit(size=40.0, idempotency_key="once", fingerprint="f")
    place.store.cancel(first.id)
    place.submit("other", size=1000.0)
    place.submit(work=Work.EXTRACTION, size=1000.0)
    for size in (20.5, 100.0):
        with pytest.raises(QuotaUsed) as refused:
            place.store.submit(new_job(size=size), audio_s=60.0)
        assert refused.value.retry_after_s
    assert place.store.submit(new_job(size=20.0), audio_s=60.0)[1]
    for more in (new_job(size=0.1), new_job(source={"url": "https://example.com/a.mp3"})):
        with pytest.raises(QuotaUsed):
            place.store.submit(more, audio_s=60.0)
    again = new_job(size=40.0, idempotency_key="once", fingerprint="f")
    assert place.store.submit(again, audio_s=60.0)[1] is False, "it is counted already"
    assert place.store.submit(new_job(size=0.1))[1], "who has no bound"
    assert place.store.submit(new_job(work=Work.DOWNLOAD), audio_s=60.0)[1], "a download is no audio"
    place.clock.now_s += DAY_S
    assert place.store.submit(new_job(size=60.0), audio_s=60.0)[1]


def test_what_a_server_counts_itself_does_not_count_twice(place: Place) -> None:
    """Calls that wait here, and the parts of a job."""
    place.submit(owner="a", size=50.0)
    place.submit(parent_id="0" * 32, size=50.0)
    assert place.store.submit(new_job(size=60.0), audio_s=60.0)[1]


def test_a_batch_is_refused_whole_where_its_audio_is_too_much(place: Place) -> None:
    with pytest.raises(QuotaUsed):
        place.store.submit_many([new_job(size=30.0), new_job(), new_job(size=30.1)], audio_s=60.0)
    assert place.rows(jobs) == []
    assert place.store.submit_many([new_job(size=30.0), new_job(), new_job(size=30.0)], audio_s=60.0)[1]


def test_of_a_crowd_no_more_are_taken_than_the_day_has_audio(place: Place) -> None:
    """As if they had come to as many servers."""

    def submit(_: int) -> bool:
        try:
            return place.store_of().submit(new_job(size=20.0), audio_s=60.0)[1]
        except QuotaUsed:
            return False

    assert sum(at_once(8, submit)) == 3
    assert len(place.rows(jobs)) == 3


def test_a_batch_is_written_down_whole_or_not_at_all(place: Place) -> None:
    store = place.store_of(max_queued=3)
    batch = [new_job(batch_id="b" * 32, idempotency_key=key, fingerprint="f") for key in ("once", None, None)]
    made, created = store.submit_many(batch)
    assert created
    assert [job.id for job in store.listed(batch_id="b" * 32)] == sorted((job.id for job in made), reverse=True)
    again, created = store.submit_many(batch)
    assert not created
    assert {job.id for job in again} == {job.id for job in made}
    assert place.owner().claim(ALL)
    with pytest.raises(QueueFull):
        store.submit_many([new_job(batch_id="c" * 32) for _ in range(2)])
    assert store.listed(batch_id="c" * 32) == []
    with pytest.raises(IdempotencyConflict):
        store.submit_many([new_job(idempotency_key="once", fingerprint="g"), new_job()])
    assert len(place.rows(jobs)) == 3


def test_batches_that_come_at_once_do_not_overfill_the_queue(place: Place) -> None:
    store = place.store_of(max_queued=5)

    def submit(_: int) -> int:
        try:
            return len(store.submit_many([new_job(), new_job()])[0])
        except QueueFull:
            return 0

    assert sum(at_once(6, submit)) == 4
    assert len(place.rows(jobs)) == 4


# --- looked at -------------------------------------------------------------------------------------------------------

ASKING: dict[str, Callable[[JobStore, str, str], object]] = {
    "get": lambda store, job_id, key: store.get(job_id, key),
    "result": lambda store, job_id, key: store.result(job_id, key),
    "cancel": lambda store, job_id, key: store.cancel(job_id, key),
    "retry": lambda store, job_id, key: store.retry(job_id, key),
    "listed": lambda store, job_id, key: store.listed(key, before=job_id),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_another_keys_job_is_not_there(place: Place, ask: Callable[[JobStore, str, str], object]) -> None:
    """Nor does the error tell whether there is such a job."""
    job = place.submit("k")
    before = place.all_rows()
    with pytest.raises(JobNotFound) as theirs:
        ask(place.store, job.id, "other")
    with pytest.raises(JobNotFound) as nobodys:
        ask(place.store, "0" * 32, "other")
    assert theirs.value.message == nobodys.value.message
    assert place.all_rows() == before


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
@pytest.mark.parametrize("job_id", ["", "0", "\N{NULL}", "📻", "'; --", "0" * 10_000], ids=ascii)
def test_an_id_can_be_anything(place: Place, ask: Callable[[JobStore, str, str], object], job_id: str) -> None:
    """It comes from a URL."""
    with pytest.raises(JobNotFound):
        ask(place.store, job_id, "k")


def test_jobs_are_listed_newest_first_and_each_key_sees_its_own(place: Place) -> None:
    ours = [place.submit_later("k") for _ in range(3)]
    theirs = place.submit_later("other")
    assert place.store.listed("k") == ours[::-1]
    assert place.store.listed("other") == [theirs]
    assert place.store.listed("nobody") == []
    assert place.store.listed() == [theirs, *ours[::-1]]


def test_a_list_holds_what_was_asked_for(place: Place) -> None:
    done = place.submit()
    commit(place.owner(), place.claimed(place.owner(), done))
    queued = place.submit_later(work=Work.DOWNLOAD, batch_id="b" * 32)
    cancelled = place.store.cancel(place.submit_later(batch_id="b" * 32).id)

    def ids(**asked: Any) -> list[str]:
        return [job.id for job in place.store.listed("k", **asked)]

    assert ids(states=[State.SUCCEEDED]) == [done.id]
    assert ids(states=[State.QUEUED, State.CANCELLED]) == [cancelled.id, queued.id]
    assert ids(work=Work.DOWNLOAD) == [queued.id]
    assert ids(batch_id="b" * 32) == [cancelled.id, queued.id]
    assert ids(batch_id="b" * 32, work=Work.TRANSCRIPTION, states=[State.QUEUED]) == []
    assert ids(batch_id="\N{NULL}") == []


def test_pages_bring_every_job_once(place: Place) -> None:
    """Also those that came at the same moment, and while others come."""
    here = {place.submit().id for _ in range(5)} | {place.submit_later().id for _ in range(2)}
    seen: list[str] = []
    while page := place.store.listed("k", before=seen[-1] if seen else None, limit=2):
        assert len(page) <= 2
        seen += [job.id for job in page]
        place.submit_later()
    assert len(seen) == 7
    assert set(seen) == here


def test_a_result_is_there_when_the_job_has_succeeded(place: Place) -> None:
    job = place.submit()
    with pytest.raises(JobNotOver):
        place.store.result(job.id, "k")
    claimed = place.claimed(place.owner(), job)
    with pytest.raises(JobNotOver):
        place.store.result(job.id, "k")
    place.owner().end(claimed, State.SUCCEEDED, result='{"text": "Küche 📻"}', values={"timings": {"total": 1.5}})
    over, body = place.store.result(job.id, "k")
    assert (over.state, over.timings, over.finished_at) == (State.SUCCEEDED, {"total": 1.5}, place.clock())
    assert body == '{"text": "Küche 📻"}'


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_job_that_did_not_succeed_has_no_result(place: Place, state: State) -> None:
    job = place.submit()
    commit(place.owner(), place.claimed(place.owner(), job), state)
    with pytest.raises(JobNotOver):
        place.store.result(job.id)


def test_events_are_numbered_without_gaps_and_can_be_read_on(place: Place) -> None:
    job = place.submit()
    owner = place.owner()
    claimed = place.claimed(owner, job)
    place.clock.now_s += 1.0
    owner.advance(claimed, [("segment", {"text": "one"}), ("segment", {"text": "two"})], {"done": 2.0})
    owner.advance(claimed, [], {"done": 3.0})
    owner.end(claimed, State.SUCCEEDED, [("segment", {"text": "\N{NULL}three"})], result="{}")
    told = place.store.events_of(job.id)
    assert [(event.number, event.kind) for event in told] == [
        (1, "queued"),
        (2, "running"),
        (3, "segment"),
        (4, "segment"),
        (5, "segment"),
        (6, "succeeded"),
    ]
    assert told[1].body == {"attempt": 1}
    assert [event.body["text"] for event in told[2:5]] == ["one", "two", "\N{REPLACEMENT CHARACTER}three"]
    assert told[2].at == place.clock()
    assert place.store.events_of(job.id, after=2, limit=3) == told[2:5]
    assert place.store.events_of(job.id, after=6) == []
    assert place.store.get(job.id).events == 6


def test_whoever_changes_a_job_is_told_how_it_stands(place: Place) -> None:
    """As `get` would tell it: the number of its events, too."""
    owner, stands = place.owner(), place.store.get
    job = place.submit()
    assert job == stands(job.id)
    assert place.claimed(owner, job) == stands(job.id)
    assert place.store.cancel(job.id) == stands(job.id)
    place.clock.now_s += LEASE_S + 1
    assert owner.expire() == [stands(job.id)]
    assert place.store.retry(job.id) == stands(job.id)
    assert place.store.cancel(job.id) == stands(job.id)
    assert place.store.cancel(job.id) == stands(job.id)


def test_the_counts_tell_how_the_jobs_stand(place: Place) -> None:
    assert place.store.counts() == Counts({}, None)
    place.submit(owner="a")
    oldest = place.submit_later()
    place.submit_later()
    place.submit_later(work=Work.DOWNLOAD)
    place.store.cancel(place.submit_later(work=Work.DOWNLOAD).id)
    by_state = {
        (Work.TRANSCRIPTION, State.RUNNING): 1,
        (Work.TRANSCRIPTION, State.QUEUED): 2,
        (Work.DOWNLOAD, State.QUEUED): 1,
        (Work.DOWNLOAD, State.CANCELLED): 1,
    }
    assert place.store.counts() == Counts(by_state, oldest.created_at)


def test_ahead_of_a_job_are_its_own_keys_older_ones_and_as_many_of_each_other_key(place: Place) -> None:
    for size in (10.0, 20.0, 30.0):
        place.submit_later("other", size=size)
    ours = [place.submit_later("k", size=5.0) for _ in range(3)]
    place.submit_later("few", size=1.0)
    assert place.store.ahead_of(ours[0]) == (2, 20.0 + 1.0), "one of each other key may have its turn before"
    assert place.store.ahead_of(ours[1]) == (1 + 2 + 1, 5.0 + 40.0 + 1.0)
    assert place.store.ahead_of(ours[2]) == (2 + 3 + 1, 10.0 + 60.0 + 1.0)


def test_ahead_of_a_job_is_all_of_a_class_above_it_and_none_below(place: Place) -> None:
    for _ in range(3):
        place.submit_later("other", 0, size=10.0)
    job = place.submit_later("k", 1)
    place.submit_later("other", 2)
    place.submit_later("other", 0, work=Work.DOWNLOAD)
    place.submit_later("k", 1, owner="a")
    assert place.store.ahead_of(job) == (3, 30.0)


def test_sizes_that_nobody_knows_add_nothing(place: Place) -> None:
    place.submit_later("other")
    assert place.store.ahead_of(place.submit_later("k")) == (1, 0.0)


# --- changed ---------------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once(place: Place) -> None:
    job = place.store.cancel(place.submit().id, "k")
    assert (job.state, job.finished_at) == (State.CANCELLED, place.clock())
    assert place.owner().claim(ALL) is None
    assert [event.kind for event in place.store.events_of(job.id)] == ["queued", "cancelled"]


def test_a_running_job_is_cancelled_by_its_owner(place: Place) -> None:
    """Who may finish it first: then it has succeeded."""
    owner = place.owner()
    jobs = [place.submit_later() for _ in range(2)]
    claimed = [owner.claim(ALL), owner.claim(ALL)]
    for job in jobs:
        assert place.store.cancel(job.id).state is State.RUNNING
        assert place.store.cancel(job.id).cancelling
    assert owner.cancelled() == {job.id for job in jobs}
    assert place.owner("b").cancelled() == set()
    commit(owner, claimed[0], State.CANCELLED)
    commit(owner, claimed[1], State.SUCCEEDED)
    assert [place.store.get(job.id).state for job in jobs] == [State.CANCELLED, State.SUCCEEDED]
    assert owner.cancelled() == set()


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_a_job_that_is_over_stays_as_it_is(place: Place, state: State) -> None:
    job = place.submit(callback_url="https://example.org/hook")
    commit(place.owner(), place.claimed(place.owner(), job), state)
    before = place.all_rows()
    assert place.store.cancel(job.id).state is state
    assert place.all_rows() == before


def ended(place: Place, state: State) -> Job:
    """A job that ended so, of which something was heard."""
    job, owner = place.submit(), place.owner()
    claimed = place.claimed(owner, job)
    owner.advance(claimed, [("segment", {})], {"done": 30.0, "content_hash": "c" * 64})
    if state is State.CANCELLED:
        place.store.cancel(job.id)
    commit(owner, claimed, state)
    return place.store.get(job.id)


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_job_that_went_wrong_can_be_tried_again(place: Place, state: State) -> None:
    job = ended(place, state)
    place.clock.now_s += 100.0
    again = place.store.retry(job.id, "k")
    assert (again.state, again.error, again.finished_at, again.cancelling) == (State.QUEUED, None, None, False)
    assert (again.created_at, again.done, again.attempt) == (job.created_at, 30.0, 1), "nothing is done twice"
    owner = place.owner("b")
    claimed = place.claimed(owner, job)
    assert claimed.attempt == 2
    assert owner.cancelled() == set(), "what was asked of the attempt before is not asked of this one"
    commit(owner, claimed)
    assert place.store.result(job.id)[0].state is State.SUCCEEDED
    kinds = ["queued", "running", "segment", state, "queued", "running", "succeeded"]
    assert [event.kind for event in place.store.events_of(job.id)] == kinds


def test_a_job_that_is_tried_again_needs_no_caller(place: Place) -> None:
    """Nobody waits on a connection any more: it is not given up with its owner."""
    job = place.submit(owner="a")
    commit(place.owner("a"), job, State.CANCELLED)
    assert not place.store.retry(job.id).attended
    place.claimed(place.owner("b"), job)
    place.clock.now_s += LEASE_S + 1
    assert [lost.state for lost in place.owner().expire()] == [State.QUEUED]


def test_a_job_that_is_tried_again_may_lose_as_many_owners_as_before(place: Place) -> None:
    job, owner = place.submit(), place.owner()
    for _ in range(2):
        states = []
        for _ in range(MAX_ATTEMPTS):
            place.claimed(owner, job)
            place.clock.now_s += LEASE_S + 1
            states += [lost.state for lost in owner.expire()]
        assert states == [State.QUEUED] * (MAX_ATTEMPTS - 1) + [State.FAILED]
        place.store.retry(job.id)


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.SUCCEEDED])
def test_only_what_went_wrong_can_be_tried_again(place: Place, state: State) -> None:
    job, owner = place.submit(), place.owner()
    if state is not State.QUEUED:
        claimed = place.claimed(owner, job)
        if state is State.SUCCEEDED:
            commit(owner, claimed)
    before = place.all_rows()
    with pytest.raises(NotRetryable):
        place.store.retry(job.id)
    assert place.all_rows() == before


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_a_jobs_end_has_its_webhook_sent(place: Place, state: State) -> None:
    job = place.submit(callback_url="https://example.org/hook")
    claimed = place.claimed(place.owner(), job)
    assert place.store.deliveries_of(job.id) == []
    place.clock.now_s += 5.0
    commit(place.owner(), claimed, state)
    (delivery,) = place.store.deliveries_of(job.id)
    assert delivery["event"] == f"job.{state}"
    assert (delivery["attempts"], delivery["due_at"], delivery["created_at"]) == (0, place.clock(), place.clock())
    assert (delivery["delivered_at"], delivery["status"], delivery["failure"]) == (None, None, None)


def test_every_way_to_end_has_the_webhook_sent(place: Place) -> None:
    """A queued job that is cancelled, an owner's death, and a second end after a retry."""
    job = place.submit(callback_url="https://example.org/hook")
    for end in range(1, 4):
        place.clock.now_s += 1.0
        place.store.cancel(job.id)
        assert len(place.store.deliveries_of(job.id)) == end
        place.store.retry(job.id)
    place.claimed(place.owner(), job)
    place.store.cancel(job.id)
    place.clock.now_s += LEASE_S + 1
    place.owner().expire()
    assert [one["event"] for one in place.store.deliveries_of(job.id)] == ["job.cancelled"] * 4


def test_who_gave_no_address_is_told_nothing(place: Place) -> None:
    job = place.submit()
    commit(place.owner(), place.claimed(place.owner(), job))
    assert place.rows(deliveries) == []


def test_forgetting_takes_all_that_belongs_to_a_job_and_nothing_else(place: Place) -> None:
    gone = place.submit(callback_url="https://example.org/hook")
    commit(place.owner(), place.claimed(place.owner(), gone))
    place.clock.now_s += 100.0
    young = place.submit()
    commit(place.owner(), place.claimed(place.owner(), young))
    running = place.submit(owner="a")
    queued = place.submit()
    place.clock.now_s += 50.0
    assert [job.id for job in place.store.forget(100.0)] == [gone.id]
    left = {young.id, running.id, queued.id}
    assert {row["id"] for row in place.rows(jobs)} == left
    assert {row["job_id"] for row in place.rows(events)} == left
    assert {row["job_id"] for row in place.rows(results)} == {young.id}
    assert place.rows(deliveries) == []
    assert place.store.forget(100.0) == []
    with pytest.raises(JobNotFound):
        place.store.get(gone.id)


def test_forgetting_is_done_in_small_parts(place: Place) -> None:
    for _ in range(5):
        place.store.cancel(place.submit().id)
    place.clock.now_s += 100.0
    assert [len(place.store.forget(10.0, limit=2)) for _ in range(4)] == [2, 2, 1, 0]


def test_what_waits_or_runs_is_never_forgotten(place: Place) -> None:
    """However long it does: also a job that was over once, and is tried again."""
    again = place.submit()
    place.store.cancel(again.id)
    place.store.retry(again.id)
    place.submit(owner="a")
    place.clock.now_s += 1e9
    assert place.store.forget(0.0) == []


def test_what_is_tried_again_needs_room_in_the_queue(place: Place) -> None:
    """Else a key that hands in and cancels would come to hold all of it, and more."""
    store = place.store_of(max_queued=9, several_keys=True)
    over = [store.cancel(store.submit(new_job())[0].id) for _ in range(8)]
    for job in over[:6]:
        assert store.retry(job.id).state is State.QUEUED
    with pytest.raises(QueueFull):
        store.retry(over[6].id)
    assert store.get(over[6].id).state is State.CANCELLED
    store.cancel(over[0].id)
    assert store.retry(over[7].id).state is State.QUEUED
