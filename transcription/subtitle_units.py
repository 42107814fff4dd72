"""What a subtitle is laid out from: words with their punctuation, their width on the screen and their time. Pure."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from transcription.core import TranscriptSegment

# Where a line may not begin or end (kinsoku; JIS X 4051, Unicode line breaking classes CL, NS and OP).
_NOT_FIRST_IN_LINE = frozenset(
    "、。，．・：；？！…‥—～ー々ゝヽ）］｝〕〉》」』】”’,.:;?!)]}%‰ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ"
)
_NOT_LAST_IN_LINE = frozenset("（［｛〔〈《「『【“‘([{¿¡#")
_ZERO_WIDTH_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class Unit:
    """The least that is never broken over two lines. Times are milliseconds from the start of the recording."""

    text: str
    columns: int
    start_ms: int
    end_ms: int
    space_before: bool
    speaker: str | None = None
    is_timed: bool = True
    """False: its time is a share of its segment's."""
    is_label: bool = False
    """It says who speaks, and was not said."""


class _Piece(NamedTuple):
    """Text without space in it, and seconds as they came: perhaps not in order, perhaps not finite."""

    text: str
    start_s: float
    end_s: float
    space_before: bool
    first_of_segment: bool
    speaker: str | None
    is_timed: bool


def text_columns(text: str) -> int:
    """How wide *text* is, in columns of a Latin letter: East-Asian wide characters take two (Unicode annex 11)."""
    return sum(map(_char_columns, text))


def timed_units(
    segments: Iterable[TranscriptSegment], max_columns: int, end_ms: int | None, *, labelled: bool = False
) -> list[Unit]:
    """Every word of *segments*, once and in order, each at most *max_columns* wide.

    Starts never run backwards and no end lies before its start or after *end_ms*, whatever the word times were.
    *labelled*: where another speaker begins, a label says who.
    """
    units: list[Unit] = []
    spoken = _in_time(_pieces(segments), end_ms)
    for unit in _with_labels(spoken) if labelled else spoken:
        for part in _hard_split(unit, max_columns):
            if units and _belong_together(units[-1], part, max_columns):
                last = units[-1]
                units[-1] = replace(
                    last,
                    text=last.text + part.text,
                    columns=last.columns + part.columns,
                    end_ms=max(last.end_ms, part.end_ms),
                )
            else:
                units.append(part)
    return units


def has_words(segment: TranscriptSegment) -> bool:
    """Whether it has any word with a letter in it."""
    return any(word.text.strip() for word in segment.words or ())


def _with_labels(units: Iterable[Unit]) -> Iterator[Unit]:
    speaker = None
    for unit in units:
        if unit.speaker != speaker:
            speaker = unit.speaker
            if speaker is not None:
                text = f"{speaker}:"
                yield Unit(text, text_columns(text), unit.start_ms, unit.start_ms, True, speaker, is_label=True)
                unit = replace(unit, space_before=True)
        yield unit


def _pieces(segments: Iterable[TranscriptSegment]) -> Iterator[_Piece]:
    """The words of each segment; where it has none, its text spread over its time in proportion to its length."""
    for segment in segments:
        first = True
        space = False
        is_timed = has_words(segment)
        if is_timed:
            spoken = [
                (word.text, word.start, word.end, word.speaker or segment.speaker) for word in segment.words or ()
            ]
        else:
            spoken = [(segment.text, segment.start, segment.end, segment.speaker)]
        for text, start_s, end_s, speaker in spoken:
            letters = sum(not char.isspace() for char in text)
            second_per_letter = (end_s - start_s) / max(1, letters)
            for match in re.finditer(r"\S+|\s+", text):
                if match[0].isspace():
                    space = True
                    continue
                for part in [match[0]] if is_timed else _breakable(match[0]):
                    from_s, start_s = start_s, start_s + len(part) * second_per_letter
                    visible = "".join(char for char in part if unicodedata.category(char) != "Cc")
                    if visible:
                        yield _Piece(visible, from_s, start_s, space, first, speaker, is_timed)
                        first = space = False


def _in_time(pieces: Iterable[_Piece], end_ms: int | None) -> Iterator[Unit]:
    """*pieces* with whole milliseconds that do not run backwards."""
    start_ms = reached_ms = 0
    previous = ""
    for piece in pieces:
        start_ms = max(start_ms, _milliseconds(piece.start_s, reached_ms))
        until_ms = max(start_ms, _milliseconds(piece.end_s, start_ms))
        if end_ms is not None:
            start_ms, until_ms = min(start_ms, end_ms), min(until_ms, end_ms)
        reached_ms = until_ms
        space = piece.space_before
        if previous and piece.first_of_segment:
            # NOTE: Whisper now and then leaves out the first space of a segment.
            space = space or not (written_without_spaces(previous[-1]) or written_without_spaces(piece.text[0]))
        previous = piece.text
        yield Unit(
            piece.text, text_columns(piece.text), start_ms, until_ms, space, piece.speaker, is_timed=piece.is_timed
        )


def _milliseconds(seconds: float, otherwise_ms: int) -> int:
    return max(0, round(seconds * 1000)) if math.isfinite(seconds) else otherwise_ms


def _belong_together(left: Unit, right: Unit, max_columns: int) -> bool:
    """Whether no line may break between two neighbours: "well" "-known", "你好" "。", "¿" "Qué"."""
    if right.space_before or left.speaker != right.speaker or left.columns + right.columns > max_columns:
        return False
    return not _may_break(left.text[-1], right.text[0])


def _may_break(left: str, right: str) -> bool:
    if right in _NOT_FIRST_IN_LINE or left in _NOT_LAST_IN_LINE:
        return False
    if _is_katakana(left) and _is_katakana(right):
        return False
    return written_without_spaces(left) or written_without_spaces(right)


def _is_katakana(char: str) -> bool:
    """Runs of it are foreign words, and hard to read in two halves."""
    return "\u30a1" <= char <= "\u30ff"


def _breakable(text: str) -> list[str]:
    """*text* cut wherever a line may break: between the characters of Chinese and Japanese, nowhere in English."""
    parts: list[str] = []
    for cluster in _clusters(text):
        if parts and not _may_break(parts[-1][-1], cluster[0]):
            parts[-1] += cluster
        else:
            parts.append(cluster)
    return parts


def _hard_split(unit: Unit, max_columns: int) -> Iterator[Unit]:
    """*unit* in parts no wider than a line; its time goes to them in proportion to their width."""
    if unit.columns <= max_columns:
        yield unit
        return
    parts = [""]
    for cluster in _clusters(unit.text):
        if parts[-1] and text_columns(parts[-1] + cluster) > max_columns:
            parts.append("")
        parts[-1] += cluster
    done, span_ms = 0, unit.end_ms - unit.start_ms
    for number, part in enumerate(parts):
        start_ms = unit.start_ms + span_ms * done // unit.columns
        done += text_columns(part)
        end_ms = unit.start_ms + span_ms * done // unit.columns
        yield replace(
            unit,
            text=part,
            columns=text_columns(part),
            start_ms=start_ms,
            end_ms=end_ms,
            space_before=unit.space_before and number == 0,
        )


def _clusters(text: str) -> list[str]:
    """Characters with the marks that belong to them (Unicode annex 29, as far as speech needs it)."""
    clusters: list[str] = []
    for char in text:
        joins = unicodedata.category(char).startswith("M") or char == _ZERO_WIDTH_JOINER or "🏻" <= char <= "🏿"
        if clusters and (joins or clusters[-1].endswith(_ZERO_WIDTH_JOINER)):
            clusters[-1] += char
        else:
            clusters.append(char)
    return clusters


@lru_cache(maxsize=4096)
def _char_columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def written_without_spaces(char: str) -> bool:
    """Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer; not Korean, though it is wide."""
    if "\u0e00" <= char <= "\u109f" or "\u1780" <= char <= "\u17ff":
        return True
    is_hangul = "\u1100" <= char <= "\u11ff" or "\u3130" <= char <= "\u318f" or "\uac00" <= char <= "\ud7a3"
    return unicodedata.east_asian_width(char) in "WF" and not is_hangul
