"""provider=openai from one real server to another, which speaks OpenAI's interface as this project does."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.server import KEY, ROOT, Server, environment, running
from tests.speech import sample_call

SAID = "i m originally from chicago also"


def heard(text: str) -> str:
    return " ".join(re.findall("[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Server]:
    """A server whose upstream is the other one."""
    with running(
        tmp_path_factory.mktemp("front"),
        OPENAI_BASE_URL=f"{server.address}/v1/",
        OPENAI_API_KEY=KEY,
        UPSTREAM_WHEN_FULL="true",
        UPSTREAM_TIMEOUT_S="120",
        MAX_CONCURRENT_TRANSCRIPTIONS="1",
        FAIL_FAST="true",
    ) as front:
        yield front


@pytest.fixture
def client(front: Server) -> Iterator[httpx.Client]:
    with front.client() as client:
        yield client


def sent(client: httpx.Client, **query: str) -> httpx.Response:
    files = {"file": ("call.wav", sample_call().read_bytes())}
    return client.post("/transcribe", params={"provider": "openai"} | query, files=files)


def test_the_other_server_hears_the_same(client: httpx.Client) -> None:
    """Text, segments and words with their times, as if it had been done here with the same model."""
    answer = sent(client, word_timestamps="true")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    own = sent(client, word_timestamps="true", provider="local").json()
    assert (told["provider"], told["model"], told["language"]) == ("openai", "whisper-1", "en")
    assert own["provider"] == "local"
    assert SAID in heard(told["text"])
    assert heard(told["text"]) == heard(own["text"])
    assert told["text"] == own["text"]
    times = [[time for one in answer["segments"] for time in (one["start"], one["end"])] for answer in (told, own)]
    assert times[0] == pytest.approx(times[1], abs=0.01)
    theirs, ours = ([word for one in answer["segments"] for word in one["words"]] for answer in (told, own))
    assert [word["word"] for word in theirs] == [word["word"] for word in ours]
    assert [word["start"] for word in theirs] == pytest.approx([word["start"] for word in ours], abs=0.01)


def test_subtitles_and_streams_come_of_it(client: httpx.Client, front: Server) -> None:
    """Whatever is made of a transcript of this server's is made of another's."""
    subtitles = sent(client, response_format="srt")
    assert subtitles.headers["X-Transcribed-By"] == "openai"
    assert "-->" in subtitles.text
    assert SAID in heard(" ".join(line for line in subtitles.text.splitlines() if "-->" not in line))
    stream = sent(client, stream="true").text
    assert stream.index("event: language") < stream.index("event: segment") < stream.index("event: transcript")
    front.wait_until(lambda: front.in_flight() == [])


def test_who_hangs_up_leaves_nothing_on_either_server(front: Server, server: Server) -> None:
    """The upstream's work costs somebody money."""
    with front.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(
            "/transcribe",
            params={"provider": "openai"},
            files={"file": ("call.wav", sample_call().read_bytes())},
            timeout=httpx.Timeout(30.0, read=0.1),
        )
    front.wait_until(lambda: front.in_flight() == [])
    server.wait_until(lambda: server.in_flight() == [])


def test_the_key_is_in_no_log_and_no_file(front: Server, client: httpx.Client) -> None:
    """An upstream that lets nobody in is told, and its key is not."""
    assert sent(client).status_code == 200
    assert KEY not in front.log.read_text()
    kept = [path for path in front.data_dir.rglob("*") if path.is_file() and "models" not in path.parts]
    assert kept
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]


def test_a_wrong_key_is_this_servers_fault(tmp_path: Path, server: Server) -> None:
    """502, and no word of the key."""
    settings = {"OPENAI_BASE_URL": f"{server.address}/v1", "OPENAI_API_KEY": "wrong-key-0123"}
    with running(tmp_path / "front", **settings) as front, front.client() as client:
        answer = sent(client)
    assert (answer.status_code, answer.json()["code"]) == (502, "UPSTREAM_FAILED")
    assert "does not let this server in (401)" in answer.json()["detail"]
    assert "wrong-key-0123" not in answer.text + front.log.read_text()


def test_the_command_line_hands_on_without_a_server(tmp_path: Path, server: Server) -> None:
    """The engine's parts are there, and its models are not loaded."""
    settings = {"OPENAI_BASE_URL": f"{server.address}/v1", "OPENAI_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "command_line", "--local", "--provider", "openai", "-f", "srt", str(sample_call())],
        cwd=tmp_path,
        env=environment(tmp_path / "data", **settings),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "-->" in done.stdout
    assert SAID in heard(done.stdout)
