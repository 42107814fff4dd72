"""Bodies: streamed to disk, counted, taken apart at any boundary, refused without leaving anything."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request

from api.problems import ClientGone
from api.uploads import MAX_FIELD_BYTES, MAX_FIELDS_BYTES, MAX_PART_HEADERS, MAX_PARTS, Body, read_body, read_text
from errors import AmbiguousAudio, InvalidRequest, ServiceError, UploadTooLarge
from tests.fakes import Caller

BOUNDARY = "b0undary"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
FORM = "application/x-www-form-urlencoded"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        named += f'; filename="{filename}"'
    return f"--{BOUNDARY}\r\n{named}\r\n\r\n".encode() + content + b"\r\n"


def multipart(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def read(
    body: bytes | list[bytes], kind: str, target: Path, max_bytes: int = 1 << 20, ends: bool = True, **headers: str
) -> Body:
    pieces = body if isinstance(body, list) else [body]
    sent = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
    caller = Caller("/x", pieces, headers=sent, ends=ends)
    if not ends:
        caller.gone.set()
    return await read_body(Request(caller.scope, caller.receive), target, max_bytes)


async def test_a_file_and_fields_arrive_whole_however_the_body_is_cut(tmp_path: Path) -> None:
    """Networks cut anywhere, in the middle of a boundary too; content that looks like one must survive."""
    content = b"\r\n--b0undar\r\n--b0undaryX\x00\xff" * 3
    body = multipart(
        part("language", "français".encode()), part("file", content, "a b.mp3"), part("task", b"transcribe")
    )
    for step in (1, 2, 3, 7, 64, len(body)):
        target = tmp_path / f"upload-{step}"
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        got = await read(pieces, MULTIPART, target)
        assert got.fields == [("language", "français"), ("task", "transcribe")]
        assert got.upload is not None
        assert got.upload.path.read_bytes() == content
        assert (got.upload.name, got.upload.bytes) == ("a b.mp3", len(content))


@pytest.mark.parametrize(
    ("name", "shown"), [("a\x00\x1b[31mb\u202e.mp3", "a[31mb.mp3"), ("x" * 3_000, "x" * 255)], ids=["control", "long"]
)
async def test_a_name_is_what_can_be_printed_of_it(tmp_path: Path, name: str, shown: str) -> None:
    """It is shown to people, and in logs."""
    got = await read(multipart(part("file", b"sound", name)), MULTIPART, tmp_path / "upload")
    assert got.upload is not None
    assert got.upload.name == shown


async def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    """A two-hour video must cost no more memory than a clip."""
    piece = b"\x00" * 2**18
    tracemalloc.start()
    got = await read([piece] * 256, "video/mp4", tmp_path / "upload", max_bytes=1 << 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got.upload is not None
    assert got.upload.path.stat().st_size == got.upload.bytes == 2**26
    assert peak < 8 * 2**20


@pytest.mark.parametrize("kind", ["audio/mpeg", "video/mp4", "application/octet-stream", "audio/wav; charset=binary"])
async def test_the_body_may_be_the_file_itself(tmp_path: Path, kind: str) -> None:
    """`curl --data-binary @file`, and programs that have no form at hand."""
    got = await read([b"abc", b"def"], kind, tmp_path / "upload")
    assert got.upload is not None
    assert got.upload.path.read_bytes() == b"abcdef"


async def test_no_body_is_no_file(tmp_path: Path) -> None:
    """`curl -X POST` sends neither body nor type: the query says it all."""
    for kind in ("", "application/octet-stream"):
        assert await read([], kind, tmp_path / "upload") == Body()
    assert list(tmp_path.iterdir()) == []


async def test_forms_and_json_hold_parameters(tmp_path: Path) -> None:
    """All three ways that clients write parameters."""
    assert (await read(b"url=http%3A%2F%2Fx&beam_size=", FORM, tmp_path / "u")).fields == [
        ("url", "http://x"),
        ("beam_size", ""),
    ]
    assert (await read(b'{"url": "http://x", "beam_size": 2}', "application/json", tmp_path / "u")).fields == [
        ("url", "http://x"),
        ("beam_size", 2),
    ]


async def test_a_repeated_name_in_json_is_seen(tmp_path: Path) -> None:
    """A parser that keeps the last would hide a contradiction."""
    assert (await read(b'{"a": 1, "a": 2}', "application/json", tmp_path / "u")).fields == [("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"nonsense", MULTIPART),
        (part("file", b"abc", "a.mp3"), MULTIPART),
        (multipart(part("file", b"abc", "a.mp3"))[:-6], MULTIPART),
        (multipart(part("file", b"abc", "a.mp3")), "multipart/form-data"),
        (multipart(part("file", b"abc", "a.mp3")), "multipart/form-data; boundary=" + "x" * 300),
        (f"--{BOUNDARY}\r\nX: y\r\n\r\nabc\r\n--{BOUNDARY}--\r\n".encode(), MULTIPART),
        (f"--{BOUNDARY}\r\nno colon\r\n\r\nabc\r\n--{BOUNDARY}--\r\n".encode(), MULTIPART),
        (f"--{BOUNDARY}\r\nX: {'y' * 100_000}\r\n\r\nabc\r\n--{BOUNDARY}--\r\n".encode(), MULTIPART),
        (multipart(part("language", b"\xff\xfe")), MULTIPART),
        (multipart(part("language", b"x" * (MAX_FIELD_BYTES + 1))), MULTIPART),
        (multipart(*[part("language", b"en")] * (MAX_PARTS + 1)), MULTIPART),
        (multipart(part("file", b"abc")), MULTIPART),
        (multipart(part("audio_file", b"abc", "a.mp3")), MULTIPART),
        (b"", MULTIPART),
        (b"a=\xff", FORM),
        (b"&".join([b"a=1"] * 100), FORM),
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\xff", "application/json"),
        (b"<x/>", "application/xml"),
        (b"abc", ""),
    ],
)
async def test_a_broken_body_is_the_callers_error(tmp_path: Path, body: bytes, kind: str) -> None:
    """Never a 500, and never a part of it taken for the whole."""
    with pytest.raises(InvalidRequest):
        await read(body, kind, tmp_path / "upload")


@pytest.mark.parametrize(
    "headers",
    [b"X: y\r\n" * 100_000, b"X: " + b"y" * 10_000_000, b"X" * 10_000_000, b"X: y\r\n" * (MAX_PART_HEADERS + 1)],
    ids=["many", "long", "a long name", "one too many"],
)
async def test_a_parts_headers_are_bounded(tmp_path: Path, headers: bytes) -> None:
    """Refused at the first that is too many, with what came by then in memory and no more."""
    body = f"--{BOUNDARY}\r\n".encode() + headers + b"\r\n\r\nabc"
    pieces = [body[at : at + 2**16] for at in range(0, len(body), 2**16)]
    caller = Caller("/x", pieces, headers={"Content-Type": MULTIPART})
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="headers"):
        await read_body(Request(caller.scope, caller.receive), tmp_path / "upload", 1 << 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caller.taken == 1
    assert peak < 2**20


@pytest.mark.parametrize("name", ['a"b', "a\\b", "../../etc/passwd", "Ünïcode 🎧.mp3"])
async def test_a_files_name_is_a_word_and_no_path(tmp_path: Path, name: str) -> None:
    """Whatever it holds, the file goes where the server wants it."""
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    got = await read(multipart(part("file", b"abc", quoted)), MULTIPART, tmp_path / "upload")
    assert got.upload is not None
    assert got.upload.name == name
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


@pytest.mark.parametrize("kind", ["multipart/form-data" + ";" * 60_000, MULTIPART + "x" * 60_000, "a/" + "x" * 2_000])
async def test_a_content_type_is_bounded(tmp_path: Path, kind: str) -> None:
    """64 KiB of semicolons would take a quarter of a second to take apart, while nobody else is served."""
    with pytest.raises(InvalidRequest, match="Content-Type is longer"):
        await read(b"abc", kind, tmp_path / "upload")


async def test_a_compressed_body_is_refused(tmp_path: Path) -> None:
    """Its bytes would be taken for sound."""
    with pytest.raises(InvalidRequest, match="compressed"):
        await read(b"abc", "audio/wav", tmp_path / "upload", content_encoding="gzip")


async def test_two_files_are_one_too_many(tmp_path: Path) -> None:
    """Which one was meant is not ours to guess."""
    with pytest.raises(AmbiguousAudio):
        await read(multipart(part("file", b"a", "a.mp3"), part("file", b"b", "b.mp3")), MULTIPART, tmp_path / "upload")


async def test_an_empty_file_is_given_but_an_unchosen_one_is_not(tmp_path: Path) -> None:
    """Browsers send an unnamed empty part where no file was picked."""
    chosen = await read(multipart(part("file", b"", "a.mp3")), MULTIPART, tmp_path / "upload")
    assert chosen.upload is not None
    assert chosen.upload.path.read_bytes() == b""
    unchosen = await read(multipart(part("file", b"", "")), MULTIPART, tmp_path / "other")
    assert unchosen.upload is None


@pytest.mark.parametrize("kind", ["audio/wav", MULTIPART])
async def test_a_body_that_says_it_is_too_large_is_not_read(tmp_path: Path, kind: str) -> None:
    """Refusing costs nothing then."""
    caller = Caller("/x", [b"x"] * 10, headers={"Content-Type": kind, "Content-Length": "1001"})
    with pytest.raises(UploadTooLarge):
        await read_body(Request(caller.scope, caller.receive), tmp_path / "upload", 1000)
    assert caller.taken == 0


@pytest.mark.parametrize("kind", ["audio/wav", MULTIPART])
async def test_a_body_that_grows_too_large_is_stopped_there(tmp_path: Path, kind: str) -> None:
    """Chunked bodies tell no length, and the disk must not fill meanwhile."""
    start = part("file", b"", "a.mp3")[:-2] if kind == MULTIPART else b""
    caller = Caller("/x", [start, *[b"x" * 100] * 1000], headers={"Content-Type": kind, "Transfer-Encoding": "chunked"})
    with pytest.raises(UploadTooLarge, match="MiB"):
        await read_body(Request(caller.scope, caller.receive), tmp_path / "upload", 1000)
    assert caller.taken <= 12


async def test_parameters_alone_may_not_be_huge(tmp_path: Path) -> None:
    """They are held in memory."""
    with pytest.raises(UploadTooLarge):
        await read([b"a=" + b"x" * 2**20] * 3, FORM, tmp_path / "upload", max_bytes=1 << 30)


LARGE_FIELDS = [part(f"n{n}", b"x" * 60_000) for n in range(MAX_FIELDS_BYTES // 60_000)]


@pytest.mark.parametrize(
    "fields",
    [[*LARGE_FIELDS, part("last", b"x" * 60_000)], [part("n" * 3_000, b"x" * 2_000)] * MAX_PARTS],
    ids=["values", "names"],
)
async def test_a_forms_fields_are_bounded_together(tmp_path: Path, fields: list[bytes]) -> None:
    """Each may be long, all of them may not: they are held while the file comes, for as long as that takes."""
    with pytest.raises(InvalidRequest, match="256 KiB, together"):
        await read(multipart(*fields), MULTIPART, tmp_path / "upload")


async def test_a_file_is_no_part_of_that_bound(tmp_path: Path) -> None:
    """Nor are a few long fields too many."""
    sound = b"x" * (2 * MAX_FIELDS_BYTES)
    got = await read(multipart(*LARGE_FIELDS, part("file", sound, "a.mp3")), MULTIPART, tmp_path / "upload")
    assert len(got.fields) == len(LARGE_FIELDS)
    assert got.upload is not None
    assert got.upload.bytes == len(sound)


async def test_a_body_in_crumbs_weighs_no_more(tmp_path: Path) -> None:
    """Kept as pieces, two bytes at a time would take twenty times their room."""
    size = 2**18
    left = size // 2

    async def receive() -> dict[str, Any]:
        nonlocal left
        left -= 1
        # Made anew each time: a constant would be one piece, held many times.
        return {"type": "http.request", "body": b"%02d" % (left % 90), "more_body": left > 0}

    tracemalloc.start()
    content = await read_text(Request(Caller("/x").scope, receive), size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) == size
    assert peak < 4 * size


@pytest.mark.parametrize("kind", ["audio/wav", MULTIPART])
async def test_a_caller_that_goes_away_is_noticed(tmp_path: Path, kind: str) -> None:
    """Half an upload must not be transcribed as if it were whole."""
    start = part("file", b"", "a.mp3")[:-2] if kind == MULTIPART else b"x"
    with pytest.raises(ClientGone):
        await read([start, b"abc"], kind, tmp_path / "upload", ends=False)


async def test_a_name_with_a_path_in_it_is_a_name_only(tmp_path: Path) -> None:
    """The place on disk is ours to choose."""
    got = await read(multipart(part("file", b"abc", "../../etc/passwd")), MULTIPART, tmp_path / "upload")
    assert got.upload is not None
    assert got.upload.path == tmp_path / "upload"
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


async def test_random_multipart_bodies_never_crash(tmp_path: Path) -> None:
    """Every prefix and every flipped byte of a good body is either read or refused as the caller's error."""
    body = multipart(part("language", b"en"), part("file", b"abc", "a.mp3"))
    broken = [body[:cut] for cut in range(len(body))]
    broken += [body[:at] + bytes([body[at] ^ 0x15]) + body[at + 1 :] for at in range(len(body))]
    for number, variant in enumerate(broken):
        try:
            await read(variant, MULTIPART, tmp_path / str(number))
        except ServiceError as error:
            assert error.status == 422, variant  # noqa: PT017 -- either outcome is fine, a crash is not


def test_json_numbers_do_not_overflow() -> None:
    """json itself bounds the digits of an integer: the error must be a ValueError, which is handled."""
    with pytest.raises(ValueError, match="limit"):
        json.loads("1" * 10_000)
