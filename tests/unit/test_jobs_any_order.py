"""Jobs under anything in any order: owners that die, that come back late and write, callers that cancel and try again.

What the store holds is compared with a model after every step. `place` is SQLite here; tests/integration runs the same
on PostgreSQL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from errors import IdempotencyConflict, NotRetryable
from jobs.leases import LeaseLost, Leases
from jobs.model import MAX_ATTEMPTS, Job, State
from jobs.tables import jobs
from tests.databases import ALL, LEASE_S, Place, jobs_on, new_job, sqlite_in
from turns import LOWER_CLASS_EVERY

OWNERS = ("a", "b")
KEYS = ("k", "l")
HOOK = "https://example.org/hook"
which = st.integers(0, 1_000_000)
"""One of those there are."""
owners = st.sampled_from(OWNERS)
Row = dict[str, Any]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with jobs_on(sqlite_in(tmp_path)) as place:
        yield place


@dataclass
class Model:
    """One job as it should stand."""

    priority: int
    callback: bool
    attended: bool
    owner: str | None = None
    attempt: int = 0
    lease_until: float | None = None
    deaths: int = 0
    cancelling: bool = False
    state: State = State.QUEUED
    told: list[str] = field(default_factory=list)
    result: str | None = None
    ends: int = 0

    def begin(self, owner: str, now: float) -> None:
        self.state, self.owner, self.lease_until = State.RUNNING, owner, now + LEASE_S
        self.attempt += 1
        self.told.append("running")

    def leave(self, state: State) -> None:
        """Nobody's any more."""
        self.state, self.owner, self.lease_until = state, None, None
        self.told.append(state)
        self.ends += state.is_over

    def lose(self) -> None:
        """Its owner is dead."""
        if self.cancelling or self.attended:
            self.leave(State.CANCELLED)
            return
        self.deaths += 1
        self.leave(State.FAILED if self.deaths >= MAX_ATTEMPTS else State.QUEUED)

    def is_held(self, owner: str, attempt: int) -> bool:
        return (self.state, self.owner, self.attempt) == (State.RUNNING, owner, attempt)


class AnyOrder(RuleBasedStateMachine):
    """No job is lost, none has two results, and who has lost a job changes nothing of it."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.models: dict[str, Model] = {}
        self.claims: list[tuple[Leases, Job]] = []
        """All that ever were: nobody forgets one when it is lost."""
        self.rounds = 0
        self.twins: dict[tuple[str, str], tuple[str, str]] = {}

    @initialize(first=st.lists(owners, max_size=4))
    def begin(self, first: list[str]) -> None:
        """Some are at work already."""
        self.place.empty()
        self.place.clock.now_s = 1000.0
        for index, owner in enumerate(first):
            self.submit(KEYS[index % 2], 0, 1.0, callback=True, attending=None)
            self.claim(owner)

    def now(self) -> float:
        return self.place.clock()

    def one(self, number: int) -> str | None:
        ids = list(self.models)
        return ids[number % len(ids)] if ids else None

    # --- what callers do ---------------------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        priority=st.integers(0, 2),
        size=st.sampled_from([None, 1.0, 100.0]),
        callback=st.booleans(),
        attending=st.sampled_from([None, None, None, *OWNERS]),
    )
    def submit(self, key: str, priority: int, size: float | None, callback: bool, attending: str | None) -> None:
        hook = HOOK if callback else None
        new = new_job(key, priority, size=size, callback_url=hook, attended=attending is not None)
        job, created = self.place.store.submit(new, attending)
        assert created
        self.made(job, attending)

    @rule(key=st.sampled_from(KEYS), idempotency_key=st.sampled_from("12"), fingerprint=st.sampled_from("ffg"))
    def submit_again(self, key: str, idempotency_key: str, fingerprint: str) -> None:
        """The same request, or another one by the same name."""
        new = new_job(key, idempotency_key=idempotency_key, fingerprint=fingerprint)
        job_id, before = self.twins.get((key, idempotency_key), (None, fingerprint))
        if before != fingerprint:
            with pytest.raises(IdempotencyConflict):
                self.place.store.submit(new)
            return
        job, created = self.place.store.submit(new)
        assert created == (job_id is None)
        assert job_id in (None, job.id)
        if created:
            self.twins[key, idempotency_key] = job.id, fingerprint
            self.made(job, None)

    def made(self, job: Job, attending: str | None) -> None:
        model = Model(job.priority, job.callback_url is not None, job.attended, told=["queued"])
        self.models[job.id] = model
        if attending is not None:
            model.begin(attending, self.now())
            self.claims.append((self.place.owner(attending), job))

    @rule(number=which)
    def cancel(self, number: int) -> None:
        if (job_id := self.one(number)) is None:
            return
        self.place.store.cancel(job_id)
        model = self.models[job_id]
        if model.state is State.QUEUED:
            model.leave(State.CANCELLED)
        elif model.state is State.RUNNING:
            model.cancelling = True

    @rule(number=which)
    def retry(self, number: int) -> None:
        if (job_id := self.one(number)) is None:
            return
        model = self.models[job_id]
        if model.state not in (State.FAILED, State.CANCELLED):
            with pytest.raises(NotRetryable):
                self.place.store.retry(job_id)
            return
        self.place.store.retry(job_id)
        model.attended, model.cancelling, model.deaths = False, False, 0
        model.leave(State.QUEUED)

    # --- what owners do ----------------------------------------------------------------------------------------------

    @rule(name=owners)
    def claim(self, name: str) -> None:
        owner = self.place.owner(name)
        job = owner.claim(ALL)
        waiting = {job_id: model for job_id, model in self.models.items() if model.state is State.QUEUED}
        if job is None:
            assert not waiting
            return
        assert job.id in waiting
        priorities = [model.priority for model in waiting.values()]
        lowest_first = self.rounds % LOWER_CLASS_EVERY == LOWER_CLASS_EVERY - 1
        assert job.priority == (max(priorities) if lowest_first else min(priorities))
        self.rounds += 1
        model = self.models[job.id]
        model.begin(name, self.now())
        assert (job.attempt, job.events) == (model.attempt, len(model.told))
        self.claims.append((owner, job))

    @rule(name=owners)
    def beat(self, name: str) -> None:
        held = {job_id: model for job_id, model in self.models.items() if model.owner == name}
        assert self.place.owner(name).beat() == {job_id: model.attempt for job_id, model in held.items()}
        for model in held.values():
            model.lease_until = self.now() + LEASE_S

    @rule(number=which, told=st.integers(0, 2))
    def advance(self, number: int, told: int) -> None:
        def tell(model: Model) -> None:
            model.told += ["segment"] * told
            model.lease_until = self.now() + LEASE_S

        self.write(number, lambda owner, job: owner.advance(job, [("segment", {})] * told), tell)

    @rule(number=which)
    def commit(self, number: int) -> None:
        def over(model: Model) -> None:
            model.result = f"{model.attempt}"
            model.told.append("segment")
            model.leave(State.SUCCEEDED)

        def end(owner: Leases, job: Job) -> None:
            owner.end(job, State.SUCCEEDED, [("segment", {})], result=f"{job.attempt}")

        self.write(number, end, over)

    @rule(number=which, state=st.sampled_from([State.FAILED, State.CANCELLED]))
    def fail(self, number: int, state: State) -> None:
        self.write(number, lambda owner, job: owner.end(job, state), lambda model: model.leave(state))

    @rule(number=which)
    def give_back(self, number: int) -> None:
        def leave(model: Model) -> None:
            model.leave(State.CANCELLED if model.cancelling else State.QUEUED)

        self.write(number, lambda owner, job: owner.give_back(job), leave)

    def write(self, number: int, act: Callable[[Leases, Job], object], becomes: Callable[[Model], None]) -> None:
        """One of those that ever claimed a job writes what it believes; whether it may is the model's to say."""
        if not self.claims:
            return
        # The younger a claim is, the more likely it still counts.
        owner, job = self.claims[-1 - number % min(len(self.claims), 6)]
        model = self.models[job.id]
        if model.is_held(owner.owner, job.attempt):
            act(owner, job)
            becomes(model)
        else:
            with pytest.raises(LeaseLost):
                act(owner, job)

    # --- what happens ------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S, LEASE_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.place.clock.now_s += seconds

    @rule(name=owners)
    def expire(self, name: str) -> None:
        self.lost(self.place.owner(name).expire(), lambda model: (model.lease_until or 0.0) < self.now())

    @rule(name=owners, late=st.sampled_from([False, False, False, True]), heirs=st.lists(owners, max_size=2))
    def kill(self, name: str, late: bool, heirs: list[str]) -> None:
        """Everybody else beats on, and some go on with what was its; also itself, without knowing. It forgets nothing,
        and may write again. *late*: it comes back just before anybody has looked."""
        self.place.clock.now_s += LEASE_S / 2
        for other in OWNERS:
            if other != name:
                self.beat(other)
        self.place.clock.now_s += LEASE_S / 2 + 1
        if late:
            self.beat(name)
        self.expire(name)
        for heir in heirs:
            self.claim(heir)

    @rule()
    def restart(self) -> None:
        self.lost(self.place.owner("new").expire(all_owners=True), lambda model: True)

    def lost(self, taken: list[Job], is_silent: Callable[[Model], bool]) -> None:
        running = {job_id: model for job_id, model in self.models.items() if model.state is State.RUNNING}
        silent = {job_id: model for job_id, model in running.items() if is_silent(model)}
        for model in silent.values():
            model.lose()
        assert {job.id: job.state for job in taken} == {job_id: model.state for job_id, model in silent.items()}
        assert len(taken) == len(silent)

    @rule(older_than_s=st.sampled_from([0.0, 2 * LEASE_S]))
    def forget(self, older_than_s: float) -> None:
        """What is over goes, for good: whoever held it once can do nothing to it."""
        over = {job_id for job_id, model in self.models.items() if model.state.is_over}
        gone = {job.id for job in self.place.store.forget(older_than_s)}
        assert gone <= over
        for job_id in gone:
            del self.models[job_id]
        self.claims = [(owner, job) for owner, job in self.claims if job.id not in gone]
        self.twins = {name: twin for name, twin in self.twins.items() if twin[0] not in gone}

    # --- what holds at any moment ------------------------------------------------------------------------------------

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        rows = self.place.all_rows()
        self.every_job_stands_as_it_should({row["id"]: row for row in rows["jobs"]})
        self.what_is_told_is_numbered_without_gaps(rows["events"])
        self.exactly_what_succeeded_has_a_result_and_one(rows["results"])
        self.every_end_has_its_webhook(rows["deliveries"])

    def every_job_stands_as_it_should(self, rows: dict[str, Row]) -> None:
        assert set(rows) == set(self.models), "no job is lost, and none comes from nowhere"
        for job_id, model in self.models.items():
            row = rows[job_id]
            stands = {name: row[name] for name in ("state", "owner", "attempt", "lease_until", "cancelling")}
            assert stands == {name: getattr(model, name) for name in stands}
            assert row["events"] == len(model.told)
            assert (row["owner"] is not None) == (row["state"] == State.RUNNING)
            assert (row["finished_at"] is not None) == model.state.is_over
            assert model.state.is_over or row["deaths"] == model.deaths

    def what_is_told_is_numbered_without_gaps(self, rows: list[Row]) -> None:
        told: dict[str, list[tuple[int, str]]] = {}
        for row in rows:
            told.setdefault(row["job_id"], []).append((row["number"], row["kind"]))
        assert told == {job_id: list(enumerate(model.told, 1)) for job_id, model in self.models.items()}

    def exactly_what_succeeded_has_a_result_and_one(self, rows: list[Row]) -> None:
        due = [(job_id, model.result) for job_id, model in self.models.items() if model.state is State.SUCCEEDED]
        assert sorted((row["job_id"], row["body"]) for row in rows) == sorted(due)

    def every_end_has_its_webhook(self, rows: list[Row]) -> None:
        due = {job_id: model.ends for job_id, model in self.models.items() if model.callback and model.ends}
        assert Counter(row["job_id"] for row in rows) == due

    # --- at the end --------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """One owner that lives brings everything to its end."""
        self.restart()
        self.all_is_as_it_should_be()
        owner = self.place.owner("last")
        while job := owner.claim(ALL):
            owner.end(job, State.SUCCEEDED, result="last")
        assert all(State(row["state"]).is_over for row in self.place.rows(jobs))


def test_any_order(place: Place) -> None:
    bounds = settings(
        max_examples=25,
        stateful_step_count=40,
        deadline=None,
        # A failure's shortest form takes minutes on a real disk: who looks for it adds Phase.shrink.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
    run_state_machine_as_test(lambda: AnyOrder(place), settings=bounds)
