"""Live text over a real socket: what a caller sends and reads, and what becomes of the server meanwhile."""

from __future__ import annotations

import json
import re
import signal
import socket as sockets
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from benchmarks.scoring import score
from ffmpeg import FFmpeg
from tests.acceptance import sounds
from tests.acceptance.server import ROOT, Server, running
from tests.speech import sample_call

pytestmark = pytest.mark.usefixtures("clean")

Message = dict[str, Any]


@contextmanager
def line(
    server: Server, query: str = "", *, headers: dict[str, str] | None = None, name: str = "live"
) -> Iterator[ClientConnection]:
    """A connection, its key in a header unless there are others."""
    sent = {"X-API-Key": server.key} if headers is None else headers
    address = f"{server.address.replace('http', 'ws', 1)}/transcribe/live?{query}"
    with connect(address, additional_headers=sent | {"X-Request-ID": name}, open_timeout=60) as socket:
        yield socket


def told(socket: ClientConnection) -> tuple[list[Message], int | None]:
    """All that the server still says, and the code with which it closes."""
    messages = []
    try:
        while True:
            messages.append(json.loads(socket.recv(60)))
    except ConnectionClosed:
        return messages, socket.close_code


def said(socket: ClientConnection, data: bytes, size: int) -> tuple[list[Message], int | None]:
    """What comes back of *data*, sent as fast as it is taken."""
    for first in range(0, len(data), size):
        socket.send(data[first : first + size])
    socket.send('{"type":"stop"}')
    return told(socket)


def call_as(*arguments: str) -> bytes:
    command = [FFmpeg.locate("").path, "-v", "error", "-i", sample_call(), *arguments, "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def kinds(messages: Iterable[Message]) -> list[str]:
    return [message["type"] for message in messages]


def held(server: Server) -> int:
    """Sessions at the gate."""
    with server.client() as client:
        return int(client.get("/capacity").json()["work"]["live"]["active"])


def test_a_call_comes_out_as_it_does_from_its_file(server: Server) -> None:
    """Cut elsewhere and decoded as it came, it still says the same."""
    with server.client() as client:
        whole = client.post("/transcribe", files={"file": ("call.wav", sample_call().read_bytes())}).json()["text"]
    with line(server, "word_timestamps=true") as socket:
        messages, code = said(socket, call_as("-ac", "1", "-ar", "16000", "-f", "s16le"), 3_200)
    assert code == 1000
    assert (messages[0]["type"], messages[-1]["type"]) == ("ready", "end")
    segments = [message for message in messages if message["type"] == "segment"]
    assert messages[-1]["text"] == " ".join(segment["text"] for segment in segments)
    assert all(segment["words"] for segment in segments)
    assert messages[-1]["duration"] == pytest.approx(30.0, abs=0.1)
    assert score(whole, messages[-1]["text"], "en").error_rate < 0.25


def test_what_a_browser_records_streams(server: Server) -> None:
    """Opus in WebM, by its first message's key."""
    recorded = call_as("-c:a", "libopus", "-b:a", "32k", "-f", "webm")
    with line(server, "encoding=webm", headers={}) as socket:
        socket.send(json.dumps({"type": "start", "key": server.key}))
        messages, code = said(socket, recorded, 1_500)
    assert code == 1000
    assert "diane in new jersey" in messages[-1]["text"].lower()


def test_silence_makes_no_segment_and_no_batch(server: Server) -> None:
    """The engine tells of each batch, and of none here."""
    with line(server, name="live-silence") as socket:
        messages, code = said(socket, bytes(20 * 32_000), 32_000)
    assert (kinds(messages), code) == (["ready", "end"], 1000)
    [last] = [told for told in server.lines("live-silence") if told.get("path") == "/transcribe/live"]
    assert (last["audio_s"], last["segments"], last["code"]) == (pytest.approx(20.0, abs=0.05), 0, 1000)
    assert not any("batch" in told["event"] for told in server.lines("live-silence"))


def test_speech_makes_batches(server: Server) -> None:
    """So that the test above can fail."""
    speech = call_as("-ac", "1", "-ar", "16000", "-ss", "7", "-t", "4", "-f", "s16le")
    with line(server, name="live-speech") as socket:
        messages, _ = said(socket, speech, 3_200)
    assert "segment" in kinds(messages)
    server.wait_until(lambda: any("batch" in told["event"] for told in server.lines("live-speech")))


@pytest.mark.parametrize("headers", [{"X-API-Key": "wrong-live-key"}, {"Authorization": "Bearer wrong-live-key"}, {}])
def test_a_wrong_key_is_told_and_closed(server: Server, headers: dict[str, str]) -> None:
    """In words and in the code; and it is not logged, nor is what was asked."""
    with line(server, "initial_prompt=confidential", headers=headers) as socket:
        if not headers:
            socket.send(json.dumps({"type": "start", "key": "wrong-live-key"}))
        messages, code = told(socket)
    assert ([message["code"] for message in messages], code) == (["UNAUTHORIZED"], 4401)
    assert "wrong-live-key" not in server.log.read_text()
    assert "confidential" not in server.log.read_text()


def test_what_is_no_sound_is_told(server: Server) -> None:
    with line(server, "encoding=ogg") as socket:
        socket.send(sounds.noise(100_000))
        messages, code = told(socket)
    assert (messages[-1]["code"], code) == ("UNSUPPORTED_MEDIA", 4415)


def test_whoever_hangs_up_leaves_nothing(server: Server) -> None:
    """No file, no child, no place: `clean` looks at the files."""
    before = len(server.processes())
    recorded = call_as("-c:a", "libopus", "-b:a", "32k", "-f", "webm")
    with line(server, "encoding=webm", name="live-gone") as socket:
        for first in range(0, len(recorded) // 2, 1_500):
            socket.send(recorded[first : first + 1_500])
        server.wait_until(lambda: held(server) == 1 and len(server.processes()) > before)
        socket.socket.close()
    server.wait_until(lambda: held(server) == 0 and len(server.processes()) <= before)
    assert any(told.get("code") == 1006 for told in server.lines("live-gone"))


def test_whoever_pings_and_does_not_read_loses_the_place(server: Server) -> None:
    """Answers to pings wait for nobody: they would fill the memory, and the connection would never end."""
    head = f"GET /transcribe/live HTTP/1.1\r\nHost: here\r\nX-API-Key: {server.key}\r\nConnection: Upgrade\r\n"
    head += "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ping = bytes([0x89, 0xFD, 0, 0, 0, 0]) + bytes(125)
    with sockets.create_connection(("127.0.0.1", server.port), timeout=60) as socket:
        socket.sendall(head.encode())
        server.wait_until(lambda: held(server) == 1)
        with pytest.raises(ConnectionError):
            socket.sendall(ping * 500_000)
        server.wait_until(lambda: held(server) == 0)


def test_its_seconds_are_counted(server: Server) -> None:
    """Operators see live sound where they see all other."""

    def heard_s() -> float:
        with server.client() as client:
            found = re.search(r'stenogate_audio_seconds_total{model="tiny.en"} (\S+)', client.get("/metrics").text)
        return float(found[1]) if found else 0.0

    before = heard_s()
    with line(server) as socket:
        said(socket, bytes(5 * 32_000), 32_000)
    assert heard_s() - before == pytest.approx(5.0, abs=0.2)


def test_places_are_few_stalls_are_short_and_a_stop_is_told(tmp_path: Path) -> None:
    """One place, a second of patience, and an end that is told: what an operator may set."""
    with running(tmp_path, API_KEYS="a-live-key", MAX_LIVE_SESSIONS="1", LIVE_IDLE_S="1") as server:
        with line(server) as first:
            assert json.loads(first.recv(60))["type"] == "ready"
            with line(server) as second:
                messages, code = told(second)
            assert ([message["code"] for message in messages], code) == (["QUEUE_FULL"], 4429)
            assert messages[0]["retry_after"] >= 1
            messages, code = told(first)
        assert ([message["code"] for message in messages], code) == (["CLIENT_STALLED"], 4408)
        server.wait_until(lambda: held(server) == 0)
        with line(server) as third:
            assert json.loads(third.recv(60))["type"] == "ready"
            server.process.send_signal(signal.SIGTERM)
            messages, code = told(third)
        assert (messages[-1]["code"], code) == ("SHUTTING_DOWN", 1012)


def test_the_snippet_in_the_documentation_runs(server: Server, tmp_path: Path) -> None:
    """As it stands there, but for the address, the key and the recording."""
    text = (ROOT / "docs" / "live.md").read_text("utf-8")
    [snippet] = re.findall(r"```python\n(.*?)```", text, re.S)
    recording = tmp_path / "talk.wav"
    arguments = ["-ac", "1", "-ar", "16000", "-t", "12", str(recording)]
    subprocess.run([FFmpeg.locate("").path, "-v", "error", "-i", sample_call(), *arguments], check=True)
    program = tmp_path / "live.py"
    program.write_text(
        snippet.replace("ws://127.0.0.1:8000", server.address.replace("http", "ws", 1))
        .replace("YOUR-KEY", server.key)
        .replace("time.sleep(0.1)", "time.sleep(0)")
    )
    done = subprocess.run(
        [sys.executable, program, recording], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout.lower()
