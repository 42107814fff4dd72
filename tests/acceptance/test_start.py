"""What a person meets when starting the server."""

from __future__ import annotations

import shlex
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.acceptance.server import ROOT, command, curl, environment, running


def refused(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A server that should end by itself."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder / "data", **settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_printed_line_works_when_pasted(tmp_path: Path) -> None:
    """The first thing a person does. The key is made, private, and not in the log."""
    if curl() is None:
        pytest.skip("there is no curl on this machine")
    with running(tmp_path) as server:
        line = server.greeting.strip().splitlines()[-1].strip()
        done = subprocess.run([*shlex.split(line), "-sS", "--fail"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("{")
        assert (server.data_dir / "api-key").stat().st_mode & 0o777 == 0o600
        assert server.key not in server.log.read_text()
        assert httpx.get(f"{server.address}/models").status_code == 401
    with running(tmp_path) as again:
        assert again.key == server.key


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_listening_for_others_without_a_key_is_refused(tmp_path: Path, host: str) -> None:
    """In one sentence that says what to do."""
    done = refused(tmp_path, HOST=host)
    assert done.returncode != 0
    assert "API_KEYS" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_uvicorns_own_host_is_checked_too(tmp_path: Path) -> None:
    """`uvicorn main:app --host 0.0.0.0` passes by HOST."""
    arguments = ("-m", "uvicorn", "main:app", "--app-dir", str(ROOT), "--host", "0.0.0.0", "--port", "0")
    done = refused(tmp_path, *arguments)
    assert done.returncode != 0
    assert "set API_KEYS" in done.stderr
    assert "Traceback" not in done.stderr


def test_uvicorn_serves_the_application(tmp_path: Path) -> None:
    """The other way to start it, with what is printed true there as well. When it stops, its engine is gone too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ("-m", "uvicorn", "main:app", "--app-dir", str(ROOT), "--port", str(port))
    with running(tmp_path, *arguments) as server, server.client() as client:
        assert server.port == port
        assert client.get("/models").status_code == 200
        processes = server.processes()
    assert [pid for pid in processes if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"PORT": "http"}, "PORT"),
        ({"MODEL_SIZE": "gigantic"}, "MODEL_SIZE"),
        ({"DATA_DIR": "/dev/null/x"}, "DATA_DIR"),
        ({"MEDIA_DIR": "/dev/null/x"}, "MEDIA_DIR"),
        ({"PRIVATE_HOSTS_ALLOWED": "nonsense"}, "PRIVATE_HOSTS_ALLOWED"),
    ],
)
def test_wrong_settings_end_the_start_with_a_sentence(tmp_path: Path, settings: dict[str, str], named: str) -> None:
    """A traceback buries which one it was."""
    done = refused(tmp_path, **settings)
    assert done.returncode != 0
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """Two servers on one port is the usual mistake."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = refused(tmp_path, PORT=str(taken.getsockname()[1]))
    assert done.returncode != 0
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
