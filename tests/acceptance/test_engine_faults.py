"""What callers see while engines die, hang, load and stop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance import sounds
from tests.acceptance.server import Server, running
from tests.acceptance.test_hangup import begin
from tests.acceptance.test_jobs import last_words
from tests.speech import spoken

SEGMENTS = 16
"""Of speech: work for the engine for some seconds, several batches for each of its streams."""


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: what is done to its engine must not meet other tests."""
    with running(tmp_path_factory.mktemp("hurt"), ENGINE_REPLICAS="1", MODEL_TTL_S="0") as server:
        yield server


def engine_pid(server: Server) -> int | None:
    """The engine's process, where there is one."""
    for child in psutil.Process(server.process.pid).children():
        try:
            if "transcription.engine_child" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                return child.pid
        except psutil.NoSuchProcess:
            continue
    return None


def status_of(server: Server, path: str) -> int:
    return httpx.get(f"{server.address}{path}", timeout=30, verify=False).status_code


def transcribed(server: Server, recording: bytes, **options: str) -> httpx.Response:
    with server.client() as client:
        return client.post("/transcribe", files={"file": ("a.wav", recording)}, data={"language": "en"} | options)


def long_call(folder: Path) -> bytes:
    """The end of the telephone call again and again."""
    return last_words(folder / "long.wav", SEGMENTS).read_bytes()


def told(server: Server, event: str) -> list[dict[str, Any]]:
    """The log's lines of that event; the request's id stands before it."""
    return [line for line in server.lines() if str(line.get("event")).endswith(event)]


def batches(server: Server) -> int:
    return len(told(server, "batch decoded"))


def test_a_killed_engine_costs_its_callers_nothing_but_time(hurt: Server, tmp_path: Path) -> None:
    """kill -9 in the middle of a recording: the same text as without, health stays up, readiness comes back."""
    recording = long_call(tmp_path)
    undisturbed = transcribed(hurt, recording).json()["text"]
    with ThreadPoolExecutor() as callers:
        before, victim = batches(hurt), engine_pid(hurt)
        assert victim is not None
        asked = callers.submit(transcribed, hurt, recording)
        hurt.wait_until(lambda: batches(hurt) > before)
        os.kill(victim, signal.SIGKILL)
        assert not asked.done()
        hurt.wait_until(lambda: status_of(hurt, "/ready") == 503)
        assert status_of(hurt, "/health") == 200
        hurt.wait_until(lambda: status_of(hurt, "/ready") == 200)
        assert asked.result().json()["text"] == undisturbed
    assert engine_pid(hurt) not in (victim, None)


def test_a_stopped_engine_is_replaced(hurt: Server, tmp_path: Path) -> None:
    """SIGSTOP: the process is there and says nothing. Nobody waits for it for ever."""
    victim = engine_pid(hurt)
    assert victim is not None
    os.kill(victim, signal.SIGSTOP)
    with ThreadPoolExecutor() as callers:
        asked = callers.submit(transcribed, hurt, spoken("one two three four", tmp_path / "a.wav").read_bytes())
        hurt.wait_until(lambda: status_of(hurt, "/ready") == 503)
        assert status_of(hurt, "/health") == 200
        hurt.wait_until(lambda: status_of(hurt, "/ready") == 200)
        assert asked.result().status_code == 200
    assert not psutil.pid_exists(victim)


def test_twenty_requests_at_once_load_a_model_once(hurt: Server, tmp_path: Path) -> None:
    """Each would load it for itself elsewhere, and the memory would be gone."""
    recording = spoken("The quick brown fox jumps over the lazy dog.", tmp_path / "fox.wav").read_bytes()
    with ThreadPoolExecutor(20) as callers:
        answers = list(callers.map(lambda _: transcribed(hurt, recording, model_size="base", beam_size="1"), range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert all("fox" in answer.json()["text"] for answer in answers)
    assert [line["model"] for line in told(hurt, "model loaded")].count("base") == 1


def test_an_unknown_priority_is_refused(hurt: Server) -> None:
    """A wrong word would otherwise pass for interactive."""
    with hurt.client(follow_redirects=True) as client:
        recording = {"file": ("a.wav", sounds.silence(1))}
        answers = [
            client.post("/transcribe", files=recording, headers={"X-Priority": word}) for word in ("batch", "urgent")
        ]
    assert [answer.status_code for answer in answers] == [200, 422]
    assert answers[1].json()["code"] == "INVALID_REQUEST"


def test_a_killed_server_leaves_no_engine(tmp_path: Path) -> None:
    """Not even one that is stopped, and holds a gigabyte of weights."""
    with running(tmp_path) as server:
        engine = engine_pid(server)
        assert engine is not None
        process = psutil.Process(engine)
        os.kill(engine, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        # Its new parent reaps it; where that takes its time, it is dead all the same.
        gone, _ = psutil.wait_procs([process], timeout=30)
        assert gone or process.status() == psutil.STATUS_ZOMBIE


def test_what_does_not_end_within_the_grace_is_told_and_cleaned_up(tmp_path: Path) -> None:
    """The client hears why; nothing stays behind, neither file nor process."""
    with running(tmp_path, SHUTDOWN_GRACE_S="0") as server:
        processes = [psutil.Process(pid) for pid in server.processes()]
        line = begin(server, "/transcribe?beam_size=16&language=en", long_call(tmp_path), name="stopped")
        server.wait_until(lambda: batches(server) > 0)
        server.process.terminate()
        answer = b"".join(iter(lambda: line.recv(65_536), b""))
        line.close()
        server.process.wait(60)
        assert b" 503 " in answer.split(b"\r\n")[0]
        assert json.loads(answer.split(b"\r\n\r\n")[1])["code"] == "SHUTTING_DOWN"
        assert server.in_flight() == []
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert alive == []
