"""Where real speech for tests lies. Tests that need what is not here skip themselves, with a sentence that says so."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEECH_DIR = Path(os.environ.get("SPEECH_DIR") or ROOT.parent / "shared" / "speech").expanduser().resolve()


def speech_file(name: str) -> Path:
    """The recording *name*, such as "en/jfk.flac", in SPEECH_DIR."""
    path = SPEECH_DIR / name
    if not path.is_file():
        pytest.skip(f"There is no {name} in {SPEECH_DIR}; set SPEECH_DIR to the folder of recordings.")
    return path


def manifest() -> list[dict[str, Any]]:
    """One row a recording: file, text, language, duration_s, sample_rate, channels, codec, speakers …"""
    lines = speech_file("manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def sample_call() -> Path:
    """The 30 s telephone call of two speakers in the pyannote-audio package, found without importing it (and torch)."""
    try:
        files = importlib.metadata.files("pyannote-audio") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[-2:] == ("sample", "sample.wav"):
            return Path(str(file.locate()))
    pytest.skip("The package pyannote-audio is not installed; it comes with the full requirements.")


def spoken(text: str, path: Path, voice: str = "en") -> Path:
    """*text* said by espeak-ng into a new wav file at *path*."""
    program = shutil.which("espeak-ng")
    if program is None:
        pytest.skip("espeak-ng is not installed; scripts/test installs it where it may.")
    subprocess.run([program, "-v", voice, "-s", "130", "-w", str(path), text], check=True)
    return path
