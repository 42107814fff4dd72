"""What is sent as a recording: strange names, files that are none, and headers that claim what is not there."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.acceptance import sounds
from tests.acceptance.attacks import false_recordings as false
from tests.acceptance.attacks.canary import Canary
from tests.acceptance.attacks.table import MAX_DURATION_S, assert_refused
from tests.acceptance.server import Server
from tests.speech import sample_call

pytestmark = pytest.mark.usefixtures("nothing_kept")

PATHS = ("/transcribe", "/extract-audio")
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two seconds in which somebody speaks."""
    folder = tmp_path_factory.mktemp("speech")
    return false.written(folder, "speech.wav", "-ss", "7", "-t", "2", "-i", sample_call(), "-ar", "16000")


def form(content: bytes, name: bytes) -> bytes:
    """*content* as a form's file; *name* is the rest of its Content-Disposition, as it stands on the wire."""
    return b'--b\r\nContent-Disposition: form-data; name="file"; %b\r\n\r\n%b\r\n--b--\r\n' % (name, content)


def upload(client: httpx.Client, path: str, content: bytes, name: str = "a.wav") -> httpx.Response:
    return client.post(path, files={"file": (name, content)})


# --- names ---------------------------------------------------------------------------------------------------------

NAMES = {
    "option": b'filename="-i.wav"',
    "command": b'filename="a;id.wav"',
    "substitution": b'filename="$(id).wav"',
    "long": b'filename="' + b"x" * 4_000 + b'.wav"',
    "encoded way up": b'filename="..%2f..%2fx.wav"',
    "way up": b'filename="../../x.wav"',
    "drive": b'filename="C:\\x"',
    "device": b'filename="nul"',
    "right to left": 'filename="\u202evaw.3pm"'.encode(),
    "line ends in another": b"filename=\"a.wav\"; filename*=UTF-8''a%0d%0aX-Evil:%201.wav",
    "line ends in quotes": b'filename="a%0d%0aX-Evil: 1.wav"',
    "emoji": 'filename="\U0001f600\u200d.wav"'.encode(),
    "no UTF-8": b'filename="\xff\xfe.wav"',
    "NUL": b'filename="a\0b.wav"',
    "quote": b'filename="a\\"; X-Evil=\\".wav"',
}
ONE_HEADER = re.compile(r"attachment; filename(=\"[\w.~-]+\"|\*=utf-8''[\w.~%-]+)", re.ASCII)
OURS = re.compile(r"[0-9a-f]{32}\.(mp3|json)|incoming")


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_recording_of_any_name_is_heard(server: Server, client: httpx.Client, speech: bytes, name: bytes) -> None:
    """A name is the caller's word for it: told back as one header, and no part of any path."""
    body = form(speech, name)
    heard = client.post("/transcribe?beam_size=1", content=body, headers=FORM)
    assert heard.status_code == 200, heard.text
    assert heard.json()["text"]
    made = client.post("/extract-audio", content=body, headers=FORM)
    assert made.status_code == 200, made.text
    fetched = client.get(f"/files/{made.json()['id']}")
    (told,) = fetched.headers.get_list("content-disposition")
    assert ONE_HEADER.fullmatch(told), told
    assert "x-evil" not in fetched.headers
    on_disk = [path.name for path in (server.data_dir / "media").iterdir()]
    assert [one for one in on_disk if not OURS.fullmatch(one)] == []
    assert client.delete(f"/files/{made.json()['id']}").status_code == 204


def test_a_name_longer_than_any(client: httpx.Client, speech: bytes) -> None:
    """Names on disks end at 255 characters: a header of more than 4 KiB is no name."""
    for path in PATHS:
        answer = client.post(path, content=form(speech, b'filename="' + b"x" * 5_000 + b'"'), headers=FORM)
        assert_refused(answer, 422, "INVALID_REQUEST")


def test_a_name_that_no_form_may_have(client: httpx.Client, speech: bytes) -> None:
    """RFC 7578 forbids filename* in forms. Alone, it makes no file."""
    for path in PATHS:
        answer = client.post(path, content=form(speech, b"filename*=UTF-8''a%0d%0aX-Evil:%201.wav"), headers=FORM)
        assert_refused(answer, 422, "INVALID_REQUEST")


# --- files that are none ---------------------------------------------------------------------------------------------

SECRET = "/etc/passwd"
TEXTS = list(false.texts("", ""))


def assert_no_recording(
    server: Server, client: httpx.Client, content: bytes, name: str, *codes: str, secret: str = "root:"
) -> None:
    for path in PATHS:
        answer = upload(client, path, content, name)
        assert_refused(answer, 422 if codes else 415, *(codes or ("UNSUPPORTED_MEDIA",)))
        assert secret not in answer.text
        assert secret not in server.log.read_text()


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_names_another_file(server: Server, client: httpx.Client, canary: Canary, kind: str) -> None:
    """Nothing that it names is opened, or called."""
    name, content = false.texts(SECRET, f"http://127.0.0.1:{canary.port}/a.ts")[kind]
    assert_no_recording(server, client, content, name)


@pytest.mark.parametrize("remote", [False, True], ids=["of a file", "of an address"])
def test_a_playlist_in_a_videos_subtitles(server: Server, client: httpx.Client, canary: Canary, remote: bool) -> None:
    """ffmpeg has opened such once (CVE-2017-9993)."""
    target = f"http://127.0.0.1:{canary.port}/a.ts" if remote else f"file://{SECRET}"
    playlist = f"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\n{target}\n#EXT-X-ENDLIST\n"
    assert_no_recording(server, client, false.avi_with_a_playlist(playlist), "a.avi")


@pytest.mark.parametrize("kind", [b"url ", b"alis"], ids=["url", "alias"])
def test_a_video_whose_sound_lies_in_another_file(
    server: Server, client: httpx.Client, tmp_path: Path, speech: bytes, kind: bytes
) -> None:
    """QuickTime knows references to other files."""
    (spoken := tmp_path / "speech.wav").write_bytes(speech)
    content, elsewhere = false.with_its_sound_elsewhere(tmp_path, spoken, kind)
    assert upload(client, "/transcribe", elsewhere.read_bytes()).json()["text"]
    assert_no_recording(server, client, content, "a.mov", secret=elsewhere.name)


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zip bomb": ("talk.wav.zip", false.zip_bomb),
    "picture": ("a.png", false.png),
    "tags alone": ("a.mp3", lambda: false.tags_alone(1)),
    "program": ("a.wav", lambda: b"\x7fELF" + bytes(2_000)),
    "NULs": ("a.mp3", lambda: bytes(100_000)),
    "a wav's first bytes": ("a.wav", lambda: false.wav()[:30]),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_recording(server: Server, client: httpx.Client, kind: str) -> None:
    """A name proves nothing, and nothing is unpacked."""
    name, content = FILES[kind]
    assert_no_recording(server, client, content(), name)


def test_no_bytes(server: Server, client: httpx.Client) -> None:
    """They are not silence."""
    assert_no_recording(server, client, b"", "a.wav", "EMPTY_FILE")


def test_no_sound(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    """Pictures alone."""
    assert_no_recording(server, client, sounds.video_without_sound(tmp_path), "a.mp4", "NO_AUDIO_STREAM")


# --- headers that claim ----------------------------------------------------------------------------------------------

HOURS_1000 = 1_000 * 3_600
HEADERS = {
    "1,000 hours": (false.wav(rate=1_000, claimed_bytes=1_000 * HOURS_1000), (200, "")),
    "1,000 channels": (false.wav(channels=1_000), (415, "UNSUPPORTED_MEDIA")),
    "65,535 channels": (false.wav(channels=2**16 - 1), (415, "UNSUPPORTED_MEDIA")),
    "no channel": (false.wav(channels=0), (415, "UNSUPPORTED_MEDIA")),
    "768 kHz": (false.wav(rate=768_000), (200, "")),
    "4 GHz": (false.wav(rate=2**32 - 1), (415, "UNSUPPORTED_MEDIA")),
    "1 Hz": (false.wav(b"\x80" * 60, rate=1), (200, "")),
    "0 Hz": (false.wav(rate=0), (415, "UNSUPPORTED_MEDIA")),
    "0 bits": (false.wav(bits=0), (415, "UNSUPPORTED_MEDIA")),
    "65,535 bits": (false.wav(bits=2**16 - 1), (415, "UNSUPPORTED_MEDIA")),
    "more bytes than there are": (false.wav(claimed_bytes=2**32 - 1), (200, "")),
    "no bytes": (false.wav(b""), (415, "UNSUPPORTED_MEDIA")),
    "a megabyte of tags": (false.wav(tags=false.megabytes_of_tags(1)), (200, "")),
}


@pytest.mark.parametrize(("content", "expected"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_claims(client: httpx.Client, content: bytes, expected: tuple[int, str]) -> None:
    """What is there is heard, or refused; what is claimed is neither allocated nor waited for."""
    answer = upload(client, "/transcribe", content)
    if expected[1]:
        assert_refused(answer, *expected)
    else:
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == ""
        assert answer.json()["duration"] <= MAX_DURATION_S


def test_a_video_that_says_it_lasts_a_thousand_hours(client: httpx.Client, tmp_path: Path, speech: bytes) -> None:
    """Refused by its header, unless that contradicts itself: then it is heard as long as it is."""
    (spoken := tmp_path / "speech.wav").write_bytes(speech)
    video = false.written(tmp_path, "a.mp4", "-i", spoken, "-use_editlist", "0")
    claims = false.of_hours(video, 1_000, samples_too=True)
    assert_refused(upload(client, "/transcribe", claims, "a.mp4"), 413, "AUDIO_TOO_LONG")
    contradicts = false.of_hours(video, 1_000, samples_too=False)
    assert upload(client, "/transcribe", contradicts, "a.mp4").json()["duration"] == pytest.approx(2, abs=0.2)


@dataclass
class Watched:
    """The most bytes that work in flight has been seen to take."""

    most: int = 0


@pytest.fixture
def work(server: Server) -> Iterator[Watched]:
    """What the folder of work in flight holds while a test runs."""
    seen, over = Watched(), threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            sizes = 0
            for path in server.in_flight():
                try:
                    sizes += path.stat().st_size
                except FileNotFoundError:
                    continue
            seen.most = max(seen.most, sizes)

    watcher = threading.Thread(target=look)
    watcher.start()
    yield seen
    over.set()
    watcher.join()


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return false.ten_hours_of_silence(tmp_path_factory.mktemp("silence"))


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
def test_ten_hours_of_silence_in_a_small_file(client: httpx.Client, work: Watched, silence: bytes, told: bool) -> None:
    """Decoded, it would be a gigabyte: refused by its header, or stopped where the longest recording ends."""
    content = silence if told else false.of_unknown_length(silence)
    assert_refused(upload(client, "/transcribe", content, "a.flac"), 413, "AUDIO_TOO_LONG")
    assert 0 < work.most < len(content) + (MAX_DURATION_S + 1) * 32_000 + 2**20
