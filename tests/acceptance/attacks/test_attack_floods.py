"""One key hands in far more than it may have, while another works; and a stranger guesses keys.

ATTACK_SUBMISSIONS asks for more of them than the suite has time for.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance import sounds
from tests.acceptance.attacks.table import KEY, OTHER_KEY, assert_refused
from tests.acceptance.server import ROOT, Server, running
from tests.media_server import MediaServer

SUBMISSIONS = int(os.environ.get("ATTACK_SUBMISSIONS", "300"))
MOST_QUEUED = SUBMISSIONS // 2
SHARE = -(-MOST_QUEUED * 2 // 3)
"""Of the queue, what one key may have."""
CALLERS = 16
ONE_FILE_IN = 40
"""Of the flood; all others are links, which cost a caller nothing to hand in."""
GROWTH_BYTES = 128 * 2**20
"""Each connection to the database has a cache of pages, 2 MiB at most, and each thread its heap: 10,000 submissions
were seen to take 65 MiB, of which refusals take nothing."""
GUESSES = 3


@dataclass
class Flood:
    """What became of one, and of the other key's calls meanwhile."""

    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    jobs: list[str] = field(default_factory=list)
    seconds: float = 0.0
    other_statuses: list[int] = field(default_factory=list)
    other_seconds: list[float] = field(default_factory=list)
    rss_before: int = 0
    rss_after: int = 0


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory, web: MediaServer, allowed_folder: Path) -> Iterator[Server]:
    """A server of its own, whose engine decodes nothing: it is the rest that is flooded."""
    with running(
        tmp_path_factory.mktemp("flooded"),
        *("-m", "tests.quick_server"),
        PYTHONPATH=str(ROOT),
        LOG_LEVEL="warning",
        API_KEYS=f"{KEY},{OTHER_KEY}",
        MEDIA_ROOTS=str(allowed_folder),
        MAX_QUEUED_JOBS=str(MOST_QUEUED),
        MAX_CONCURRENT_DOWNLOADS="1",
        MAX_FAILURES_PER_MINUTE=str(GUESSES),
        PRIVATE_HOSTS_ALLOWED=web.authority,
    ) as server:
        server.key = KEY
        yield server


@pytest.fixture(scope="module")
def other(flooded: Server) -> Iterator[httpx.Client]:
    """Somebody else, who works."""
    with httpx.Client(base_url=flooded.address, headers={"X-API-Key": OTHER_KEY}, timeout=120.0) as client:
        yield client


def rss(server: Server) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


async def all_asked(server: Server, requests: list[tuple[str, str, dict[str, str]]]) -> list[httpx.Response]:
    """CALLERS at a time, each on a connection of its own, in their order."""
    waiting, answers = iter(requests), []
    async with httpx.AsyncClient(
        base_url=server.address, headers={"X-API-Key": KEY}, timeout=120.0, limits=httpx.Limits(max_connections=CALLERS)
    ) as client:

        async def ask() -> None:
            for method, path, parameters in waiting:
                answers.append(await client.request(method, path, params=parameters))

        await asyncio.gather(*(ask() for _ in range(CALLERS)))
    return answers


def upload(client: httpx.Client, **parameters: str) -> httpx.Response:
    return client.post("/transcribe", params={"vad": "none"} | parameters, files={"file": ("a.wav", sounds.silence(1))})


@pytest.fixture(scope="module")
def flood(flooded: Server, other: httpx.Client, web: MediaServer, allowed_folder: Path) -> Flood:
    """All of it handed in, as fast as it is taken, while the other key's calls are answered one after another."""
    (recording := allowed_folder / "small.wav").write_bytes(sounds.silence(1))
    sources = [
        {"audio_file": str(recording)} if number % ONE_FILE_IN == 0 else {"url": web.at("/slow")}
        for number in range(SUBMISSIONS)
    ]
    assert upload(other).status_code == 200
    found = Flood(rss_before=rss(flooded))
    requests = [("POST", "/transcribe", {"mode": "async"} | source) for source in sources]

    def hand_in() -> None:
        started = time.monotonic()
        for answer in asyncio.run(all_asked(flooded, requests)):
            document = answer.json()
            found.answers[answer.status_code, document.get("code", "")] += 1
            if answer.status_code == 202:
                found.jobs.append(document["id"])
        found.seconds = time.monotonic() - started

    flooding = threading.Thread(target=hand_in)
    flooding.start()
    while flooding.is_alive() or not found.other_statuses:
        started = time.monotonic()
        found.other_statuses.append(upload(other).status_code)
        found.other_seconds.append(time.monotonic() - started)
    flooding.join()
    found.rss_after = rss(flooded)
    return found


def queued(client: httpx.Client) -> list[dict[str, Any]]:
    return list(client.get("/jobs", params={"state": "queued", "limit": 100}).json()["jobs"])


def test_a_flood_gets_its_share_and_no_more(flood: Flood) -> None:
    """Two thirds of the queue, and what has begun meanwhile."""
    assert set(flood.answers) == {(202, ""), (429, "QUEUE_FULL")}
    assert SHARE <= flood.answers[202, ""] <= SHARE + SUBMISSIONS // ONE_FILE_IN + CALLERS


def test_another_key_is_served_meanwhile(flood: Flood) -> None:
    """It neither waits for the flood's end, nor is it refused."""
    assert set(flood.other_statuses) == {200}


def test_a_flood_is_not_held_in_memory(flood: Flood) -> None:
    """Jobs lie in the database, and what is refused lies nowhere."""
    print(
        f"{flood.answers} in {flood.seconds:.1f} s; the other key: {len(flood.other_seconds)} calls, "
        f"the longest {max(flood.other_seconds):.2f} s; RSS {flood.rss_before >> 20} to {flood.rss_after >> 20} MiB"
    )
    assert flood.rss_after - flood.rss_before < GROWTH_BYTES


def test_another_keys_job_does_not_wait_for_the_flood(flooded: Server, other: httpx.Client, flood: Flood) -> None:
    """Keys take turns; and links that never end hold up nothing but links."""
    job = upload(other, mode="async")
    assert job.status_code == 202
    flooded.wait_until(lambda: other.get(f"/jobs/{job.json()['id']}").json()["state"] == "succeeded", 30)
    with flooded.client() as client:
        assert len(queued(client)) == 100


def test_a_flood_is_over_when_it_is_cancelled(flooded: Server, flood: Flood) -> None:
    """Its key has room again, and nothing is left of it."""
    asyncio.run(all_asked(flooded, [("DELETE", f"/jobs/{job}", {}) for job in flood.jobs]))
    with flooded.client() as client:
        flooded.wait_until(lambda: queued(client) == [] and flooded.in_flight() == [])
        assert upload(client, mode="async").status_code == 202


def test_a_stranger_guesses_only_so_often(flooded: Server, other: httpx.Client) -> None:
    """Who has been here before, and who comes from elsewhere, is not held up."""

    def models(key: str, address: str) -> httpx.Response:
        return other.get("/models", headers={"X-API-Key": key, "X-Forwarded-For": address})

    for number in range(GUESSES):
        assert_refused(models(f"guess-{number}", "203.0.113.50"), 401, "UNAUTHORIZED")
    held = models("guess-again", "203.0.113.50")
    assert_refused(held, 429, "TOO_MANY_FAILURES")
    assert 1 <= int(held.headers["Retry-After"]) <= 60
    assert models(OTHER_KEY, "203.0.113.50").status_code == 200
    assert_refused(models("guess", "203.0.113.51"), 401, "UNAUTHORIZED")
