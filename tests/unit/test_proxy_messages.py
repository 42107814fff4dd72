"""HTTP heads as the egress proxy reads and rewrites them."""

from __future__ import annotations

import pytest

from downloads.proxy_messages import BadMessage, closing_response_head, parse_request


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def test_a_plain_request_is_sent_on_in_origin_form_with_the_host_of_its_first_line() -> None:
    """A second host in the headers must not decide where the request is taken for going."""
    request = parse_request(
        head(
            "GET http://Example.org:8080/a?b=c#d HTTP/1.1",
            "Host: 169.254.169.254",
            "Proxy-Authorization: Basic c2VjcmV0",
            "Proxy-Connection: keep-alive",
            "Connection: keep-alive",
            "Range: bytes=5-",
        )
    )
    assert (request.is_tunnel, request.host, request.port) == (False, "example.org", 8080)
    assert request.credential == b"c2VjcmV0"
    assert request.origin_head == head(
        "GET /a?b=c HTTP/1.1", "Host: example.org:8080", "Connection: close", "Range: bytes=5-"
    )


def test_the_credential_never_leaves_in_the_head_or_the_repr() -> None:
    """Whoever learns it could speak through the proxy in the name of that download."""
    request = parse_request(head("GET http://example.org/ HTTP/1.1", "proxy-authorization: basic c2VjcmV0"))
    assert b"c2VjcmV0" not in request.origin_head
    assert "c2VjcmV0" not in repr(request)


def test_a_tunnel_keeps_any_port_and_any_notation_of_the_host() -> None:
    """https links and their odd ports go through tunnels."""
    request = parse_request(head("CONNECT 0x7f.1:8443 HTTP/1.1", "Host: example.org"))
    assert (request.is_tunnel, request.host, request.port, request.origin_head) == (True, "127.0.0.1", 8443, b"")
    assert parse_request(head("CONNECT [::1]:443 HTTP/1.1")).host == "::1"


def test_a_body_is_announced_by_one_length() -> None:
    """Two readings of where a request ends make room for a second, unchecked one."""
    request = parse_request(head("POST http://example.org/ HTTP/1.1", "Content-Length: 5"))
    assert request.body_bytes == 5
    assert b"Content-Length: 5\r\n" in request.origin_head


@pytest.mark.parametrize(
    "lines",
    [
        ("GET / HTTP/1.1", "Host: example.org"),
        ("GET https://example.org/ HTTP/1.1",),
        ("GET ftp://example.org/ HTTP/1.1",),
        ("GET http://user@example.org/ HTTP/1.1",),
        ("GET http://256.0.0.1/ HTTP/1.1",),
        ("GET http://example.org/ HTTP/2",),
        ("GET  http://example.org/ HTTP/1.1",),
        ("GET http://example.org/a\tb HTTP/1.1",),
        ("GET http://example.org/\x80 HTTP/1.1",),
        ("CONNECT example.org HTTP/1.1",),
        ("CONNECT http://example.org:80 HTTP/1.1",),
        ("CONNECT a@example.org:80 HTTP/1.1",),
        ("POST http://example.org/ HTTP/1.1", "Transfer-Encoding: chunked"),
        ("POST http://example.org/ HTTP/1.1", "Content-Length: 5", "Content-Length: 6"),
        ("POST http://example.org/ HTTP/1.1", "Content-Length: -5"),
        ("POST http://example.org/ HTTP/1.1", "Content-Length: 5, 5"),
        ("GET http://example.org/ HTTP/1.1", "X: a\nHost: b"),
        ("GET http://example.org/ HTTP/1.1", "X: a\0"),
        ("GET http://example.org/ HTTP/1.1", " folded: line"),
        ("GET http://example.org/ HTTP/1.1", "no colon"),
        ("",),
    ],
)
def test_what_could_be_read_in_two_ways_is_not_carried(lines: tuple[str, ...]) -> None:
    """The origin must see exactly the request that was checked."""
    with pytest.raises(BadMessage):
        parse_request(head(*lines))


def test_an_answer_tells_the_client_that_the_connection_ends() -> None:
    """A client that keeps the connection would send its next request, for another host, to this one."""
    answer = head("HTTP/1.1 200 OK", "Content-Length: 3", "Connection: keep-alive", "Keep-Alive: timeout=5", "bad line")
    assert closing_response_head(answer) == head("HTTP/1.1 200 OK", "Content-Length: 3", "Connection: close")
    with pytest.raises(BadMessage):
        closing_response_head(head("SSH-2.0-OpenSSH_9.6"))
