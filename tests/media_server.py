"""A real HTTP server on loopback that serves media, and everything that a hostile or broken server may do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit


class MediaServer:
    """What it serves, by path (*at* gives the full link):

    `/clip.mp3`, `/clip.ts` and all in *files*     that file, ranges supported
    `/redirect?to=URL&status=307`, `/loop`         302 where no status is given; to itself
    `/page?source=URL`                             HTML with <audio><source src=URL>
    `/video-page?source=URL`                       HTML with <video src=URL>
    `/nothing`                                     HTML without media
    `/half`, `/half-chunked`, `/half-reset`        half of the file, then the end: length told; chunked; neither, reset
    `/endless`                                     audio without a length, for ever
    `/big`                                         audio that announces 1 TB
    `/slow`                                        a few bytes, then nothing until the server is closed
    `/drip`                                        a byte at a time, never silent for long
    `/m3u8?segment=URL&segment=URL&key=URL&live=1` an HLS playlist
    `/bomb`                                        HTML, gzip, 4 MiB on the wire, 4 GiB unpacked
    `/status/404`                                  that status
    """

    def __init__(self, files: dict[str, tuple[str, bytes]]) -> None:
        self.files = files
        self.paths: list[str] = []
        """Of all requests so far, CONNECT included; appended before the answer."""
        self.connections = 0
        self.headers: list[dict[str, str]] = []
        self.asked = threading.Event()
        """Set when `/slow` has been asked for: the client is in the middle of its download."""
        self.closing = threading.Event()
        server = self

        class Handler(_Handler):
            media = server

        self._http = _Server(("127.0.0.1", 0), Handler)
        self._http.media = self
        self.port = int(self._http.server_address[1])

    @property
    def authority(self) -> str:
        """As PRIVATE_HOSTS_ALLOWED wants it."""
        return f"127.0.0.1:{self.port}"

    def at(self, path: str, **query: str | list[str]) -> str:
        pairs = [
            (name, value)
            for name, values in query.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)
        return f"http://{self.authority}{path}" + (f"?{text}" if text else "")

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


@contextlib.contextmanager
def media_server(files: dict[str, tuple[str, bytes]] | None = None) -> Iterator[MediaServer]:
    """A running server for *files*: path to media type and content. Without any it makes a canary."""
    server = MediaServer(files or {})
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    media: MediaServer

    def get_request(self) -> tuple[Any, Any]:
        self.media.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    media: MediaServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read *paths* instead."""

    def do_CONNECT(self) -> None:
        self.media.paths.append(f"CONNECT {self.path}")
        self.send_error(405)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        self.media.paths.append(parts.path)
        self.media.headers.append(dict(self.headers.items()))
        name = parts.path.strip("/").replace("-", "_").split("/")[0]
        if parts.path in self.media.files:
            self._file(*self.media.files[parts.path])
        elif parts.path.startswith("/status/"):
            self._whole(int(parts.path.rpartition("/")[2]), "text/plain", b"no")
        elif hasattr(self, f"_serve_{name}"):
            getattr(self, f"_serve_{name}")(query)
        else:
            self._whole(404, "text/plain", b"not here")

    def _whole(self, status: int, media_type: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, media_type: str, content: bytes) -> None:
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            self._whole(200, media_type, content, Accept_Ranges="bytes")
            return
        first_text, _, last_text = asked.removeprefix("bytes=").partition("-")
        first, last = int(first_text or 0), int(last_text or len(content) - 1)
        if first >= len(content):
            self._whole(416, "text/plain", b"")
            return
        self._whole(206, media_type, content[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(content)}")

    def _head(self, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "audio/mpeg")
        self.send_header("Connection", "close")
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True

    def _content(self) -> bytes:
        return next(iter(self.media.files.values()))[1]

    def _serve_redirect(self, query: dict[str, list[str]]) -> None:
        self._whole(int(query.get("status", ["302"])[0]), "text/plain", b"", Location=query["to"][0])

    def _serve_loop(self, query: dict[str, list[str]]) -> None:
        self._whole(302, "text/plain", b"", Location=f"/loop?{len(self.media.paths)}")

    def _serve_page(self, query: dict[str, list[str]]) -> None:
        source = query["source"][0]
        self._html(f'<audio controls><source src="{source}" type="audio/mpeg"></audio>')

    def _serve_video_page(self, query: dict[str, list[str]]) -> None:
        self._html(f'<video src="{query["source"][0]}" width="320"></video>')

    def _serve_nothing(self, query: dict[str, list[str]]) -> None:
        self._html("<p>There is nothing to hear here.</p>")

    def _html(self, body: str) -> None:
        page = f"<!doctype html><html><head><title>A page</title></head><body>{body}</body></html>"
        self._whole(200, "text/html; charset=utf-8", page.encode())

    def _serve_half(self, query: dict[str, list[str]]) -> None:
        content = self._content()
        self._head(Content_Length=str(len(content)))
        self.wfile.write(content[: len(content) // 2])

    def _serve_half_chunked(self, query: dict[str, list[str]]) -> None:
        content = self._content()
        self._head(Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n" % len(content) + content[: len(content) // 2])

    def _serve_half_reset(self, query: dict[str, list[str]]) -> None:
        content = self._content()
        self._head()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _serve_endless(self, query: dict[str, list[str]]) -> None:
        self._head()
        while not self.media.closing.is_set():
            self.wfile.write(b"\xff\xfb\x90\x00" + bytes(65_532))

    def _serve_big(self, query: dict[str, list[str]]) -> None:
        self._head(Content_Length=str(10**12))
        while not self.media.closing.is_set():
            self.wfile.write(bytes(65_536))

    def _serve_slow(self, query: dict[str, list[str]]) -> None:
        self._head(Content_Length="1000000")
        self.wfile.write(bytes(2048))
        self.wfile.flush()
        self.media.asked.set()
        self.media.closing.wait()

    def _serve_drip(self, query: dict[str, list[str]]) -> None:
        self._head(Content_Length="1000000")
        self.media.asked.set()
        while not self.media.closing.wait(0.05):
            self.wfile.write(b"\xff")
            self.wfile.flush()

    def _serve_m3u8(self, query: dict[str, list[str]]) -> None:
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:10", "#EXT-X-MEDIA-SEQUENCE:0"]
        lines += [f'#EXT-X-KEY:METHOD=AES-128,URI="{key}"' for key in query.get("key", [])]
        for segment in query.get("segment", []):
            lines += ["#EXTINF:2.0,", segment]
        lines += [] if "live" in query else ["#EXT-X-ENDLIST"]
        self._whole(200, "application/vnd.apple.mpegurl", ("\n".join(lines) + "\n").encode())

    def _serve_bomb(self, query: dict[str, list[str]]) -> None:
        # A block of deflate that ends in a full flush can be repeated: 64 MiB of spaces each time. The check sum at
        # the end is wrong, but nobody gets so far.
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        start = packer.compress(b"<html><title>") + packer.flush(zlib.Z_FULL_FLUSH)
        block = packer.compress(b" " * (64 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
        self._whole(200, "text/html", start + block * 64 + packer.flush(), Content_Encoding="gzip")
