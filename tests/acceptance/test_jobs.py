"""Jobs on the real server: handed in, followed, and not lost when it is killed or stopped in the middle."""

from __future__ import annotations

import re
import signal
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.server import Server, running
from tests.speech import sample_call

REPEATS = 8
"""Of the sample call's last words: so long that a server can be killed while it is at it, segment after segment."""
WORDS_S = 8.0
SILENCE_S = 4.0
"""Speech on both sides of so much silence is never one segment."""
SLOWLY = {"BATCH_SIZE": "1", "ENGINE_STREAMS": "1", "SHUTDOWN_GRACE_S": "0"}


def last_words(path: Path, times: int) -> Path:
    """The last words of the sample call, so many times over, as a new file at *path*: a segment each time."""
    with wave.open(str(sample_call())) as call, wave.open(str(path), "wb") as long:
        long.setparams(call.getparams())
        rate, frame_bytes = call.getframerate(), call.getnchannels() * call.getsampwidth()
        call.setpos(call.getnframes() - round(WORDS_S * rate))
        words = call.readframes(call.getnframes())
        for _ in range(times):
            long.writeframes(words)
            long.writeframes(bytes(round(SILENCE_S * rate) * frame_bytes))
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return last_words(tmp_path_factory.mktemp("recording") / "long.wav", REPEATS)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that finishes one segment after another."""
    with running(tmp_path_factory.mktemp("slow"), **SLOWLY) as server:
        yield server


def handed_in(client: httpx.Client, recording: Path, **headers: str) -> str:
    with recording.open("rb") as file:
        answer = client.post("/transcribe", params={"mode": "async"}, files={"file": file}, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def state(client: httpx.Client, job: str) -> dict[str, Any]:
    document: dict[str, Any] = client.get(f"/jobs/{job}").json()
    return document


def half_done(client: httpx.Client, job: str) -> bool:
    found = state(client, job)
    assert found["state"] in ("queued", "running"), found
    return bool(found.get("progress")) and found["progress"]["audio_seconds"] > 0


def done(server: Server, client: httpx.Client, job: str) -> dict[str, Any]:
    server.wait_until(lambda: state(client, job)["state"] not in ("queued", "running"), 120)
    found = state(client, job)
    assert found["state"] == "succeeded", found
    return found


def events_of(stream: str) -> list[tuple[int | None, str]]:
    """Number and kind of each event."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in stream.split("\n\n") if block]
    return [(int(block["id"]) if "id" in block else None, block["event"]) for block in blocks if "event" in block]


def test_a_job_outlives_a_kill_and_a_stop(tmp_path: Path, recording: Path) -> None:
    """It goes on from what was finished, and comes to the words that it would have come to. A caller that was cut off
    sends the same again and has the same job."""
    with running(tmp_path, **SLOWLY) as server, server.client() as client:
        with recording.open("rb") as file:
            undisturbed = client.post("/transcribe", files={"file": file}).json()
        job = handed_in(client, recording, **{"Idempotency-Key": "one"})
        server.wait_until(lambda: half_done(client, job))
        server.process.kill()
        server.process.wait()
    with running(tmp_path, **SLOWLY) as server, server.client() as client:
        assert handed_in(client, recording, **{"Idempotency-Key": "one"}) == job
        heard_s = state(client, job)["progress"]["audio_seconds"] if state(client, job).get("progress") else 0.0
        server.wait_until(lambda: half_done(client, job) and state(client, job)["progress"]["audio_seconds"] > heard_s)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
    with running(tmp_path, **SLOWLY) as server, server.client() as client:
        found = done(server, client, job)
        result = client.get(f"/jobs/{job}/result").json()
        events = events_of(client.get(f"/jobs/{job}/events").text)
    assert found["attempt"] >= 2
    assert (result["text"], result["segments"]) == (undisturbed["text"], undisturbed["segments"])
    numbers = [number for number, _ in events if number is not None]
    assert numbers == list(range(1, len(numbers) + 1))
    # Each segment was finished once, whoever it was.
    assert sum(kind == "segment" for _, kind in events) == len(result["segments"])
    assert events[-1][1] == "succeeded"


def test_who_reconnects_misses_no_event_of_a_job_that_runs(slow: Server, recording: Path) -> None:
    with slow.client() as client:
        job = handed_in(client, recording)
        before = ""
        with client.stream("GET", f"/jobs/{job}/events") as stream:
            for text in stream.iter_text():
                before += text
                if "event: segment" in before:
                    break
        first = [number for number, _ in events_of(before[: before.rindex("\n\n")]) if number is not None]
        rest = client.get(f"/jobs/{job}/events", headers={"Last-Event-ID": str(first[-1])}, timeout=120).text
        second = [number for number, _ in events_of(rest) if number is not None]
        assert state(client, job)["state"] == "succeeded"
        assert client.get(f"/jobs/{job}/events", headers={"Last-Event-ID": str(second[-1])}).status_code == 204
    assert first + second == list(range(1, len(first) + len(second) + 1))
    assert re.search(r'"text": ?"', rest)


def test_a_running_job_is_cancelled_and_another_goes_on(slow: Server, recording: Path) -> None:
    with slow.client() as client:
        job, other = handed_in(client, recording), handed_in(client, sample_call())
        slow.wait_until(lambda: half_done(client, job))
        client.delete(f"/jobs/{job}")
        slow.wait_until(lambda: state(client, job)["state"] == "cancelled", 30)
        done(slow, client, other)
        assert client.get(f"/jobs/{job}/result").json()["code"] == "JOB_CANCELLED"
        slow.wait_until(lambda: slow.in_flight() == [])
