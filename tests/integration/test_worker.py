"""Workers as processes, with a real broker and a real database: what is handed in is done once, whatever is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from admission import AdmissionController
from disk import Disk
from downloads.media import MediaStore
from errors import ConfigurationError
from ffmpeg import FFmpeg
from jobs.bells import Bells
from jobs.celery_queue import QUEUE, Publisher, celery_app
from jobs.crew import OPTIONS, Crew
from jobs.database import Database
from jobs.desk import Desk
from jobs.fleet import Fleet
from jobs.leases import LEASE_S, Leases
from jobs.model import SEGMENT, Job, NewJob, State
from jobs.runner import Runner
from jobs.store import JobStore
from jobs.tables import jobs
from jobs.uploads import UploadStore
from metrics import Metrics
from reservation import Work
from tests.acceptance.server import ROOT, environment, running
from tests.acceptance.test_jobs import SILENCE_S, WORDS_S, last_words
from tests.brokers import free_port, rabbitmq_server, redis_server, waiting_at
from tests.databases import database_of_its_own, postgresql_server, sqlite_in
from tests.fakes import FakeFetcher, FakeTranscriber, make_admission, make_database
from transcription.core import Transcript, TranscriptionOptions
from worker import Worker, made_app

CALL_S = WORDS_S + SILENCE_S


class Site:
    """A desk that only hands jobs in, and the worker that does them: two machines that share a folder of uploads."""

    def __init__(self, folder: Path, database_url: str, broker_url: str) -> None:
        self.folder = folder
        self.broker_url = broker_url
        # One segment after another: a job is half done for a while.
        self.settings = {"DATABASE_URL": database_url, "BROKER_URL": broker_url, "BATCH_SIZE": "1"}
        self.settings |= {"ENGINE_STREAMS": "1", "SHUTDOWN_GRACE_S": "0"}
        self.database = Database(database_url)
        self.store = JobStore(self.database, lease_s=LEASE_S)
        self.fleet = Fleet(self.database)
        self.data_dir = folder / "data"
        self.log = folder / "worker.log"
        self.process: subprocess.Popen[bytes] | None = None

    def desk(self, publisher: Publisher | None = None) -> Desk:
        return Desk(
            self.store,
            Leases(self.database, "desk"),
            UploadStore(self.data_dir / "uploads"),
            MediaStore(self.data_dir / "media", ()),
            Bells(),
            None,
            publish=publisher and publisher.publish,
        )

    def worker(self) -> subprocess.Popen[bytes]:
        """The one that runs: a new one where the last one has ended."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--pool", "threads"]
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    [*command, "--concurrency", "1", "--without-mingle", "--without-gossip"],
                    cwd=self.folder,
                    # HOST as the image sets it: a worker listens to nobody, and needs no keys.
                    env=environment(self.data_dir, **self.settings, HOST="0.0.0.0") | {"PYTHONPATH": str(ROOT)},
                    stdout=log,
                    stderr=log,
                )
        return self.process

    def wait_until(self, happened: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Wait for what the worker does by itself; a worker that dies ends the wait."""
        deadline = time.monotonic() + limit_s
        process = self.worker()
        while not happened():
            assert time.monotonic() < deadline, f"did not happen; the log ends: {self.log.read_text()[-3000:]}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                raise AssertionError(f"the worker ended; its log: {self.log.read_text()[-3000:]}")

    def begun(self, job: Job) -> bool:
        """Whether something of *job* is finished already, and not everything."""
        found = self.store.get(job.id)
        assert not found.state.is_over, found
        return any(event.kind == SEGMENT for event in self.store.events_of(job.id))

    def attempts(self, job: Job) -> int:
        return sum(event.kind == State.RUNNING for event in self.store.events_of(job.id, limit=1000))

    def column(self, job: Job, name: str) -> Any:
        with self.database.reading() as connection:
            return connection.scalar(sa.select(jobs.c[name]).where(jobs.c.id == job.id))

    def let_leases_run_out(self) -> None:
        """As a minute would."""
        with self.database.writing() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.state == State.RUNNING).values(lease_until=0.0))

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.database.close()


@contextlib.contextmanager
def site_at(folder: Path, database_url: str, broker_url: str) -> Iterator[Site]:
    folder.mkdir(exist_ok=True)
    site = Site(folder, database_url, broker_url)
    site.database.migrate()
    try:
        site.worker()
        yield site
    finally:
        site.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def redis(folder: Path) -> Iterator[Any]:
    with redis_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def site(folder: Path, redis: Any) -> Iterator[Site]:
    with postgresql_server() as server, database_of_its_own(server) as url, site_at(folder, url, redis.url) as site:
        yield site


@pytest.fixture(scope="module")
def publisher(redis: Any) -> Iterator[Publisher]:
    with Publisher(celery_app(redis.url)) as publisher:
        yield publisher


@pytest.fixture
def desk(site: Site, publisher: Publisher) -> Desk:
    return site.desk(publisher)


def call(folder: Path, times: int = 1) -> Path:
    """The last words of the sample call, so many times over: a new file each time, as the desk takes it away."""
    return last_words(folder / f"{os.urandom(4).hex()}.wav", times)


def asked(times: int = 1, **more: Any) -> NewJob:
    options = OPTIONS.dump_python(TranscriptionOptions("tiny.en", "en", beam_size=1), mode="json")
    source = {"name": "call.wav", "response_format": "json"}
    return replace(NewJob(Work.TRANSCRIPTION, "a", 0, source, options, size=CALL_S * times), **more)


async def over(desk: Desk, job: Job) -> Job:
    async with asyncio.timeout(60):
        return await desk.finished(job.id)


async def transcript_of(desk: Desk, job: Job) -> Transcript:
    outcome = await desk.outcome(await over(desk, job))
    assert isinstance(outcome, Transcript)
    return outcome


async def test_a_job_that_is_handed_in_here_is_done_by_a_worker(site: Site, desk: Desk) -> None:
    """Of the same recording a worker makes what a server makes."""
    transcript = await transcript_of(desk, await desk.submit(asked(), call(site.folder)))
    assert "Yankee" in transcript.text
    assert transcript.model == "tiny.en"


async def test_a_message_that_comes_three_times_gives_one_result(
    site: Site, desk: Desk, publisher: Publisher, redis: Any
) -> None:
    """Brokers deliver at least once."""
    job = await desk.submit(asked(), call(site.folder))
    publisher.publish([job, job])
    assert (await over(desk, job)).state is State.SUCCEEDED
    publisher.publish([job])
    site.wait_until(lambda: publisher.sent >= 4 and waiting_at(redis.url, QUEUE) == 0)
    assert site.attempts(job) == 1
    assert site.store.get(job.id).attempt == 1


async def test_a_job_of_which_no_message_tells_is_found(site: Site, desk: Desk) -> None:
    """A broker that lost its memory loses no job."""
    # A worker that starts, or is told of another job, looks for jobs anyhow.
    await over(desk, await desk.submit(asked(), call(site.folder)))
    untold = site.desk(publisher=None)
    assert (await transcript_of(untold, await untold.submit(asked(), call(site.folder)))).segments


def test_a_server_with_a_broker_has_no_engine_and_answers_all_the_same(site: Site) -> None:
    """Callers need not know that somebody else does the work: also those who wait get their transcript."""
    site.worker()
    with running(site.folder, **site.settings) as server, server.client() as client:
        with call(site.folder).open("rb") as file:
            answer = client.post("/transcribe", files={"file": file}, data={"language": "en"})
        assert (answer.status_code, "Yankee" in answer.text) == (200, True), answer.text
        assert not any("engine_child" in Path(f"/proc/{pid}/cmdline").read_text() for pid in server.processes())
    assert site.store.listed(states=[State.SUCCEEDED], limit=1)[0].owner is None


async def test_the_broker_may_be_away_while_jobs_are_handed_in_and_done(
    site: Site, desk: Desk, publisher: Publisher, redis: Any
) -> None:
    """It only says that there is work; and when it is back, it is listened to again."""
    redis.stop()
    lost_before = publisher.lost
    job = await desk.submit(asked(), call(site.folder))
    assert (await over(desk, job)).state is State.SUCCEEDED
    site.wait_until(lambda: publisher.lost > lost_before)
    redis.start()
    sent_before = publisher.sent
    next_job = await desk.submit(asked(), call(site.folder))
    site.wait_until(lambda: publisher.sent > sent_before and waiting_at(redis.url, QUEUE) == 0)
    assert (await over(desk, next_job)).state is State.SUCCEEDED


async def test_cancelling_reaches_the_worker(site: Site, desk: Desk) -> None:
    """Nobody pays for a transcript that nobody wants any more."""
    job = await desk.submit(asked(40), call(site.folder, 40))
    site.wait_until(lambda: site.begun(job))
    await desk.cancel(job.id)
    cancelled = await over(desk, job)
    assert cancelled.state is State.CANCELLED
    assert cancelled.done < 40 * CALL_S
    site.wait_until(lambda: not list((site.data_dir / "work").rglob("*")))


async def test_a_worker_that_is_stopped_gives_its_job_back(site: Site, desk: Desk) -> None:
    """A new release must not cost what was half done, nor count as a death."""
    job = await desk.submit(asked(10), call(site.folder, 10))
    site.wait_until(lambda: site.begun(job))
    stopped = site.worker()
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(30) == 0
    back = site.store.get(job.id)
    assert (back.state, back.owner) == (State.QUEUED, None)
    assert site.column(job, "deaths") == 0
    assert site.fleet.members() == []
    site.worker()
    assert (await over(desk, job)).state is State.SUCCEEDED
    assert site.attempts(job) == 2


async def test_a_worker_that_is_killed_loses_its_job_to_the_next(site: Site, desk: Desk) -> None:
    """Power cuts give no notice: the lease runs out, and somebody else goes on."""
    job = await desk.submit(asked(10), call(site.folder, 10))
    site.wait_until(lambda: site.begun(job))
    killed = site.worker()
    killed.kill()
    killed.wait()
    assert site.store.get(job.id).state is State.RUNNING
    site.let_leases_run_out()
    site.worker()
    transcript = await transcript_of(desk, job)
    assert transcript.duration_s == pytest.approx(10 * CALL_S, rel=0.01)
    assert site.attempts(job) == 2
    assert site.column(job, "deaths") == 1


async def test_rabbitmq_and_sqlite_do_as_well(tmp_path: Path) -> None:
    """One machine with several processes needs no PostgreSQL, and a company may have RabbitMQ already."""
    with (
        rabbitmq_server(tmp_path) as url,
        Publisher(celery_app(url)) as publisher,
        site_at(tmp_path / "site", sqlite_in(tmp_path), url) as site,
    ):
        desk = site.desk(publisher)
        job = await desk.submit(asked(), call(tmp_path))
        assert (await over(desk, job)).state is State.SUCCEEDED
        site.wait_until(lambda: publisher.sent == 1 and waiting_at(url, QUEUE) == 0)


async def test_a_broker_that_nobody_runs_does_not_hold_up_who_hands_in(tmp_path: Path) -> None:
    """Submitting promises that the job is safe, and it is: in the database."""
    site = Site(tmp_path, sqlite_in(tmp_path), f"redis://127.0.0.1:{free_port()}/0")
    site.database.migrate()
    with Publisher(celery_app(site.broker_url)) as publisher:
        job = await site.desk(publisher).submit(asked(), call(tmp_path))
    assert publisher.lost == 1
    assert site.store.get(job.id).state is State.QUEUED
    site.database.close()


@dataclass
class Heard:
    """As much of a server as hears of jobs: a runner that would look for them by itself once an hour."""

    admission: AdmissionController
    desk: Desk


@contextlib.asynccontextmanager
async def heard_of_jobs(folder: Path) -> AsyncIterator[Heard]:
    database, bells = make_database(folder), Bells()
    store, leases, uploads = JobStore(database, lease_s=LEASE_S), Leases(database, "here"), UploadStore(folder / "up")
    media, admission = MediaStore(folder / "media", ()), make_admission(Metrics())
    crew = Crew(FakeTranscriber(), FakeFetcher(), media, FFmpeg.locate(""), admission, max_duration_s=3600.0)
    (folder / "work").mkdir()
    runner = Runner(
        store,
        leases,
        crew,
        uploads,
        admission,
        bells,
        Disk(folder, 0),
        work_folder=folder / "work",
        poll_s=3600.0,
        grace_s=0.0,
    )
    async with runner:
        yield Heard(admission, Desk(store, leases, uploads, media, bells, runner))
    database.close()


async def test_a_message_wakes_a_runner_that_looks_seldom(tmp_path: Path) -> None:
    """Polling finds everything, but later: the message is what makes it soon."""
    made: list[Heard] = []

    @contextlib.asynccontextmanager
    async def parts() -> AsyncIterator[Any]:
        async with heard_of_jobs(tmp_path) as heard:
            made.append(heard)
            yield heard

    worker = Worker(parts)
    await asyncio.to_thread(worker.start)
    try:
        store = made[0].desk.store
        (tmp_path / "sent").write_bytes(b"What was said")
        job, _ = store.submit(asked(source={"upload": UploadStore(tmp_path / "up").keep(tmp_path / "sent")}))
        async with asyncio.timeout(30):
            await asyncio.to_thread(worker.hear, job.id)
        assert store.get(job.id).attempt == 1
    finally:
        await asyncio.to_thread(worker.join)


async def test_a_message_of_a_job_that_is_gone_is_let_go(tmp_path: Path) -> None:
    """Jobs are forgotten after a while; a message may lie about for longer."""
    worker = Worker(lambda: heard_of_jobs(tmp_path))  # type: ignore[arg-type]
    await asyncio.to_thread(worker.start)
    async with asyncio.timeout(30):
        await asyncio.to_thread(worker.hear, "0" * 32)
        await asyncio.to_thread(worker.join)
        await asyncio.to_thread(worker.hear, "0" * 32)


async def test_a_worker_whose_parts_cannot_be_made_says_why() -> None:
    """It must end, not listen for work that it cannot do."""

    @contextlib.asynccontextmanager
    async def parts() -> AsyncIterator[Any]:
        raise ConfigurationError("DATA_DIR cannot be used.")
        yield

    worker = Worker(parts)
    with pytest.raises(ConfigurationError, match="DATA_DIR"):
        await asyncio.to_thread(worker.start)
    await asyncio.to_thread(worker.join)


@pytest.mark.parametrize(
    ("broker_url", "sentence"),
    [("", "BROKER_URL is not set"), ("sqs://", "BROKER_URL must begin with")],
)
def test_a_worker_without_a_broker_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker_url: str, sentence: str
) -> None:
    """Celery would try a RabbitMQ on this machine, for ever."""
    monkeypatch.setenv("BROKER_URL", broker_url)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=sentence):
        made_app()


def test_importing_the_worker_makes_nothing() -> None:
    """Celery imports it for every one of its commands."""
    heavy = "ctranslate2", "fastapi", "numpy", "main"
    command = [sys.executable, "-c", f"import sys, worker; print([name for name in {heavy} if name in sys.modules])"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
