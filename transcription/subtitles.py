"""Subtitles that can be read: where a cue ends, how its lines break, how long it stays. Pure.

Limits after the usual guidelines for broadcast and streaming (BBC, Netflix): two lines of 42 columns, seven seconds,
cut where the speaker ends a sentence or stops for breath.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transcription.core import TranscriptSegment
from transcription.subtitle_units import Unit, timed_units, written_without_spaces

MIN_CUE_MS = 1_000
"""A cue stays this long where the next one leaves it room: shorter ones flash by."""

PAUSE_MS = 600
"""Silence at which a speaker has stopped, not only taken a breath between words."""

LONG_PAUSE_MS = 2_000
"""Silence over which no cue is shown: the words after it would be read before they are said."""

_SLIVER_MS = 200
"""A cue whose words were given no time gets this much, where there is as much."""

# What it costs to end a cue at a place, and to run on over one. Only their order and rough distance matter: a
# sentence's end is worth an extra cue, a pause nearly so, a clause's end half so.
_COST_OF_A_CUE = 8.0
_CUT = {"sentence": 0.0, "pause": 1.5, "clause": 9.0, "anywhere": 24.0, "label": 1000.0}
_RUN_ON = {"sentence": 7.0, "pause": 7.0, "clause": 0.0, "anywhere": 0.0, "label": 0.0}
_UNEVENNESS = 10.0

_SENTENCE_ENDS = ".?!…。？！｡؟۔।॥։።"
_CLAUSE_ENDS = ",;:、，；：،؛–—"
_CLOSING = "\"'”’»›)]}」』）】》"
_TITLES = frozenset(
    {"mr", "mrs", "ms", "dr", "prof", "rev", "st", "gen", "col", "lt", "sgt", "capt", "sra", "dra", "mme"}
)
_BEFORE_NUMBERS = frozenset({"no", "nr", "nos", "fig", "vol", "p", "pp", "ca", "art"})
_INITIALS = re.compile(r"(?!i\.$)(?:[^\W\d_]\.)+")
_OPENING = "\"'“‘«‹([{¿¡「『（"


@dataclass(frozen=True, slots=True)
class TimedPart:
    """A word, or a part of one, with the space before it, and when it is said: seconds from the recording's start."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines that stand on the screen together, from *start* to *end*, in seconds from the start of the recording."""

    start: float
    end: float
    lines: tuple[str, ...]
    speaker: str | None = None
    """Who speaks in it: never two."""
    parts: tuple[tuple[TimedPart, ...], ...] = ()
    """Each line again, in parts that joined make the line. Empty: it is not known when its words are said."""


def cues(
    segments: Iterable[TranscriptSegment],
    *,
    duration_s: float | None = None,
    max_line_chars: int = 42,
    max_lines: int = 2,
    max_duration_s: float = 7.0,
    labelled: bool = False,
) -> list[Cue]:
    """Cut *segments* into cues that follow one another, none overlapping, none past *duration_s* of recording.

    A line is at most *max_line_chars* columns wide; wide characters take two. Every word appears once, in order, and
    no cue has words of two speakers. Segments without words have their text spread over their time. *labelled*: where
    another speaker begins, "SPEAKER_00:" stands before the words.
    """
    recording_end_ms = int(duration_s * 1000) if duration_s and 0 < duration_s < math.inf else None
    units = timed_units(segments, max_line_chars, recording_end_ms, labelled=labelled)
    if not units:
        return []
    max_ms = round(max_duration_s * 1000)
    stretches = _cut(units, [_place_after(units, at) for at in range(len(units))], max_line_chars, max_lines, max_ms)
    last_end_ms = max(unit.end_ms for unit in units)
    limit_ms = last_end_ms + MIN_CUE_MS if recording_end_ms is None else min(last_end_ms + MIN_CUE_MS, recording_end_ms)
    times = _times([(part[0].start_ms, max(unit.end_ms for unit in part)) for part in stretches], limit_ms, max_ms)
    return [
        _cue(part, start_ms / 1000, end_ms / 1000, max_line_chars)
        for part, (start_ms, end_ms) in zip(stretches, times, strict=True)
    ]


def _cue(units: Sequence[Unit], start_s: float, end_s: float, max_columns: int) -> Cue:
    parts = tuple(
        tuple(
            TimedPart(" " * (unit.space_before and at > 0) + unit.text, unit.start_ms / 1000, unit.end_ms / 1000)
            for at, unit in enumerate(line)
        )
        for line in _lines(units, max_columns)
    )
    lines = tuple("".join(part.text for part in line) for line in parts)
    return Cue(start_s, end_s, lines, units[0].speaker, parts if all(unit.is_timed for unit in units) else ())


def srt(shown: Sequence[Cue]) -> str:
    """SubRip: numbered from 1, `HH:MM:SS,mmm`, lines ended by LF, a blank line between cues."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_without_arrows(cue.lines)}\n"
        for number, cue in enumerate(shown, start=1)
    ]
    return "\n".join(blocks)


def vtt(shown: Sequence[Cue], *, karaoke: bool = False) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/), its three special characters escaped.

    Who speaks stands in a voice span, `<v SPEAKER_00>`. *karaoke*: a time stands before each word whose own is known,
    but for the first, so that a player can light the words one by one.
    """
    blocks = ["WEBVTT\n"]
    for cue in shown:
        text = _with_times(cue) if karaoke and cue.parts else "\n".join(map(_escaped, cue.lines))
        if cue.speaker is not None:
            text = f"<v {_escaped(cue.speaker)}>{text}</v>"
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def _with_times(cue: Cue) -> str:
    """The cue's text, its times inside the cue's own and each after the one before, as the standard wants them."""
    reached, end = cue.start, cue.end
    lines = []
    for line in cue.parts:
        text = ""
        for part in line:
            bare = part.text.lstrip(" ")
            text += part.text[: len(part.text) - len(bare)]
            if reached < part.start < end:
                text += f"<{_clock(part.start, '.')}>"
                reached = part.start
            text += _escaped(bare)
        lines.append(text)
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _place_after(units: Sequence[Unit], at: int) -> tuple[str, bool]:
    """What ends with units[at] ("sentence", "pause", "clause", "anywhere", "label"), and whether a pause follows."""
    unit, following = units[at], units[at + 1] if at + 1 < len(units) else None
    if unit.is_label:
        return "label", False
    pauses = following is not None and following.start_ms - unit.end_ms >= PAUSE_MS
    text = unit.text.rstrip(_CLOSING)
    ends_sentence = text[-1:] in _SENTENCE_ENDS if text else False
    if ends_sentence and not _goes_on(text, following.text.lstrip(_OPENING) if following else ""):
        return "sentence", pauses
    if pauses:
        return "pause", pauses
    if text and (text[-1] in _CLAUSE_ENDS or (ends_sentence and text[-1] != ".") or text.endswith("..")):
        return "clause", pauses
    if following and following.space_before and written_without_spaces(unit.text[-1]):
        return "clause", pauses  # where words have no spaces, a space stands for a comma
    return "anywhere", pauses


def _goes_on(text: str, following: str) -> bool:
    """Whether a sentence runs on after what looks like its end: "Mr.", "J.", "U.S.", "No. 5", "3. 5", "well… no"."""
    if text[-1] not in ".!?…":
        return False
    if following[:1].islower():
        return True
    bare = text.lstrip(_OPENING).lower()
    if not bare.endswith("."):
        return False
    if following[:1].isdigit() and (bare[-2:-1].isdigit() or bare[:-1] in _BEFORE_NUMBERS):
        return True
    return bare[:-1] in _TITLES or _INITIALS.fullmatch(bare) is not None


def _cut(
    units: Sequence[Unit], places: Sequence[tuple[str, bool]], max_columns: int, max_lines: int, max_ms: int
) -> list[Sequence[Unit]]:
    """Where cues end: the cheapest of all ways that keep the limits (shortest path over the units)."""
    count = len(units)
    cheapest = [0.0] + [float("inf")] * count
    begun_at = [0] * (count + 1)
    for first in range(count):
        lines, columns, total, run_on = 1, 0, 0, 0.0
        for last in range(first, count):
            unit = units[last]
            if last > first:
                if unit.start_ms - units[last - 1].end_ms >= LONG_PAUSE_MS or unit.speaker != units[first].speaker:
                    break
                kind, pauses = places[last - 1]
                run_on += _RUN_ON[kind] + (_RUN_ON["pause"] if pauses and kind != "pause" else 0.0)
            width = unit.columns + (1 if unit.space_before and columns else 0)
            lines, columns = (lines, columns + width) if columns + width <= max_columns else (lines + 1, unit.columns)
            total += width
            too_long = unit.end_ms - units[first].start_ms > max_ms and not units[last - 1].is_label
            if last > first and (lines > max_lines or too_long):
                break
            cost = cheapest[first] + _COST_OF_A_CUE + run_on + _UNEVENNESS * (total / (max_columns * max_lines)) ** 2
            if last + 1 < count:
                cost += _CUT[places[last][0]]
                room_ms = units[last + 1].start_ms - units[first].start_ms
                cost += _COST_OF_A_CUE * max(0.0, 1 - room_ms / MIN_CUE_MS)
            if cost < cheapest[last + 1]:
                cheapest[last + 1], begun_at[last + 1] = cost, first
    stretches: list[Sequence[Unit]] = []
    end = count
    while end:
        stretches.append(units[begun_at[end] : end])
        end = begun_at[end]
    return stretches[::-1]


def _lines(units: Sequence[Unit], max_columns: int) -> list[Sequence[Unit]]:
    """*units* on as few lines as hold them, of near equal width, the upper ones the shorter."""
    count = len(units)
    # (lines, unevenness) up to each unit: fewer lines always win.
    cheapest: list[tuple[int, float]] = [(0, 0.0)] + [(count + 1, 0.0)] * count
    begun_at = [0] * (count + 1)
    for first in range(count):
        lines, cost = cheapest[first]
        columns = 0
        for last in range(first, count):
            columns += units[last].columns + (1 if units[last].space_before and last > first else 0)
            if last > first and columns > max_columns:
                break
            upper = 0.0
            if last + 1 < count:
                upper = 0.0 if units[last].text[-1] in _CLAUSE_ENDS + _SENTENCE_ENDS else 0.1
                upper += 1.0 if units[last].is_label else 0.0
            found = (lines + 1, cost + (columns / max_columns) ** 2 * (1.05 if last + 1 < count else 1.0) + upper)
            if found < cheapest[last + 1]:
                cheapest[last + 1], begun_at[last + 1] = found, first
    lines_up: list[Sequence[Unit]] = []
    end = count
    while end:
        lines_up.append(units[begun_at[end] : end])
        end = begun_at[end]
    return lines_up[::-1]


def _times(spoken: Sequence[tuple[int, int]], limit_ms: int, max_ms: int) -> list[tuple[int, int]]:
    """When each cue stands, in milliseconds: in order, apart, at most *max_ms*, each for a while, none past *limit_ms*.

    Cues that were given no time, or the same, push their neighbours by a sliver each.
    """
    sliver_ms = max(1, min(_SLIVER_MS, max_ms, (limit_ms - spoken[0][0]) // len(spoken)))
    starts, ends = [], []
    reached_ms = 0
    for number, (start_ms, end_ms) in enumerate(spoken):
        start_ms = max(start_ms, reached_ms)
        next_ms = spoken[number + 1][0] if number + 1 < len(spoken) else limit_ms
        if next_ms > start_ms:
            end_ms = min(end_ms, next_ms)
        reached_ms = max(min(end_ms, start_ms + max_ms), start_ms + sliver_ms)
        starts.append(start_ms)
        ends.append(reached_ms)
    for number in reversed(range(len(spoken))):
        following_ms = starts[number + 1] if number + 1 < len(spoken) else max(limit_ms, len(spoken) * sliver_ms)
        ends[number] = min(ends[number], following_ms)
        starts[number] = min(starts[number], ends[number] - sliver_ms)
        room_ms = following_ms - starts[number]
        ends[number] = max(ends[number], starts[number] + min(MIN_CUE_MS, max_ms, room_ms))
    return list(zip(starts, ends, strict=True))


def _clock(seconds: float, decimal_mark: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{decimal_mark}{milliseconds % 1000:03d}"


def _without_arrows(lines: Iterable[str]) -> str:
    """SubRip has no escapes: a reader would take `-->` in the text for a cue's times."""
    return re.sub(r"-{2,}>", "->", "\n".join(lines))
