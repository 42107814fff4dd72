"""Jobs as those see them who do them. `place` is SQLite here; tests/integration runs the same on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from errors import WorkerCrashed
from jobs.leases import LeaseLost, Leases
from jobs.model import MAX_ATTEMPTS, Job, Stage, State
from jobs.tables import events, jobs, results
from reservation import Work
from tests.databases import ALL, LEASE_S, Place, at_once, commit, jobs_on, sqlite_in

HASH = "c" * 64


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with jobs_on(sqlite_in(tmp_path)) as place:
        yield place


def dies(place: Place) -> list[Job]:
    """All owners fall silent for longer than a lease; what becomes of their jobs."""
    place.clock.now_s += LEASE_S + 1
    return place.owner("reaper").expire()


# --- held ------------------------------------------------------------------------------------------------------------


def test_a_claim_begins_the_next_attempt_under_a_lease(place: Place) -> None:
    job = place.submit()
    place.clock.now_s += 5.0
    begun_at = place.clock()
    first = place.claimed(place.owner("a"), job)
    assert (first.state, first.attempt, first.owner, first.stage) == (State.RUNNING, 1, "a", Stage.WAITING)
    assert (first.started_at, first.lease_until) == (begun_at, begun_at + LEASE_S)
    dies(place)
    second = place.claimed(place.owner("b"), job)
    assert (second.attempt, second.owner, second.started_at) == (2, "b", begun_at)
    assert place.owner().claim(ALL) is None
    told = [(event.kind, event.body) for event in place.store.events_of(job.id)]
    assert told == [("queued", {}), ("running", {"attempt": 1}), ("queued", {}), ("running", {"attempt": 2})]


def test_a_key_has_so_many_jobs_at_work(place: Place) -> None:
    """Over all machines; its others wait, and those of other keys are begun meanwhile."""

    def most(key: str) -> int:
        return {"k": 2}.get(key, 0)

    jobs = [place.submit_later() for _ in range(4)]
    theirs = [place.submit_later("other") for _ in range(3)]
    here, there = place.owner("a", most), place.owner("b", most)
    claimed = [job for _ in range(4) for owner in (here, there) if (job := owner.claim(ALL))]
    assert {job.id for job in claimed} == {job.id for job in [*jobs[:2], *theirs]}
    (mine, *_) = (job for job in claimed if job.key == "k")
    commit(here if mine.owner == "a" else there, mine)
    assert (next_one := there.claim(ALL))
    assert next_one.id == jobs[2].id
    assert here.claim(ALL) is None


def test_calls_and_parts_keep_no_job_of_their_key_waiting(place: Place) -> None:
    """Calls are the gate's to count, and a part is done for a job that runs; a part waits for nobody else either."""
    owner = place.owner("a", lambda key: 1)
    place.submit(owner="b")
    part = place.submit(parent_id="0" * 32)
    job = place.submit_later()
    another = place.submit_later(parent_id="1" * 32)
    place.submit_later()
    found = [owner.claim(ALL) for _ in range(4)]
    assert [one.id for one in found if one] == [part.id, job.id, another.id]
    assert found[3] is None


def test_what_must_be_fetched_first_can_be_left_for_later(place: Place) -> None:
    """A download is work of its own, whoever's recording it is."""
    link = place.submit(source={"url": "https://example.com/a.mp3"})
    download = place.submit_later(work=Work.DOWNLOAD, source={"url": "https://example.com/a.mp3"})
    file = place.submit_later()
    owner = place.owner()
    found = [owner.claim(ALL, links=False) for _ in range(3)]
    assert {job.id for job in found if job} == {download.id, file.id}
    assert found[2] is None
    place.claimed(owner, link)


def test_what_no_database_can_read_holds_nobody_up(place: Place) -> None:
    """PostgreSQL stores a NUL in JSON, and fails whenever it looks inside: then nobody's job would be begun."""
    job = place.submit(source={"file": "a.wav", "name": "a\0\0b\\u0000\\\0.wav"})
    claimed = place.owner().claim(ALL, links=False)
    assert claimed is not None
    assert claimed.id == job.id
    assert claimed.source["name"] == "a\ufffd\ufffdb\\u0000\\\ufffd.wav"


def test_a_heartbeat_holds_on_to_all_of_an_owners_jobs_and_to_no_others(place: Place) -> None:
    ours = [place.claimed(place.owner("a"), place.submit()), place.submit(owner="a")]
    theirs = place.claimed(place.owner("b"), place.submit())
    place.clock.now_s += LEASE_S - 1
    assert place.owner("a").beat([job.id for job in ours]) == {job.id: 1 for job in ours}
    place.clock.now_s += LEASE_S - 1
    assert [job.id for job in place.owner().expire()] == [theirs.id]
    assert place.owner("b").beat() == {}


def test_a_heartbeat_lets_go_of_what_does_not_run_any_more(place: Place) -> None:
    """What an owner has forgotten must become somebody else's."""
    owner = place.owner("a")
    runs, forgotten = (place.claimed(owner, place.submit()) for _ in range(2))
    place.clock.now_s += LEASE_S - 1
    assert owner.beat([runs.id]) == {runs.id: 1}
    place.clock.now_s += 2
    assert [job.id for job in place.owner().expire()] == [forgotten.id]


def test_an_owner_that_is_late_keeps_what_nobody_has_taken(place: Place) -> None:
    job = place.claimed(place.owner("a"), place.submit())
    place.clock.now_s += 10 * LEASE_S
    assert place.owner("a").beat() == {job.id: 1}
    assert place.owner("b").expire() == []


def test_progress_is_written_down_and_holds_on_to_the_job(place: Place) -> None:
    owner = place.owner()
    job = place.claimed(owner, place.submit())
    place.clock.now_s += LEASE_S - 1
    owner.advance(job, [("segment", {"text": "yes"})], {"done": 7.5, "stage": Stage.TRANSCRIBING, "stage_done": 0.5})
    now = place.store.get(job.id)
    assert (now.done, now.stage, now.stage_done) == (7.5, Stage.TRANSCRIBING, 0.5)
    assert now.lease_until == place.clock() + LEASE_S
    assert place.store.events_of(job.id)[-1].body == {"text": "yes"}
    place.clock.now_s += LEASE_S - 1
    assert owner.expire() == []


def test_who_gives_a_job_back_is_not_held_against_it(place: Place) -> None:
    """It keeps its place and what was heard of it; only owners that died of it count."""
    job = place.submit_later()
    place.submit_later()
    for attempt in range(1, MAX_ATTEMPTS + 2):
        claimed = place.owner().claim(ALL)
        assert claimed is not None
        assert (claimed.id, claimed.attempt) == (job.id, attempt)
        place.owner().give_back(claimed, [("segment", {})], {"done": float(attempt)})
        now = place.store.get(job.id)
        assert (now.state, now.owner, now.lease_until, now.stage) == (State.QUEUED, None, None, None)
        assert now.done == attempt
    assert place.rows(jobs, id=job.id)[0]["deaths"] == 0
    kinds = [event.kind for event in place.store.events_of(job.id)]
    assert kinds == ["queued", *["running", "segment", "queued"] * (MAX_ATTEMPTS + 1)]


def test_a_job_that_was_to_be_cancelled_is_not_given_back(place: Place) -> None:
    """An owner that stops before it has seen that ends it: who cancelled it shall not see it wait again."""
    job = place.claimed(place.owner(), place.submit(callback_url="https://example.org/hook"))
    place.store.cancel(job.id)
    place.owner().give_back(job, [("segment", {})], {"done": 3.0})
    now = place.store.get(job.id)
    assert (now.state, now.done, now.finished_at) == (State.CANCELLED, 3.0, place.clock())
    assert [event.kind for event in place.store.events_of(job.id)] == ["queued", "running", "segment", "cancelled"]
    assert [one["event"] for one in place.store.deliveries_of(job.id)] == ["job.cancelled"]


# --- fenced ----------------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Leases, Job], object]] = {
    "advance": lambda owner, job: owner.advance(job, [("segment", {})], {"done": 99.0}),
    "commit": lambda owner, job: owner.end(job, State.SUCCEEDED, [("segment", {})], result='"stale"'),
    "fail": lambda owner, job: owner.end(job, State.FAILED, error={"code": "STALE"}),
    "give back": lambda owner, job: owner.give_back(job),
    "look for the same": lambda owner, job: owner.same_as(job, "0" * 64),
}


def queued_again(place: Place, job: Job) -> None:
    dies(place)


def anothers(place: Place, job: Job) -> None:
    dies(place)
    place.claimed(place.owner("b"), job)


def its_own_next(place: Place, job: Job) -> None:
    """The owner was away, and has claimed the job anew without knowing that it is the same."""
    dies(place)
    place.claimed(place.owner("a"), job)


def given_back(place: Place, job: Job) -> None:
    place.owner("a").give_back(job)


def succeeded(place: Place, job: Job) -> None:
    commit(place.owner("a"), job)


def cancelled(place: Place, job: Job) -> None:
    place.store.cancel(job.id)
    dies(place)


def succeeded_elsewhere(place: Place, job: Job) -> None:
    dies(place)
    commit(place.owner("b"), place.claimed(place.owner("b"), job))


def forgotten(place: Place, job: Job) -> None:
    commit(place.owner("a"), job, State.CANCELLED)
    place.clock.now_s += 1.0
    assert place.store.forget(0.0)


LOSSES = (queued_again, anothers, its_own_next, given_back, succeeded, cancelled, succeeded_elsewhere, forgotten)


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_stale_owner_changes_nothing(
    place: Place, write: Callable[[Leases, Job], object], lose: Callable[[Place, Job], None]
) -> None:
    """Whatever it believes, and however it lost the job."""
    job = place.claimed(place.owner("a"), place.submit(callback_url="https://example.org/hook"))
    lose(place, job)
    before = place.all_rows()
    with pytest.raises(LeaseLost):
        write(place.owner("a"), job)
    assert place.all_rows() == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nobody_writes_in_anothers_name(place: Place, write: Callable[[Leases, Job], object]) -> None:
    """The attempt's number alone can be guessed."""
    job = place.claimed(place.owner("a"), place.submit())
    before = place.all_rows()
    with pytest.raises(LeaseLost):
        write(place.owner("b"), job)
    assert place.all_rows() == before


def test_of_two_that_commit_at_once_one_result_is_kept(place: Place) -> None:
    """An owner that comes back late, and the one that has its job now; as often as it takes."""
    for _ in range(5):
        stale = place.claimed(place.owner("a"), place.submit())
        dies(place)
        current = place.claimed(place.owner("b"), stale)
        holders = [(place.owner("a"), stale), (place.owner("b"), current), (place.owner("b"), current)]

        def end(index: int, holders: list[tuple[Leases, Job]] = holders) -> bool:
            owner, job = holders[index]
            try:
                owner.end(job, State.SUCCEEDED, result=f'"{owner.owner}"')
            except LeaseLost:
                return False
            return True

        ended = at_once(3, end)
        assert not ended[0]
        assert sum(ended) == 1
        (result,) = place.rows(results, job_id=stale.id)
        assert (result["attempt"], result["body"]) == (2, '"b"')
        assert [row["number"] for row in place.rows(events, job_id=stale.id)] == [1, 2, 3, 4, 5]


def test_what_is_told_at_once_is_numbered_without_gaps(place: Place) -> None:
    """Somebody cancels, others beat, and the owner tells: no event is lost, and none has another's number."""
    owner = place.owner()
    job = place.claimed(owner, place.submit())

    def act(index: int) -> None:
        for _ in range(5):
            if index == 0:
                place.store.cancel(job.id)
            elif index == 1:
                owner.beat()
            else:
                owner.advance(job, [("segment", {}), ("segment", {})])

    at_once(4, act)
    commit(owner, job, State.CANCELLED)
    assert [event.number for event in place.store.events_of(job.id)] == list(range(1, 2 + 20 + 1 + 1))
    assert place.store.get(job.id).events == 23


# --- lost ------------------------------------------------------------------------------------------------------------


def test_a_job_is_lost_when_its_lease_is_over_and_not_before(place: Place) -> None:
    job = place.claimed(place.owner("a"), place.submit())
    place.clock.now_s += LEASE_S
    assert place.owner().expire() == []
    place.clock.now_s += 0.001
    (lost,) = place.owner().expire()
    assert (lost.id, lost.state, lost.owner, lost.lease_until) == (job.id, State.QUEUED, None, None)
    assert lost.created_at == job.created_at, "it keeps its place"
    assert place.owner().expire() == []


def test_a_lost_job_whose_caller_waited_is_cancelled(place: Place) -> None:
    """The caller was on the dead owner's connection."""
    job = place.submit(owner="a")
    assert [(lost.id, lost.state) for lost in dies(place)] == [(job.id, State.CANCELLED)]
    assert place.store.get(job.id).finished_at == place.clock()


def test_a_lost_job_that_was_to_be_cancelled_is(place: Place) -> None:
    job = place.claimed(place.owner(), place.submit())
    place.store.cancel(job.id)
    assert [(lost.id, lost.state) for lost in dies(place)] == [(job.id, State.CANCELLED)]


def test_a_job_that_owners_die_of_is_given_up(place: Place) -> None:
    job = place.submit()
    for _ in range(MAX_ATTEMPTS - 1):
        place.claimed(place.owner(), job)
        assert [lost.state for lost in dies(place)] == [State.QUEUED]
    place.owner().give_back(place.claimed(place.owner(), job))
    place.claimed(place.owner(), job)
    (lost,) = dies(place)
    assert lost.state is State.FAILED
    assert lost.error == {"code": "WORKER_CRASHED", "status": 503, "message": WorkerCrashed().message}
    assert lost.error == place.store.events_of(job.id)[-1].body["error"]
    assert lost.finished_at == place.clock()


def test_after_a_restart_all_that_ran_before_is_taken_over(place: Place) -> None:
    """Whoever owned it is known to be dead: nobody waits for the lease."""
    background = place.claimed(place.owner("before"), place.submit())
    attended = place.submit(owner="before")
    lost = {job.id: job.state for job in place.owner("now").expire(all_owners=True)}
    assert lost == {background.id: State.QUEUED, attended.id: State.CANCELLED}


def test_many_that_look_at_once_take_a_lost_job_once(place: Place) -> None:
    """Else one death would count as several."""
    ids = {place.claimed(place.owner(), place.submit()).id for _ in range(10)}
    place.clock.now_s += LEASE_S + 1
    taken = [job.id for each in at_once(4, lambda index: place.owner(f"{index}").expire()) for job in each]
    taken += [job.id for job in place.owner().expire()]
    assert len(taken) == 10
    assert set(taken) == ids
    assert {row["deaths"] for row in place.rows(jobs)} == {1}


def test_many_that_look_while_owners_beat_take_only_what_is_lost(place: Place) -> None:
    """A job is either held on to, or lost: never both."""
    owner = place.owner("a")
    ids = {place.claimed(owner, place.submit()).id for _ in range(10)}
    place.clock.now_s += LEASE_S + 1

    def act(index: int) -> set[str]:
        return set(owner.beat()) if index == 0 else {job.id for job in place.owner("reaper").expire()}

    held, lost, also_lost = at_once(3, act)
    running = {row["id"] for row in place.rows(jobs, state=State.RUNNING)}
    assert held == running
    assert held | lost | also_lost == ids
    assert not held & (lost | also_lost)


# --- the same once more ----------------------------------------------------------------------------------------------


def hashed(place: Place, owner: str = "a", **asked: object) -> Job:
    """A job that runs, and of which the samples are known."""
    job = place.claimed(place.owner(owner), place.submit_later(**asked))
    assert place.owner(owner).same_as(job, HASH) is None
    return job


def looked_for(place: Place, **asked: object) -> Job | None:
    """What a job that came now finds for the same samples."""
    job = place.claimed(place.owner("late"), place.submit_later(**asked))
    return place.owner("late").same_as(job, HASH)


def test_a_job_finds_what_was_made_of_the_same_samples(place: Place) -> None:
    job = hashed(place)
    commit(place.owner("a"), job)
    found = looked_for(place)
    assert found is not None
    assert (found.id, found.state) == (job.id, State.SUCCEEDED)


def test_a_job_finds_the_older_one_that_is_being_made(place: Place) -> None:
    oldest = hashed(place)
    place.claimed(place.owner("b"), place.submit_later())
    found = looked_for(place)
    assert found is not None
    assert found.id == oldest.id


@pytest.mark.parametrize("finished", [True, False])
def test_what_another_key_has_had_made_is_not_found(place: Place, finished: bool) -> None:
    """It would tell what others work on, and give them away what they have not paid for."""
    job = hashed(place, key="other")
    if finished:
        commit(place.owner("a"), job)
    assert looked_for(place) is None
    found = looked_for(place, key="other")
    assert found is not None
    assert found.id == job.id


def test_what_is_finished_goes_before_what_is_being_made(place: Place) -> None:
    older = place.claimed(place.owner("a"), place.submit_later())
    finished = place.claimed(place.owner("b"), place.submit_later())
    assert place.owner("b").same_as(finished, HASH) is None
    assert place.owner("a").same_as(older, HASH) is None
    commit(place.owner("b"), finished)
    found = looked_for(place)
    assert found is not None
    assert found.id == finished.id
    assert place.owner("a").same_as(older, HASH) == found, "a finished one may be younger"


def test_of_two_that_look_for_each_other_the_older_goes_on(place: Place) -> None:
    """Else each would wait for the other."""
    older = place.claimed(place.owner("a"), place.submit_later())
    younger = place.claimed(place.owner("b"), place.submit_later())
    place.owner("a").same_as(older, HASH)
    waits_for = place.owner("b").same_as(younger, HASH)
    assert waits_for is not None
    assert waits_for.id == older.id
    assert place.owner("a").same_as(older, HASH) is None


def test_of_two_that_came_at_the_same_moment_one_goes_on(place: Place) -> None:
    owner = place.owner()
    submitted = [place.submit(), place.submit()]
    claimed = [owner.claim(ALL), owner.claim(ALL)]
    assert all(claimed)
    for job in claimed:
        owner.same_as(job, HASH)
    assert sum(owner.same_as(job, HASH) is None for job in claimed) == 1
    assert len(submitted) == 2


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.QUEUED])
def test_what_is_not_made_and_not_being_made_is_not_found(place: Place, state: State) -> None:
    job = hashed(place)
    if state is State.QUEUED:
        place.owner("a").give_back(job)
        # It would be claimed first.
        place.store.cancel(place.submit_later(key="other").id)
        younger = place.submit_later(owner="late")
        assert place.owner("late").same_as(younger, HASH) is None
    else:
        commit(place.owner("a"), job, state)
        assert looked_for(place) is None


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("asked", [{"key": "other"}, {"options": {"model": "base", "language": None}}], ids=str)
def test_another_keys_or_with_other_options_is_not_the_same(
    place: Place, asked: dict[str, object], finished: bool
) -> None:
    """A caller must not learn what others have sent."""
    job = hashed(place)
    if finished:
        commit(place.owner("a"), job)
    assert looked_for(place, **asked) is None


def test_the_order_in_which_options_are_written_makes_no_difference(place: Place) -> None:
    job = hashed(place)
    found = looked_for(place, options={"language": None, "model": "tiny"})
    assert found is not None
    assert found.id == job.id


# --- told to a broker ------------------------------------------------------------------------------------------------


def test_the_broker_is_told_again_of_what_still_waits(place: Place) -> None:
    job = place.submit()
    place.submit(owner="a")
    owner = place.owner()
    assert [told.id for told in owner.to_be_sent(60.0)] == [job.id]
    place.clock.now_s += 60.0
    assert owner.to_be_sent(60.0) == []
    place.clock.now_s += 0.001
    assert [told.id for told in owner.to_be_sent(60.0)] == [job.id]
    place.claimed(owner, job)
    place.clock.now_s += 1000.0
    assert owner.to_be_sent(60.0) == []


@pytest.mark.parametrize("how", ["given back", "lost", "tried again"])
def test_the_broker_is_told_at_once_of_what_is_queued_again(place: Place, how: str) -> None:
    job, owner = place.submit(), place.owner()
    assert owner.to_be_sent(1e6)
    claimed = place.claimed(owner, job)
    match how:
        case "given back":
            owner.give_back(claimed)
        case "lost":
            dies(place)
        case _:
            commit(owner, claimed, State.FAILED)
            place.store.retry(job.id)
    assert [told.id for told in owner.to_be_sent(1e6)] == [job.id]
    assert owner.to_be_sent(1e6) == []


def test_the_broker_is_told_of_the_first_first(place: Place) -> None:
    later = place.submit_later(priority=1)
    first = place.submit_later(priority=0)
    second = place.submit_later(priority=0)
    told = [[job.id for job in place.owner().to_be_sent(60.0, limit=2)] for _ in range(2)]
    assert told == [[first.id, second.id], [later.id]]


def test_many_that_tell_at_once_tell_each_job_once(place: Place) -> None:
    ids = {place.submit().id for _ in range(20)}
    told = at_once(4, lambda index: [job.id for job in place.owner(f"{index}").to_be_sent(60.0)])
    rest = place.owner().to_be_sent(60.0)
    all_told = [job_id for each in told for job_id in each] + [job.id for job in rest]
    assert len(all_told) == 20
    assert set(all_told) == ids


def test_a_part_is_not_for_the_owner_of_the_rest(place: Place) -> None:
    """It does the head of the recording meanwhile; any other takes the part."""
    part = place.submit(not_for="a", parent_id="p" * 32)
    assert place.owner("a").claim(ALL) is None
    place.claimed(place.owner("b"), part)
