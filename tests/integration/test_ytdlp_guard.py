"""What would go around the proxy fails inside the child, whatever yt-dlp or its options come to."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import imageio_ffmpeg
import pytest
import yt_dlp
import yt_dlp.version

import downloads.fetch
from downloads.egress import EgressProxy
from downloads.fetch import Fetcher
from downloads.urls import AddressPolicy
from errors import DownloadFailed
from tests.media_server import media_server
from tests.unit.test_confined import has_landlock

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "downloads" / "ytdlp_child.py"

GUARDED = """
import importlib.util, os, socket, subprocess, sys, urllib.request
spec = importlib.util.spec_from_file_location("ytdlp_child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
proxy_port, port = int(sys.argv[2]), int(sys.argv[3])
launcher = ["/usr/bin/env", "--"]
child._install_guard(proxy_port, "/bin/echo", launcher)
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
        "subprocess.run([*launcher, '/bin/true'])",
        "subprocess.run(['/usr/bin/env', '/bin/echo'])",
        "subprocess.run([*launcher, '/bin/echo', '-i', 'file:media.mp4'])",
        "subprocess.run([*launcher, '/bin/echo'], executable='/bin/true')",
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
        "subprocess.run([*launcher, '/bin/echo', *child.FFMPEG_INPUT, '-i', 'file:media.mp4'], check=True, stdout=-3)",
        "open('media.mp4', 'wb')",
        "open('/etc/hostname')",
    ],
)
def test_what_a_download_needs_is_open(tmp_path: Path, code: str) -> None:
    """A guard that closes everything would pass the tests above."""
    with media_server() as proxy:
        assert attempt(code, tmp_path, proxy.port, 1) == "passed\n"


DOORS: dict[str, Any] = {
    "usenetrc": False,
    "netrc_cmd": None,
    "cookiefile": None,
    "cookiesfrombrowser": None,
    "client_certificate": None,
    "nocheckcertificate": False,
    "enable_file_urls": False,
    "postprocessors": [],
    "compat_opts": set(),
    "external_downloader": {"default": "native"},
    "external_downloader_args": None,
    "js_runtimes": {},
    "remote_components": (),
    "cachedir": False,
    "writelink": False,
    "writeurllink": False,
    "writewebloclink": False,
    "writedesktoplink": False,
}


def test_every_option_that_would_open_a_door_is_shut_by_name() -> None:
    """Most of yt-dlp's holes so far lay behind one; what is off by default now may be on in its next version."""
    request = {"format": "best", "ffmpeg": "/f", "proxy": "http://p", "socket_timeout_s": 1, "max_bytes": 1}
    options = loaded()._options(request, io.StringIO())
    assert {name: options.get(name, "missing") for name in DOORS} == DOORS
    assert options["proxy"] == "http://p"
    known = {name for name in DOORS if re.search(rf"\b{name}\b", yt_dlp.YoutubeDL.__doc__ or "")}
    # Not told of there, and read all the same.
    assert set(DOORS) - known <= {"client_certificate", "writewebloclink", "writeurllink", "writedesktoplink"}


def test_no_yt_dlp_with_a_known_hole_is_taken() -> None:
    """The reasons stand beside the floor in pyproject.toml."""
    floor = (2026, 7, 4)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (asked,) = (name for name in project["dependencies"] if name.startswith("yt-dlp"))
    assert version(asked.removeprefix("yt-dlp>=")) >= floor
    for pinned in (ROOT / "requirements").glob("*.txt"):
        (found,) = re.findall(r"^yt-dlp(?:\[[^]]*\])?==([\d.]+)", pinned.read_text("utf-8"), re.MULTILINE)
        assert version(found) >= floor, pinned.name
    assert version(yt_dlp.version.__version__) >= floor


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def loaded() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("ytdlp_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    return child


def test_ffmpeg_reads_no_playlist_that_came_as_a_video(tmp_path: Path) -> None:
    """Merging hands the files to ffmpeg, which looks into them: one that names another's recording would bring it."""
    child = loaded()
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


@pytest.mark.skipif(not has_landlock(), reason="This kernel has no landlock.")
async def test_ffmpeg_opens_no_file_outside_the_folder_of_its_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it merges comes from strangers; beside the folder lie other callers' downloads, and keys."""
    asked: dict[str, Any] = {}

    async def ask_child(request: dict[str, Any], *rest: Any) -> tuple[dict[str, Any], bytes]:
        asked.update(request)
        return {"event": "failed", "reason": "failed"}, b""

    monkeypatch.setattr(downloads.fetch, "ask_child", ask_child)
    folder, ffmpeg = tmp_path / "download", Path(imageio_ffmpeg.get_ffmpeg_exe())
    folder.mkdir()
    async with EgressProxy(AddressPolicy()) as proxy:
        with pytest.raises(DownloadFailed):
            await Fetcher(proxy=proxy, ffmpeg_path=ffmpeg, max_bytes=1, timeout_s=60).fetch("http://a.example/", folder)

    def said(*arguments: str) -> str:
        command = [*loaded().confined(asked["launcher"]), asked["ffmpeg"], "-v", "error", "-y", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stderr

    tone = ["-f", "lavfi", "-i", "sine=duration=1"]
    assert said(*tone, "file:media.m4a") == ""
    assert said("-i", "file:media.m4a", "-c", "copy", "-movflags", "+faststart", "file:media.temp.mp4") == ""
    (folder / "media.m4a").rename(tmp_path / "secret.m4a")
    assert "Permission denied" in said("-i", "file:../secret.m4a", "-c", "copy", "file:media.mp4")
    assert "Permission denied" in said(*tone, "file:../secret.m4a")
    assert "Permission denied" in said(*tone, "file:../new.m4a")
    assert not (tmp_path / "new.m4a").exists()
