"""scripts/transcribe as a person types it: with a server and without one, real speech and real weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from tests.acceptance.server import KEY, ROOT, Server, environment
from tests.speech import sample_call

SAID = "i m originally from chicago also"


def heard(text: str) -> str:
    return " ".join(re.findall("[a-z]+", text.lower()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A caller's folder, with a recording in it, and room for the settings' own data."""
    shutil.copy(sample_call(), tmp_path / "call.wav")
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "command_line", *arguments]


def variables(folder: Path, server: Server | None = None, key: str = KEY) -> dict[str, str]:
    """As a shell in *folder* has them."""
    own = environment(folder / "data", PYTHONPATH=str(ROOT))
    own.pop("LOG_LEVEL")
    if server is not None:
        own |= {"STENOGATE_URL": server.address, "STENOGATE_API_KEY": key}
    return own


def called(
    folder: Path, *arguments: str, server: Server | None = None, key: str = KEY, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=variables(folder, server, key),
        input=stdin,
        capture_output=True,
        timeout=200,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_script_works_from_any_folder(tmp_path: Path) -> None:
    """It changes into the project's folder, and must not look for recordings there."""
    own = variables(tmp_path) | {"STENOGATE_URL": "http://127.0.0.1:1"}
    script = str(ROOT / "scripts" / "transcribe")
    helped = subprocess.run([script, "--help"], cwd=tmp_path, env=own, capture_output=True, text=True)
    assert (helped.returncode, "Exit codes:" in helped.stdout) == (0, True), helped.stderr
    (tmp_path / "here.wav").touch()
    found = subprocess.run([script, "here.wav", "gone.wav"], cwd=tmp_path, env=own, capture_output=True, text=True)
    assert "gone.wav: there is no such file" in found.stderr
    assert "here.wav" not in found.stderr.replace("gone.wav", "")
    assert found.returncode == 3, found.stderr


def test_without_a_server_the_engine_is_started_here(folder: Path) -> None:
    """Several formats of one transcription, beside the recording; nothing is left at work, or in the work folder."""
    done = called(folder, "--local", "call.wav", "-f", "text,srt,json")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert SAID in heard((folder / "call.txt").read_text())
    assert "-->" in (folder / "call.srt").read_text()
    told = json.loads((folder / "call.json").read_text())
    assert (told["model"], told["language"]) == ("tiny.en", "en")
    assert heard(told["text"]) == heard((folder / "call.txt").read_text())
    assert list((folder / "data" / "command-line" / "work").iterdir()) == []


def test_an_engine_that_cannot_be_started_is_nobody(folder: Path) -> None:
    """Neither a server nor an engine: 3, and what to do."""
    (folder / "data").write_text("no folder")
    done = called(folder, "--local", "call.wav")
    assert (done.returncode, done.stdout) == (3, "")
    assert "DATA_DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_text_on_standard_output(folder: Path, server: Server) -> None:
    """For pipes: the transcript and nothing else; from standard input, too."""
    done = called(folder, "call.wav", server=server)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert SAID in heard(done.stdout)
    piped = called(folder, "-", "--clip-timestamps", "0,15", server=server, stdin=(folder / "call.wav").read_bytes())
    assert piped.returncode == 0, piped.stderr
    assert "i didn t know you were there" in heard(piped.stdout)
    assert SAID not in heard(piped.stdout)


def test_files_of_several_recordings_and_formats(folder: Path, server: Server) -> None:
    """What fails does not stop the rest, and nothing is overwritten."""
    (folder / "broken.mp3").write_text("no sound")
    (folder / "out").mkdir()
    (folder / "out" / "call.srt").write_text("mine")
    done = called(folder, "*.wav", "broken.mp3", "-o", "out", "-f", "srt,vtt", server=server)
    assert done.returncode == 1
    assert "call.srt is there already" in done.stderr
    assert "UNSUPPORTED_MEDIA" in done.stderr
    assert (folder / "out" / "call.srt").read_text() == "mine"
    done = called(folder, "call.wav", "broken.mp3", "-o", "out", "-f", "srt,vtt", "--force", "--quiet", server=server)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "-->" in (folder / "out" / "call.srt").read_text()
    assert (folder / "out" / "call.vtt").read_text().startswith("WEBVTT")


@pytest.mark.parametrize(
    ("arguments", "key", "code", "told"),
    [
        (["call.wav", "--model", "colossal"], KEY, 2, "UNKNOWN_MODEL"),
        (["call.wav", "--frobnicate"], KEY, 2, "usage:"),
        (["call.wav", "--provider", "openai"], KEY, 2, "PROVIDER_NOT_ALLOWED"),
        (["call.wav"], "wrong", 2, "UNAUTHORIZED"),
        (["call.wav", "--server", "http://127.0.0.1:1"], KEY, 3, "No server answers"),
    ],
)
def test_exit_codes_tell_what_went_wrong(
    folder: Path, server: Server, arguments: list[str], key: str, code: int, told: str
) -> None:
    """Scripts read them; people read the line."""
    done = called(folder, *arguments, server=server, key=key)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_cancels_the_servers_job(folder: Path, clean: Server) -> None:
    """And ends with 130, without a trace."""
    with wave.open(str(folder / "call.wav")) as call, wave.open(str(folder / "long.wav"), "wb") as long:
        long.setparams(call.getparams())
        sound = call.readframes(call.getnframes())
        for _ in range(2):
            long.writeframes(sound)
    with clean.client() as client:
        before = {job["id"] for job in client.get("/jobs").json()["jobs"]}
        process = subprocess.Popen(
            command("long.wav", "--words", "--beam-size", "16"),
            cwd=folder,
            env=variables(folder, clean),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background has it ignored, and children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        new: list[str] = []

        def running() -> bool:
            jobs = client.get("/jobs", params={"state": "running"}).json()["jobs"]
            new[:] = [job["id"] for job in jobs if job["id"] not in before and job["file_name"] == "long.wav"]
            return bool(new)

        clean.wait_until(running)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, "", "")
        clean.wait_until(lambda: client.get(f"/jobs/{new[0]}").json()["state"] == "cancelled")


def test_a_progress_bar_needs_a_terminal(folder: Path, server: Server) -> None:
    """There it follows the seconds that were heard; a log file would be full of it."""
    own = variables(folder, server) | {"TERM": "xterm", "COLUMNS": "100"}
    parent, child = os.openpty()
    process = subprocess.Popen(
        command("call.wav"), cwd=folder, env=own, stdout=subprocess.PIPE, stderr=child, text=True
    )
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(parent, 4096):
            shown += chunk
    except OSError:
        # Linux tells the end of a terminal so.
        pass
    os.close(parent)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert SAID in heard(out)
    assert "call.wav" in shown.decode()
    assert re.search(r"0:\d\d of 0:30", shown.decode())
