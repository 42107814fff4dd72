"""What the service is for, over HTTP, with real speech and real weights."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.schemas import TranscriptionSchema, VerboseTranscriptionSchema
from tests.acceptance.server import Server, curl
from tests.media_server import MediaServer
from tests.speech import speech_file

pytestmark = pytest.mark.usefixtures("clean")

SPEECH = "formats/jfk.mp3"
SAID = "ask not what your country can do for you"


@pytest.fixture
def client(server: Server):  # type: ignore[no-untyped-def]
    with server.client() as client:
        yield client


def send(client: httpx.Client, **query: Any) -> httpx.Response:
    answer = client.post("/transcribe", params=query, files={"file": ("jfk.mp3", speech_file(SPEECH).read_bytes())})
    assert answer.status_code == 200, answer.text
    return answer


def heard(text: str) -> str:
    return " ".join(re.findall("[a-z]+", text.lower()))


def test_an_uploaded_recording(client: httpx.Client) -> None:
    """The main thing, with all that the answer should tell."""
    told = TranscriptionSchema.model_validate(send(client).json())
    assert SAID in heard(told.text)
    assert (told.language, told.model) == ("en", "tiny.en")
    assert told.duration == pytest.approx(11, abs=0.5)
    assert told.real_time_factor > 0
    assert {"decode", "transcribe", "total"} <= set(told.timings)
    assert all(0 <= a.start <= a.end <= told.duration for a in told.segments)


def test_words_with_their_times(client: httpx.Client) -> None:
    """In order, inside the recording, and together the text."""
    told = TranscriptionSchema.model_validate(send(client, word_timestamps="true").json())
    words = [word for segment in told.segments for word in segment.words or []]
    assert SAID in heard(" ".join(word.word for word in words))
    assert all(word.start <= word.end for word in words)
    assert all(before.start <= after.start for before, after in itertools.pairwise(words))
    assert all(0 <= word.probability <= 1 for word in words)


def test_verbose_json(client: httpx.Client) -> None:
    """As clients of OpenAI's API read it."""
    told = VerboseTranscriptionSchema.model_validate(send(client, response_format="verbose_json").json())
    assert told.language == "english"


@pytest.mark.parametrize(
    ("response_format", "media_type", "pattern"),
    [
        ("text", "text/plain", r"\S+"),
        ("srt", "application/x-subrip", r"1\n\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}\n\S"),
        ("vtt", "text/vtt", r"WEBVTT\n\n.*\d\d:\d\d\.\d{3} --> .*\n\S"),
        ("tsv", "text/tab-separated-values", r"start\tend\ttext\n\d+\t\d+\t\S"),
    ],
)
def test_the_text_formats(client: httpx.Client, response_format: str, media_type: str, pattern: str) -> None:
    """Each in its own type, with the words in it."""
    answer = send(client, response_format=response_format)
    assert answer.headers["content-type"].startswith(media_type)
    assert re.match(pattern, answer.text), answer.text[:200]
    assert "country can do for you" in heard(answer.text)


@pytest.mark.parametrize("media_type", ["audio/mpeg", "application/octet-stream"])
def test_the_body_is_the_recording(client: httpx.Client, media_type: str) -> None:
    """`curl --data-binary @recording.mp3`."""
    body = speech_file(SPEECH).read_bytes()
    answer = client.post("/transcribe", content=body, headers={"Content-Type": media_type})
    assert SAID in heard(answer.json()["text"])


def test_a_video(client: httpx.Client) -> None:
    """Its sound is taken; its pictures are not looked at."""
    video = speech_file("formats/libri_2spk_video.webm")
    answer = client.post("/transcribe", files={"file": (video.name, video.read_bytes())})
    assert answer.status_code == 200
    assert len(answer.json()["text"].split()) > 5


def test_the_known_call(server: Server, allowed_folder: Path) -> None:
    """Just as it is written in the documentation, once its folder is allowed; only the port is this server's."""
    if curl() is None:
        pytest.skip("there is no curl on this machine")
    shutil.copy(speech_file(SPEECH), allowed_folder / "4450a805.mp3")
    query = f"audio_file={allowed_folder}/4450a805.mp3&provider=local&model_size=tiny.en"
    done = subprocess.run(
        ["curl", "-sS", "-X", "POST", f"{server.address}/transcribe?{query}", "-H", "X-API-Key: test-api-key-123"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert SAID in heard(done.stdout)


def test_from_a_link_to_a_transcript(client: httpx.Client, web: MediaServer) -> None:
    """Download, extract and transcribe run as one."""
    web.files["/talk.mp3"] = ("audio/mpeg", speech_file(SPEECH).read_bytes())
    answer = client.post("/transcribe", data={"url": web.at("/talk.mp3")})
    assert answer.status_code == 200, answer.text
    assert SAID in heard(answer.json()["text"])
    assert answer.json()["timings"]["download"] > 0


def test_download_then_transcribe_then_delete(client: httpx.Client, server: Server, web: MediaServer) -> None:
    """Step by step, as one does who wants to keep the file."""
    content = speech_file(SPEECH).read_bytes()
    web.files["/kept.mp3"] = ("audio/mpeg", content)
    stored = client.post("/download", params={"url": web.at("/kept.mp3")})
    assert stored.status_code == 200, stored.text
    file = stored.json()
    assert file["media_type"] == "audio/mpeg"
    assert file["bytes"] == len(content)
    place = server.data_dir / "media" / file["path"]
    assert place.read_bytes() == content
    assert file["id"] in [known["id"] for known in client.get("/files").json()["files"]]
    for reference in (file["id"], file["path"], str(place)):
        answer = client.post("/transcribe", params={"audio_file": reference})
        assert SAID in heard(answer.json()["text"])
    part = client.get(f"/files/{file['id']}", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert client.get(f"/files/{file['id']}").content == content
    assert client.delete(f"/files/{file['id']}").status_code == 204
    assert client.get(f"/files/{file['id']}").json()["code"] == "FILE_NOT_FOUND"
    assert not place.exists()


def test_a_file_is_not_there_for_another_key(client: httpx.Client, server: Server) -> None:
    """In no list, by no name and for no work: all answers are those to a file that nobody has."""
    video = speech_file("formats/libri_2spk_video.mov")
    file = client.post("/extract-audio", files={"file": (video.name, video.read_bytes())}).json()
    place = server.data_dir / "media" / file["path"]
    with server.client() as other:
        other.headers["X-API-Key"] = "another-key"
        assert file["id"] not in other.get("/files").text
        asked = [("GET", f"/files/{file['id']}", {}), ("DELETE", f"/files/{file['id']}", {})]
        for name in (file["id"], file["path"], str(place)):
            asked += [
                ("POST", "/transcribe", {"audio_file": name}),
                ("POST", "/extract-audio", {"video_file": name, "mode": "async"}),
            ]
        for method, path, query in asked:
            answer = other.request(method, path, params=query)
            assert (answer.status_code, answer.json()["code"]) == (404, "FILE_NOT_FOUND"), (path, query)
        batch = other.post("/jobs/batch", json={"files": [file["id"]]})
        assert (batch.status_code, "FILE_NOT_FOUND" in batch.text) == (422, True)
    assert client.get(f"/files/{file['id']}").content == place.read_bytes()
    assert client.delete(f"/files/{file['id']}").status_code == 204


@pytest.mark.parametrize("format", ["mp3", "wav", "flac", "m4a", "opus"])
def test_extract_then_transcribe(client: httpx.Client, format: str) -> None:
    """The sound of a video in each format, good enough to be understood."""
    video = speech_file("formats/libri_2spk_video.mov")
    query = {"format": format, "sample_rate": "16000", "channels": "1"}
    stored = client.post("/extract-audio", params=query, files={"file": (video.name, video.read_bytes())})
    assert stored.status_code == 200, stored.text
    file = stored.json()
    assert file["media_type"].startswith("audio/")
    assert file["file_name"].endswith(f".{format}")
    answer = client.post("/transcribe", params={"audio_file": file["audio_file"]})
    assert len(answer.json()["text"].split()) > 5
    again = client.post("/extract-audio", params={"video_file": file["id"], "format": "wav"})
    assert again.status_code == 200, again.text
    for made in (file, again.json()):
        assert client.delete(f"/files/{made['id']}").status_code == 204


def test_what_is_written_no_other_user_reads(server: Server, client: httpx.Client) -> None:
    """Recordings, transcripts and links lie there, and a machine may have other users."""
    video = speech_file("formats/libri_2spk_video.mov")
    file = client.post("/extract-audio", files={"file": (video.name, video.read_bytes())}).json()
    written = [path for path in server.data_dir.rglob("*") if not path.is_symlink() and path.is_file()]
    assert {"jobs.db", f"{file['id']}.json"} <= {path.name for path in written}
    assert [path for path in written if path.stat().st_mode & 0o077] == []
    assert client.delete(f"/files/{file['id']}").status_code == 204


def test_models_tell_what_is_loaded(client: httpx.Client) -> None:
    """After a transcription the default model is in memory."""
    send(client)
    models = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert models["tiny.en"]["loaded"]
    assert models["tiny.en"]["default"]
    assert models["tiny.en"]["source"]
    assert not models["large-v3"]["available"]


def test_a_prompt_and_a_temperature_are_taken(client: httpx.Client) -> None:
    """Every option has a way through."""
    answer = send(client, initial_prompt="John F. Kennedy, 1961.", temperature="0.2", beam_size="2", vad="none")
    assert "country" in heard(answer.json()["text"])
