"""scripts/test_concurrency.py against the real server: what people run, as they run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.server import KEY, ROOT, Server
from tests.speech import speech_file

pytestmark = pytest.mark.usefixtures("clean")


def run(server: Server, folder: Path, *arguments: str, key: str) -> subprocess.CompletedProcess[str]:
    file = str(speech_file("formats/jfk.mp3"))
    return subprocess.run(
        [sys.executable, ROOT / "scripts/test_concurrency.py", "--server", server.address, "--file", file, *arguments],
        cwd=folder,
        env={**os.environ, "STENOGATE_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_two_at_once_are_measured(server: Server, tmp_path: Path) -> None:
    """Transcripts, their audio, and on this machine the server's own processes: engine and weights included."""
    done = run(server, tmp_path, "--concurrent", "2", "--requests", "2", "--json", "--plot", "out.png", key=KEY)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (level,) = document["levels"]
    assert (level["at_once"], level["successes"], level["errors"], level["codes"]) == (2, 2, 0, {})
    assert level["audio_s"] == pytest.approx(22, abs=1)
    assert level["audio_s_per_s"] == pytest.approx(level["audio_s"] / level["wall_s"])
    assert level["latency"]["max_s"] <= level["wall_s"]
    assert level["usage"]["tree_bytes"] > 100 * 2**20
    assert level["usage"]["cpu_cores"] > 0
    assert document["started_here"] is False
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "2/2" in done.stderr
    assert KEY not in done.stdout + done.stderr


def test_a_wrong_key_is_told_in_a_sentence(server: Server, tmp_path: Path) -> None:
    """The commonest way to fail; the key itself is shown to nobody."""
    done = run(server, tmp_path, "--concurrent", "1", key="wrong-key-4711")
    assert done.returncode == 1
    assert "wants an API key that it knows" in done.stderr
    assert "Traceback" not in done.stderr
    assert "wrong-key-4711" not in done.stdout + done.stderr
