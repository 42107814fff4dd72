"""A second of a tone in every container that the service opens, and where the numbers in its header stand.

Written by the packaged ffmpeg, which has all encoders wherever it runs.
"""

from __future__ import annotations

import math
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import imageio_ffmpeg

TONE = ("-f", "lavfi", "-i", "sine=frequency=300:duration=1:sample_rate=16000")
PICTURE = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=1")
PICTURES = "-map 1:v -c:v mpeg4 -shortest"

WRITTEN: Mapping[str, tuple[str, str]] = {
    "wav": ("wav", ""),
    "wav-24bit": ("wav", "-c:a pcm_s24le -ac 2"),
    "wav-adpcm": ("wav", "-c:a adpcm_ima_wav"),
    "wav-rf64": ("wav", "-rf64 always"),
    "w64": ("w64", ""),
    "aiff": ("aiff", ""),
    "au": ("au", ""),
    "caf": ("caf", "-c:a alac"),
    "voc": ("voc", "-c:a pcm_u8"),
    "flac": ("flac", ""),
    "tta": ("tta", ""),
    "wv": ("wv", ""),
    "mp3": ("mp3", "-metadata title=tone"),
    "aac": ("adts", "-c:a aac"),
    "loas": ("latm", "-c:a aac"),
    "ac3": ("ac3", "-ar 48000"),
    "eac3": ("eac3", "-ar 48000"),
    "dts": ("dts", "-c:a dca -ar 48000 -ac 2 -strict -2"),
    "amr": ("amr", "-c:a libopencore_amrnb -ar 8000"),
    "ogg-opus": ("ogg", "-c:a libopus"),
    "ogg-vorbis": ("ogg", "-c:a libvorbis"),
    "ogg-flac": ("ogg", "-c:a flac"),
    "m4a": ("ipod", "-c:a aac -metadata title=tone"),
    "mov-alac": ("mov", "-c:a alac"),
    "3gp": ("3gp", "-c:a libopencore_amrnb -ar 8000"),
    "mp4-fragments": ("mp4", "-c:a aac -movflags frag_keyframe+empty_moov -frag_duration 200000"),
    "mp4-video": ("mp4", f"-map 0:a -c:a aac {PICTURES}"),
    "mka": ("matroska", "-c:a libopus -metadata title=tone"),
    "mkv-video": ("matroska", f"-map 0:a -c:a libmp3lame {PICTURES}"),
    "webm": ("webm", "-c:a libvorbis"),
    "avi": ("avi", "-c:a pcm_s16le"),
    "avi-video": ("avi", f"-map 0:a -c:a libmp3lame {PICTURES}"),
    "flv": ("flv", "-c:a libmp3lame -ar 44100"),
    "wma": ("asf", "-c:a wmav2"),
    "rm": ("rm", "-c:a ac3 -ar 44100 -ac 2"),
    "mpeg": ("mpeg", "-c:a mp2 -ar 32000"),
    "mpegts": ("mpegts", "-c:a aac"),
    "mxf": ("mxf", "-map 1:v -c:v mpeg2video -r 25 -map 0:a -c:a pcm_s16le -ar 48000 -shortest"),
}
"""By name: ffmpeg's muxer, and its arguments."""

FIELDS: Mapping[str, list[tuple[bytes, int, int]]] = {
    "riff": [(b"RIFF", at, 4) for at in (4,)]
    + [(b"fmt ", at, size) for at, size in ((4, 4), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2), (22, 2))]
    + [(b"data", 4, 4), (b"ds64", 8, 8), (b"ds64", 16, 8), (b"fact", 8, 4)]
    + [(b"avih", 8 + 4 * at, 4) for at in range(10)]
    + [(b"strh", 8 + 4 * at, 4) for at in range(12)]
    + [(b"strf", at, 2) for at in range(8, 26, 2)],
    "aiff": [(b"FORM", 4, 4), (b"COMM", 4, 4), (b"COMM", 8, 2), (b"COMM", 10, 4), (b"COMM", 14, 2), (b"COMM", 16, 8)],
    "au": [(b".snd", at, 4) for at in range(4, 24, 4)],
    "caf": [(b"desc", at, 4) for at in range(12, 44, 4)] + [(b"pakt", at, 8) for at in (4, 12, 20)] + [(b"kuki", 4, 8)],
    "flac": [(b"fLaC", at, 4) for at in range(4, 28, 2)],
    "mp4": [
        (atom, at, 4)
        for atom in (b"moov", b"mvhd", b"tkhd", b"mdhd", b"stsd", b"stts", b"stsc", b"stsz", b"stco", b"elst", b"trun")
        for at in (-4, 4, 8, 12, 16, 20)
    ]
    + [(b"mp4a", at, 4) for at in range(16, 36, 4)],
    "ebml": [
        (element, len(element) + at, size)
        for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\x44\x89", b"\xb5", b"\x9f")
        for at, size in ((0, 1), (0, 8), (1, 4), (1, 8))
    ],
    "ogg": [(b"OggS", at, size) for at, size in ((4, 2), (6, 8), (14, 4), (18, 4), (22, 4), (26, 1), (27, 8))]
    + [(b"OpusHead", at, 2) for at in range(8, 18)]
    + [(b"OpusTags", 8, 4)]
    + [(b"\x01vorbis", at, 4) for at in range(7, 28, 3)],
    "asf": [(b"\x30\x26\xb2\x75", at, 8) for at in (16, 24)]
    + [(b"\xa1\xdc\xab\x8c", at, 8) for at in range(16, 96, 8)],
    "others": [(b"FLV", 5, 4), (b".RMF", 4, 4), (b"PROP", 4, 4), (b"MDPR", 4, 4), (b"TTA1", 6, 4), (b"TTA1", 10, 8)]
    + [(b"wvpk", at, 4) for at in range(4, 32, 4)]
    + [(b"MAC ", at, 4) for at in range(4, 80, 4)]
    + [(b"DSD ", at, 8) for at in range(4, 92, 8)]
    + [(b"NIST_1A", 8, 7), (b"sample_rate -i ", 15, 4), (b"channel_count -i ", 17, 1), (b"sample_count -i ", 16, 4)]
    + [(b"Creative", 20, 2), (b"#!AMR", 6, 2), (b"\x47", 1, 3), (b"\x00\x00\x01\xba", 4, 4)],
}
"""Where lengths, counts, rates, durations and channels stand: (what stands before, bytes from its start, width)."""


def recordings(folder: Path) -> dict[str, bytes]:
    """Each container's recording by name, the same bytes each time; *folder* is where they are written."""
    arguments: list[str] = []
    for name, (muxer, told) in WRITTEN.items():
        sound = [] if "-map" in told else ["-map", "0:a"]
        same = ["-fflags", "+bitexact", "-flags:a", "+bitexact", "-flags:v", "+bitexact", "-threads", "1"]
        arguments += [*sound, *told.split(), *same, "-f", muxer, str(folder / name)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *TONE, *PICTURE, *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    written = {name: (folder / name).read_bytes() for name in WRITTEN}
    return written | {"nistsphere": nistsphere(), "dsf": dsf(), "ape": ape()}


def nistsphere() -> bytes:
    """NIST SPHERE, which ffmpeg reads and does not write."""
    samples = struct.pack("<8000h", *(round(8000 * math.sin(index * 0.2)) for index in range(8000)))
    head = (
        "NIST_1A\n   1024\nchannel_count -i 1\nsample_rate -i 8000\nsample_n_bytes -i 2\nsample_count -i 8000\n"
        "sample_byte_format -s2 01\nsample_coding -s3 pcm\nend_head\n"
    )
    return head.encode().ljust(1024) + samples


def dsf() -> bytes:
    """DSD Stream File: a tenth of a second of one-bit samples, in blocks of 4 KiB."""
    blocks = 9
    sound = b"\x69" * (4096 * blocks)
    form = struct.pack("<4sQIIIIIIQII", b"fmt ", 52, 1, 0, 1, 1, 2_822_400, 1, len(sound) * 8, 4096, 0)
    data = struct.pack("<4sQ", b"data", 12 + len(sound)) + sound
    return struct.pack("<4sQQQ", b"DSD ", 28, 28 + len(form) + len(data), 0) + form + data


def ape() -> bytes:
    """Monkey's Audio: a header as it should be, and frames that are none, as nothing here writes it."""
    frames = bytes(range(256)) * 16
    descriptor = struct.pack("<4sHHIIIIIII16s", b"MAC ", 3990, 0, 52, 24, 4, 0, len(frames), 0, 0, bytes(16))
    header = struct.pack("<HHIIIHHI", 2000, 0, 73728, 16_000, 1, 16, 1, 16_000)
    return descriptor + header + struct.pack("<I", 80) + frames
