"""Links that lead inside, or are none: refused by their text, at every door."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.acceptance.attacks.places import Places, as_json
from tests.acceptance.attacks.table import assert_refused
from tests.media_server import MediaServer

NOT_ALLOWED = 403, "URL_NOT_ALLOWED"
INVALID = 422, "INVALID_URL"

INSIDE = {
    "loopback": "http://127.0.0.1:{port}/",
    "over TLS": "https://127.0.0.1:{port}/",
    "upper case": "HTTP://127.0.0.1:{port}/",
    "with a dot": "http://127.0.0.1.:{port}/",
    "one number": "http://2130706433:{port}/",
    "one octal number": "http://017700000001:{port}/",
    "one hexadecimal number": "http://0X7F000001:{port}/",
    "hexadecimal part": "http://0x7f.1:{port}/",
    "octal part": "http://0177.0.0.1:{port}/",
    "two parts": "http://127.1:{port}/",
    "zero": "http://0:{port}/",
    "no address": "http://0.0.0.0:{port}/",
    "other loopback": "http://127.255.255.254:{port}/",
    "broadcast": "http://255.255.255.255:{port}/",
    "multicast": "http://224.0.0.1:{port}/",
    "private, 10": "http://10.0.0.1/",
    "private, 172": "http://172.31.255.254/",
    "private, 192": "http://192.168.0.1/",
    "carrier": "http://100.64.0.1/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata as one number": "http://2852039166/",
    "metadata of Oracle": "http://192.0.0.192/",
    "metadata of Alibaba": "http://100.100.100.200/",
    "metadata of Azure": "http://168.63.129.16/",
    "full-width": "http://１２７.０.０.１:{port}/",
    "circled": "http://①②⑦.⓪.⓪.①:{port}/",
    "ideographic stops": "http://127。0。0。1:{port}/",
    "soft hyphen and no width": "http://127\u00ad.0.0.1\u200b:{port}/",
    "encoded digits": "http://%31%32%37.0.0.1:{port}/",
    "IPv6 loopback": "http://[::1]:{port}/",
    "IPv6 loopback, long": "http://[0:0:0:0:0:0:0:1]:{port}/",
    "IPv6, none": "http://[::]:{port}/",
    "IPv6, mapped": "http://[::ffff:127.0.0.1]:{port}/",
    "IPv6, mapped metadata": "http://[::ffff:169.254.169.254]/",
    "IPv6, mapped in hexadecimal": "http://[::ffff:7f00:1]:{port}/",
    "IPv6, compatible": "http://[::127.0.0.1]:{port}/",
    "IPv6, NAT64": "http://[64:ff9b::a9fe:a9fe]/",
    "IPv6, 6to4": "http://[2002:7f00:1::]:{port}/",
    "IPv6, Teredo": "http://[2001:0:7f00:1::]/",
    "IPv6, site-local": "http://[fec0::1]/",
    "IPv6, link-local": "http://[fe80::1]/",
    "IPv6, private": "http://[fd00:ec2::254]/latest/meta-data/",
    "localhost": "http://localhost:{port}/",
    "localhost with a dot": "http://LOCALHOST.:{port}/",
    "below localhost": "http://a.localhost:{port}/",
    "localdomain": "http://localhost.localdomain:{port}/",
    "ligatures": "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "metadata's name": "http://metadata.google.internal/computeMetadata/v1/",
    "neighbour": "http://redis:{port}/",
    "printer": "http://printer.local:{port}/",
    "denied by the operator": "http://below.denied.example.com/",
    "opened host, other name": "http://localhost:{web_port}/",
    "opened host, other port": "http://127.0.0.1/",
    "this server": "http://127.0.0.1:{own_port}/health",
    "the proxy": "http://127.0.0.1:{proxy_port}/",
    "port, then fragment": "http://127.0.0.1:{port}#@{web}/",
    "port, then query": "http://127.0.0.1:{port}?@{web}/",
}

NO_LINK = {
    "file": "file:///etc/passwd",
    "file on this host": "FILE://localhost/etc/passwd",
    "ftp": "ftp://127.0.0.1:{port}/a.mp3",
    "gopher": "gopher://127.0.0.1:{port}/1",
    "data": "data:audio/mpeg;base64,AAAA",
    "javascript": "javascript:alert(1)",
    "web socket": "ws://127.0.0.1:{port}/",
    "rtmp": "rtmp://127.0.0.1:{port}/live",
    "ffmpeg's concat": "concat:/etc/passwd|http://127.0.0.1:{port}/",
    "ffmpeg's subfile": "subfile,,start,0,end,9,,:/etc/passwd",
    "a socket's path": "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "yt-dlp's search": "ytsearch:x",
    "an option": "--exec=touch /tmp/x",
    "a short option": "-o",
    "standard input": "-",
    "no scheme": "127.0.0.1:{port}/",
    "no scheme, two slashes": "//127.0.0.1:{port}/",
    "no slashes": "http:127.0.0.1:{port}/",
    "one slash": "http:/127.0.0.1:{port}/",
    "three slashes": "http:///127.0.0.1:{port}/",
    "backslashes": "http:\\\\127.0.0.1:{port}\\",
    "no host": "http://",
    "port alone": "http://:{port}/",
    "user": "http://good@127.0.0.1:{port}/",
    "user and password": "http://user:password@{web}/clip.mp3",
    "host as user": "http://{web}@127.0.0.1:{port}/",
    "inside as user": "http://127.0.0.1:{port}@{web}/",
    "backslash before the host": "http://good.example\\@127.0.0.1:{port}/",
    "encoded hash": "http://{web}%23@127.0.0.1:{port}/",
    "encoded slash": "http://127.0.0.1%2f.example.com/",
    "encoded at": "http://example.com%40127.0.0.1:{port}/",
    "encoded line end": "http://127.0.0.1%0d%0aX:{port}/",
    "encoded NUL": "http://127.0.0.1%00.example.com:{port}/",
    "line end": "http://{web}/a\r\nHost: 127.0.0.1",
    "line feed in the host": "http://127.0.0.1\n:{port}/",
    "tab in the scheme": "ht\ttp://127.0.0.1:{port}/",
    "NUL": "http://{web}/\0",
    "space before": " http://127.0.0.1:{port}/",
    "space in the host": "http://127.0.0.1 .example.com:{port}/",
    "next line": "http://{web}/\x85",
    "half a pair": "http://{web}/\ud800",
    "port 0": "http://127.0.0.1:0/",
    "port 65536": "http://127.0.0.1:65536/",
    "port -1": "http://127.0.0.1:-1/",
    "full-width port": "http://127.0.0.1:８０/",
    "port with a slash": "http://127.0.0.1:{port}%2f/",
    "five parts": "http://127.0.0.1.1:{port}/",
    "part over 255": "http://127.0.0.256:{port}/",
    "octal with an 8": "http://0178.0.0.1:{port}/",
    "number over 32 bits": "http://4294967297:{port}/",
    "open bracket": "http://[::1:{port}/",
    "zone": "http://[fe80::1%25lo]:{port}/",
    "after a bracket": "http://[::1].example.com:{port}/",
    "smuggled headers": "http://{web}/#__youtubedl_smuggle=%7B%22http_headers%22%3A+%7B%7D%7D",
    "5,000 characters": "http://{web}/" + "a" * 5_000,
    "long host": "http://" + "a." * 200 + "example.com/",
}


@pytest.mark.parametrize("link", INSIDE.values(), ids=INSIDE)
def test_a_link_inside_is_refused(client: httpx.Client, places: Places, link: str) -> None:
    """Whoever may hand in links may not read with this server's eyes what only it can see, however it is spelled."""
    assert_refused(as_json(client, "/download", {"url": places.filled(link)}), *NOT_ALLOWED)


@pytest.mark.parametrize("link", NO_LINK.values(), ids=NO_LINK)
def test_what_is_no_plain_link_is_refused(client: httpx.Client, places: Places, link: str) -> None:
    """yt-dlp reads far more than web links, and two readers of a crooked one see two hosts."""
    assert_refused(as_json(client, "/download", {"url": places.filled(link)}), *INVALID)


# --- by other doors --------------------------------------------------------------------------------------------------

Door = Callable[[httpx.Client, str], httpx.Response]

DOORS: dict[str, Door] = {
    "form": lambda client, link: client.post("/download", data={"url": link}),
    "query": lambda client, link: client.post("/download", params={"url": link}),
    "transcribe": lambda client, link: client.post("/transcribe", params={"url": link}),
    "transcribe, streamed": lambda client, link: client.post("/transcribe", params={"url": link, "stream": "true"}),
    "download, later": lambda client, link: as_json(client, "/download", {"url": link, "mode": "async"}),
    "transcribe, later": lambda client, link: as_json(client, "/transcribe", {"url": link}, Prefer="respond-async"),
}
FILE_DOORS: dict[str, Door] = {
    "transcribe": lambda client, link: as_json(client, "/transcribe", {"audio_file": link}),
    "extract": lambda client, link: as_json(client, "/extract-audio", {"video_file": link}),
    "subtitle": lambda client, link: as_json(client, "/subtitle", {"video_file": link}),
}
LINKS = {
    "number": ("http://2130706433:{port}/", *NOT_ALLOWED),
    "metadata": ("http://metadata.google.internal/", *NOT_ALLOWED),
    "file": ("file:///etc/passwd", *INVALID),
    "host as user": ("http://{web}@127.0.0.1:{port}/", *INVALID),
}


@pytest.mark.parametrize(("link", "status", "code"), LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_every_door_refuses_the_same(
    client: httpx.Client, places: Places, door: Door, link: str, status: int, code: str
) -> None:
    """One that is forgotten is the way in; work that is done later is refused before it is taken."""
    assert_refused(door(client, places.filled(link)), status, code)


def test_a_batch_with_one_such_link_is_refused_whole(client: httpx.Client, places: Places, web: MediaServer) -> None:
    """Each is named with its own code; the good one is not fetched."""
    before = len(web.paths)
    links = [web.at("/clip.mp3"), *(places.filled(link) for link, _, _ in LINKS.values())]
    answer = as_json(client, "/jobs/batch", {"urls": links})
    assert_refused(answer, 422, "INVALID_REQUEST")
    told = [(fault["name"], fault["detail"].partition(":")[0]) for fault in answer.json()["errors"]]
    assert told == [(f"urls.{n}", code) for n, (_, _, code) in enumerate(LINKS.values(), 1)]
    assert len(web.paths) == before


@pytest.mark.parametrize("link", ["http://127.0.0.1:{port}/", "http://{web}/clip.mp3", "file:///etc/passwd"])
@pytest.mark.parametrize("door", FILE_DOORS.values(), ids=FILE_DOORS)
def test_a_link_is_no_stored_file(client: httpx.Client, places: Places, door: Door, link: str) -> None:
    """ffmpeg, too, would open links where it is given a name."""
    assert_refused(door(client, places.filled(link)), 404, "FILE_NOT_FOUND")


def test_no_link_is_no_request(client: httpx.Client) -> None:
    """Empty is absent."""
    assert_refused(as_json(client, "/download", {"url": ""}), 422, "INVALID_REQUEST")
