"""Request bodies: streamed to their place on disk while they are counted, never held in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.problems import ClientGone, InvalidParameters
from downloads.stored_files import display_name
from errors import AmbiguousAudio, InvalidRequest, UploadTooLarge

MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS_BYTES = 256 * 1024
"""Of all fields of a form with their names, which lie in memory while the rest of it comes, however slowly."""

MAX_PARTS = 64
MAX_PART_HEADERS = 8
MAX_PART_HEADER_BYTES = 4 * 1024
"""Of one header of a part, the file's name in it: names on disks end at 255 characters."""

MAX_TYPE_LENGTH = 1024
"""Of the Content-Type, its boundary included: taking a long one apart costs time that grows with its square."""

MAX_FORM_BYTES = 1024 * 1024
"""A body that holds parameters only."""

WRITE_BYTES = 1024 * 1024
"""Written at once, in a thread: a disk that stalls must not stall the event loop, and a thread costs more than a
network packet's 64 KiB do."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was sent, complete on disk. *name* is the caller's word for it: never part of a path."""

    path: Path
    name: str | None
    bytes: int


@dataclass(slots=True)
class Body:
    """What a request's body held: parameters as they were sent, and at most one file."""

    fields: list[tuple[str, Any]] = field(default_factory=list)
    upload: Upload | None = None


async def read_body(request: Request, target: Path, max_bytes: int) -> Body:
    """Read the body of *request*; a file in it goes to *target*, which must not exist and is the caller's to remove.

    Takes multipart/form-data (a file in the part named `file`), a form, a JSON object, or the file itself as the whole
    body. Raises UploadTooLarge, InvalidRequest, AmbiguousAudio, ClientGone, OSError.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest("A compressed request body (Content-Encoding) is not accepted.")
    sent_type = request.headers.get("content-type", "")
    if len(sent_type) > MAX_TYPE_LENGTH:
        raise InvalidRequest(f"The Content-Type is longer than {MAX_TYPE_LENGTH} characters.")
    kind, options = parse_options_header(sent_type)
    main = kind.decode("latin-1")
    holds_file = main == "multipart/form-data" or main.startswith(("audio/", "video/")) or main == _RAW
    limit = max_bytes if holds_file else min(max_bytes, MAX_FORM_BYTES)
    if int(request.headers.get("content-length", "0")) > limit:
        raise UploadTooLarge(_too_large(limit))
    chunks = _counted(request, limit)
    if main == "multipart/form-data":
        return await _read_multipart(chunks, options.get(b"boundary", b""), target)
    if holds_file:
        return await _read_raw(chunks, target)
    content = await _whole(chunks)
    if not content:
        return Body()
    if main == "application/x-www-form-urlencoded":
        return Body(_form_fields(content))
    if main == "application/json":
        return Body(_json_fields(content))
    raise InvalidRequest(
        f"A body of type {main or 'unknown'} is not understood: send multipart/form-data with the recording as file, "
        "or the recording itself as audio/*, video/* or application/octet-stream."
    )


_RAW = "application/octet-stream"


async def read_text(request: Request, limit: int) -> bytes:
    """The whole body, of at most *limit* bytes. Raises UploadTooLarge, ClientGone."""
    return await _whole(_counted(request, limit))


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    # Not a list of them: a caller may send two bytes at a time, and each piece would weigh twenty times as much.
    content = bytearray()
    async for chunk in chunks:
        content += chunk
    return bytes(content)


async def _counted(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body's chunks. Raises UploadTooLarge at the byte that is too many, ClientGone if the body breaks off."""
    seen = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        seen += len(chunk)
        if seen > limit:
            raise UploadTooLarge(_too_large(limit))
        if chunk:
            yield chunk


def _too_large(limit: int) -> str:
    return f"The request's body is larger than {limit / 2**20:g} MiB, the most that this server accepts."


class _Writer:
    """Gathers bytes and writes them in large pieces, off the event loop. One file, written once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._waiting = bytearray()
        self.bytes = 0

    def add(self, data: bytes) -> None:
        self._waiting += data
        self.bytes += len(data)

    async def flush(self, at_least: int = 1) -> None:
        if len(self._waiting) < at_least:
            return
        piece, self._waiting = self._waiting, bytearray()
        await asyncio.to_thread(self._write, piece)

    def _write(self, piece: bytearray) -> None:
        if self._file is None:
            self._file = self._path.open("xb")
        self._file.write(piece)
        self._file.flush()

    def close(self) -> None:
        # A buffered file waits for a write that a cancelled request has left in its thread; everything is flushed.
        if self._file is not None:
            self._file.close()


async def _read_raw(chunks: AsyncIterator[bytes], target: Path) -> Body:
    writer = _Writer(target)
    try:
        async for chunk in chunks:
            writer.add(chunk)
            await writer.flush(WRITE_BYTES)
        await writer.flush()
    finally:
        writer.close()
    # No bytes, no file: `curl -X POST` with a type and nothing else sends parameters only.
    return Body(upload=Upload(target, None, writer.bytes) if writer.bytes else None)


async def _read_multipart(chunks: AsyncIterator[bytes], boundary: bytes, target: Path) -> Body:
    writer = _Writer(target)
    try:
        form = _Multipart(boundary, writer)
        async for chunk in chunks:
            form.feed(chunk)
            await writer.flush(WRITE_BYTES)
        form.end()
        # An empty file is written too: it is given, and its emptiness is the reader's to tell.
        await writer.flush(0 if form.has_file else 1)
    finally:
        writer.close()
    upload = Upload(target, form.file_name, writer.bytes) if form.has_file else None
    return Body(form.fields, upload)


class _Multipart:
    """Takes multipart/form-data apart: fields into memory (bounded), the one file into *writer*."""

    def __init__(self, boundary: bytes, writer: _Writer) -> None:
        if not boundary:
            raise InvalidRequest("The Content-Type multipart/form-data needs a boundary.")
        self.fields: list[tuple[str, str]] = []
        self.file_name: str | None = None
        self.has_file = False
        self._writer = writer
        self._parts = 0
        self._fields_bytes = 0
        self._ended = False
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._value: bytearray | None = None
        """The field that is being read; None while the file is."""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
                max_header_count=MAX_PART_HEADERS,
                max_header_size=MAX_PART_HEADER_BYTES,
            )
        except FormParserError as error:
            raise InvalidRequest(_BROKEN) from error

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequest(_BROKEN) from error

    def end(self) -> None:
        if not self._ended:
            raise InvalidRequest("The multipart/form-data body ends before its last boundary.")

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        self._disposition = b""

    def _header_end(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise InvalidRequest("A part of the form has no name.")
        self._name = _text(options[b"name"], "the name of a form's part")
        self._value = None
        if b"filename" not in options:
            self._value = bytearray()
            self._hold(len(options[b"name"]))
        elif self._name != "file":
            raise InvalidRequest(f"{self._name!r} was sent as a file: send the recording in the part named 'file'.")
        elif self.has_file:
            raise AmbiguousAudio("More than one file was sent: send exactly one.")
        else:
            self.has_file = True
            self.file_name = display_name(options[b"filename"].decode("utf-8", "replace")) or None

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self._writer.add(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise InvalidParameters([(self._name, f"is longer than {MAX_FIELD_BYTES // 1024} KiB")])
        self._hold(end - start)

    def _hold(self, size: int) -> None:
        self._fields_bytes += size
        if self._fields_bytes > MAX_FIELDS_BYTES:
            what = f"is longer than {MAX_FIELDS_BYTES // 1024} KiB, together with the form's other fields"
            raise InvalidParameters([(self._name, what)])

    def _part_end(self) -> None:
        if self._value is None:
            # Browsers send an unnamed, empty file where none was chosen.
            self.has_file = self.file_name is not None or self._writer.bytes > 0
        elif self._name != "file":
            self.fields.append((self._name, _text(bytes(self._value), self._name)))
        elif self._value:
            # An empty one is what the docs page sends where no file was chosen.
            raise InvalidRequest("'file' was sent as text: send the recording itself (curl: -F file=@recording.mp3).")

    def _end(self) -> None:
        self._ended = True


_BROKEN = (
    f"The multipart/form-data body is broken, or one of its parts has more than {MAX_PART_HEADERS} headers, or one of "
    f"more than {MAX_PART_HEADER_BYTES} bytes."
)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} is not UTF-8 text.") from error


def _form_fields(content: bytes) -> list[tuple[str, Any]]:
    try:
        return list(
            parse_qsl(content.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARTS)
        )
    except ValueError as error:
        raise InvalidRequest("The form in the body is broken.") from error


def _json_fields(content: bytes) -> list[tuple[str, Any]]:
    try:
        parsed = json.loads(content, object_pairs_hook=JsonObject)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON.") from error
    if not isinstance(parsed, JsonObject):
        raise InvalidRequest("The JSON in the body must be an object of parameters.")
    return list(parsed)


class JsonObject(list[tuple[str, Any]]):
    """A JSON object with its names as they were sent, twice where they came twice."""


def brings_no_fields(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a request with these *headers* can bring no parameters in its body."""
    sent = dict(headers)
    kind = sent.get(b"content-type", b"").partition(b";")[0].strip().lower()
    holds_fields = kind in (b"multipart/form-data", b"application/x-www-form-urlencoded", b"application/json")
    has_body = b"transfer-encoding" in sent or sent.get(b"content-length", b"0") != b"0"
    return not (has_body and holds_fields)
