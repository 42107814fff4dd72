"""What the jobs' own machinery costs: thousands of them handed in and done by an engine that does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import prices
from admission import AdmissionController, Bounds
from benchmarks.experiment import Aim, Plan, Report, say
from benchmarks.results import percentile
from benchmarks.tables import markdown
from disk import Disk
from downloads.media import MediaStore
from jobs.bells import Bells
from jobs.celery_queue import Publisher, celery_app
from jobs.crew import OPTIONS, Crew, Outcome
from jobs.database import Database
from jobs.desk import Desk
from jobs.journal import JobJournal
from jobs.leases import LEASE_S, Leases
from jobs.model import Job, NewJob
from jobs.runner import Runner
from jobs.store import JobStore
from jobs.uploads import UploadStore
from limits import MemorySemaphore
from reservation import Reservation, Work
from tests.brokers import redis_server
from tests.databases import database_of_its_own, postgresql_server
from transcription.core import Task, Transcript, TranscriptionOptions

JOBS, QUICK_JOBS = 2000, 100
CALLERS = 8
SLOTS = 8
AUDIO_S = 10.0
NOTHING = Transcript((), "en", 1.0, AUDIO_S, Task.TRANSCRIBE, "none", "cpu", "int8")


class IdleCrew(Crew):
    """Takes its place at the gate, and has nothing to say."""

    def __init__(self) -> None:
        """Needs none of what the others need."""

    async def do(self, job: Job, upload: Path | None, folder: Path, place: Reservation, journal: JobJournal) -> Outcome:
        await place.granted({prices.MEMORY: 1}, amount=AUDIO_S, short=True)
        return NOTHING


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one kind of store. *accepted_s*: of each job, until it was safe."""

    name: str
    accepted_s: Sequence[float]
    accepted_per_s: float
    done_per_s: float


async def costs(name: str, folder: Path, url: str, publish: Callable[[Sequence[Job]], None] | None, jobs: int) -> Costs:
    """Hand all in with nobody at work, then have them all done."""
    database = Database(url)
    database.migrate()
    admission = AdmissionController(
        {prices.MEMORY: MemorySemaphore(2**30)}, Bounds(slots=dict.fromkeys(Work, SLOTS), max_waiting=100)
    )
    store, leases, bells = JobStore(database, lease_s=LEASE_S), Leases(database, "bench"), Bells()
    media, uploads = MediaStore(folder / "media"), UploadStore(folder / "uploads")
    runner = Runner(
        store,
        leases,
        IdleCrew(),
        uploads,
        admission,
        bells,
        Disk(folder, 0),
        work_folder=folder,
        poll_s=60.0,
        grace_s=0.0,
    )
    try:
        accepted_s: list[float] = []
        desk = Desk(store, leases, uploads, media, bells, None, publish=publish)
        options = OPTIONS.dump_python(TranscriptionOptions("tiny"), mode="json")

        async def caller(number: int) -> None:
            for at in range(number, jobs, CALLERS):
                began = time.perf_counter()
                source = {"file": f"{at}.wav", "response_format": "json"}
                await desk.submit(NewJob(Work.TRANSCRIPTION, f"key-{at % 3}", 0, source, options, size=AUDIO_S), None)
                accepted_s.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        accepting_s = time.perf_counter() - began
        began = time.perf_counter()
        async with runner:
            await _all_done(store, jobs)
        return Costs(name, accepted_s, jobs / accepting_s, jobs / (time.perf_counter() - began))
    finally:
        database.close()


async def _all_done(store: JobStore, jobs: int) -> None:
    """Returns when so many are over."""
    over = 0
    while over < jobs:
        await asyncio.sleep(0.05)
        states = (await asyncio.to_thread(store.counts)).by_state
        over = sum(number for (_, state), number in states.items() if state.is_over)


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[tuple[str, Callable[[Sequence[Job]], None]]]:
    """A PostgreSQL and a Redis of one's own: the database's URL, and what tells the broker."""
    with (
        postgresql_server() as server,
        database_of_its_own(server) as url,
        redis_server(folder) as redis,
        Publisher(celery_app(redis.url)) as publisher,
    ):
        yield url, publisher.publish


def measure(plan: Plan) -> Report:
    jobs = QUICK_JOBS if plan.quick else JOBS
    found = []
    with tempfile.TemporaryDirectory(prefix="stenogate-") as name:
        folder = Path(name)
        say(f"backlog: {jobs} jobs, SQLite")
        found.append(asyncio.run(costs("SQLite", folder, f"sqlite:///{folder / 'jobs.db'}", None, jobs)))
        with shared(folder) as (url, publish):
            say(f"backlog: {jobs} jobs, PostgreSQL and Redis")
            found.append(asyncio.run(costs("PostgreSQL and Redis", folder, url, publish, jobs)))
    rows = [
        [
            one.name,
            f"{one.accepted_per_s:.0f}",
            *(f"{percentile(one.accepted_s, share) * 1000:.1f}" for share in (0.5, 0.99)),
            f"{one.done_per_s:.0f}",
        ]
        for one in found
    ]
    return Report(
        f"{jobs} jobs that take no time, {CALLERS} callers, {SLOTS} at work at once",
        [markdown(["", "accepted / s", "p50 ms", "p99 ms", "done / s"], rows)],
        [Aim(f"done a second, {one.name}", one.done_per_s, unit="jobs") for one in found],
        [{"store": one.name, "accepted_s": list(one.accepted_s), "done_per_s": one.done_per_s} for one in found],
    )
