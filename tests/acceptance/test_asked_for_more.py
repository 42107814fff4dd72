"""What a caller may ask for beyond a transcript, on the real server: events, channels, clips, subtitled videos."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from ffmpeg import FFmpeg
from tests.acceptance.server import Server
from tests.speech import sample_call

FFMPEG = str(FFmpeg.locate("").path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def two_channels(folder: Path) -> Path:
    """The call on the left, and nobody on the right but for the call's middle, ten seconds later."""
    path = folder / "two.wav"
    graph = "[0:a]asplit[l][m];[m]atrim=6.5:14,asetpts=PTS-STARTPTS,adelay=20000,apad=whole_dur=30[r];[l][r]amerge"
    subprocess.run([FFMPEG, "-v", "error", "-i", sample_call(), "-filter_complex", graph, path], check=True)
    return path


@pytest.fixture(scope="module")
def video(folder: Path) -> Path:
    path = folder / "a talk.mp4"
    pictures = ("-f", "lavfi", "-i", "testsrc=size=160x120:rate=5:duration=30")
    subprocess.run(
        [FFMPEG, "-v", "error", *pictures, "-i", sample_call(), "-c:v", "mpeg4", "-c:a", "aac", "-shortest", path],
        check=True,
    )
    return path


def asked(client: httpx.Client, path: Path, endpoint: str = "/transcribe", **parameters: Any) -> httpx.Response:
    with path.open("rb") as file:
        return client.post(endpoint, params=parameters, files={"file": file}, timeout=120)


def events(stream: str) -> list[tuple[str, dict[str, Any]]]:
    told = []
    for block in stream.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            told.append((fields["event"], json.loads(fields["data"])))
    return told


def test_segments_are_sent_as_they_are_finished_and_the_whole_at_last(clean: Server, two_channels: Path) -> None:
    """The whole is what the plain answer would have been."""
    with clean.client() as client:
        plain = asked(client, two_channels, channels="split").json()
        answer = asked(client, two_channels, channels="split", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    segments = [data for kind, data in told if kind == "segment"]
    assert [kind for kind, _ in told] == ["segment"] * len(segments) + ["transcript"]
    assert sorted(one["text"] for one in segments) == sorted(one["text"] for one in plain["segments"])
    assert told[-1][1]["text"] == plain["text"]
    assert len(segments) > 1


def test_a_stream_that_cannot_begin_is_refused_like_any_request(clean: Server, folder: Path) -> None:
    """A caller who never gets a first event should look at the status."""
    noise = folder / "noise.wav"
    noise.write_bytes(b"no sound at all" * 100)
    with clean.client() as client:
        answer = asked(client, noise, stream=True)
        assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA")
        answer = asked(client, sample_call(), stream=True, response_format="docx")
        assert (answer.status_code, answer.json()["errors"][0]["name"]) == (422, "stream")


def test_who_leaves_a_stream_leaves_nothing_behind(clean: Server) -> None:
    with (
        clean.client() as client,
        sample_call().open("rb") as file,
        client.stream("POST", "/transcribe", params={"stream": True, "beam_size": 16}, files={"file": file}) as answer,
    ):
        next(answer.iter_lines())


def test_channels_are_heard_apart(clean: Server, two_channels: Path) -> None:
    """Whose words they are needs no model; they have the recording's times."""
    with clean.client() as client:
        found = asked(client, two_channels, channels="split", word_timestamps=True).json()
        mono = asked(client, sample_call(), channels="split").json()
    spoken = {speaker: [one for one in found["segments"] if one["speaker"] == speaker] for speaker in found_in(found)}
    assert set(spoken) == {"CHANNEL_00", "CHANNEL_01"}
    assert min(one["start"] for one in spoken["CHANNEL_00"]) < 8
    assert min(one["start"] for one in spoken["CHANNEL_01"]) > 19
    assert all(one["end"] <= found["duration"] + 0.01 for one in found["segments"])
    assert [one["start"] for one in found["segments"]] == sorted(one["start"] for one in found["segments"])
    assert all(word["speaker"] == one["speaker"] for one in found["segments"] for word in one["words"])
    assert found_in(mono) == {"CHANNEL_00"} or "speaker" not in mono["segments"][0]
    assert "one channel" in mono["warnings"][0]


def found_in(answer: dict[str, Any]) -> set[str]:
    return {one.get("speaker", "CHANNEL_00") for one in answer["segments"]}


def test_only_clips_are_heard(clean: Server) -> None:
    with clean.client() as client:
        found = asked(client, sample_call(), clip_timestamps="10,15,20").json()
        wrong = asked(client, sample_call(), clip_timestamps="10,5")
    assert found["segments"]
    assert all(one["start"] >= 10 and (one["end"] <= 15 or one["start"] >= 20) for one in found["segments"])
    assert (wrong.status_code, wrong.json()["errors"][0]["name"]) == (422, "clip_timestamps")


def test_speakers_must_be_asked_for_and_agree(clean: Server) -> None:
    with clean.client() as client:
        for parameters in (
            {"num_speakers": 2},
            {"diarize": True, "num_speakers": 2, "max_speakers": 3},
            {"diarize": True, "min_speakers": 3, "max_speakers": 2},
            {"align_model": "/etc/passwd"},
        ):
            assert asked(client, sample_call(), **parameters).status_code == 422


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_video_comes_back_with_subtitles(clean: Server, video: Path, folder: Path, mode: str) -> None:
    """As a stream that viewers can turn on, with what is said in it."""
    with clean.client() as client:
        answer = asked(client, video, "/subtitle", mode=mode)
        if mode == "async":
            job = answer.json()["id"]
            clean.wait_until(lambda: client.get(f"/jobs/{job}").json()["state"] not in ("queued", "running"), 120)
            answer = client.get(f"/jobs/{job}/result")
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert made["file_name"] == "a talk.mp4"
        path = folder / f"{mode}.mp4"
        path.write_bytes(client.get(f"/files/{made['id']}").content)
        client.delete(f"/files/{made['id']}")
    subtitles = subprocess.run(
        [FFMPEG, "-v", "error", "-i", path, "-map", "0:s:0", "-f", "srt", "-"], check=True, capture_output=True
    )
    assert "hello" in subtitles.stdout.decode().lower()


def test_a_recording_without_a_picture_gets_no_subtitles(clean: Server) -> None:
    with clean.client() as client:
        answer = asked(client, sample_call(), "/subtitle")
    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA")
