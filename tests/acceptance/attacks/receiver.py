"""A caller's server for webhooks: keeps all that it is told, and may say anything to it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Told:
    """One webhook as it came in."""

    path: str
    body: bytes
    headers: dict[str, str] = field(repr=False)
    """Their names in lower case."""


class Receiver:
    """What it answers, by the path's beginning:

    `/taken`                   204
    `/later`                   503 the first time, 204 from then on
    `/redirect/307?to=URL`     that status, and where to go
    """

    def __init__(self) -> None:
        self._told: list[Told] = []
        self._news = threading.Condition()
        receiver = self

        class Handler(_Handler):
            told = receiver

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = int(self._http.server_address[1])
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def at(self, path: str) -> str:
        return f"http://{self.authority}{path}"

    def keep(self, told: Told) -> int:
        """How often that path has been told something, this time included."""
        with self._news:
            self._told.append(told)
            self._news.notify_all()
            return len(self.told(told.path))

    def told(self, path: str) -> list[Told]:
        return [one for one in self._told if one.path == path]

    def wait_for(self, path: str, count: int = 1, limit_s: float = 60.0) -> list[Told]:
        """What came to *path*, once it is *count*."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.told(path)) >= count, limit_s), (
                f"not told {count} times: {path}"
            )
            return self.told(path)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    told: Receiver
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests read what was told instead."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        times = self.told.keep(Told(self.path, body, headers))
        kind, _, rest = self.path.removeprefix("/").partition("/")
        status = int(rest[:3]) if kind == "redirect" else 503 if kind == "later" and times == 1 else 204
        self.send_response(status)
        if kind == "redirect":
            self.send_header("Location", self.path.partition("?to=")[2])
        self.send_header("Content-Length", "0")
        self.end_headers()
