"""What stored files are called in headers: whatever their names hold, a header stays one header."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from python_multipart.multipart import parse_options_header

from tests.fakes import OWNER, Parts


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("talk.mp3", "talk.mp3"),
        ('a"; filename="b.exe', 'a"; filename="b.exe'),
        ("a\r\nX-Evil: yes\r\n\r\n<script>.mp3", "aX-Evil: yes<script>.mp3"),
        ("Grüße 🎧.mp3", "Grüße 🎧.mp3"),
        ("a\\b%22\x00.mp3", "a\\b%22.mp3"),
        ("\udcff\u202egpj.mp3", "gpj.mp3"),
    ],
)
async def test_any_name_is_one_header(
    client: httpx.AsyncClient, parts: Parts, tmp_path: Path, name: str, told: str
) -> None:
    """Names come from links and uploads: whoever chose one must not write headers."""
    (source := tmp_path / "a.mp3").write_bytes(b"abc")
    media = parts.services.media.add(source, owner=OWNER, name=name)
    answer = await client.get(f"/files/{media.id}")
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert read(answer.headers["content-disposition"]) == told


async def test_a_long_name_is_cut(client: httpx.AsyncClient, parts: Parts, tmp_path: Path) -> None:
    """Proxies take headers of some KiB; percent-encoded, a character may be twelve bytes."""
    (source := tmp_path / "a.mp3").write_bytes(b"abc")
    media = parts.services.media.add(source, owner=OWNER, name="🎧" * 5_000)
    answer = await client.get(f"/files/{media.id}")
    assert answer.status_code == 200
    assert len(answer.headers["content-disposition"]) < 4_096
    assert set(read(answer.headers["content-disposition"])) == {"🎧"}


def read(header: str) -> str:
    """The name in a Content-Disposition, plain or as RFC 5987 has it; all in ASCII."""
    assert header.isascii()
    assert header.isprintable()
    kind, _, parameter = header.partition("; ")
    assert kind == "attachment"
    if parameter.startswith("filename*=utf-8''"):
        encoded = parameter.removeprefix("filename*=utf-8''")
        assert not set(encoded) & set('";\\ ')
        return httpx.QueryParams(f"name={encoded.replace('+', '%2B')}")["name"]
    options = parse_options_header(header)[1]
    return options[b"filename"].decode()
