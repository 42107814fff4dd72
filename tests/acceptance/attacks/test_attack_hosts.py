"""Public hosts whose names or answers lead inside: redirects, pages, feeds, playlists, and names that change."""

from __future__ import annotations

import httpx
import pytest

from tests.acceptance.attacks.places import Places, as_json
from tests.acceptance.attacks.table import assert_refused
from tests.acceptance.server import Server
from tests.media_server import MediaServer

NOT_ALLOWED = 403, "URL_NOT_ALLOWED"

PAGE = "<!doctype html><html><head><title>A page</title>{head}</head><body>{body}</body></html>"
PAGES = {
    "/og": PAGE.format(head='<meta property="og:video" content="http://{canary}/clip.mp4">', body=""),
    "/source": PAGE.format(head="", body='<video><source src="http://[::1]:{port}/clip.mp4" type="video/mp4"></video>'),
    "/framed": PAGE.format(head="", body='<iframe src="http://{canary}/embed/1"></iframe>'),
    "/plain": PAGE.format(head="", body="<p>There is nothing to hear here.</p>"),
}
FEED = """<?xml version="1.0"?><rss version="2.0"><channel><title>A feed</title><item><title>One</title>
<link>http://{web}/plain</link><enclosure url="http://mixed.example.com:{port}/clip.mp3" type="audio/mpeg"/>
</item></channel></rss>"""
MANIFEST = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" minBufferTime="PT1S"
     profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><BaseURL>http://{canary}/</BaseURL>
  <AdaptationSet mimeType="audio/mp4">
    <Representation id="sound" bandwidth="64000" codecs="mp4a.40.2"><BaseURL>sound.m4a</BaseURL></Representation>
  </AdaptationSet>
</Period></MPD>"""
SEGMENTS = "#EXT-X-TARGETDURATION:10\n{before}#EXTINF:2.0,\n/clip.ts\n{after}#EXT-X-ENDLIST\n"
PLAYLISTS = {
    "/segment.m3u8": ("", "#EXTINF:2.0,\nhttp://{canary}/clip.ts\n"),
    "/key.m3u8": ('#EXT-X-KEY:METHOD=AES-128,URI="http://{canary}/key"\n', ""),
    "/map.m3u8": ('#EXT-X-MAP:URI="http://private.example.com:{port}/a"\n', ""),
}
VARIANTS = '#EXT-X-STREAM-INF:BANDWIDTH=64000,CODECS="mp4a.40.2"\nhttp://{canary}/one.m3u8\n'
LED = {
    "307 to 301 to a name": "http://{web}/redirect?status=307&to=/redirect%3Fstatus=301%26to=http://mapped.example.com:{port}/",
    "302 to a file": "http://{web}/redirect?to=file:///etc/passwd",
    "308 to ftp": "http://{web}/redirect?status=308&to=ftp://{canary}/a.mp3",
    "name": "http://private.example.com:{port}/clip.mp3",
    "og:video": "http://{web}/og",
    "source": "http://{web}/source",
    "feed": "http://{web}/feed.rss",
    "segment": "http://{web}/segment.m3u8",
    "key": "http://{web}/key.m3u8",
    "map": "http://{web}/map.m3u8",
    "variant": "http://{web}/variants.m3u8",
    "manifest": "http://{web}/manifest.mpd",
}
GO_ASTRAY = {"frame": "http://{web}/framed", "host in the fragment": "http://{web}/plain#@127.0.0.1:{port}/"}


@pytest.fixture(scope="module", autouse=True)
def documents(web: MediaServer, places: Places) -> None:
    """What the public hosts have to say."""
    web.files |= {path: ("text/html; charset=utf-8", places.filled(text).encode()) for path, text in PAGES.items()}
    playlists = {path: SEGMENTS.format(before=before, after=after) for path, (before, after) in PLAYLISTS.items()}
    for path, text in (playlists | {"/variants.m3u8": VARIANTS}).items():
        web.files[path] = ("application/vnd.apple.mpegurl", places.filled("#EXTM3U\n" + text).encode())
    web.files["/feed.rss"] = ("application/rss+xml", places.filled(FEED).encode())
    web.files["/manifest.mpd"] = ("application/dash+xml", places.filled(MANIFEST).encode())
    web.files["/clip.ts"] = ("video/mp2t", bytes(188 * 16))


@pytest.mark.parametrize("link", LED.values(), ids=LED)
def test_what_a_public_host_says_does_not_lead_inside(client: httpx.Client, places: Places, link: str) -> None:
    """The link is above suspicion; where it goes on to is its owner's choice, and he may choose anew each time."""
    assert_refused(as_json(client, "/download", {"url": places.filled(link)}), *NOT_ALLOWED)


@pytest.mark.parametrize("link", GO_ASTRAY.values(), ids=GO_ASTRAY)
def test_what_only_looks_like_a_way_inside_is_not_taken(client: httpx.Client, places: Places, link: str) -> None:
    """There is nothing at the public host, and nowhere else is looked."""
    assert_refused(as_json(client, "/download", {"url": places.filled(link)}), 422, "NO_MEDIA_AT_URL")


def test_a_name_that_changes_its_mind_is_checked_each_time(
    server: Server, client: httpx.Client, places: Places
) -> None:
    """First it is a public host's, then this machine's. Whoever looks a second time to connect is led inside; and what
    is looked up later, for a job, is checked then."""
    link = {"url": places.filled("http://changing.example.com:{port}/clip.mp3")}
    assert_refused(as_json(client, "/download", link), 502, "DOWNLOAD_FAILED")
    taken = as_json(client, "/download", link | {"mode": "async"})
    assert taken.status_code == 202
    at = taken.headers["location"]
    server.wait_until(lambda: client.get(at).json()["state"] not in ("queued", "running"))
    job = client.get(at).json()
    assert (job["state"], job["error"]["status"], job["error"]["code"]) == ("failed", *NOT_ALLOWED)
    assert "127" not in job["error"]["message"]
