"""One id for one request: in the answer, its header, and every line of the log, in both processes."""

from __future__ import annotations

import re

import pytest

from tests.acceptance.server import Server
from tests.speech import speech_file

pytestmark = pytest.mark.usefixtures("clean")


def test_an_id_is_made_and_told(server: Server) -> None:
    """Eight hex characters, in header, body and log."""
    with server.client() as client:
        answer = client.post("/transcribe")
    name = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{8}", name)
    assert answer.json()["request_id"] == name
    server.wait_until(lambda: any("status" in line for line in server.lines(name)))
    assert all(line["event"].startswith(f"[Request {name}] ") for line in server.lines(name))


def test_the_callers_id_reaches_the_engines_log_too(server: Server) -> None:
    """A crash over there must be found by the same word."""
    name = "caller-7.b"
    with server.client() as client:
        answer = client.post(
            "/transcribe",
            headers={"X-Request-ID": name},
            files={"file": ("a.wav", speech_file("formats/jfk_16k.wav").read_bytes())},
        )
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == name
    server.wait_until(lambda: any(line.get("status") == 200 for line in server.lines(name)))
    told = server.lines(name)
    assert all(line["event"].startswith(f"[Request {name}] ") for line in told)
    assert {line["process"] for line in told} == {"server", "engine"}


@pytest.mark.parametrize("proposed", ["a b", "<script>", "x" * 65])
def test_an_insane_id_is_replaced(server: Server, proposed: str) -> None:
    """It would travel into logs and headers."""
    with server.client() as client:
        answer = client.get("/health", headers={"X-Request-ID": proposed})
    assert re.fullmatch("[0-9a-f]{8}", answer.headers["x-request-id"])


def test_no_key_and_no_query_is_logged(server: Server) -> None:
    """Logs are read by more people than keys are meant for."""
    with server.client() as client:
        client.post("/download", params={"url": "http://127.0.0.1:1/a.mp3?token=very-secret-token"})
        client.post("/transcribe", params={"url": "http://ann:very-secret-password@example.org/a"})
        client.get("/models", headers={"X-API-Key": "a-wrong-but-secret-key"})
    text = server.log.read_text()
    for secret in (server.key, "very-secret-token", "very-secret-password", "a-wrong-but-secret-key"):
        assert secret not in text
