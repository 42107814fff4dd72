"""Jobs under a service that is killed again and again: none lost, none done twice, and the words as always."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import sqlalchemy as sa

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.load import ask_all
from benchmarks.results import percentile
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown
from jobs import tables
from jobs.database import Database
from jobs.model import State

JOBS, QUICK_JOBS = 300, 30
CLIPS = 24
KILL_EVERY_S = 8.0
"""After it was ready again: long enough for a few jobs, so that some are always at work when it dies."""
OVER_WITHIN_S = 900.0
LOOK_EVERY_S = 0.5
CALLERS = 8


@dataclass(frozen=True, slots=True)
class Submitted:
    """One job as its caller knows it."""

    clip: Clip
    job_id: str
    seconds: float
    """Until it was accepted."""


class Caller:
    """Hands jobs in, and asks for them, again and again while nobody answers."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=60.0, trust_env=False)

    def submit(self, clip: Clip, name: str) -> Submitted:
        """*name*: the idempotency key. Who is cut off sends the same again, and gets the same job."""
        while True:
            began = time.monotonic()
            try:
                with clip.path.open("rb") as file:
                    reply = self._http.post(
                        "/transcribe",
                        params={"mode": "async", "language": clip.language},
                        files={"file": (clip.path.name, file)},
                        headers={"Idempotency-Key": name},
                    )
                if reply.status_code == 202:
                    return Submitted(clip, reply.json()["id"], time.monotonic() - began)
                if reply.status_code < 500:
                    raise RuntimeError(f"{reply.status_code} {reply.text}")
            except httpx.TransportError:
                pass
            time.sleep(LOOK_EVERY_S)

    def get(self, path: str) -> dict[str, Any] | None:
        """The answer; None where nobody answers."""
        try:
            reply = self._http.get(path)
        except httpx.TransportError:
            return None
        return reply.json() if reply.status_code < 500 else None

    def text(self, job_id: str) -> str | None:
        document = self.get(f"/jobs/{job_id}/result")
        return None if document is None else document.get("text")

    def unfinished(self) -> int | None:
        """How many jobs are not over, at most a page of them; None where nobody answers."""
        document = self.get("/jobs?state=queued&state=running&limit=200")
        return None if document is None else len(document["jobs"])

    def submit_all(self, clips: Sequence[Clip], number: int) -> list[Submitted]:
        return [self.submit(clips[at % len(clips)], f"job-{at}") for at in range(number)]

    def close(self) -> None:
        self._http.close()


@dataclass(frozen=True, slots=True)
class Books:
    """What the database says at the end."""

    states: dict[str, int]
    results: int
    committed_twice: int
    """Jobs that ended well more than once."""
    stale: int
    """Results that another attempt than the job's last has committed."""
    attempts: dict[int, int]
    """Jobs by how often they were begun."""


def books(database: str) -> Books:
    """*database*: its URL. Calls that waited are counted among the results only."""
    store = Database(database)
    asked = sa.not_(tables.jobs.c.attended)
    with store.reading() as connection:
        states = connection.execute(
            sa.select(tables.jobs.c.state, sa.func.count()).where(asked).group_by(tables.jobs.c.state)
        )
        by_state = {row[0]: row[1] for row in states}
        results = connection.scalar(sa.select(sa.func.count()).select_from(tables.results)) or 0
        ends = (
            sa.select(tables.events.c.job_id)
            .where(tables.events.c.kind == State.SUCCEEDED)
            .group_by(tables.events.c.job_id)
            .having(sa.func.count() > 1)
        )
        twice = connection.scalar(sa.select(sa.func.count()).select_from(ends.subquery())) or 0
        stale = connection.scalar(
            sa.select(sa.func.count())
            .select_from(tables.results.join(tables.jobs))
            .where(tables.results.c.attempt != tables.jobs.c.attempt)
        )
        attempts = connection.execute(
            sa.select(tables.jobs.c.attempt, sa.func.count()).where(asked).group_by(tables.jobs.c.attempt)
        )
        by_attempts = {row[0]: row[1] for row in attempts}
    store.close()
    return Books(by_state, results, twice, stale or 0, by_attempts)


def measure(plan: Plan) -> Report:
    clips = SpeechSet(speech_dir()).short()[:CLIPS]
    number = QUICK_JOBS if plan.quick else JOBS
    with Server(MODEL) as server:
        calm = {heard.clip.name: heard.text for heard in ask_all(server.hear, clips, CALLERS)}
        attended = len(clips)
        caller = Caller(server.client.url, server.key)
        with ThreadPoolExecutor(1) as handing_in:
            jobs_to_come = handing_in.submit(caller.submit_all, clips, number)
            ready_s = killed_until_done(server, caller, jobs_to_come)
            jobs = jobs_to_come.result()
        texts = [caller.text(job.job_id) for job in jobs]
        caller.close()
        found = books(f"sqlite:///{server.data / 'jobs.db'}")
    equal = sum(text == calm[job.clip.name] for text, job in zip(texts, jobs, strict=True))
    told: dict[str, object] = {"kills": len(ready_s)}
    if ready_s:
        told["ready again, s: p50, longest"] = f"{percentile(ready_s, 0.5):.1f}, {max(ready_s):.1f}"
    return report("the service killed, SQLite", jobs, texts, equal, found, found.results - attended, told)


def killed_until_done(server: Server, caller: Caller, handed_in: Future[list[Submitted]]) -> list[float]:
    """Kill the service every KILL_EVERY_S until all jobs are over; the seconds until it was ready again, each time."""
    ready_s: list[float] = []
    until = time.monotonic() + OVER_WITHIN_S
    while time.monotonic() < until:
        kill_at = time.monotonic() + KILL_EVERY_S
        while time.monotonic() < kill_at:
            if handed_in.done() and caller.unfinished() == 0:
                return ready_s
            time.sleep(LOOK_EVERY_S)
        struck = time.monotonic()
        server.strike(signal.SIGKILL)
        server.start_again()
        ready_s.append(time.monotonic() - struck)
        say(f"durable: killed {len(ready_s)} times, {caller.unfinished()} or more jobs to do")
    return ready_s


def report(
    title: str,
    jobs: Sequence[Submitted],
    texts: Sequence[str | None],
    equal: int,
    found: Books,
    results: int,
    told: Mapping[str, object],
) -> Report:
    """*told*: what was done to those who did the jobs, and what came of it."""
    lost = sum(text is None for text in texts)
    rows = [
        ["jobs accepted", str(len(jobs))],
        ["until one was accepted, ms: p50, p99", _milliseconds([job.seconds for job in jobs])],
        ["by state at the end", ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))],
        ["results committed", str(results)],
        ["text equal to the undisturbed one", str(equal)],
        ["by attempts", ", ".join(f"{count} × {attempt}" for attempt, count in sorted(found.attempts.items()))],
        *([what, str(value)] for what, value in told.items()),
    ]
    return Report(
        f"{len(jobs)} jobs, {title}",
        [markdown(["", ""], rows)],
        [
            Aim("lost", lost, most=0, unit=""),
            Aim("committed twice", found.committed_twice, most=0, unit=""),
            Aim("text equal to the undisturbed one, of all", equal / len(jobs), least=0.95, unit=""),
            Aim("committed by an attempt that was not the last", found.stale, most=0, unit=""),
        ],
        {
            "accepted_s": [job.seconds for job in jobs],
            "told": dict(told),
            "states": found.states,
            "attempts": found.attempts,
            "codes": dict(Counter("text" if text is not None else "none" for text in texts)),
        },
    )


def _milliseconds(seconds: Sequence[float]) -> str:
    return ", ".join(f"{percentile(seconds, share) * 1000:.0f}" for share in (0.5, 0.99))
