"""A real HTTP server on loopback that answers as an OpenAI-compatible one does, or as badly as it is told to."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Sent:
    """One request that came."""

    path: str
    headers: dict[str, str]
    fields: list[tuple[str, str]]
    file: bytes
    file_name: str

    def values(self, name: str) -> list[str]:
        return [value for found, value in self.fields if found == name]


@dataclass(frozen=True)
class Reply:
    """What is answered. *hangs*: nothing, until the server ends."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False


def told(body: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(body).encode(), headers)


class StandIn:
    """Answers with *replies* in turn, the last one again and again."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.sent: list[Sent] = []
        self.arrived = threading.Event()
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                outer.sent.append(read(self))
                outer.arrived.set()
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                if reply.hangs:
                    outer.closing.wait()
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.content)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def read(request: BaseHTTPRequestHandler) -> Sent:
    """A multipart/form-data body, read by the standard library's own parser of messages."""
    body = request.rfile.read(int(request.headers["Content-Length"]))
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    fields, file, file_name = [], b"", ""
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        if name == "file":
            file, file_name = content, part.get_filename() or ""
        else:
            fields.append((str(name), content.decode()))
    return Sent(request.path, dict(request.headers), fields, file, file_name)


@contextlib.contextmanager
def stand_in(*replies: Reply) -> Iterator[StandIn]:
    server = StandIn(*replies)
    server.start()
    try:
        yield server
    finally:
        server.stop()
