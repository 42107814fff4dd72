"""A client that hangs up: the work stops, the files vanish, the log says so."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.acceptance import sounds
from tests.acceptance.server import Server
from tests.media_server import MediaServer
from tests.speech import speech_file

pytestmark = pytest.mark.usefixtures("clean")


def begin(server: Server, target: str, body: bytes = b"", *, length: int | None = None, name: str) -> socket.socket:
    """Send a request and leave its answer on the wire."""
    line = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    lines = [f"POST {target} HTTP/1.1", "Host: x", f"X-API-Key: {server.key}", f"X-Request-ID: {name}"]
    lines += ["Content-Type: application/octet-stream", f"Content-Length: {len(body) if length is None else length}"]
    line.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return line


def hung_up(server: Server, name: str) -> bool:
    return any(line.get("status") == 499 for line in server.lines(name))


def test_during_the_upload(server: Server) -> None:
    """Half an upload is no file."""
    line = begin(server, "/transcribe", b"\0" * 2**20, length=3 * 2**20, name="gone-upload")
    server.wait_until(lambda: server.in_flight() != [])
    line.close()
    server.wait_until(lambda: hung_up(server, "gone-upload") and server.in_flight() == [])


def test_during_the_transcription(server: Server, tmp_path: Path) -> None:
    """The engine's time belongs to those who wait for it."""
    speech = sounds.excerpt(speech_file("long/libri_10spk_long.mp3"), 80, tmp_path)
    line = begin(server, "/transcribe?beam_size=16", speech, name="gone-transcribe")
    server.wait_until(lambda: any(path.suffix == ".pcm" for path in server.in_flight()))
    line.close()
    server.wait_until(lambda: hung_up(server, "gone-transcribe") and server.in_flight() == [])
    assert not any("real_time_factor" in told for told in server.lines("gone-transcribe"))
    with server.client() as client:
        after = client.post("/transcribe", files={"file": ("a.wav", sounds.silence(1))})
    assert after.status_code == 200


@pytest.mark.parametrize("target", ["/transcribe", "/download"])
def test_during_the_download(server: Server, web: MediaServer, target: str) -> None:
    """The link's server is left as well."""
    name = f"gone{target.replace('/', '-')}-link"
    web.asked.clear()
    line = begin(server, f"{target}?url={web.at('/slow')}", name=name)
    server.wait_until(web.asked.is_set)
    line.close()
    server.wait_until(lambda: hung_up(server, name) and server.in_flight() == [])
