"""Thousands of wrong recordings of all containers: each gets a transcript or a reason, and the server is as before.

The files are those of tests/mutations.py; the server is the real one with an engine that decodes nothing, which lets it
be asked twenty times a second.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.experiment import Aim, Plan, Report, say
from benchmarks.results import percentile
from benchmarks.tables import markdown
from errors import (
    AudioTooLong,
    EmptyMedia,
    InvalidRequest,
    MediaTimeout,
    NoAudioStream,
    TooLarge,
    UnsupportedMedia,
)
from tests.acceptance.server import ROOT, Server, running
from tests.containers import recordings
from tests.mutations import Mutant, mutants

FILES, QUICK_FILES = 2_000, 150
AT_ONCE = 4
MAX_DURATION_S = 60
ANSWER_WITHIN_S = 30 + 60 + MAX_DURATION_S / 10
"""What recording.py allows ffmpeg for a header, and for converting."""
SETTLED_WITHIN_S = 30.0

QUERIES: tuple[dict[str, str], ...] = (
    {},
    {"vad": "none", "response_format": "verbose_json"},
    {"vad": "none", "channels": "split"},
)
"""As most callers ask; with all that was decoded reaching the engine; and one channel after another."""

REASONS = {
    kind.code: kind.status
    for kind in (AudioTooLong, EmptyMedia, InvalidRequest, MediaTimeout, NoAudioStream, TooLarge, UnsupportedMedia)
}
"""What may be said of a file. Anything else would be said of the server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one file."""

    number: int
    container: str
    kind: str
    status: int
    """0: there was no answer."""
    code: str
    seconds: float
    flaw: str
    """What is wrong with the answer; empty where nothing is."""


@dataclass(frozen=True, slots=True)
class Traces:
    """What a server holds on to."""

    processes: frozenset[int]
    open_files: int
    files: frozenset[str]
    """In the folders of work in flight and of uploads."""

    def more_than(self, before: Traces) -> str:
        """What is there that was not there *before*, or gone that was; empty where all is as it was."""
        found = []
        if self.processes != before.processes:
            found.append(f"processes {sorted(before.processes)} are now {sorted(self.processes)}")
        if self.open_files > before.open_files:
            found.append(f"{self.open_files} open files in place of {before.open_files}")
        if self.files:
            found.append(f"files are left: {', '.join(sorted(self.files))}")
        return "; ".join(found)


def flaw(mutant: Mutant, status: int, document: dict[str, Any], seconds: float) -> str:
    """What is wrong with that answer; empty: nothing is."""
    if status == 0:
        return "no answer"
    if seconds > ANSWER_WITHIN_S:
        return f"took {seconds:.0f} s"
    if status == 200:
        if mutant.is_text:
            return "text was heard"
        if not isinstance(document.get("text"), str) or not 0 < document.get("duration", 0) <= MAX_DURATION_S:
            return "no transcript"
        return ""
    code = document.get("code")
    return "" if REASONS.get(str(code)) == status else f"{status} {code}"


def asked(client: httpx.Client, mutant: Mutant) -> Answer:
    begun, status, document = time.perf_counter(), 0, {}
    query = QUERIES[mutant.number % len(QUERIES)]
    with suppress(httpx.HTTPError, ValueError):
        answer = client.post("/transcribe", params=query, files={"file": (mutant.name, mutant.content)})
        status, document = answer.status_code, answer.json()
    seconds = time.perf_counter() - begun
    said = str(document.get("code") or ("heard" if status == 200 else "–"))
    wrong = flaw(mutant, status, document, seconds)
    return Answer(mutant.number, mutant.container, mutant.kind, status, said, seconds, wrong)


def ask_all(server: Server, files: Iterable[Mutant]) -> list[Answer]:
    """AT_ONCE at a time, in their order."""
    with server.client() as client, ThreadPoolExecutor(AT_ONCE) as callers:
        client.timeout = httpx.Timeout(2 * ANSWER_WITHIN_S)
        return list(callers.map(partial(asked, client), files))


def unharmed(seeds: dict[str, bytes]) -> list[Mutant]:
    """The recordings as they were written."""
    return [Mutant(number, name, "as written", content) for number, (name, content) in enumerate(seeds.items())]


def traces(server: Server) -> Traces:
    processes = server.processes()
    open_files = 0
    # A bounded pool of connections to the jobs' database grows when two are wanted at the same moment.
    database = str(server.data_dir / "jobs.db")
    for pid in processes:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            pooled = sum(file.path.startswith(database) for file in process.open_files())
            open_files += process.num_fds() - pooled
    folders = (server.data_dir / "work", server.data_dir / "uploads")
    return Traces(
        frozenset(processes), open_files, frozenset(str(path) for folder in folders for path in folder.rglob("*"))
    )


def settled(server: Server, before: Traces) -> Traces:
    """What is there once the last request has been tidied up, or after SETTLED_WITHIN_S."""
    now = traces(server)

    def as_before() -> bool:
        nonlocal now
        now = traces(server)
        return not now.more_than(before)

    with suppress(AssertionError):
        server.wait_until(as_before, SETTLED_WITHIN_S)
    return now


@contextmanager
def quick_server(folder: Path) -> Iterator[Server]:
    """The real server, whose engine decodes nothing."""
    settings = {"PYTHONPATH": str(ROOT), "MAX_DURATION_S": str(MAX_DURATION_S), "LOG_LEVEL": "info"}
    with running(folder, "-m", "tests.quick_server", **settings) as server:
        yield server


def by_container(answers: Sequence[Answer]) -> list[list[str]]:
    """A row a container: files, heard, refused by code, slowest."""
    found = []
    for container in dict.fromkeys(answer.container for answer in answers):
        ours = [answer for answer in answers if answer.container == container]
        heard = sum(answer.status == 200 for answer in ours)
        codes = Counter(answer.code for answer in ours if answer.status != 200)
        told = ", ".join(f"{count} {code}" for code, count in codes.most_common())
        slowest = max(answer.seconds for answer in ours)
        found.append([container, str(len(ours)), str(heard), told, f"{slowest:.2f}"])
    return found


def measure(plan: Plan) -> Report:
    with tempfile.TemporaryDirectory(prefix="stenogate-") as name:
        seeds = recordings(Path(name))
        count = QUICK_FILES if plan.quick else FILES
        with quick_server(Path(name) / "server") as server:
            ask_all(server, unharmed(seeds))
            before = traces(server)
            say(f"fuzz: {count} files")
            answers = ask_all(server, mutants(seeds, count))
            after = settled(server, before)
            well = sum(answer.status == 200 for answer in ask_all(server, unharmed(seeds)))
    for answer in answers:
        if answer.flaw:
            say(f"fuzz: {answer}")
    seconds = [answer.seconds for answer in answers]
    spread = ", ".join(f"{percentile(seconds, share):.2f}" for share in (0.5, 0.99, 1.0))
    statuses = Counter(f"{answer.status} {answer.code}" for answer in answers)
    return Report(
        f"{count} wrong recordings, {AT_ONCE} at once",
        [
            markdown(["answer", "files"], [[name, str(number)] for name, number in statuses.most_common()]),
            f"Seconds (p50, p99, longest): {spread}.",
            markdown(["container", "files", "heard", "refused", "slowest s"], by_container(answers)),
        ],
        [
            Aim(
                "answers that are neither a transcript nor a reason",
                sum(bool(a.flaw) for a in answers),
                most=0,
                unit="",
            ),
            Aim("longest answer over what ffmpeg is allowed", max(seconds) / ANSWER_WITHIN_S, most=1.0),
            Aim("processes that came, or went", len(after.processes ^ before.processes), most=0, unit=""),
            Aim("open files more than before", max(0, after.open_files - before.open_files), most=0, unit=""),
            Aim("files left", len(after.files), most=0, unit=""),
            Aim("recordings as written, heard afterwards", well, least=len(seeds) - 1, unit=""),
        ],
        {"answers": [asdict(answer) for answer in answers], "left": after.more_than(before)},
    )
