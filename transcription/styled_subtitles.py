"""Subtitles in Advanced SubStation Alpha, with each word lit when it is said. Pure.

The format is libass's reading of it (https://github.com/libass/libass/wiki/ASS-File-Format-Guide).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from transcription.subtitles import Cue

_HEADER = """\
[Script Info]
ScriptType: v4.00+
PlayResX: 1280
PlayResY: 720
WrapStyle: 0
ScaledBorderAndShadow: yes

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,44,&H00FFFFFF,&H00B4B4B4,&H00000000,&H80000000,0,0,0,0,100,100,0,0,1,2.5,1,2,60,60,40,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
"""White letters with a black edge, grey until they are said; 42 columns of 44 fit into a picture of 1280 by 720."""

_BREAK = r"\N"
_WORD_JOINER = "\u2060"
_SPECIAL = re.compile(r"[{}]|\\(?=[nNh{}])")
_LINE_ENDS = re.compile("[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


def ass(shown: Sequence[Cue]) -> str:
    """*shown* as a script of libass's format: times in hundredths of a second, one event a cue.

    Words whose times are known have `\\k` tags; an event's Name is its speaker.
    """
    return _HEADER + "".join(map(_event, shown))


def _event(cue: Cue) -> str:
    start_cs = _hundredths(cue.start)
    end_cs = max(start_cs + 1, _hundredths(cue.end))
    text = _karaoke(cue, start_cs, end_cs) if cue.parts else _BREAK.join(map(escaped, cue.lines))
    return f"Dialogue: 0,{_clock(start_cs)},{_clock(end_cs)},Default,{_name(cue.speaker)},0,0,0,,{text}\n"


def _karaoke(cue: Cue, start_cs: int, end_cs: int) -> str:
    r"""The cue's words, each behind `{\k…}`: how long it takes until the next begins, in hundredths of a second.

    What a word lasts is told from the event's start on, so silence before the first is an empty word.
    """
    parts = [(part, at > 0 and number == 0) for at, line in enumerate(cue.parts) for number, part in enumerate(line)]
    begins, reached_cs = [], start_cs
    for part, _ in parts:
        reached_cs = min(end_cs, max(reached_cs, _hundredths(part.start)))
        begins.append(reached_cs)
    text = f"{{\\k{begins[0] - start_cs}}}" if begins[0] > start_cs else ""
    for (part, on_new_line), begin_cs, until_cs in zip(parts, begins, [*begins[1:], end_cs], strict=True):
        bare = part.text.lstrip(" ")
        space = part.text[: len(part.text) - len(bare)]
        text += f"{_BREAK if on_new_line else space}{{\\k{until_cs - begin_cs}}}{escaped(bare)}"
    return text


def escaped(text: str) -> str:
    """*text* so that every character of it is drawn, and none begins a tag or breaks the line.

    A backslash cannot be escaped: an invisible word joiner keeps it apart from the letter with which it would mean
    something.
    """
    one_line = _LINE_ENDS.sub(" ", text)
    visible = "".join(char for char in one_line if unicodedata.category(char) != "Cc")
    return _SPECIAL.sub(lambda found: "\\" + (_WORD_JOINER if found[0] == "\\" else found[0]), visible)


def _name(speaker: str | None) -> str:
    """A field ends at a comma."""
    return escaped(speaker or "").replace(",", " ").strip()


def _hundredths(seconds: float) -> int:
    # NOTE: rounded in milliseconds first, since 2.3 seconds are 229.999… hundredths.
    return max(0, round(seconds * 1000)) // 10


def _clock(hundredths: int) -> str:
    minutes, hundredths = divmod(hundredths, 6_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}"
