"""Files that pass for recordings, and recordings whose headers claim what they do not hold: bytes written by hand."""

from __future__ import annotations

import io
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

from ffmpeg import FFmpeg

MOST_32 = 2**32 - 1


def wav(
    sound: bytes = b"\x80" * 16_000,
    *,
    channels: int = 1,
    rate: int = 8_000,
    bits: int = 8,
    claimed_bytes: int | None = None,
    tags: bytes = b"",
) -> bytes:
    """A wav whose header says what it is told to; *tags* are a chunk's whole bytes, before the sound."""
    frame_bytes = min(channels * bits // 8, 2**16 - 1)
    layout = struct.pack("<HHIIHH", 1, channels, rate, rate * frame_bytes % 2**32, frame_bytes, bits)
    size = len(sound) if claimed_bytes is None else claimed_bytes
    chunks = b"fmt " + struct.pack("<I", len(layout)) + layout + tags + b"data" + struct.pack("<I", size) + sound
    return b"RIFF" + struct.pack("<I", min(4 + len(chunks) - len(sound) + size, MOST_32)) + b"WAVE" + chunks


def megabytes_of_tags(megabytes: int) -> bytes:
    """A chunk of a wav that holds a title and nothing else."""
    title = b"A" * (megabytes * 2**20)
    listed = b"INFOINAM" + struct.pack("<I", len(title)) + title
    return b"LIST" + struct.pack("<I", len(listed)) + listed


def tags_alone(megabytes: int) -> bytes:
    """An ID3 tag with a title of that size, and no sound behind it."""
    text = b"\3" + b"A" * (megabytes * 2**20)
    frame = b"TIT2" + _syncsafe(len(text)) + b"\0\0" + text
    return b"ID3\4\0\0" + _syncsafe(len(frame)) + frame


def _syncsafe(value: int) -> bytes:
    return bytes(value >> shift & 0x7F for shift in (21, 14, 7, 0))


def written(folder: Path, name: str, *arguments: str | Path) -> bytes:
    """What ffmpeg makes of *arguments*, in a new file in *folder*."""
    target = folder / name
    subprocess.run([FFmpeg.locate("").path, "-v", "error", *arguments, target], check=True, stdin=subprocess.DEVNULL)
    return target.read_bytes()


def ten_hours_of_silence(folder: Path) -> bytes:
    """Some hundred KiB of flac. At 1 kHz it is written within a second."""
    silence = ["-f", "lavfi", "-i", "anullsrc=sample_rate=1000:channel_layout=mono:duration=36000"]
    return written(folder, "silence.flac", *silence, "-compression_level", "0", "-frame_size", "32768")


def of_unknown_length(flac: bytes) -> bytes:
    """The same *flac*, whose header does not say how many samples there are."""
    assert flac[:4] == b"fLaC"
    # STREAMINFO: 36 bits from the middle of its 14th byte on, after the file's and the block's own 8.
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def of_hours(mp4: bytes, hours: int, *, samples_too: bool) -> bytes:
    """The same *mp4*, whose movie, track and media say that they last so long; *samples_too*: and each sample does."""
    changed = bytearray(mp4)
    scales = {name: _number(mp4, mp4.index(name) + 16) for name in (b"mvhd", b"mdhd")}
    samples = mp4.index(b"stts")
    if samples_too:
        # Coarse enough that so many hours can be told in 32 bits.
        scales[b"mdhd"] = 1_000
        _put(changed, mp4.index(b"mdhd") + 16, 1_000)
        runs = _number(mp4, samples + 8)
        for at in range(samples + 12, samples + 12 + 8 * runs, 8):
            _put(changed, at + 4, hours * 3600 * 1_000 // (runs * _number(mp4, at)))
    # Where each says how long it lasts, from its name on; a track counts as the movie does.
    for name, at, scale in ((b"mvhd", 20, b"mvhd"), (b"tkhd", 24, b"mvhd"), (b"mdhd", 20, b"mdhd")):
        _put(changed, mp4.index(name) + at, min(hours * 3600 * scales[scale], MOST_32))
    return bytes(changed)


def _put(content: bytearray, at: int, value: int) -> None:
    content[at : at + 4] = struct.pack(">I", value)


def _number(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "big")


FAR = 8192


def with_its_sound_elsewhere(folder: Path, speech: Path, kind: bytes) -> tuple[bytes, Path]:
    """A mov without any sound of its own, which says that it lies in another file; and that file, which has it.

    *kind*: of the reference, b"url " or b"alis".
    """
    made = written(folder, f"{kind.decode().strip()}.mov", "-i", speech, *("-c:a", "pcm_s16le", "-f", "mov"),
                   *("-movflags", "+faststart"))  # fmt: skip
    start = made.index(b"mdat") - 4
    head = bytearray(made[:start])
    # So far behind its head that the sound's places lie beyond the end of a file without it.
    places = made.index(b"stco") + 8
    for at in range(_number(made, places)):
        place = places + 4 + 4 * at
        _put(head, place, _number(made, place) + FAR)
    elsewhere = folder / f"elsewhere-{kind.decode().strip()}.mov"
    elsewhere.write_bytes(head + struct.pack(">I4s", FAR, b"free") + bytes(FAR - 8) + made[start:])
    reference = made.index(b"dref") - 4
    size = _number(made, reference)
    entry = _url(elsewhere) if kind == b"url " else _alias(elsewhere)
    new = struct.pack(">I4sIII4sI", 16 + 12 + len(entry), b"dref", 0, 1, 12 + len(entry), kind, 0) + entry
    head[reference : reference + size] = new
    # All atoms around it are larger now.
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = made.index(name) - 4
        assert place < reference
        _put(head, place, _number(made, place) + len(new) - size)
    return bytes(head), elsewhere


def _url(path: Path) -> bytes:
    return f"file://{path}".encode() + b"\0"


def _alias(path: Path) -> bytes:
    """As much of a Macintosh alias record as ffmpeg reads: the volume's name, the file's, and its path."""
    text = str(path).encode()
    volume, name = b"disk", path.name.encode()[:63]
    fixed = bytes(10) + bytes([len(volume)]) + volume.ljust(27, b"\0") + bytes(12)
    fixed += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    # Levels to climb and to descend (1: within a folder), and 16 bytes; then strings: 2 is the path, 18 a POSIX one.
    fixed += struct.pack(">hh", 1, 1) + bytes(16)
    strings = b"".join(struct.pack(">hH", kind, len(text)) + text + b"\0" * (len(text) % 2) for kind in (2, 18))
    return fixed + strings + struct.pack(">hH", -1, 0)


def avi_with_a_playlist(playlist: str) -> bytes:
    """An AVI whose only track is subtitles in a chunk "GAB2", which hold a playlist in their place."""
    text = playlist.encode()
    name = "sub\0".encode("utf-16-le")
    subtitles = b"GAB2\0" + struct.pack("<HI", 2, len(name)) + name + struct.pack("<HI", 4, len(text)) + text
    main = struct.pack("<14I", 40_000, 0, 0, 0x10, 1, 0, 1, 0, 320, 240, 0, 0, 0, 0)
    track = b"txts" + bytes(4) + struct.pack("<IHHIIIIIIII", 0, 0, 0, 0, 1, 25, 0, 1, 0, MOST_32, 0) + bytes(8)
    streams = _listed(b"strl", _chunk(b"strh", track) + _chunk(b"strf", b""))
    heads = _listed(b"hdrl", _chunk(b"avih", main) + streams)
    content = b"AVI " + heads + _listed(b"movi", _chunk(b"00tx", subtitles))
    return _chunk(b"RIFF", content)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _listed(name: bytes, content: bytes) -> bytes:
    return _chunk(b"LIST", name + content)


def zip_bomb() -> bytes:
    """A few KiB that unpack to 16 MiB, called as a recording would be."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        packed.writestr("talk.wav", bytes(16 * 2**20))
    return target.getvalue()


def png() -> bytes:
    """A picture of one dot."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))
    sealed = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def texts(local: str, remote: str) -> dict[str, tuple[str, bytes]]:
    """By what they are: a name, and text that names the file *local* or the address *remote*."""
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{}\n#EXT-X-ENDLIST\n"
    found = {
        "m3u8 of a file": ("a.m3u8", hls.format(f"file://{local}")),
        "m3u8 of an address": ("a.m3u8", hls.format(remote)),
        "m3u8 named wav": ("a.wav", hls.format(local)),
        "m3u8 of a key": ("a.m3u8", hls.format(f'#EXT-X-KEY:METHOD=AES-128,URI="{remote}"\n{local}')),
        "ffconcat": ("a.mp4", f"ffconcat version 1.0\nfile '{local}'\n"),
        "mpd": ("a.mpd", f'<?xml version="1.0"?><MPD><Period><BaseURL>{remote}</BaseURL></Period></MPD>'),
        "sdp": ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n"),
        "text": ("a.txt", "To do: buy milk.\n" * 50),
        "svg": ("a.svg", f'<svg xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="file://{local}"/></svg>'),
        "script": ("a.sh", f"#!/bin/sh\ncat {local}\n"),
        "page": ("a.html", f'<!doctype html><html><audio src="{remote}"></audio></html>'),
        "entity": ("a.xml", f'<!DOCTYPE x [<!ENTITY y SYSTEM "file://{local}">]><x>&y;</x>'),
    }
    return {kind: (name, text.encode()) for kind, (name, text) in found.items()}
