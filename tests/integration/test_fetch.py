"""Downloads by the real yt-dlp in its real child process, from a real server; the canary must hear nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import imageio_ffmpeg
import psutil
import pytest

from downloads.egress import EgressProxy, Resolver
from downloads.fetch import Fetched, Fetcher, MediaKind, choose_format, file_name
from downloads.urls import AddressPolicy
from downloads.ytdlp import Progress
from errors import (
    DownloadFailed,
    DownloadTimeout,
    DownloadTooLarge,
    InvalidLink,
    InvalidRequest,
    LinkNotAllowed,
    NoMediaAtLink,
)
from syscall_filter import syscall_filter
from tests.media_server import MediaServer, media_server

FFMPEG = Path(imageio_ffmpeg.get_ffmpeg_exe())

DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" minBufferTime="PT1S"
     profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
  <AdaptationSet mimeType="video/mp4">
    <Representation id="high" bandwidth="200000" codecs="avc1.64000a" width="160" height="120">
      <BaseURL>{high}</BaseURL></Representation>
    <Representation id="low" bandwidth="100000" codecs="avc1.64000a" width="80" height="60">
      <BaseURL>{low}</BaseURL></Representation>
  </AdaptationSet>
  <AdaptationSet mimeType="audio/mp4">
    <Representation id="sound" bandwidth="64000" codecs="mp4a.40.2"><BaseURL>{sound}</BaseURL></Representation>
  </AdaptationSet>
</Period></MPD>"""


def encoded(*arguments: str) -> bytes:
    command = [str(FFMPEG), "-v", "error", *arguments, "pipe:1"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture(scope="module")
def files() -> dict[str, tuple[str, bytes]]:
    sound = ("-f", "lavfi", "-i", "sine=440:duration=1")
    picture = ("-f", "lavfi", "-i", "testsrc=size={}:rate=5:duration=1", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    mp4 = ("-movflags", "frag_keyframe+empty_moov", "-f", "mp4")

    def video(size: str) -> bytes:
        return encoded(*(part.format(size) for part in picture), *mp4)

    return {
        "/clip.mp3": ("audio/mpeg", encoded(*sound, "-f", "mp3")),
        "/clip.ts": ("video/mp2t", encoded(*sound, "-c:a", "aac", "-f", "mpegts")),
        "/sound.m4a": ("audio/mp4", encoded(*sound, "-c:a", "aac", *mp4)),
        "/high.mp4": ("video/mp4", video("160x120")),
        "/low.mp4": ("video/mp4", video("80x60")),
        "/clip.mpd": ("application/dash+xml", DASH.format(high="high.mp4", low="low.mp4", sound="sound.m4a").encode()),
    }


@pytest.fixture
def server(files: dict[str, tuple[str, bytes]]) -> Iterator[MediaServer]:
    with media_server(dict(files)) as running:
        yield running


@pytest.fixture
def canary() -> Iterator[MediaServer]:
    with media_server() as running:
        yield running
        assert running.connections == 0


@dataclass
class Bench:
    """A fetcher whose one opened private host is the media server, and the folder that it fetches into."""

    server: MediaServer
    folder: Path
    proxy: EgressProxy

    async def fetch(
        self,
        url: str,
        *,
        max_bytes: int = 10_000_000,
        timeout_s: float = 120.0,
        kind: MediaKind = MediaKind.AUDIO,
        format: str | None = None,
        max_height: int | None = None,
        seen: list[Progress] | None = None,
        ffmpeg: Path = FFMPEG,
    ) -> Fetched:
        fetcher = Fetcher(proxy=self.proxy, ffmpeg_path=ffmpeg, max_bytes=max_bytes, timeout_s=timeout_s)
        on_progress = None if seen is None else seen.append
        return await fetcher.fetch(
            url, self.folder, kind=kind, format=format, max_height=max_height, on_progress=on_progress
        )

    def is_empty(self) -> bool:
        return not any(self.folder.iterdir())


@pytest.fixture
async def bench(server: MediaServer, tmp_path: Path) -> AsyncIterator[Bench]:
    folder = tmp_path / "100% $HOME"  # yt-dlp must not read templates or variables out of the folder's name
    folder.mkdir()
    async with EgressProxy(AddressPolicy((server.authority,))) as proxy:
        before = others()
        yield Bench(server, folder, proxy)
        assert others() == before
    assert not children()


def others() -> set[asyncio.Task[object]]:
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "ytdlp_child.py" in " ".join(child.cmdline())]


def streams(path: Path) -> str:
    return subprocess.run([FFMPEG, "-hide_banner", "-i", path], capture_output=True, text=True, check=False).stderr


# --- what comes back -------------------------------------------------------------------------------------------------


async def test_a_direct_link_gives_the_file_as_it_is(bench: Bench) -> None:
    """Re-encoding would cost time and quality; the name on disk is ours whatever the link is called."""
    seen: list[Progress] = []
    url = bench.server.at("/clip.mp3")
    fetched = await bench.fetch(url, seen=seen)
    content = bench.server.files["/clip.mp3"][1]
    assert fetched.path == bench.folder / "media.mp3"
    assert fetched.path.read_bytes() == content
    assert (fetched.name, fetched.title, fetched.extractor) == ("clip.mp3", "clip", "generic")
    assert (fetched.media_type, fetched.bytes, fetched.source) == ("audio/mpeg", len(content), url)
    assert seen[-1] == Progress(len(content), len(content))


async def test_a_page_gives_the_media_in_it(bench: Bench) -> None:
    """People paste the page's address, not the file's."""
    fetched = await bench.fetch(bench.server.at("/page", source="/clip.mp3"))
    assert fetched.path.read_bytes() == bench.server.files["/clip.mp3"][1]
    assert fetched.title.startswith("A page")


async def test_a_redirect_is_followed(bench: Bench) -> None:
    """Most links of podcasts are chains of them."""
    fetched = await bench.fetch(bench.server.at("/redirect", to=bench.server.at("/clip.mp3")))
    assert fetched.bytes == len(bench.server.files["/clip.mp3"][1])


async def test_a_playlist_of_two_segments_becomes_one_file(bench: Bench) -> None:
    """Segments are fetched one by one, through the proxy, and put into a container that players know."""
    fetched = await bench.fetch(bench.server.at("/m3u8", segment=["/clip.ts", "/clip.ts"]))
    assert bench.server.paths.count("/clip.ts") == 2
    assert fetched.path.name == "media.mp4"
    assert list(bench.folder.iterdir()) == [fetched.path]
    assert "mov,mp4" in streams(fetched.path)
    assert "Audio: aac" in streams(fetched.path)


async def test_sound_alone_is_taken_where_sound_is_wanted(bench: Bench) -> None:
    """A video's picture is many times its sound, and is thrown away."""
    fetched = await bench.fetch(bench.server.at("/clip.mpd"))
    assert (fetched.path.name, fetched.media_type) == ("media.m4a", "audio/mp4")
    assert not {"/high.mp4", "/low.mp4"} & set(bench.server.paths)


@pytest.mark.parametrize(
    ("max_height", "taken", "left"), [(None, "/high.mp4", "/low.mp4"), (60, "/low.mp4", "/high.mp4")]
)
async def test_picture_and_sound_are_put_together_at_the_height_asked_for(
    bench: Bench, tmp_path: Path, max_height: int | None, taken: str, left: str
) -> None:
    """The best is wanted, up to the limit; the merging is ffmpeg's, on local files, and without a network."""
    ffmpeg, merges = tmp_path / "ffmpeg", tmp_path / "merges"
    noted = f"grep -s ^Seccomp: /proc/self/status >> {merges}"
    ffmpeg.write_text(f'#!/bin/sh\ncase "$*" in *" -i "*) {noted};; esac\nexec "{FFMPEG}" "$@"\n')
    ffmpeg.chmod(0o700)
    url = bench.server.at("/clip.mpd")
    fetched = await bench.fetch(url, kind=MediaKind.VIDEO, max_height=max_height, ffmpeg=ffmpeg)
    if syscall_filter() and sys.platform == "linux":
        assert set(merges.read_text().splitlines()) == {"Seccomp:\t2"}
    assert taken in bench.server.paths
    assert left not in bench.server.paths
    assert list(bench.folder.iterdir()) == [fetched.path]
    assert "Video: h264" in streams(fetched.path)
    assert "Audio: aac" in streams(fetched.path)


async def test_a_callers_format_decides(bench: Bench) -> None:
    """Those who know yt-dlp's notation may use it."""
    fetched = await bench.fetch(bench.server.at("/clip.mpd"), format="worstvideo[height<=60]")
    assert "/low.mp4" in bench.server.paths
    assert "/sound.m4a" not in bench.server.paths
    assert fetched.media_type == "video/mp4"


# --- where no link may lead ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://127.1:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:7f00:1::]:{port}/",
        "http://[fec0::1]/",
        "http://100.64.0.1/",
        "http://0.0.0.0:{port}/",
        "http://localhost:{port}/",
        "https://metadata.google.internal/computeMetadata/v1/",
    ],
)
async def test_no_link_leads_inside(bench: Bench, canary: MediaServer, url: str) -> None:
    """The first step is refused before anything starts."""
    with pytest.raises(LinkNotAllowed):
        await bench.fetch(url.format(port=canary.port))
    assert bench.is_empty()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1:{port}/a.mp3",
        "gopher://127.0.0.1:{port}/1",
        "data:audio/mpeg;base64,AAAA",
        "http://good@127.0.0.1:{port}/",
        "http://good.example\\@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/a\r\nX: b",
        "http://127.0.0.1:{port}/a\nb",
        "http://127.0.0.1:{port}/\0",
        "--exec=touch /tmp/x",
        "http://good.example/#__youtubedl_smuggle=%7B%22http_headers%22%3A+%7B%7D%7D",
    ],
)
async def test_what_is_no_plain_web_link_is_invalid(bench: Bench, canary: MediaServer, url: str) -> None:
    """yt-dlp understands far more than web links."""
    with pytest.raises(InvalidLink):
        await bench.fetch(url.format(port=canary.port))


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"])
async def test_a_redirect_does_not_lead_inside(bench: Bench, canary: MediaServer, host: str) -> None:
    """The link itself is public; where it goes is the attacker's choice."""
    with pytest.raises(LinkNotAllowed):
        await bench.fetch(bench.server.at("/redirect", to=f"http://{host}:{canary.port}/clip.mp3"))
    assert bench.is_empty()


@pytest.mark.parametrize("scheme", ["http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/"])
async def test_a_page_does_not_lead_inside(bench: Bench, canary: MediaServer, scheme: str) -> None:
    """yt-dlp follows what it finds in pages."""
    source = scheme.format(port=canary.port) + "clip.mp3"
    with pytest.raises(LinkNotAllowed):
        await bench.fetch(bench.server.at("/page", source=source))
    assert bench.is_empty()


@pytest.mark.parametrize("path", ["/redirect", "/page"])
async def test_nothing_leads_to_a_file_of_this_machine(bench: Bench, path: str) -> None:
    """A local file is the shortest way inside."""
    argument = "to" if path == "/redirect" else "source"
    with pytest.raises(LinkNotAllowed):
        await bench.fetch(bench.server.at(path, **{argument: "file:///etc/passwd"}))
    assert bench.is_empty()


@pytest.mark.parametrize("what", ["segment", "key", "playlist", "file-segment", "file-key"])
async def test_a_playlist_does_not_lead_inside(bench: Bench, canary: MediaServer, what: str) -> None:
    """Segments, keys and playlists in playlists are links too."""
    at = bench.server.at
    url = {
        "segment": at("/m3u8", segment=["/clip.ts", canary.at("/a.ts")]),
        "key": at("/m3u8", segment="/clip.ts", key=canary.at("/key")),
        "playlist": at("/m3u8", segment=canary.at("/m3u8")),
        "file-segment": at("/m3u8", segment=["/clip.ts", "file:///etc/passwd"]),
        "file-key": at("/m3u8", segment="/clip.ts", key="file:///etc/passwd"),
    }[what]
    with pytest.raises(LinkNotAllowed):
        await bench.fetch(url)
    assert bench.is_empty()


async def test_a_dash_manifest_does_not_lead_inside(bench: Bench, canary: MediaServer) -> None:
    """The same in the other kind of playlist."""
    manifest = DASH.format(high="high.mp4", low="low.mp4", sound=canary.at("/sound.m4a"))
    bench.server.files["/evil.mpd"] = ("application/dash+xml", manifest.encode())
    with pytest.raises(LinkNotAllowed):
        await bench.fetch(bench.server.at("/evil.mpd"))


@pytest.mark.parametrize("lists", [{"hosts_denied": ("other.example",)}, {"hosts_allowed": ("good.example",)}])
async def test_what_a_link_leads_to_is_bound_by_the_operators_lists(
    server: MediaServer, canary: MediaServer, tmp_path: Path, lists: dict[str, tuple[str, ...]]
) -> None:
    """A host that is left out stays so when a redirect asks for it."""

    async def here(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    opened = (f"good.example:{server.port}", f"other.example:{canary.port}")
    async with EgressProxy(AddressPolicy(opened), resolver=here) as proxy:
        policy = AddressPolicy(opened, **lists)
        fetcher = Fetcher(proxy=proxy, ffmpeg_path=FFMPEG, max_bytes=1_000_000, timeout_s=120, policy=policy)
        with pytest.raises(LinkNotAllowed):
            fetcher.check(f"http://other.example:{canary.port}/")
        to = quote(f"http://other.example:{canary.port}/clip.mp3", safe="")
        with pytest.raises(LinkNotAllowed):
            await fetcher.fetch(f"http://good.example:{server.port}/redirect?to={to}", tmp_path)
    assert set(server.paths) == {"/redirect"}


async def test_a_name_whose_answer_changes_does_not_lead_inside(
    server: MediaServer, canary: MediaServer, tmp_path: Path
) -> None:
    """The first answer passes the check, the second one is for the connection, if anybody asked again."""
    answers = iter([["2000::1"], *[["127.0.0.1"]] * 20])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return next(answers)

    resolver: Resolver = rebinding
    async with EgressProxy(AddressPolicy(), resolver=resolver, connect_timeout_s=0.5) as proxy:
        fetcher = Fetcher(proxy=proxy, ffmpeg_path=FFMPEG, max_bytes=1000, timeout_s=120)
        url = f"http://rebind.example:{canary.port}/clip.mp3"
        with pytest.raises(DownloadFailed):
            await fetcher.fetch(url, tmp_path)
        with pytest.raises(LinkNotAllowed) as caught:
            await fetcher.fetch(url, tmp_path)
    assert "127" not in caught.value.message


# --- what is not there, breaks, or has no end ------------------------------------------------------------------------


async def test_a_page_without_media_has_none(bench: Bench) -> None:
    """Nothing was found is another answer than something broke."""
    with pytest.raises(NoMediaAtLink):
        await bench.fetch(bench.server.at("/nothing"))
    assert bench.is_empty()


async def test_a_live_stream_is_refused(bench: Bench) -> None:
    """It has no end."""
    with pytest.raises(NoMediaAtLink, match="live"):
        await bench.fetch(bench.server.at("/m3u8", segment="/clip.ts", live="1"))


async def test_a_format_that_is_not_there_is_named_as_the_reason(bench: Bench) -> None:
    """The caller asked for too much; the link is fine."""
    with pytest.raises(NoMediaAtLink, match="format"):
        await bench.fetch(bench.server.at("/clip.mpd"), kind=MediaKind.VIDEO, max_height=10)


@pytest.mark.parametrize("path", ["/half", "/half-chunked", "/half-reset"])
async def test_half_a_file_is_no_file(bench: Bench, path: str) -> None:
    """A transcript of half a recording looks like one of a short recording."""
    with pytest.raises(DownloadFailed):
        await bench.fetch(bench.server.at(path))
    assert bench.is_empty()


async def test_a_playlist_with_a_hole_is_no_success(bench: Bench) -> None:
    """yt-dlp would leave the segment out and go on."""
    with pytest.raises(DownloadFailed, match="404"):
        await bench.fetch(bench.server.at("/m3u8", segment=["/clip.ts", "/gone.ts", "/clip.ts"]))
    assert bench.is_empty()


@pytest.mark.parametrize("status", [404, 503])
async def test_the_servers_status_is_passed_on(bench: Bench, status: int) -> None:
    """It tells the caller whether to correct the link or to come back."""
    with pytest.raises(DownloadFailed, match=f"HTTP status {status}") as caught:
        await bench.fetch(bench.server.at(f"/status/{status}"))
    assert "127.0.0.1" not in caught.value.message


async def test_a_server_that_is_not_there_is_said_to_be(bench: Bench) -> None:
    """A proxy's 502 would be read as the site's own."""
    with pytest.raises(DownloadFailed, match="cannot be found"):
        await bench.fetch("http://no-such-host.invalid/clip.mp3")


async def test_redirects_end(bench: Bench) -> None:
    """A link that redirects for ever must not be followed for ever."""
    with pytest.raises(DownloadFailed, match="redirect"):
        await bench.fetch(bench.server.at("/loop"))
    assert len(bench.server.paths) == 1 + 10, "yt-dlp's way of asking again would begin from the start"


@pytest.mark.parametrize("path", ["/endless", "/bomb"])
async def test_what_is_too_large_is_stopped(bench: Bench, path: str) -> None:
    """Whether it never ends or unpacks to more than it is on the wire."""
    with pytest.raises(DownloadTooLarge):
        await bench.fetch(bench.server.at(path), max_bytes=5_000_000)
    assert bench.is_empty()


async def test_what_announces_its_size_is_stopped_at_once(bench: Bench) -> None:
    """Time and traffic are spent for nothing otherwise."""
    seen: list[Progress] = []
    with pytest.raises(DownloadTooLarge):
        await bench.fetch(bench.server.at("/big"), seen=seen)
    assert seen == []


async def test_a_file_of_just_the_largest_size_is_taken(bench: Bench) -> None:
    """The limit is what is allowed, not what is not."""
    size = len(bench.server.files["/clip.mp3"][1])
    assert (await bench.fetch(bench.server.at("/clip.mp3"), max_bytes=size)).bytes == size
    with pytest.raises(DownloadTooLarge):
        await bench.fetch(bench.server.at("/clip.mp3"), max_bytes=size - 1)


@pytest.mark.parametrize("path", ["/slow", "/drip"])
async def test_a_slow_server_is_given_up(bench: Bench, path: str) -> None:
    """One byte a minute would hold the place for ever: no pause between two of them is long enough to be noticed."""
    with pytest.raises(DownloadTimeout):
        await bench.fetch(bench.server.at(path), timeout_s=2)
    assert bench.is_empty()


# --- the child -------------------------------------------------------------------------------------------------------


async def test_cancelling_kills_the_child_and_empties_the_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hangs up must not leave work, files or the service's secrets behind in another process."""
    monkeypatch.setenv("API_KEYS", "a-secret-of-the-service")
    download = asyncio.create_task(bench.fetch(bench.server.at("/slow")))
    assert await asyncio.to_thread(bench.server.asked.wait, 60)
    (child,) = children()
    environment = child.environ()
    assert "a-secret-of-the-service" not in environment.values()
    assert environment["YTDLP_NO_PLUGINS"] == "1"
    assert environment["http_proxy"] == environment["https_proxy"] == environment["all_proxy"]
    assert "no_proxy" not in environment
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download
    assert not psutil.pid_exists(child.pid)
    assert bench.is_empty()


async def test_the_child_ends_with_its_parent(bench: Bench) -> None:
    """A service that is killed cannot clean up: the end of the pipe is all that its children see."""
    script = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from downloads.egress import EgressProxy
from downloads.fetch import Fetcher
from downloads.urls import AddressPolicy

async def main():
    async with EgressProxy(AddressPolicy((sys.argv[2],))) as proxy:
        fetcher = Fetcher(proxy=proxy, ffmpeg_path=Path(sys.argv[4]), max_bytes=1000, timeout_s=100)
        await fetcher.fetch(f"http://{sys.argv[2]}/slow", Path(sys.argv[3]))

asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    arguments = [str(root), bench.server.authority, str(bench.folder), str(FFMPEG)]
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, *arguments)
    assert await asyncio.to_thread(bench.server.asked.wait, 60)
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    await parent.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, [child], 30)
    assert (gone, alive) == ([child], [])


async def test_a_plugin_that_lies_about_is_not_loaded(bench: Bench, tmp_path: Path) -> None:
    """Plugins are code: whatever could write one into a folder would run with the service's rights."""
    for place in (bench.folder, tmp_path):
        plugin = place / "yt-dlp" / "plugins" / "x" / "yt_dlp_plugins" / "extractor"
        plugin.mkdir(parents=True)
        (plugin / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
        (place / "yt_dlp.py").write_text("raise SystemExit")
        config = place / "yt-dlp.conf"
        config.write_text(f"--exec 'touch {tmp_path / 'ran'}'")
    await bench.fetch(bench.server.at("/clip.mp3"))
    assert not (tmp_path / "ran").exists()


# --- small decisions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "format", ["", "-", "all", "mergeall", "a,b", "best\n", "b" * 201, "%(x)s", "é", "best;id", "all/best"]
)
def test_a_format_that_asks_for_more_than_one_thing_is_refused(format: str) -> None:
    """ "-" asks at the terminal; "all" and "a,b" fetch several files."""
    with pytest.raises(InvalidRequest):
        choose_format(MediaKind.AUDIO, format, None)


@pytest.mark.parametrize("height", [0, -1, 100_000])
def test_a_height_out_of_range_is_refused(height: int) -> None:
    """A mistake should be heard of."""
    with pytest.raises(InvalidRequest):
        choose_format(MediaKind.VIDEO, None, height)


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("A talk (part 1)", "A talk (part 1).mp3"),
        ("../../etc/passwd", "etc_passwd.mp3"),
        ("-i", "i.mp3"),
        ('a"b;c\r\nd', "a_b_c__d.mp3"),
        ("...", "media.mp3"),
        ("", "media.mp3"),
        ("x" * 5000, "x" * 100 + ".mp3"),
        ("日本語", "日本語.mp3"),
    ],
)
def test_a_title_becomes_a_harmless_name(title: str, name: str) -> None:
    """Titles come from strangers and end in headers and on people's disks."""
    assert file_name(title, "mp3") == name
