"""Two workers that are killed in turn, with the broker restarted under them: no job lost, none committed twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.durable import CALLERS, CLIPS, Caller, Submitted, books, report
from benchmarks.experiment import MODEL, Plan, Report, say
from benchmarks.load import ask_all
from benchmarks.processes import environment, stop, tree
from benchmarks.server import ENGINE_MODULE, Server
from benchmarks.speech_set import ROOT, Clip, SpeechSet, speech_dir
from benchmarks.weights import MODEL_DIR
from jobs.leases import LEASE_S as DEFAULT_LEASE_S
from tests.brokers import Redis, redis_server
from tests.databases import database_of_its_own, postgresql_server

JOBS, QUICK_JOBS = 300, 60
STRIKE_EVERY_S = 6.0
LEASE_S = 12.0
"""Instead of a minute, so that enough leases run out within the run."""
STILL_S = LEASE_S + 8.0
"""A worker that stands still for so long has lost its jobs, and does not know it when it goes on."""
REDIS_AT = (3, 8)
"""Before which strikes the broker is restarted."""
OVER_WITHIN_S = 1200.0
FENCED = "this attempt is not the job's any more"


@dataclass
class Worker:
    """One `celery -A worker worker` with data of its own, that is started again whenever it has ended."""

    folder: Path
    settings: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--pool", "threads", "--concurrency", "1"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self.folder)
                | self.settings
                | {"DATA_DIR": str(self.folder / "data"), "PYTHONPATH": str(ROOT)},
            )

    def kill(self) -> None:
        self.close_hard()
        self.start()

    def close_hard(self) -> None:
        self.process.kill()
        self.process.wait()

    def kill_engine(self) -> None:
        for process in tree(self.process.pid)[1:]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if ENGINE_MODULE in process.cmdline():
                    process.kill()

    def stand_still(self, seconds: float) -> None:
        """Its engine goes on, and nobody listens to it."""
        self.process.send_signal(signal.SIGSTOP)
        threading.Timer(seconds, self.process.send_signal, (signal.SIGCONT,)).start()

    @property
    def fenced(self) -> int:
        """How often it has noticed that an attempt was not its own any more."""
        return (self.folder / "log").read_text(errors="replace").count(FENCED)

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        stop(self.process)


@dataclass
class Strikes:
    """What was done to the fleet."""

    kills: int = 0
    engines: int = 0
    stops: int = 0
    restarts: int = 0


@contextlib.contextmanager
def fleet(lease_s: float) -> Iterator[tuple[Server, list[Worker], Redis, str]]:
    """An API without engines, two workers, and a database and a broker of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="stenogate-") as name,
        postgresql_server() as postgresql,
        database_of_its_own(postgresql) as url,
        redis_server(Path(name)) as redis,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        settings = {
            "DATABASE_URL": url,
            "BROKER_URL": redis.url,
            "MEDIA_URL": str(folder / "shared"),
            "JOB_LEASE_S": str(lease_s),
            "MODEL_DIR": str(MODEL_DIR),
            "MODEL_SIZE": MODEL,
            "MODEL_DOWNLOADS": "false",
            "DEVICES": "cpu",
            "COMPUTE_TYPE": "int8",
            # Two machines' worth of work shares this one.
            "CPU_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
            "LOG_LEVEL": "info",
        }
        workers = [Worker(folder / name, settings) for name in ("first", "second")]
        for worker in workers:
            stack.callback(worker.close)
        server = stack.enter_context(Server(MODEL, settings=settings | {"ROLE": "api"}))
        yield server, workers, redis, url


def struck_until_done(
    caller: Caller, workers: list[Worker], redis: Redis, handed_in: Future[list[Submitted]]
) -> Strikes:
    """One thing after another until all jobs are handed in and over."""
    done = Strikes()
    until = time.monotonic() + OVER_WITHIN_S
    number = 0
    while time.monotonic() < until:
        strike_at = time.monotonic() + STRIKE_EVERY_S
        while time.monotonic() < strike_at:
            if handed_in.done() and caller.unfinished() == 0:
                return done
            time.sleep(0.5)
        number += 1
        if number in REDIS_AT:
            redis.stop()
            redis.start()
            done.restarts += 1
        victim = workers[number % 2]
        match number % 6:
            case 0 | 1:
                victim.kill_engine()
                done.engines += 1
            case 5:
                victim.stand_still(STILL_S)
                done.stops += 1
            case _:
                victim.kill()
                done.kills += 1
        say(f"fleet: struck {number} times, {caller.unfinished()} or more jobs to do")
    return done


def recovery_s(clip: Clip, lease_s: float) -> float:
    """Seconds from the death of the machine that does a job to the job's next attempt, on the other one."""
    with fleet(lease_s) as (server, workers, _, _):
        caller = Caller(server.client.url, server.key)
        # Who is alone has the job.
        workers[1].close()
        job = caller.submit(clip, "long")
        while not (caller.get(f"/jobs/{job.job_id}") or {}).get("progress"):
            time.sleep(0.1)
        workers[1].start()
        died = time.monotonic()
        workers[0].close_hard()
        while (caller.get(f"/jobs/{job.job_id}") or {}).get("attempt") == 1:
            time.sleep(0.1)
        caller.close()
        return time.monotonic() - died


def measure(plan: Plan) -> Report:
    clips = SpeechSet(speech_dir()).short()[:CLIPS]
    number = QUICK_JOBS if plan.quick else JOBS
    with fleet(LEASE_S) as (server, workers, redis, url):
        calm = {heard.clip.name: heard.text for heard in ask_all(server.hear, clips, CALLERS)}
        caller = Caller(server.client.url, server.key)
        with ThreadPoolExecutor(1) as handing_in:
            jobs_to_come = handing_in.submit(caller.submit_all, clips, number)
            strikes = struck_until_done(caller, workers, redis, jobs_to_come)
            jobs = jobs_to_come.result()
        texts = [caller.text(job.job_id) for job in jobs]
        caller.close()
        found = books(url)
        fenced = sum(worker.fenced for worker in workers)
    equal = sum(text == calm[job.clip.name] for text, job in zip(texts, jobs, strict=True))
    told = {
        "workers killed": strikes.kills,
        "engines killed": strikes.engines,
        "workers that stood still": strikes.stops,
        "broker restarted": strikes.restarts,
        "stale owners shut out": fenced,
    }
    if not plan.quick:
        say("fleet: a machine dies, with the lease that it has by default")
        seconds = recovery_s(SpeechSet(speech_dir()).long(), DEFAULT_LEASE_S)
        told["from a machine's death to its job's next attempt, s"] = round(seconds)
    return report("two workers, PostgreSQL and Redis", jobs, texts, equal, found, found.results - len(clips), told)
