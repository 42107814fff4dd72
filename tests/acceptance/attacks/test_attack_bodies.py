"""Bodies that are not what their heads say, forms that never end, and callers that take their time."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.acceptance import sounds
from tests.acceptance.attacks.table import MAX_UPLOAD_MB
from tests.acceptance.server import Server
from tests.acceptance.test_slow_callers import answered

pytestmark = pytest.mark.usefixtures("nothing_kept")

LIMIT = MAX_UPLOAD_MB * 2**20
BOUNDARY = "b"
END = b"\r\n--b--\r\n"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


def asked(
    server: Server,
    head: list[str],
    body: bytes = b"",
    *,
    path: str = "/transcribe",
    version: str = "1.1",
    ends: bool = False,
) -> str:
    """All that comes back, up to the connection's end. *ends*: this side says that it sends no more."""
    lines = [f"POST {path} HTTP/{version}", "Host: here", f"X-API-Key: {server.key}", *head]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        try:
            line.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            if ends:
                line.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # refused before its end: the answer is there all the same
        return b"".join(_pieces(line)).decode("latin-1")


def _pieces(line: socket.socket) -> Iterator[bytes]:
    try:
        while piece := line.recv(65536):
            yield piece
    except ConnectionResetError:
        pass


def answers(text: str) -> list[tuple[int, str]]:
    """Status and code of each answer in *text*; no code, where it is no problem."""
    parts = re.split(r"(?=HTTP/1\.1 \d{3} )", text)[1:]
    return [(int(part[9:12]), (re.findall(r'"code":"(\w+)"', part) or [""])[0]) for part in parts]


def chunked(body: bytes, size: int = 2**16) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


RAW = ["Content-Type: audio/wav", "Connection: close"]
FORM = [f"Content-Type: multipart/form-data; boundary={BOUNDARY}", "Connection: close"]
SOUND = sounds.silence(0.5)
TOO_LARGE = [(413, "UPLOAD_TOO_LARGE")]
MALFORMED = [(400, "MALFORMED_REQUEST")]
INVALID = [(422, "INVALID_REQUEST")]
HEARD = [(200, "")]


def test_a_byte_too_many_in_one_piece(server: Server) -> None:
    """Refused by its length alone."""
    body = bytes(LIMIT + 1)
    assert answers(asked(server, [*RAW, f"Content-Length: {len(body)}"], body)) == TOO_LARGE


def test_a_byte_too_many_in_chunks(server: Server) -> None:
    """Its length is known to nobody, until it is too large."""
    body = chunked(bytes(LIMIT + 1))
    assert answers(asked(server, [*RAW, "Transfer-Encoding: chunked"], body)) == TOO_LARGE


def test_a_byte_too_many_in_a_form(server: Server) -> None:
    """The form's own lines count, too."""
    body = FILE + bytes(LIMIT + 1 - len(FILE) - len(END)) + END
    assert answers(asked(server, [*FORM, "Transfer-Encoding: chunked"], chunked(body))) == TOO_LARGE


def test_a_body_without_a_length(server: Server) -> None:
    """HTTP has none in requests: what follows is not the recording, nor another request."""
    assert answers(asked(server, RAW, SOUND, version="1.0")) == [(422, "NO_AUDIO")]


SLOW = {
    "POST /transcribe": (RAW[0], b"RIFF", b"x"),
    "POST /transcribe?language=en": (RAW[0], SOUND, b""),
    "POST /extract-audio": (FORM[0], FILE, b"x"),
    "POST /subtitle": (RAW[0], b"RIFF", b"x"),
    "POST /download": ("Content-Type: application/json", b'{"url": "', b"x"),
    "POST /jobs/batch": ("Content-Type: application/json", b'{"urls": ["', b"x"),
    "PUT /vocabulary": ("Content-Type: text/plain", b"a", b"x"),
    "POST /v1/audio/transcriptions": (FORM[0], FILE, b"x"),
}
"""The body's type, how it begins, and what comes of it again and again."""


def test_a_body_shorter_than_its_length(server: Server) -> None:
    """Wherever one is read: who sends a few bytes a second is waited for no longer than who sends nothing more."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(SLOW)) as pool:
        told = {}
        for target, (kind, start, drip) in SLOW.items():
            line = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            head = [f"{target} HTTP/1.1", "Host: here", f"X-API-Key: {server.key}", kind, "Content-Length: 1000000"]
            line.sendall("\r\n".join([*head, "", ""]).encode() + start)
            told[target] = pool.submit(answered, line, drip=drip)
        statuses = {target: answer.result(60)[0] for target, answer in told.items()}
    assert statuses == dict.fromkeys(SLOW, 408)


def test_a_length_that_says_more_and_a_caller_that_leaves(server: Server) -> None:
    """Half a recording is none."""
    head = [*RAW, f"Content-Length: {len(SOUND) + 1}"]
    assert answers(asked(server, head, SOUND, ends=True)) in ([], MALFORMED)


def test_a_length_that_says_less(server: Server) -> None:
    """What is left over is no second request: behind a proxy it would be somebody's."""
    hidden = b"GET /models HTTP/1.1\r\nHost: here\r\n\r\n"
    head = ["Content-Type: audio/wav", f"Content-Length: {len(SOUND)}", "Connection: close"]
    assert answers(asked(server, head, SOUND + hidden)) == HEARD


REFUSED_HEADS = {
    "two lengths": [f"Content-Length: {len(SOUND)}", "Content-Length: 5"],
    "two lengths in one": [f"Content-Length: {len(SOUND)}, 5"],
    "negative": ["Content-Length: -1"],
    "signed": ["Content-Length: +5"],
    "hexadecimal": ["Content-Length: 0x10"],
    "no number": ["Content-Length: many"],
    "endless": ["Content-Length: " + "9" * 40],
    "chunked twice": ["Transfer-Encoding: chunked, chunked"],
    "compressed chunks": ["Transfer-Encoding: gzip, chunked"],
    "unknown": ["Transfer-Encoding: xchunked"],
    "space before the colon": ["Content-Length : 5"],
    "folded": ["Content-Length: 5\r\n 6"],
    "length and chunks": [f"Content-Length: {len(SOUND)}", "Transfer-Encoding: chunked"],
    "chunks and length": ["Transfer-Encoding: chunked", "Content-Length: 5"],
}


@pytest.mark.parametrize("head", REFUSED_HEADS.values(), ids=REFUSED_HEADS)
def test_a_head_that_can_be_read_in_two_ways(server: Server, head: list[str]) -> None:
    """A proxy in front may read the other: where the next request begins must not be up to the caller."""
    assert answers(asked(server, ["Content-Type: audio/wav", *head], chunked(SOUND))) == MALFORMED


REFUSED_CHUNKS = {
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "no number": b"zz\r\nhello\r\n0\r\n\r\n",
    "endless": b"f" * 30 + b"\r\nhello\r\n0\r\n\r\n",
    "longer than told": b"3\r\nhello\r\n0\r\n\r\n",
    "an endless extension": b"5;" + b"x" * 200_000,
}


@pytest.mark.parametrize("body", REFUSED_CHUNKS.values(), ids=REFUSED_CHUNKS)
def test_chunks_that_are_none(server: Server, body: bytes) -> None:
    """The connection is over: nobody knows where the next request begins."""
    assert answers(asked(server, ["Content-Type: audio/wav", "Transfer-Encoding: chunked"], body)) == MALFORMED


def part(name: str, content: bytes, more: bytes = b"") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), more, content)


WHOLE = FILE + SOUND + END
REFUSED_FORMS = {
    "headers of a part": FILE[:-2] + b"X-Many: 1\r\n" * 100_000 + b"\r\n" + SOUND + END,
    "one header of a part": FILE[:-2] + b"X-Long: " + b"x" * 1_000_000 + b"\r\n\r\n" + SOUND + END,
    "parts": part("language", b"en") * 20_000 + WHOLE,
    "empty parts": b"--b\r\n\r\n\r\n" * 100_000 + WHOLE,
    "nested": part("file", b"--c\r\n\r\n--c--", b"\r\nContent-Type: multipart/mixed; boundary=c") + WHOLE[:-2],
    "no last boundary": FILE + SOUND,
    "no boundary at all": SOUND,
    "a part without a name": b"--b\r\nContent-Disposition: form-data\r\n\r\nx" + END,
    "a name that is no text": b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx' + END,
    "a field without an end": part("language", b"e" * 100_000) + WHOLE,
    "a file under another name": FILE.replace(b'name="file"', b'name="files"') + SOUND + END,
    "a name twice": part("language", b"en") + part("language", b"fr") + WHOLE,
}


@pytest.mark.parametrize("body", REFUSED_FORMS.values(), ids=REFUSED_FORMS)
def test_a_form_that_is_none(server: Server, body: bytes) -> None:
    """Refused while it arrives, and never gathered."""
    found = answers(asked(server, [*FORM, f"Content-Length: {len(body)}"], body))
    assert found == INVALID


def test_fields_that_are_large_together(server: Server) -> None:
    """Refused at once: they would lie in memory while the file comes, however slowly."""
    body = b"".join(part(f"field{n}", b"x" * 60_000) for n in range(10)) + FILE
    assert answers(asked(server, [*FORM, f"Content-Length: {LIMIT}"], body)) == INVALID


OBJECT = "Content-Type: application/json"
REFUSED_OBJECTS = {
    "names": ("/transcribe", b"{%b}" % b",".join(b'"language%d": 1' % n for n in range(50_000))),
    "half of a character": ("/transcribe", rb'{"\ud800": 1}'),
    "accents": ("/transcribe", b'{"language": "%b"}' % ("\u0301\u0316" * 200_000).encode()),
    "parts of a path": ("/transcribe", b'{"audio_file": "%b"}' % (b"a/" * 500_000)),
    "entries": ("/jobs/batch", b'{"files": [%b1]}' % (b"1," * 400_000)),
    "options": (
        "/jobs/batch",
        b'{"files": ["a"], "options": {%b}}' % b",".join(b'"a%d": 1' % n for n in range(50_000)),
    ),
    "half of an option": ("/jobs/batch", rb'{"files": ["a"], "options": {"\ud800": 1}}'),
}


@pytest.mark.parametrize(("path", "body"), REFUSED_OBJECTS.values(), ids=REFUSED_OBJECTS)
def test_json_that_is_none_of_ours(server: Server, path: str, body: bytes) -> None:
    """Refused in few words, and without work that grows faster than the body: some of it took minutes."""
    told = asked(server, [OBJECT, f"Content-Length: {len(body)}", "Connection: close"], body, path=path)
    assert answers(told) == INVALID
    assert len(told) < 20_000


def test_two_files_in_a_form(server: Server) -> None:
    """Which one is meant is not ours to guess."""
    body = FILE + SOUND + b"\r\n" + WHOLE
    assert answers(asked(server, [*FORM, f"Content-Length: {len(body)}"], body)) == [(422, "AMBIGUOUS_AUDIO")]


@pytest.mark.parametrize("boundary", ["", "x" * 10_000, "\u00e9" * 10, '"'], ids=["none", "10 KB", "letters", "quote"])
def test_a_boundary_that_is_none(server: Server, boundary: str) -> None:
    """Looking for a long one costs time at every byte."""
    head = [f"Content-Type: multipart/form-data; boundary={boundary}", f"Content-Length: {len(WHOLE)}"]
    assert answers(asked(server, [*head, "Connection: close"], WHOLE)) == INVALID


def test_a_form_as_it_should_be(server: Server) -> None:
    """Were it refused, the rows above would show nothing."""
    assert answers(asked(server, [*FORM, f"Content-Length: {len(WHOLE)}"], WHOLE)) == HEARD
