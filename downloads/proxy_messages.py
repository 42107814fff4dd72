"""HTTP as a proxy reads and rewrites it: heads only, pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from downloads.urls import join_authority, split_authority
from errors import InvalidLink

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VISIBLE = re.compile(rb"[\x21-\x7e]+")
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"upgrade")
)
"""Headers between two neighbours, not for the one behind. Source: RFC 9110 §7.6.1."""


class BadMessage(Exception):
    """What came is not HTTP/1 as a proxy sees it, or something that this proxy does not carry."""


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """One request to the proxy, with what has to be sent on."""

    is_tunnel: bool
    host: str
    """Normalised as downloads.urls writes hosts."""
    port: int
    credential: bytes = field(repr=False)
    """What stands after "Basic" in Proxy-Authorization; empty where it is missing."""
    origin_head: bytes = field(repr=False)
    """The head for the origin server; empty for a tunnel."""
    body_bytes: int


def parse_request(head: bytes) -> ProxyRequest:
    """Read "CONNECT host:port" or "GET http://host/path". Raises BadMessage.

    The host comes from the request's first line alone; a Host header is replaced. Source: RFC 9112 §3.2.
    """
    request_line, headers, unread = _split_head(head)
    if unread:
        raise BadMessage("header")
    match request_line.split(b" "):
        case [method, target, b"HTTP/1.1" | b"HTTP/1.0"] if _TOKEN.fullmatch(method) and _VISIBLE.fullmatch(target):
            pass
        case _:
            raise BadMessage("request line")
    credential = b""
    kept: list[tuple[bytes, bytes]] = []
    lengths: set[bytes] = set()
    for name, value in headers:
        lower = name.lower()
        if lower == b"proxy-authorization":
            scheme, _, credential = value.partition(b" ")
            if scheme.lower() != b"basic":
                credential = b""
        elif lower == b"transfer-encoding":
            raise BadMessage("a body without a length")
        elif lower == b"content-length":
            lengths.add(value)
        elif lower != b"host" and lower not in _HOP_BY_HOP:
            kept.append((name, value))
    try:
        if method == b"CONNECT":
            host, port = split_authority(target.decode("ascii"), None)
            return ProxyRequest(True, host, port, credential.strip(), b"", 0)
        parts = urlsplit(target.decode("ascii"))
        if parts.scheme != "http" or "@" in parts.netloc:
            raise BadMessage("target")
        host, port = split_authority(parts.netloc, 80)
    except (InvalidLink, ValueError) as error:
        raise BadMessage("target") from error
    body_bytes = _body_bytes(lengths)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if body_bytes is not None:
        kept.append((b"Content-Length", str(body_bytes).encode("ascii")))
    authority = join_authority(host, None if port == 80 else port)
    kept[:0] = [(b"Host", authority.encode("ascii")), (b"Connection", b"close")]
    origin_head = _join_head(method + b" " + path.encode("ascii") + b" HTTP/1.1", kept)
    return ProxyRequest(False, host, port, credential.strip(), origin_head, body_bytes or 0)


def closing_response_head(head: bytes) -> bytes:
    """The origin's answer with "Connection: close": the client must not send a second request. Raises BadMessage.

    Malformed header lines are dropped: many servers send some.
    """
    status_line, headers, _ = _split_head(head)
    if not status_line.startswith(b"HTTP/1."):
        raise BadMessage("status line")
    kept = [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]
    return _join_head(status_line, [*kept, (b"Connection", b"close")])


def _body_bytes(lengths: set[bytes]) -> int | None:
    if not lengths:
        return None
    (text,) = lengths if len(lengths) == 1 else (b"",)
    if not (text.isdigit() and len(text) < 16):
        raise BadMessage("content-length")
    return int(text)


def _split_head(head: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], int]:
    """The first line, the headers, and how many lines were no headers. Raises BadMessage."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if any(byte in first for byte in (b"\0", b"\r", b"\n")):
        raise BadMessage("first line")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon and _TOKEN.fullmatch(name) and not any(byte in value for byte in (b"\0", b"\r", b"\n")):
            headers.append((name, value.strip()))
    return first, headers, len(lines) - len(headers)


def _join_head(first: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join([first, *(name + b": " + value for name, value in headers), b"", b""])
