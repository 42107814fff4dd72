"""What callers see while a disk fills up, a database is held, a clock is set or an ffmpeg is killed; and that it heals.

docs/faults.md has the table of all faults, with the tests of each.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ffmpeg import FFmpeg
from tests.acceptance import sounds
from tests.acceptance.server import ROOT, Server, running
from tests.acceptance.test_jobs import SLOWLY, done, half_done, handed_in, state
from tests.media_server import MediaServer
from tests.speech import sample_call

DATA_MB, DATABASE_MB = 32, 8
ROOM_MB = 4
DAY_S = 86_400.0
SPEECH_S = 8


@dataclass
class Frail:
    """A server whose disks can be filled and whose clock can be set."""

    server: Server
    disk: Path
    """Where its database lies, apart from the rest: what is removed elsewhere makes no room there."""
    clock: Path
    is_small: bool
    """Whether these are disks of their own; else the tests that fill them are skipped."""

    @property
    def database(self) -> Path:
        return self.disk / "jobs.db"

    @contextlib.contextmanager
    def with_room(self, room_bytes: int, folder: Path | None = None) -> Iterator[None]:
        """Only so much is free in *folder*, where nothing is said beside the database, while the context lasts."""
        if not self.is_small:
            pytest.skip("File systems of their own cannot be mounted here.")
        ballast = (folder or self.disk) / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for _ in range(100):
                disk = os.statvfs(ballast.parent)
                # The server may write something in between; what it has taken is not to be had once more.
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - room_bytes)
                    break
            else:
                raise AssertionError("The disk cannot be filled.")
        try:
            yield
        finally:
            ballast.unlink()

    def set_clock(self, offset_s: float) -> None:
        """Never half written."""
        aside = self.clock.with_suffix(".new")
        aside.write_text(str(offset_s))
        aside.replace(self.clock)


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory, web: MediaServer) -> Iterator[Frail]:
    folder = tmp_path_factory.mktemp("frail")
    data, disk, clock = folder / "data", folder / "disk", folder / "clock"
    clock.write_text("0")
    settings = SLOWLY | {
        "API_KEYS": "key",
        "DATABASE_URL": f"sqlite:///{disk / 'jobs.db'}",
        "MODEL_DIR": str(folder / "models"),
        # What happens where the reserve was too small.
        "DISK_RESERVE_MB": "0",
        "PRIVATE_HOSTS_ALLOWED": web.authority,
        "PYTHONPATH": str(ROOT / "tests" / "stand_ins" / "clock"),
        "CLOCK_OFFSET_FILE": str(clock),
    }
    with small_disk(data, DATA_MB) as is_small, small_disk(disk, DATABASE_MB), running(folder, **settings) as server:
        yield Frail(server, disk, clock, is_small)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of its own at *folder*, where one can be mounted; an ordinary folder elsewhere."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    mounted = shutil.which("mount") is not None and not subprocess.run(command, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(autouse=True)
def healed(frail: Frail) -> Iterator[None]:
    """Whatever a test does: the next request is done, nothing lies about, and the database is whole."""
    yield
    frail.set_clock(0)
    with frail.server.client() as client:
        answer = client.post("/transcribe", files={"file": ("a.wav", sounds.silence(1))})
        assert answer.status_code == 200, answer.text
        assert client.get("/ready").status_code == 200
    frail.server.wait_until(lambda: frail.server.in_flight() == [])
    with contextlib.closing(sqlite3.connect(frail.database)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.fixture(scope="module")
def long_silence(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A few KiB that become 9 MiB when they are decoded."""
    target = tmp_path_factory.mktemp("silence") / "silence.flac"
    silence = ["-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono", "-t", "300"]
    subprocess.run([FFmpeg.locate("").path, "-v", "error", *silence, target], check=True)
    return target.read_bytes()


def turns_of_speech(number: int, folder: Path) -> Path:
    """The last words of the sample call, again and again, so far apart that each time is a segment of its own."""
    path = folder / f"{number}.wav"
    with wave.open(str(sample_call())) as call, wave.open(str(path), "wb") as target:
        target.setparams(call.getparams())
        rate = call.getframerate()
        call.setpos(call.getnframes() - SPEECH_S * rate)
        words = call.readframes(SPEECH_S * rate)
        for _ in range(number):
            target.writeframes(words + bytes(len(words) // 2))
    return path


def told(server: Server, event: str) -> int:
    return sum(str(line.get("event")).endswith(event) for line in server.lines())


def pieces() -> Iterator[bytes]:
    """A body whose length is not told before."""
    for _ in range(2 * ROOM_MB):
        yield bytes(2**20)


# --- the disk is full ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("during", ["upload", "decoding", "download"])
def test_a_disk_that_fills_up_ends_the_request_with_507(
    frail: Frail, web: MediaServer, long_silence: bytes, during: str
) -> None:
    """And with it goes what the request had written."""
    with frail.with_room(ROOM_MB * 2**20, frail.server.data_dir), frail.server.client() as client:
        match during:
            case "upload":
                kind = {"Content-Type": "application/octet-stream"}
                answer = client.post("/transcribe", content=pieces(), headers=kind)
            case "decoding":
                answer = client.post("/transcribe", files={"file": ("a.flac", long_silence)})
            case _:
                answer = client.post("/download", params={"url": web.at("/endless")})
        assert (answer.status_code, answer.json()["code"]) == (507, "STORAGE_FULL")
        frail.server.wait_until(lambda: frail.server.in_flight() == [])
        assert client.get("/health").status_code == 200


def test_a_job_that_cannot_be_written_down_is_refused_and_taken_later(frail: Frail) -> None:
    """202 is a promise."""
    recording = {"file": ("a.wav", sounds.silence(0.1))}
    with frail.server.client() as client:
        with frail.with_room(0):
            before = client.get("/jobs").json()
            answer = client.post("/transcribe", params={"url": "http://example.com/a.mp3", "mode": "async"})
            assert (answer.status_code, answer.json()["code"]) == (507, "STORAGE_FULL")
            assert client.get("/jobs").json() == before
            assert client.post("/transcribe", files=recording).status_code == 507
        answer = client.post("/transcribe", files=recording, params={"mode": "async"})
        assert answer.status_code == 202
        done(frail.server, client, answer.json()["id"])


def test_results_wait_for_room_and_none_is_lost(frail: Frail, tmp_path: Path) -> None:
    """The work is done; only its last line is missing. What waited behind it is done as well."""
    server = frail.server
    with server.client() as client:
        job, next_job = (handed_in(client, turns_of_speech(number, tmp_path)) for number in (6, 1))
        server.wait_until(lambda: half_done(client, job))
        with frail.with_room(0):
            server.wait_until(lambda: told(server, "end cannot be written down") > 0)
            assert state(client, job)["state"] == "running"
        assert [done(server, client, one)["attempt"] for one in (job, next_job)] == [1, 1]
        said = [client.get(f"/jobs/{one}/result").json()["text"].count("Yankee") for one in (job, next_job)]
        assert said == [6, 1]


# --- the database is held --------------------------------------------------------------------------------------------


def test_a_database_that_is_held_makes_writers_wait_and_nobody_else(frail: Frail, tmp_path: Path) -> None:
    """A backup, or somebody who looks inside with a tool of their own. Past half a minute it is 503."""
    server = frail.server
    with server.client() as client, ThreadPoolExecutor() as callers:
        job = handed_in(client, turns_of_speech(3, tmp_path))
        server.wait_until(lambda: state(client, job)["state"] == "running")
        with contextlib.closing(sqlite3.connect(frail.database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            kept = len(list((server.data_dir / "uploads").iterdir()))
            waiting = callers.submit(handed_in, client, turns_of_speech(1, tmp_path))
            # The next thing that is done with an upload is to write its job down.
            server.wait_until(lambda: len(list((server.data_dir / "uploads").iterdir())) > kept)
            assert [client.get(path).status_code for path in ("/jobs", "/health", "/ready")] == [200] * 3
            assert state(client, job)["state"] == "running"
            assert not waiting.done()
            other.execute("ROLLBACK")
        assert [done(server, client, one)["attempt"] for one in (job, waiting.result())] == [1, 1]


# --- the clock is set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_s", [DAY_S, -DAY_S])
def test_a_clock_that_is_set_costs_nobody_a_result(frail: Frail, tmp_path: Path, offset_s: float) -> None:
    """By a time server that was reached late, or by a machine that slept: back again, too, at the test's end."""
    server = frail.server
    with server.client() as client, ThreadPoolExecutor() as callers:
        recording = turns_of_speech(2, tmp_path)
        waiting = callers.submit(client.post, "/transcribe", files={"file": recording.read_bytes()})
        job = handed_in(client, recording)
        server.wait_until(lambda: state(client, job)["state"] == "running")
        frail.set_clock(offset_s)
        next_job = handed_in(client, turns_of_speech(1, tmp_path))
        assert waiting.result().status_code == 200
        assert [done(server, client, one)["attempt"] for one in (job, next_job)] == [1, 1]


# --- ffmpeg is killed ------------------------------------------------------------------------------------------------


def decoding(server: Server, recording: bytes) -> list[psutil.Process]:
    """The processes that turn *recording* into samples: none of another request's, known by its size."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            arguments = child.cmdline()
            read = [Path(text.removeprefix("file:")) for text in arguments if text.startswith("file:")]
            if "s16le" in arguments and any(path.stat().st_size == len(recording) for path in read):
                found.append(child)
    return found


def test_a_killed_ffmpeg_costs_its_own_request_alone(frail: Frail, long_silence: bytes, tmp_path: Path) -> None:
    """As the kernel does where memory is short. The caller is not told that the recording was at fault."""
    server = frail.server
    with server.client() as client, ThreadPoolExecutor() as callers:
        beside = handed_in(client, turns_of_speech(2, tmp_path))
        waiting = callers.submit(client.post, "/transcribe", files={"file": ("a.flac", long_silence)})
        while not (victims := decoding(server, long_silence)):
            assert not waiting.done(), waiting.result().text
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        answer = waiting.result()
        assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL_ERROR")
        assert "was killed" in answer.json()["detail"]
        assert done(server, client, beside)["attempt"] == 1
