"""Half an hour of steady load in which callers hang up wherever they please: what grows, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import httpx
import psutil

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.plots import Panel, draw
from benchmarks.processes import tree
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown

CALLERS = 4
FOR_S, QUICK_FOR_S = 1_800.0, 60.0
WARM_S, QUICK_WARM_S = 300.0, 15.0
"""Left out: caches fill, threads start, allocators take what they keep."""
LOOK_EVERY_S = 5.0
SHORT_S = 12.0
"""Longest of the clips: many small requests meet more edges than a few large ones."""
ANSWER_WITHIN_S = 120.0
REST_WITHIN_S = 30.0
"""After the last caller has left, nothing may be in flight so soon."""
RESULT_TTL_S = 60
"""Jobs are forgotten while the soak lasts, as they are in a service that runs for months."""
CANCELLED = "job: cancelled 200"
"""Jobs that may be tried again: what was sent for them is kept."""
MOST_GROWTH_MIB_PER_H = 60.0
"""What the slope may be and still be noise: a leak of 10 KiB a request would be far above it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server and its children held at one moment, *at_s* after the start."""

    at_s: float
    rss_bytes: int
    server_bytes: int
    """Of *rss_bytes*: the server's own process's."""
    engine_bytes: int
    """Of *rss_bytes*: the engine's, with the weights. What is left is the tools', which come and go."""
    open_files: int
    threads: int
    processes: int
    work_files: int
    """In the folder of requests in flight."""
    uploads: int
    """Of jobs that are not over, or may be tried again."""


def sample(server: Server, began: float) -> Sample:
    rss, open_files, threads, processes = Counter[str](), 0, 0, tree(server.pid)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            rss[_part(server, process)] += process.memory_info().rss
            open_files += process.num_fds()
            threads += process.num_threads()
    return Sample(
        time.monotonic() - began,
        rss.total(),
        rss["server"],
        rss["engine"],
        open_files,
        threads,
        len(processes),
        len(files_in(server.data / "work")),
        len(files_in(server.data / "uploads")),
    )


def _part(server: Server, process: psutil.Process) -> str:
    if process.pid == server.pid:
        return "server"
    return "engine" if "engine_child" in " ".join(process.cmdline()) else "tool"


def files_in(folder: Path) -> list[str]:
    """Folders may go while they are looked through."""
    return [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]


def slope_per_h(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """The median of the slopes between pairs of samples half the time apart: jumps and outliers do not bend it.

    Source: Theil (1950) and Sen (1968), on pairs that do not overlap.
    """
    half = len(samples) // 2
    pairs = zip(samples[:half], samples[-half:], strict=True)
    slopes = [
        (value(late) - value(early)) / (late.at_s - early.at_s) for early, late in pairs if late.at_s > early.at_s
    ]
    return median(slopes) * 3_600 if slopes else 0.0


# --- callers ---------------------------------------------------------------------------------------------------------


class Caller:
    """Does one thing after another, at random, until *done*."""

    def __init__(self, server: Server, clips: Sequence[Clip], seed: int, done: threading.Event) -> None:
        self._server = server
        self._clips = clips
        self._chance = random.Random(seed)
        self._done = done
        self.answers: Counter[str] = Counter()

    def call(self) -> Counter[str]:
        headers = {"X-API-Key": self._server.key}
        ways: list[Callable[[httpx.Client], str]] = [
            self._hear,
            self._hear,
            self._stream,
            self._job,
            self._extract,
            self._refused,
            self._nonsense,
        ]
        ways += [self._leave_while_sending, self._leave_while_it_works, self._leave_the_stream, self._leave_the_events]
        while not self._done.is_set():
            # A connection of its own each time, as strangers have.
            with httpx.Client(
                base_url=self._server.client.url, headers=headers, timeout=ANSWER_WITHIN_S, trust_env=False
            ) as http:
                way = self._chance.choice(ways)
                try:
                    told = way(http)
                except httpx.TransportError as error:
                    told = type(error).__name__
            self.answers[f"{way.__name__.strip('_').replace('_', ' ')}: {told}"] += 1
        return self.answers

    def _clip(self) -> Clip:
        return self._chance.choice(self._clips)

    def _sent(self, http: httpx.Client, path: str, **asked: str) -> httpx.Response:
        with self._clip().path.open("rb") as file:
            return http.post(path, files={"file": file}, params=asked)

    def _hear(self, http: httpx.Client) -> str:
        return str(self._sent(http, "/transcribe").status_code)

    def _stream(self, http: httpx.Client) -> str:
        return str(self._sent(http, "/transcribe", stream="true").status_code)

    def _extract(self, http: httpx.Client) -> str:
        answer = self._sent(http, "/extract-audio", format="flac")
        if answer.is_success:
            return str(http.delete(f"/files/{answer.json()['id']}").status_code)
        return str(answer.status_code)

    def _job(self, http: httpx.Client) -> str:
        answer = self._sent(http, "/transcribe", mode="async")
        if answer.status_code != 202:
            return str(answer.status_code)
        job_id = answer.json()["id"]
        if self._chance.random() < 0.3:
            return f"cancelled {http.delete(f'/jobs/{job_id}').status_code}"
        with http.stream("GET", f"/jobs/{job_id}/events") as events:
            for _ in events.iter_lines():
                pass
        return str(http.get(f"/jobs/{job_id}/result").status_code)

    def _refused(self, http: httpx.Client) -> str:
        return str(http.get("/files", headers={"X-API-Key": "wrong"}).status_code)

    def _nonsense(self, http: httpx.Client) -> str:
        return str(http.post("/transcribe", files={"file": self._chance.randbytes(20_000)}).status_code)

    def _leave_while_sending(self, http: httpx.Client) -> str:
        """Half a body, and gone."""
        content = self._clip().path.read_bytes()
        head = (
            f"POST /transcribe HTTP/1.1\r\nHost: {http.base_url.host}\r\nX-API-Key: {self._server.key}\r\n"
            f"Content-Type: audio/flac\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._server.port), 10) as connection:
            connection.sendall(head.encode() + content[: self._chance.randrange(len(content))])
            time.sleep(self._chance.random() / 4)
        return "gone"

    def _leave_while_it_works(self, http: httpx.Client) -> str:
        with contextlib.suppress(httpx.ReadTimeout), self._clip().path.open("rb") as file:
            patience = httpx.Timeout(ANSWER_WITHIN_S, read=self._chance.random())
            return str(http.post("/transcribe", files={"file": file}, timeout=patience).status_code)
        return "gone"

    def _leave_the_stream(self, http: httpx.Client) -> str:
        with (
            self._clip().path.open("rb") as file,
            http.stream("POST", "/transcribe", files={"file": file}, params={"stream": "true"}) as events,
        ):
            for _ in events.iter_raw():
                return "gone"
        return str(events.status_code)

    def _leave_the_events(self, http: httpx.Client) -> str:
        answer = self._sent(http, "/transcribe", mode="async")
        if answer.status_code != 202:
            return str(answer.status_code)
        with http.stream("GET", f"/jobs/{answer.json()['id']}/events") as events:
            for _ in events.iter_raw():
                return "gone"
        return str(events.status_code)


def in_flight(server: Server) -> list[str]:
    """What is being worked on, or waits, or lies about."""
    with httpx.Client(base_url=server.client.url, headers={"X-API-Key": server.key}, trust_env=False) as http:
        works = http.get("/capacity").json()["work"]
        jobs = http.get("/jobs?state=queued&state=running").json()["jobs"]
    places = {name: work["active"] + work["arriving"] + work["waiting"] for name, work in works.items()}
    found = [f"{count} at the gate for {name}" for name, count in places.items() if count]
    found += [f"job {job['id']} {job['state']} {job['options']}" for job in jobs]
    return found + files_in(server.data / "work")


def unsettled(server: Server) -> list[str]:
    """What is still in flight, long enough after everybody has left."""
    until = time.monotonic() + REST_WITHIN_S
    while (found := in_flight(server)) and time.monotonic() < until:
        time.sleep(0.5)
    return found


def aims(samples: Sequence[Sample], rested: Sample, answers: Counter[str], left: Sequence[str]) -> list[Aim]:
    """*samples*: once warm. *rested*: when all callers had left; *left*: what was in flight all the same."""
    first, last = samples[: len(samples) // 3], samples[-len(samples) // 3 :]

    def growth(value: Callable[[Sample], float]) -> float:
        return median(map(value, last)) - median(map(value, first))

    planned = {"200", "202", "204", "401", "415", "422", "gone", "cancelled 200", "409", "429"}
    odd = sum(count for told, count in answers.items() if told.rpartition(": ")[2] not in planned)
    return [
        Aim(
            "resident memory, slope",
            slope_per_h(samples, lambda one: one.rss_bytes) / 2**20,
            most=MOST_GROWTH_MIB_PER_H,
            unit="MiB an hour",
        ),
        Aim(
            "of which the server's own", slope_per_h(samples, lambda one: one.server_bytes) / 2**20, unit="MiB an hour"
        ),
        Aim("of which the engine's", slope_per_h(samples, lambda one: one.engine_bytes) / 2**20, unit="MiB an hour"),
        Aim(
            "open files, median of the last third less the first's", growth(lambda one: one.open_files), most=4, unit=""
        ),
        Aim("threads, the same", growth(lambda one: one.threads), most=2, unit=""),
        Aim("processes, the same", growth(lambda one: one.processes), most=1, unit=""),
        Aim("temporary files at the end", rested.work_files, most=0, unit=""),
        Aim("uploads at the end, but for cancelled jobs'", rested.uploads - answers[CANCELLED], most=0, unit=""),
        Aim("in flight after the last caller", len(left), most=0, unit=""),
        Aim("answers that nobody planned", odd, most=0, unit=""),
    ]


def measure(plan: Plan) -> Report:
    for_s, warm_s = (QUICK_FOR_S, QUICK_WARM_S) if plan.quick else (FOR_S, WARM_S)
    clips = [clip for clip in SpeechSet(speech_dir()).short() if clip.duration_s <= SHORT_S]
    done, samples = threading.Event(), list[Sample]()
    settings = {"RESULT_TTL_S": str(RESULT_TTL_S), "MAX_FAILURES_PER_MINUTE": "0"}
    with Server(MODEL, settings=settings) as server, ThreadPoolExecutor(CALLERS) as pool:
        began = time.monotonic()
        calls = [pool.submit(Caller(server, clips, seed, done).call) for seed in range(CALLERS)]
        try:
            while time.monotonic() - began < for_s and not any(call.done() for call in calls):
                time.sleep(LOOK_EVERY_S)
                samples.append(sample(server, began))
                if len(samples) % 60 == 0:
                    say(f"soak: {samples[-1].at_s:.0f} s, {samples[-1].rss_bytes / 2**20:.0f} MiB")
        finally:
            done.set()
        answers: Counter[str] = sum((call.result() for call in calls), Counter())
        left = unsettled(server)
        rested = sample(server, began)
    warm = [one for one in samples if one.at_s >= warm_s]
    shown = [("warm", warm[0]), ("half-way", warm[len(warm) // 2]), ("last", warm[-1]), ("at rest", rested)]
    title = f"{for_s / 60:.0f} minutes of {CALLERS} callers who hang up at random"
    return Report(
        title,
        [
            markdown(["answer", "times"], [[told, str(count)] for told, count in sorted(answers.items())]),
            markdown(
                [
                    "",
                    "RSS MiB",
                    "server's",
                    "engine's",
                    "open files",
                    "threads",
                    "processes",
                    "temporary files",
                    "uploads",
                ],
                [_row(when, one) for when, one in shown],
            ),
        ],
        aims(warm, rested, answers, left),
        {"samples": [asdict(one) for one in samples], "rested": asdict(rested), "answers": dict(answers), "left": left},
        draw(
            plan.plots,
            "soak",
            title,
            "seconds",
            [
                Panel(
                    "MiB resident",
                    {
                        "all": [(one.at_s, one.rss_bytes / 2**20) for one in samples],
                        "engine": [(one.at_s, one.engine_bytes / 2**20) for one in samples],
                        "server": [(one.at_s, one.server_bytes / 2**20) for one in samples],
                    },
                ),
                Panel(
                    "",
                    {
                        "open files": [(one.at_s, float(one.open_files)) for one in samples],
                        "threads": [(one.at_s, float(one.threads)) for one in samples],
                    },
                ),
            ],
        ),
    )


def _row(when: str, one: Sample) -> list[str]:
    memory = [f"{size / 2**20:.0f}" for size in (one.rss_bytes, one.server_bytes, one.engine_bytes)]
    return [when, *memory, *map(str, (one.open_files, one.threads, one.processes, one.work_files, one.uploads))]
