"""Everything that callers do wrong: a clear code each time, nothing left behind, and the server as well as before."""

from __future__ import annotations

import io
import socket
import wave
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance import sounds
from tests.acceptance.server import MAX_DURATION_S, MAX_UPLOAD_MB, Server
from tests.media_server import MediaServer
from tests.speech import speech_file

pytestmark = pytest.mark.usefixtures("clean")

SPEECH = "formats/jfk_16k.wav"


def ask(server: Server, path: str = "/transcribe", **request: Any) -> httpx.Response:
    with server.client() as client:
        return client.post(path, **request)


def upload(content: bytes, name: str = "recording.mp3") -> dict[str, Any]:
    return {"files": {"file": (name, content)}}


def assert_problem(answer: httpx.Response, status: int, *codes: str) -> None:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert problem["code"] in codes, problem
    assert answer.status_code == problem["status"] == status
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text


# --- who is asking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"X-API-Key": ""}])
def test_no_key_or_a_wrong_one(server: Server, headers: dict[str, str]) -> None:
    """Nothing works without."""
    answer = httpx.post(f"{server.address}/transcribe", headers=headers, files={"file": ("a.wav", b"x")})
    assert_problem(answer, 401, "UNAUTHORIZED")


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_watchers_ask_with_head(server: Server, path: str) -> None:
    """Without a key, and without a body: the next answer on the connection is not mistaken for one."""
    with httpx.Client(base_url=server.address) as client:
        head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_no_audio_given(server: Server) -> None:
    """An empty request is a mistake, not silence."""
    assert_problem(ask(server), 422, "NO_AUDIO")


def test_two_audios_given(server: Server) -> None:
    """Which one was meant is not ours to guess."""
    request = upload(speech_file(SPEECH).read_bytes()) | {"params": {"url": "http://example.org/a.mp3"}}
    assert_problem(ask(server, **request), 422, "AMBIGUOUS_AUDIO")


def test_an_unknown_id(server: Server) -> None:
    """Ids are given by this server."""
    assert_problem(ask(server, params={"audio_file": "0123456789abcdef"}), 404, "FILE_NOT_FOUND")


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "../../../etc/passwd", "{allowed}/../x", "/"])
def test_a_path_outside(server: Server, allowed_folder: Path, path: str) -> None:
    """This server must not become a reader of its own machine."""
    answer = ask(server, params={"audio_file": path.format(allowed=allowed_folder)})
    assert answer.status_code in (403, 404)
    assert_problem(answer, answer.status_code, "PATH_NOT_ALLOWED", "FILE_NOT_FOUND")


def test_a_link_that_leads_out(server: Server, allowed_folder: Path, tmp_path: Path) -> None:
    """A link inside an allowed folder is not itself allowed to lead anywhere."""
    (outside := tmp_path / "outside.wav").write_bytes(speech_file(SPEECH).read_bytes())
    link = allowed_folder / "link.wav"
    link.symlink_to(outside)
    try:
        assert_problem(ask(server, params={"audio_file": str(link)}), 403, "PATH_NOT_ALLOWED")
    finally:
        link.unlink()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"model_size": "gigantic"}, "UNKNOWN_MODEL"),
        ({"model_size": "medium"}, "MODEL_UNAVAILABLE"),
        ({"language": "klingon"}, "UNSUPPORTED_LANGUAGE"),
        ({"language": "fr"}, "UNSUPPORTED_LANGUAGE"),
        ({"response_format": "pdf"}, "INVALID_REQUEST"),
        ({"beam_size": "0"}, "INVALID_REQUEST"),
        ({"provider": "openai"}, "PROVIDER_NOT_ALLOWED"),
        ({"modelsize": "tiny"}, "INVALID_REQUEST"),
    ],
)
def test_a_wrong_parameter(server: Server, query: dict[str, str], code: str) -> None:
    """Each with its own code, and with words that help."""
    assert_problem(ask(server, params=query, **upload(speech_file(SPEECH).read_bytes())), 422, code)


def test_an_unavailable_model_names_those_that_are(server: Server) -> None:
    """Offline, the caller needs to know what there is."""
    answer = ask(server, params={"model_size": "medium"}, **upload(speech_file(SPEECH).read_bytes()))
    assert "tiny.en" in answer.json()["detail"]


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_an_empty_file(server: Server) -> None:
    """It is not silence."""
    assert_problem(ask(server, **upload(b"")), 422, "EMPTY_FILE")


def test_an_empty_file_on_the_server(server: Server, allowed_folder: Path) -> None:
    """The same by its path."""
    (empty := allowed_folder / "empty.wav").touch()
    assert_problem(ask(server, params={"audio_file": str(empty)}), 422, "EMPTY_FILE")


@pytest.mark.parametrize("path", ["/transcribe", "/extract-audio"])
def test_random_bytes_named_mp3(server: Server, path: str) -> None:
    """A name proves nothing, and noise must not become words."""
    answer = ask(server, path, **upload(sounds.noise(100_000)))
    assert_problem(answer, 415, "UNSUPPORTED_MEDIA")


@pytest.mark.parametrize("path", ["/transcribe", "/extract-audio"])
@pytest.mark.parametrize("name", ["notes.txt", "notes.mp3"])
def test_a_text_file(server: Server, path: str, name: str) -> None:
    """ffmpeg has a demuxer for text, which draws it as a picture."""
    assert_problem(ask(server, path, **upload(b"To do: buy milk.\n" * 500, name)), 415, "UNSUPPORTED_MEDIA")


@pytest.mark.parametrize("path", ["/transcribe", "/extract-audio"])
def test_a_video_without_sound(server: Server, path: str, tmp_path: Path) -> None:
    """There is nothing to hear."""
    assert_problem(ask(server, path, **upload(sounds.video_without_sound(tmp_path), "a.mp4")), 422, "NO_AUDIO_STREAM")


def test_a_truncated_wav(server: Server) -> None:
    """What is there is transcribed, or a clear error: never half a success that says nothing."""
    whole = speech_file(SPEECH).read_bytes()
    answer = ask(server, **upload(whole[: len(whole) // 2], "a.wav"))
    if answer.status_code == 200:
        assert "fellow" in answer.json()["text"].lower()
        assert answer.json()["duration"] < 8
    else:
        assert_problem(answer, 415, "UNSUPPORTED_MEDIA")


@pytest.mark.parametrize("cut", [10, 44, 45])
def test_a_wav_that_ends_in_its_header(server: Server, cut: int) -> None:
    """No samples at all: an error, never a crash."""
    answer = ask(server, **upload(speech_file(SPEECH).read_bytes()[:cut], "a.wav"))
    assert answer.status_code in (200, 415, 422), answer.text
    if answer.status_code == 200:
        assert answer.json()["text"] == ""


def test_a_twentieth_of_a_second(server: Server) -> None:
    """Shorter than any word, and than a model's first frame."""
    answer = ask(server, **upload(sounds.silence(0.05), "a.wav"))
    assert answer.status_code == 200
    assert answer.json()["text"] == ""


def test_silence_is_an_empty_transcript(server: Server) -> None:
    """Whisper invents words for silence if one lets it."""
    answer = ask(server, **upload(sounds.silence(10), "a.wav"))
    assert answer.status_code == 200
    assert answer.json()["text"] == ""
    assert answer.json()["segments"] == []
    assert answer.json()["duration"] == pytest.approx(10, abs=0.1)


def test_a_recording_that_is_too_long(server: Server) -> None:
    """Known from the header, before any of it is decoded."""
    seconds = MAX_DURATION_S + 20
    assert_problem(ask(server, **upload(sounds.silence(seconds), "a.wav")), 413, "AUDIO_TOO_LONG")


def test_a_recording_whose_header_lies_about_its_length(server: Server) -> None:
    """A header is a claim: decoding stops at the limit all the same."""
    content = bytearray(sounds.silence(MAX_DURATION_S + 20))
    content[40:44] = (16_000).to_bytes(4, "little")
    answer = ask(server, **upload(bytes(content), "a.wav"))
    assert answer.status_code in (200, 413)
    if answer.status_code == 200:
        assert answer.json()["duration"] <= MAX_DURATION_S


def test_a_playlist_reads_no_local_file(server: Server, allowed_folder: Path, tmp_path: Path) -> None:
    """Under another name, each kind that ffmpeg knows."""
    (secret := tmp_path / "secret.wav").write_bytes(speech_file(SPEECH).read_bytes())
    for kind, content in sounds.playlists(secret):
        for path in ("/transcribe", "/extract-audio"):
            for name in ("a.mp3", "a.m3u8", "a.wav"):
                answer = ask(server, path, **upload(content, name))
                assert answer.status_code in (415, 422), (kind, path, name, answer.text)
                assert "country" not in answer.text


# --- how much is sent ------------------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large_is_refused_at_its_head(server: Server) -> None:
    """The answer comes though not a byte of the body was sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(head(server, "Content-Type: audio/mpeg", f"Content-Length: {10 * 2**30}", "Expect: 100-continue"))
        said = line.makefile("rb").readline()
    assert said.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_too_large_is_stopped_while_it_arrives(server: Server) -> None:
    """Chunked, so that no length is told. The answer must be there long before the end that never comes."""
    chunk = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(head(server, "Content-Type: audio/mpeg", "Transfer-Encoding: chunked"))
        try:
            while sent < 1024:
                line.sendall(chunk)
                sent += 1
        except OSError:
            pass
        said = line.makefile("rb").readline()
    assert said.startswith(b"HTTP/1.1 413 ")
    assert sent < 1024


def test_a_stranger_that_sends_a_lot_is_told_at_once(server: Server) -> None:
    """401 is decided by the header; the body is not waited for."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(
            b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Type: audio/mpeg\r\nContent-Length: 1000000000\r\n\r\n"
            + b"\0" * 100_000
        )
        said = line.makefile("rb").readline()
    assert said.startswith(b"HTTP/1.1 401 ")


def test_the_largest_body_that_is_allowed(server: Server) -> None:
    """The limit is where it says it is."""
    size = MAX_UPLOAD_MB * 2**20
    headers = {"Content-Type": "audio/mpeg"}
    assert_problem(ask(server, content=sounds.noise(size), headers=headers), 415, "UNSUPPORTED_MEDIA")
    assert_problem(ask(server, content=sounds.noise(size + 1), headers=headers), 413, "UPLOAD_TOO_LARGE")


def head(server: Server, *lines: str) -> bytes:
    return "\r\n".join(["POST /transcribe HTTP/1.1", "Host: x", f"X-API-Key: {server.key}", *lines, "", ""]).encode()


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    [
        "ftp://example.org/a.mp3",
        "file:///etc/passwd",
        "example.org/a.mp3",
        "http://ann:secret@example.org/a.mp3",
        "http://example.org/a\nb.mp3",
        "http://example.org/\x00",
        "http://",
        "javascript:alert(1)",
    ],
)
@pytest.mark.parametrize("path", ["/transcribe", "/download"])
def test_a_link_that_is_none(server: Server, path: str, link: str) -> None:
    """Nothing but plain http and https."""
    assert_problem(ask(server, path, json={"url": link}), 422, "INVALID_URL")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "100.64.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[fe80::1]",
        "[fd00::1]",
        "[ff02::1]",
    ],
)
def test_a_link_to_an_inner_address(server: Server, host: str) -> None:
    """In any number notation; what answers there is nobody's business outside."""
    answer = ask(server, "/download", json={"url": f"http://{host}:{server.port}/health"})
    assert answer.status_code in (403, 422), answer.text
    assert_problem(answer, answer.status_code, "URL_NOT_ALLOWED", "INVALID_URL")


def test_a_redirect_to_an_inner_address(server: Server, web: MediaServer) -> None:
    """The first address may be good; what counts is where bytes come from."""
    link = web.at("/redirect", to=f"http://127.0.0.1:{server.port}/health")
    assert_problem(ask(server, "/download", json={"url": link}), 403, "URL_NOT_ALLOWED")


def test_a_page_without_media(server: Server, web: MediaServer) -> None:
    """A page is no recording."""
    assert_problem(ask(server, params={"url": web.at("/nothing")}), 422, "NO_MEDIA_AT_URL")


def test_a_server_that_dies_in_mid_download(server: Server, web: MediaServer) -> None:
    """Half a recording is not transcribed as if it were whole."""
    assert_problem(ask(server, params={"url": web.at("/half")}), 502, "DOWNLOAD_FAILED")


# --- stored files ----------------------------------------------------------------------------------------------------


def test_a_refused_upload_stores_nothing(server: Server) -> None:
    """Only what succeeded is kept."""
    with server.client() as client:
        before = client.get("/files").json()
        ask(server, "/extract-audio", **upload(sounds.noise(5000)))
        assert client.get("/files").json() == before


def test_a_wav_of_odd_make_is_read(server: Server) -> None:
    """8-bit stereo at 11 kHz is still sound: not everything strange is an error."""
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(1)
        sound.setframerate(11_025)
        sound.writeframes(b"\x80\x80" * 11_025)
    answer = ask(server, **upload(target.getvalue(), "a.wav"))
    assert answer.status_code == 200
    assert answer.json()["text"] == ""
