"""Recordings made on the spot: silent, short, broken, and some that are none."""

from __future__ import annotations

import io
import random
import subprocess
import wave
from pathlib import Path

from ffmpeg import FFmpeg


def silence(seconds: float) -> bytes:
    """A wav of 16 kHz mono silence."""
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(b"\0\0" * round(seconds * 16_000))
    return target.getvalue()


def noise(size: int) -> bytes:
    """Bytes that are no file of any kind; the same ones each time."""
    return random.Random(size).randbytes(size)


def excerpt(source: Path, seconds: int, folder: Path) -> bytes:
    """The first *seconds* of a recording, as 16 kHz mono wav."""
    target = folder / "excerpt.wav"
    made = ["-t", str(seconds), "-ar", "16000", "-ac", "1", target]
    subprocess.run([FFmpeg.locate("").path, "-v", "error", "-i", source, *made], check=True)
    return target.read_bytes()


def repeated(recording: bytes, times: int) -> bytes:
    """A wav of *recording* said over and over."""
    with wave.open(io.BytesIO(recording)) as once:
        parameters, frames = once.getparams(), once.readframes(once.getnframes())
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setparams(parameters)
        sound.writeframes(frames * times)
    return target.getvalue()


def video_without_sound(folder: Path) -> bytes:
    target = folder / "mute.mp4"
    picture = ["-f", "lavfi", "-i", "color=size=64x64:duration=1"]
    subprocess.run([FFmpeg.locate("").path, "-v", "error", *picture, "-pix_fmt", "yuv420p", target], check=True)
    return target.read_bytes()


def playlists(secret: Path) -> list[tuple[str, bytes]]:
    """Files that tell a careless ffmpeg to read *secret*."""
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    return [
        ("hls", hls.encode()),
        ("hls with a bare path", hls.replace("file://", "").encode()),
        ("concat", f"ffconcat version 1.0\nfile '{secret}'\n".encode()),
        ("concat protocol", hls.replace("file://", "concat:").encode()),
    ]
