"""What would go around the proxy fails inside the child, whatever yt-dlp or its options come to."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.media_server import media_server

CHILD = Path(__file__).parents[2] / "downloads" / "ytdlp_child.py"

GUARDED = """
import importlib.util, os, socket, subprocess, sys, urllib.request
spec = importlib.util.spec_from_file_location("ytdlp_child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
proxy_port, port = int(sys.argv[2]), int(sys.argv[3])
child._install_guard(proxy_port, "/bin/echo")
try:
    {attempt}
except PermissionError as error:
    print(error)
else:
    print("passed")
"""


def attempt(code: str, folder: Path, proxy_port: int, port: int) -> str:
    command = [sys.executable, "-I", "-c", GUARDED.format(attempt=code), str(CHILD), str(proxy_port), str(port)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code",
    [
        "socket.create_connection(('127.0.0.1', port))",
        "socket.socket().connect(('127.0.0.1', port))",
        "socket.socket().connect_ex(('127.0.0.1', port))",
        "socket.socket(socket.AF_INET6).connect(('::1', port))",
        "socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
        "socket.socket().bind(('127.0.0.1', 0))",
        "socket.getaddrinfo('example.org', 80)",
        "socket.gethostbyname('example.org')",
        "os.system('true')",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.fork()",
        "subprocess.run(['/bin/true'])",
        "subprocess.run('true', shell=True)",
        "subprocess.run(['/bin/echo', '-i', 'http://127.0.0.1/'])",
        "subprocess.run(['/bin/echo', '-i', 'file:media.mp4'])",
        "subprocess.run(['/bin/echo', *child.FFMPEG_INPUT, '-i', 'file:/etc/passwd'])",
        "subprocess.run(['/bin/echo', *child.FFMPEG_INPUT, '-i', 'concat:a|b'])",
        "open('/tmp/outside', 'w')",
        "open('../outside', 'w')",
        "os.open('/tmp/outside', os.O_CREAT | os.O_WRONLY)",
    ],
)
def test_what_goes_around_the_proxy_is_closed(tmp_path: Path, code: str) -> None:
    """The options could be wrong, or mean something else in the next version of yt-dlp."""
    with media_server() as canary:
        assert attempt(code, tmp_path, 1, canary.port).startswith("closed to downloads: ")
        assert canary.connections == 0


@pytest.mark.parametrize(
    "code",
    [
        "socket.create_connection(('127.0.0.1', proxy_port))",
        "subprocess.run(['/bin/echo', '-bsfs'], stdout=subprocess.DEVNULL, check=True)",
        "subprocess.run(['/bin/echo', *child.FFMPEG_INPUT, '-i', 'file:media.mp4'], stdout=subprocess.DEVNULL)",
        "open('media.mp4', 'wb')",
        "open('/etc/hostname')",
    ],
)
def test_what_a_download_needs_is_open(tmp_path: Path, code: str) -> None:
    """A guard that closes everything would pass the tests above."""
    with media_server() as proxy:
        assert attempt(code, tmp_path, proxy.port, 1) == "passed\n"


def test_ffmpeg_reads_no_playlist_that_came_as_a_video(tmp_path: Path) -> None:
    """Merging hands the files to ffmpeg, which looks into them: one that names another's recording would bring it."""
    spec = importlib.util.spec_from_file_location("ytdlp_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    tone = ["-f", "lavfi", "-i", "sine=duration=1"]
    subprocess.run([*ffmpeg, *tone, "-c:a", "aac", "secret.ts"], cwd=tmp_path, check=True)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "media.m3u8").write_text(playlist)

    def reads(*options: str) -> bool:
        command = [*ffmpeg, *options, "-i", "file:media.m3u8", "-c", "copy", "out.ts"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert reads()
    assert not reads(*child.FFMPEG_INPUT)
