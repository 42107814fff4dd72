"""Files that a caller names: none is read but those that lie in the server's own folders, and are files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance import sounds
from tests.acceptance.attacks.table import assert_refused

pytestmark = pytest.mark.usefixtures("nothing_kept")

OUTSIDE = {
    "absolute": "/etc/passwd",
    "relative": "../../x.wav",
    "deep": "../" * 40 + "etc/passwd",
    "out of the folder": "{allowed}/../x.wav",
    "twice as deep": "{allowed}/....//....//etc/passwd/../../../../../../etc/passwd",
    "link": "{allowed}/link.wav",
    "link to a folder": "{allowed}/out/passwd",
    "link of links": "{allowed}/chain.wav",
    "device": "/dev/zero",
    "link to a device": "{allowed}/zero.wav",
    "process": "/proc/self/environ",
    "descriptor": "/dev/stdin",
    "the server's keys": "../api-key",
    "the server's jobs": "../jobs.db",
}
NOT_THERE = {
    "encoded": "..%2f..%2fx.wav",
    "encoded dots": "%2e%2e/x.wav",
    "encoded twice": "%252e%252e%252fx.wav",
    "backslashes": "..\\..\\x.wav",
    "drive": "C:\\x.wav",
    "loop": "{allowed}/loop.wav",
    "pipe": "{allowed}/pipe.wav",
    "folder": "{allowed}",
    "the store's folder": ".",
    "file as a folder": "{allowed}/real.wav/x.wav",
    "NUL": "{allowed}/real.wav\0.mp3",
    "long": "x" * 300,
    "very long": "x/" * 2000,
    "scheme": "file:///etc/passwd",
    "pipe of ffmpeg": "pipe:0",
    "concat of ffmpeg": "concat:/etc/passwd",
    "option": "-i",
    "id of nothing": "0" * 32,
    "sidecar": "0" * 32 + ".json",
    "half written": "incoming/x.wav",
    "right to left": "\u202evaw.x",
}


@pytest.fixture(scope="module")
def folder(allowed_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The allowed folder, with all in it that leads elsewhere, or is no file."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.wav").write_bytes(sounds.silence(1))
    links = {"link": outside / "secret.wav", "loop": "loop.wav", "zero": "/dev/zero", "chain": "link.wav"}
    made = [allowed_folder / f"{name}.wav" for name in (*links, "pipe", "real")] + [allowed_folder / "out"]
    for name, target in links.items():
        (allowed_folder / f"{name}.wav").symlink_to(target)
    (allowed_folder / "out").symlink_to("/etc")
    os.mkfifo(allowed_folder / "pipe.wav")
    (allowed_folder / "real.wav").write_bytes(sounds.silence(1))
    yield allowed_folder
    for path in made:
        path.unlink()


def ask(client: httpx.Client, path: str, **parameters: object) -> httpx.Response:
    return client.post(path, json=parameters)


def assert_no_file(client: httpx.Client, name: str, status: int, code: str) -> None:
    """Each way to name a file ends alike."""
    assert_refused(ask(client, "/transcribe", audio_file=name), status, code)
    assert_refused(ask(client, "/transcribe", audio_file=name, mode="async"), status, code)
    assert_refused(ask(client, "/extract-audio", video_file=name), status, code)
    batch = ask(client, "/jobs/batch", files=[name])
    assert_refused(batch, 422, "INVALID_REQUEST")
    assert code in batch.json()["detail"]


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE)
def test_a_file_outside(client: httpx.Client, folder: Path, name: str) -> None:
    """Whether it is there or not: the answer is the same."""
    assert_no_file(client, name.format(allowed=folder), 403, "PATH_NOT_ALLOWED")


@pytest.mark.parametrize("name", NOT_THERE.values(), ids=NOT_THERE)
def test_what_is_no_file(client: httpx.Client, folder: Path, name: str) -> None:
    """Nothing is decoded twice, nothing is opened that never ends, and no name is an option."""
    assert_no_file(client, name.format(allowed=folder), 404, "FILE_NOT_FOUND")


def test_a_name_longer_than_any_path(client: httpx.Client, folder: Path) -> None:
    """It is not looked up, though it leads to a file: each part of it would be."""
    name = f"{folder}/{'./' * 2100}real.wav"
    assert_refused(ask(client, "/transcribe", audio_file=name), 422, "INVALID_REQUEST")
    assert_refused(ask(client, "/extract-audio", video_file=name), 422, "INVALID_REQUEST")
    assert_refused(ask(client, "/subtitle", video_file=name), 422, "INVALID_REQUEST")
    assert_refused(ask(client, "/jobs/batch", files=[name]), 422, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("path", "name"), [("/transcribe", "audio_file"), ("/extract-audio", "video_file"), ("/subtitle", "video_file")]
)
def test_no_name_at_all(client: httpx.Client, path: str, name: str) -> None:
    """It is not the folder itself."""
    assert_refused(ask(client, path, **{name: ""}), 422, "NO_AUDIO")


def test_a_name_in_the_query_is_decoded_once(client: httpx.Client, folder: Path) -> None:
    """%252e is the text %2e, and no dot."""
    for sent, status, code in (
        ("%2e%2e%2f%2e%2e%2fx.wav", 403, "PATH_NOT_ALLOWED"),
        ("%252e%252e%252fx.wav", 404, "FILE_NOT_FOUND"),
        (f"{folder}/real.wav%00.mp3", 404, "FILE_NOT_FOUND"),
    ):
        assert_refused(client.post(f"/transcribe?audio_file={sent}"), status, code)


def test_the_one_file_that_may_be_read(client: httpx.Client, folder: Path) -> None:
    """Were it refused like all others, the rows above would show nothing."""
    assert ask(client, "/transcribe", audio_file=str(folder / "real.wav")).status_code == 200
