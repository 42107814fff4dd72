"""The gate of a real server: room for one at work and two in the line."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.acceptance import sounds
from tests.acceptance.server import Server, running
from tests.acceptance.test_hangup import begin, hung_up
from tests.acceptance.test_jobs import last_words
from tests.speech import sample_call

AT_ONCE = 6
SEGMENTS = 16
"""Of a recording that is at work for some seconds."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"MAX_CONCURRENT_TRANSCRIPTIONS": "1", "MAX_QUEUE_LENGTH": "2"}
    with running(tmp_path_factory.mktemp("small"), **settings) as server:
        yield server


def send(server: Server, recording: bytes | None = None, **headers: str) -> httpx.Response:
    """Without *recording*, the sample call."""
    with server.client() as client:
        files = {"file": ("call.wav", recording or sample_call().read_bytes())}
        return client.post("/transcribe", files=files, headers=headers)


def transcriptions(server: Server) -> dict[str, Any]:
    with server.client() as client:
        told: dict[str, Any] = client.get("/capacity").json()["work"]["transcription"]
        return told


def wait_until_idle(server: Server) -> None:
    def idle() -> bool:
        told = transcriptions(server)
        return told["active"] == told["waiting"] == told["arriving"] == 0

    server.wait_until(idle)


def test_what_the_line_cannot_take_is_refused_and_may_come_back(small: Server) -> None:
    """Everybody gets an answer, at once or with text in it."""
    with ThreadPoolExecutor(AT_ONCE) as callers:
        answers = list(callers.map(lambda _: send(small), range(AT_ONCE)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 3
    for answer in refused:
        assert answer.json()["code"] == "QUEUE_FULL"
        assert 1 <= int(answer.headers["Retry-After"]) <= 120
    assert send(small, sounds.silence(1)).status_code == 200


def test_the_timings_tell_of_the_wait(small: Server) -> None:
    """And the log line does: the first question about a slow request."""
    with ThreadPoolExecutor(2) as callers:
        names = ["first-in", "second-in"]
        answers = list(callers.map(lambda name: send(small, **{"X-Request-ID": name}), names))
    waits_s = [answer.json()["timings"]["queue"] for answer in answers]
    assert min(waits_s) < max(waits_s)
    for name, wait_s in zip(names, waits_s, strict=True):
        small.wait_until(lambda name=name: any("status" in line for line in small.lines(name)))  # after the answer
        [line] = [line for line in small.lines(name) if "status" in line]
        assert line["wait_s"] == pytest.approx(wait_s, abs=0.1)
        assert line["peak_mib"] > 100


def test_who_hangs_up_in_the_line_leaves_no_trace(small: Server) -> None:
    """A place held by nobody would be refused to somebody."""
    call = sample_call().read_bytes()
    lines = [begin(small, "/transcribe", call, name=f"gone-in-line-{number}") for number in range(3)]
    small.wait_until(lambda: transcriptions(small)["waiting"] == 2)
    for line in lines[1:]:
        line.close()
    small.wait_until(lambda: transcriptions(small)["waiting"] == 0)
    lines[0].close()
    small.wait_until(lambda: all(hung_up(small, f"gone-in-line-{number}") for number in range(3)))
    wait_until_idle(small)
    assert small.in_flight() == []
    assert send(small, sounds.silence(1)).status_code == 200


@dataclass(frozen=True)
class Stop:
    """What became of a server that was stopped, and of two requests: one was at work, one waited."""

    at_work: httpx.Response
    waited: httpx.Response
    ended: bool


@pytest.fixture(scope="module")
def stop(tmp_path_factory: pytest.TempPathFactory) -> Stop:
    folder = tmp_path_factory.mktemp("stop")
    long = last_words(folder / "long.wav", SEGMENTS).read_bytes()
    settings = {"MAX_CONCURRENT_TRANSCRIPTIONS": "1", "SHUTDOWN_GRACE_S": "60"}
    with running(folder, **settings) as server, ThreadPoolExecutor(2) as callers:
        at_work = callers.submit(send, server, long)
        server.wait_until(lambda: transcriptions(server)["active"] == 1)
        waits = callers.submit(send, server)
        server.wait_until(lambda: transcriptions(server)["waiting"] == 1)
        server.wait_until(lambda: any(str(line.get("event")).endswith("batch decoded") for line in server.lines()))
        server.process.terminate()
        answers = at_work.result(), waits.result()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(60)
        return Stop(*answers, ended=server.process.poll() is not None)


def test_a_stop_sends_home_who_waits(stop: Stop) -> None:
    """Eight seconds are for what is at work; nobody should wait them out to be told to go."""
    assert (stop.waited.status_code, stop.waited.json()["code"]) == (503, "SHUTTING_DOWN")


def test_what_runs_at_a_stop_may_end(stop: Stop) -> None:
    """A deployment costs nobody an answer that is nearly there. All of it: it had only begun."""
    assert stop.at_work.status_code == 200
    assert len(stop.at_work.json()["segments"]) == SEGMENTS
    assert stop.ended
