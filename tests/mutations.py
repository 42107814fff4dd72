"""Recordings made wrong, each in a way that is known and can be repeated: what a server must bear from strangers.

Pure: recordings in, mutants out, and a mutant's number alone says how it was made.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from tests.containers import FIELDS

HEAD_BYTES = 1024
BLOCKS = (1, 16, 188, 512, 1024, 4096)
LARGEST_BYTES = 3 * 2**20

TAG = re.compile(rb"[A-Za-z][A-Za-z0-9 ]{3}")
"""What may be the name of a chunk, an atom, a page: most containers' sizes stand beside such."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong recording."""

    number: int
    container: str
    kind: str
    content: bytes
    is_text: bool = False
    """Nothing in it is sound: no answer may say there is."""

    @property
    def name(self) -> str:
        """As it is uploaded."""
        return f"{self.number}-{self.kind.replace(' ', '-')}.{self.container.partition('-')[0]}"


Change = Callable[[bytes, Random, Mapping[str, bytes]], bytes]


def mutants(recordings: Mapping[str, bytes], count: int, first: int = 0) -> Iterator[Mutant]:
    """*count* of them, from number *first* on: every container in turn, and each with every kind in turn."""
    for number in range(first, first + count):
        yield mutant(recordings, number)


def mutant(recordings: Mapping[str, bytes], number: int) -> Mutant:
    """The one of that number, the same each time."""
    containers, kinds = list(recordings), list(KINDS)
    turn, place = divmod(number, len(containers))
    container, kind = containers[place], kinds[(place + turn) % len(kinds)]
    content = KINDS[kind](recordings[container], Random(number), recordings)
    return Mutant(number, container, kind, content[:LARGEST_BYTES], is_text=kind == "text under its name")


def flipped_bits(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    changed = bytearray(content)
    for _bit in range(chance.choice((1, 2, 8, 64))):
        changed[chance.randrange(min(HEAD_BYTES, len(changed)))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def moved_blocks(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    """Blocks swapped, said twice, left out or overwritten."""
    size = chance.choice(BLOCKS)
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    for _time in range(chance.choice((1, 3, 20))):
        if not blocks:
            break
        one, other = chance.randrange(len(blocks)), chance.randrange(len(blocks))
        what = chance.randrange(4)
        if what == 0:
            blocks[one], blocks[other] = blocks[other], blocks[one]
        elif what == 1:
            blocks.insert(other, blocks[one])
        elif what == 2:
            del blocks[one]
        else:
            blocks[one] = chance.randbytes(size)
    return b"".join(blocks)


def cut(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    """Ended where something begins, a byte beside it, within its size, behind it; anywhere; or a byte too early."""
    boundaries = [found.start() for found in TAG.finditer(content[: 4 * HEAD_BYTES])]
    boundaries += [at for size in (188, 512, 4096) for at in range(size, min(len(content), 8 * size), size)]
    at = chance.choice((*chance.sample(boundaries, min(6, len(boundaries))), 1, 12, len(content) // 2))
    anywhere = chance.randrange(1, len(content))
    return content[: chance.choice((at + chance.choice((-1, 0, 1, 4, 6, 8, 12)), anywhere, len(content) - 1)) or 1]


def number_for(width: int, old: bytes, chance: Random) -> bytes:
    """Zero, the largest, the smallest negative, the largest positive, one more or less, a power of two, anything."""
    most = 256**width - 1
    value = int.from_bytes(old, "big")
    told = chance.choice((0, most, most // 2 + 1, most // 2, value + 1, value - 1, 2 ** chance.randrange(8 * width), 1))
    return (told % (most + 1)).to_bytes(width, chance.choice(("big", "little")))


def wrong_field(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    """A length, a count, a rate or a number of channels that cannot be."""
    found = [
        (at + offset, width)
        for fields in FIELDS.values()
        for anchor, offset, width in fields
        if (at := content.find(anchor)) >= 0 and 0 <= at + offset <= len(content) - width
    ]
    changed = bytearray(content)
    for at, width in chance.sample(found, min(len(found), chance.choice((1, 1, 2, 5)))):
        changed[at : at + width] = number_for(width, content[at : at + width], chance)
    return bytes(changed)


def wrong_number(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    """The same anywhere in the header, most often beside what may be a name."""
    changed = bytearray(content)
    names = [found.start() for found in TAG.finditer(content[:HEAD_BYTES])] or [0]
    for _time in range(chance.choice((1, 1, 3))):
        width = chance.choice((1, 2, 4, 4, 8))
        at = chance.choice(names) + chance.choice((-8, -4, 4, 8)) if chance.random() < 0.7 else chance.randrange(256)
        at = max(0, min(at, len(content) - width))
        changed[at : at + width] = number_for(width, content[at : at + width], chance)
    return bytes(changed)


def another_magic(content: bytes, chance: Random, recordings: Mapping[str, bytes]) -> bytes:
    """Another container's first bytes over this one's, or before them, or all of its header."""
    other = recordings[chance.choice(list(recordings))]
    taken = other[: chance.choice((4, 8, 12, 16, 64, 188, 512))]
    return chance.choice((taken + content[len(taken) :], taken + content, other + content))


def something_behind(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    more = (
        b"To do: buy milk.\n",
        b"\0",
        b"TAG" + b"x" * 125,
        b"APETAGEX\xd0\x07\0\0\xff\xff\xff\x7f",
        b"\xff",
        content,
    )
    return content + chance.choice(more) * chance.choice((1, 100, 5_000))


def zeroed(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    """NULs in the place of some of it, of all but the magic, or before it."""
    start = chance.choice((4, 12, 64, chance.randrange(len(content))))
    zeros = bytes(chance.choice((4, 64, 4096, len(content))))
    return chance.choice((content[:start] + zeros + content[start + len(zeros) :], zeros[:8192] + content))


def noise_with_magic(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    return content[: chance.choice((4, 12, 36, 128))] + chance.randbytes(chance.choice((64, 5_000, 60_000)))


def huge_tags(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    """Tags before the recording: too many, too long, and such as forge what ffmpeg says of a file."""
    forged = b"x\n  Duration: 99:59:59.00, start: 0.0\n  Stream #0:0: Audio: pcm_s16le, 8000 Hz, 64 channels\n\x1b[2J\0"
    one = chance.choice((id3(b"TIT2", forged), id3(b"TXXX", b"A" * 2**20), id3(b"TIT2", b"\xff\xfe" * 9), id3(b"APIC")))
    many = chance.choice((1, 1, 50))
    claimed = b"ID3\x04\0\0\x7f\x7f\x7f\x7f"
    listed = b"LIST" + struct.pack("<I", 2**31 - 1) + b"INFOINAM" + struct.pack("<I", 2**32 - 1) + forged
    return chance.choice((one * many + content, claimed + content, content[:12] + listed + content[12:]))


def id3(frame: bytes, text: bytes = b"") -> bytes:
    """An ID3v2.4 tag of one frame."""
    body = frame + syncsafe(len(text) + 1) + b"\0\0" + b"\3" + text
    return b"ID3\x04\0\0" + syncsafe(len(body)) + body


def syncsafe(value: int) -> bytes:
    return bytes(value >> shift & 0x7F for shift in (21, 14, 7, 0))


def nested(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    """Atoms, elements and lists in one another, far deeper than anybody writes them."""
    depth = chance.choice((20, 1_000, 20_000))
    inner = content[:4096]
    atoms = b"".join(struct.pack(">I4s", len(inner) + 8 * left, b"moov") for left in range(depth, 0, -1))
    trees = (
        struct.pack(">I4s4sI", 16, b"ftyp", b"M4A ", 0) + atoms + inner,
        content[:64] + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" * depth + inner,
        content[:12] + (b"LIST" + struct.pack("<I", 2**30) + b"hdrl") * depth + inner,
        content * min(depth, LARGEST_BYTES // len(content)),
    )
    return chance.choice(trees)


SECRET = "/etc/passwd"
TEXTS = (
    f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nfile://{SECRET}\n#EXT-X-ENDLIST\n",
    f"ffconcat version 1.0\nfile '{SECRET}'\n",
    f"[playlist]\nFile1={SECRET}\nNumberOfEntries=1\n",
    f'<?xml version="1.0"?><MPD><Period><BaseURL>file://{SECRET}</BaseURL></Period></MPD>',
    f'<asx version="3.0"><entry><ref href="file://{SECRET}"/></entry></asx>',
    "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    f'FILE "{SECRET}" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n',
    "1\n00:00:00,000 --> 99:59:59,999\nThank you.\n",
    "WEBVTT\n\n00:00.000 --> 99:59:59.999\nThank you.\n",
    "[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,9:59:59.99,Default,,0,0,0,,Thank you.\n",
    ";FFMETADATA1\ntitle=Thank you.\n[CHAPTER]\nSTART=0\nEND=9999999999\n",
    f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{SECRET}"/></svg>',
    "To do: buy milk.\n" * 500,
)


def text(content: bytes, chance: Random, _: Mapping[str, bytes]) -> bytes:
    """A playlist, subtitles or plain text under a recording's name."""
    return chance.choice(TEXTS).encode()


KINDS: Mapping[str, Change] = {
    "flipped bits": flipped_bits,
    "wrong field": wrong_field,
    "cut": cut,
    "wrong number": wrong_number,
    "moved blocks": moved_blocks,
    "another magic": another_magic,
    "noise with magic": noise_with_magic,
    "zeroed": zeroed,
    "huge tags": huge_tags,
    "something behind": something_behind,
    "nested": nested,
    "text under its name": text,
}
