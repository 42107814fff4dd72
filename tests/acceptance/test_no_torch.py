"""torch costs a gigabyte before the first word: neither the server nor its engine loads it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.acceptance.server import Server
from tests.speech import speech_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def loaded_files(pid: int) -> set[str]:
    """The files that process *pid* has mapped: every extension module and shared library among them."""
    return {line.split(maxsplit=5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/" in line}


def test_no_process_of_the_server_loads_torch(server: Server) -> None:
    """Looked at after a transcription, when all that is needed has been loaded."""
    with server.client() as client:
        answer = client.post(
            "/transcribe",
            params={"word_timestamps": "true"},
            files={"file": ("a.wav", speech_file("formats/jfk_16k.wav").read_bytes())},
        )
    assert answer.status_code == 200
    files = {pid: loaded_files(pid) for pid in server.processes()}
    assert len(files) >= 2, "the engine should be a process of its own"
    assert any("ctranslate2" in name for names in files.values() for name in names)
    assert not any("ctranslate2" in name for name in files[server.process.pid])
    torch = [name for names in files.values() for name in names if "/torch/" in name or "libtorch" in name]
    assert torch == []
