"""Jobs under a service that is killed again and again: none lost, none done twice, and the words as always."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.load import ask_all
from benchmarks.results import percentile
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown

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

    def close(self) -> None:
        self._http.close()


@dataclass(frozen=True, slots=True)
class Books:
    """What the database says at the end."""

    states: dict[str, int]
    results: int
    committed_twice: int
    """Jobs that ended more than once, or have more than one result."""
    attempts: dict[int, int]
    """Jobs by how often they were begun."""


def books(database: Path) -> Books:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        states = dict(connection.execute("SELECT state, count(*) FROM jobs WHERE NOT attended GROUP BY state"))
        results = connection.execute("SELECT count(*) FROM results").fetchone()[0]
        twice = connection.execute(
            "SELECT count(*) FROM"
            " (SELECT job_id FROM events WHERE kind = 'succeeded' GROUP BY job_id HAVING count(*) > 1)"
        ).fetchone()[0]
        attempts = dict(connection.execute("SELECT attempt, count(*) FROM jobs WHERE NOT attended GROUP BY attempt"))
    connection.close()
    return Books(states, results, twice, attempts)


def measure(plan: Plan) -> Report:
    clips = SpeechSet(speech_dir()).short()[:CLIPS]
    number = QUICK_JOBS if plan.quick else JOBS
    with Server(MODEL) as server:
        calm = {heard.clip.name: heard.text for heard in ask_all(server.hear, clips, CALLERS)}
        attended = len(clips)
        caller = Caller(server.client.url, server.key)
        say(f"durable: {number} jobs handed in")
        jobs = [caller.submit(clips[at % len(clips)], f"job-{at}") for at in range(number)]
        ready_s = killed_until_done(server, caller)
        texts = [caller.text(job.job_id) for job in jobs]
        caller.close()
        found = books(server.data / "jobs.db")
    equal = sum(text == calm[job.clip.name] for text, job in zip(texts, jobs, strict=True))
    return report("the service killed, SQLite", jobs, texts, equal, found, found.results - attended, ready_s)


def killed_until_done(server: Server, caller: Caller) -> list[float]:
    """Kill the service every KILL_EVERY_S until all jobs are over; the seconds until it was ready again."""
    ready_s: list[float] = []
    until = time.monotonic() + OVER_WITHIN_S
    while time.monotonic() < until:
        kill_at = time.monotonic() + KILL_EVERY_S
        while time.monotonic() < kill_at:
            if caller.unfinished() == 0:
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
    ready_s: Sequence[float],
) -> Report:
    lost = sum(text is None for text in texts)
    rows = [
        ["jobs accepted", str(len(jobs))],
        ["until one was accepted, ms: p50, p99", _milliseconds([job.seconds for job in jobs])],
        ["by state at the end", ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))],
        ["results committed", str(results)],
        ["text equal to the undisturbed one", str(equal)],
        ["by attempts", ", ".join(f"{count} × {attempt}" for attempt, count in sorted(found.attempts.items()))],
        ["kills", str(len(ready_s))],
    ]
    if ready_s:
        rows.append(["ready again, s: p50, longest", f"{percentile(ready_s, 0.5):.1f}, {max(ready_s):.1f}"])
    return Report(
        f"{len(jobs)} jobs, {title}",
        [markdown(["", ""], rows)],
        [
            Aim("lost", lost, most=0, unit=""),
            Aim("committed twice", found.committed_twice, most=0, unit=""),
            Aim("text equal to the undisturbed one, of all", equal / len(jobs), least=0.95, unit=""),
            Aim("kills", len(ready_s), least=1, unit=""),
        ],
        {
            "accepted_s": [job.seconds for job in jobs],
            "ready_s": list(ready_s),
            "states": found.states,
            "attempts": found.attempts,
            "codes": dict(Counter("text" if text is not None else "none" for text in texts)),
        },
    )


def _milliseconds(seconds: Sequence[float]) -> str:
    return ", ".join(f"{percentile(seconds, share) * 1000:.0f}" for share in (0.5, 0.99))
