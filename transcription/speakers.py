"""Who speaks when in a whole recording, put together from blocks of it, and who says which word. Pure.

A recording is heard in blocks of bounded length, so that nothing grows with more than its length. Each block's speakers
have voices (embeddings) by which they are found again in the other blocks.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from transcription.core import SAMPLE_RATE, TranscriptSegment, Word

BLOCK_S = 300.0
"""Long enough for a voice to be known well (ten readers are told apart in blocks of a minute already), and short enough
for others' turns: a block costs a CPU one to two minutes, for which a clip may have to wait (docs/benchmarks.md)."""

SAME_VOICE_WITHIN = 0.70
"""Between two voices' unit vectors: what pyannote's pipelines were tuned to (speaker-diarization-3.1 has 0.7046)."""

NEAR_S = 2.0
"""A word in no turn belongs to the nearest one, if that is no further away."""

MOMENT_S = 0.02
"""What a word without a length is taken to last."""

Limits = tuple[int | None, int | None, int | None]
"""How many speakers there are: (exactly, at least, at most)."""

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker speaks. Seconds from the start of the recording; turns of several speakers may overlap."""

    start: float
    end: float
    speaker: int


@dataclass(frozen=True, slots=True)
class Block:
    """What was heard in one block of a recording."""

    turns: tuple[Turn, ...]
    """Times are from the start of the recording, speakers are numbered within the block: 0, 1, 2 …"""
    embeddings: tuple[tuple[float, ...], ...]
    """One for each speaker, of any length but 0; empty where a speaker's voice was not heard well enough."""


def blocks(samples: int, block_s: float = BLOCK_S) -> list[tuple[int, int]]:
    """(first sample, samples) of each block, none longer than *block_s*. The last two share what is left evenly."""
    longest = int(block_s * SAMPLE_RATE)
    if samples <= longest:
        return [(0, samples)] if samples else []
    whole = max(0, -(-samples // longest) - 2)
    left = samples - whole * longest
    lengths = [longest] * whole + [left - left // 2, left // 2]
    return list(zip(itertools.accumulate([0, *lengths[:-1]]), lengths, strict=True))


def block_limits(num: int | None, least: int | None, most: int | None, blocks: int) -> Limits:
    """What is known of each block's speakers: all that is known of the recording's where it is one block.

    Of several blocks, none need have all the speakers in it.
    """
    return (num, least, most) if blocks <= 1 else (None, None, num if num is not None else most)


def linked(
    blocks: Sequence[Block],
    *,
    num: int | None,
    least: int | None,
    most: int | None,
    within: float = SAME_VOICE_WITHIN,
) -> list[Turn]:
    """All turns in order, their speakers numbered over the whole recording as they first appear.

    Speakers of different blocks are one where their voices are no further apart than *within*; speakers of one block
    only where there would else be more than *num* or *most*. There are fewer than *num* or *least* only where the
    blocks have fewer. The turns of a speaker whose voice is not known are the nearest other turn's speaker's.
    """
    heard = [(number, speaker) for number, block in enumerate(blocks) for speaker in range(len(block.embeddings))]
    if len(blocks) <= 1:
        return numbered([turn for block in blocks for turn in block.turns])
    spoken_s = dict.fromkeys(heard, 0.0)
    for number, block in enumerate(blocks):
        for turn in block.turns:
            spoken_s[number, turn.speaker] += turn.end - turn.start
    voices = {key: unit for key in heard if (unit := unit_vector(blocks[key[0]].embeddings[key[1]])) is not None}
    speaker_of: dict[tuple[int, int], int] = {}
    if voices:
        seconds = np.array([max(MOMENT_S, spoken_s[key]) for key in voices])
        groups = Voices(np.array(list(voices.values())), seconds, np.array([number for number, _ in voices]))
        joined = groups.grouped(num or least or 1, num or most or len(voices), within)
        speaker_of = dict(zip(voices, joined, strict=True))
    known: list[Turn] = []
    unknown: list[Turn] = []
    for number, block in enumerate(blocks):
        for turn in block.turns:
            speaker = speaker_of.get((number, turn.speaker))
            (unknown if speaker is None else known).append(replace(turn, speaker=speaker or 0))
    timeline = Timeline(known)
    return numbered(known + [replace(turn, speaker=timeline.nearest(turn.start, turn.end) or 0) for turn in unknown])


def numbered(turns: Sequence[Turn]) -> list[Turn]:
    """In order of time, speakers numbered as they first appear."""
    ordered = sorted(turns, key=lambda turn: (turn.start, turn.end))
    numbers: dict[int, int] = {}
    return [replace(turn, speaker=numbers.setdefault(turn.speaker, len(numbers))) for turn in ordered]


def unit_vector(embedding: Sequence[float]) -> Vectors | None:
    """Its direction, which is all that tells voices apart; None where it has none."""
    vector = np.asarray(embedding, np.float64)
    length = float(np.linalg.norm(vector)) if vector.size else 0.0
    return vector / length if length > 0 and math.isfinite(length) else None


class Voices:
    """Voices that are joined, nearest first, into groups: a group's voice is their mean, weighted by time.

    Holds each group's nearest other one in place of all distances, so memory grows with the voices, not their square.
    """

    def __init__(self, units: Vectors, seconds: Vectors, blocks: npt.NDArray[np.int64]) -> None:
        """*units*: (voices, dimensions). *blocks*: in which one each was heard."""
        self._sums = units * seconds[:, None]
        self._units = units.copy()
        self._blocks = blocks
        self._groups = np.arange(len(units))
        """Of each voice: the number of the group's first voice."""
        self._live = np.ones(len(units), bool)
        self._apart = True
        """Whether voices of one block are kept apart."""
        self._nearest = np.zeros(len(units), np.int64)
        self._distances = np.full(len(units), np.inf)

    def grouped(self, least: int, most: int, within: float) -> list[int]:
        """Each voice's group: no fewer of them than *least* if there are as many voices, no more than *most*."""
        self._find_nearest(range(len(self._units)))
        left = len(self._units)
        while left > max(1, least):
            one = int(np.argmin(self._distances))
            if left <= most and self._distances[one] > within:
                break
            if np.isfinite(self._distances[one]):
                self._join(one, int(self._nearest[one]))
                left -= 1
            else:
                self._apart = False
                self._find_nearest(np.flatnonzero(self._live))
        return [int(group) for group in self._groups]

    def _join(self, one: int, other: int) -> None:
        touched = np.flatnonzero(self._live & np.isin(self._nearest, (one, other)))
        self._sums[one] += self._sums[other]
        self._units[one] = self._sums[one] / max(np.linalg.norm(self._sums[one]), np.finfo(np.float64).tiny)
        self._groups[self._groups == other] = one
        self._live[other] = False
        self._distances[other] = np.inf
        self._find_nearest({int(group) for group in touched if group != other} | {one})
        row = self._row(one)
        closer = row < self._distances
        self._nearest[closer], self._distances[closer] = one, row[closer]

    def _find_nearest(self, groups: Sequence[int] | range | set[int] | npt.NDArray[np.intp]) -> None:
        for group in groups:
            row = self._row(group)
            self._nearest[group] = np.argmin(row)
            self._distances[group] = row[self._nearest[group]]

    def _row(self, group: int) -> Vectors:
        """How far the group is from each other one; infinitely where the two must be kept apart."""
        distances: Vectors = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * (self._units @ self._units[group])))
        distances[~self._live] = np.inf
        distances[group] = np.inf
        if self._apart:
            own_blocks = self._blocks[self._groups == group]
            distances[self._groups[np.isin(self._blocks, own_blocks)]] = np.inf
        return distances


class Timeline:
    """Turns, asked for by time."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = sorted(turns, key=lambda turn: turn.start)
        self._starts = [turn.start for turn in self._turns]
        self._latest_ends = list(itertools.accumulate((turn.end for turn in self._turns), max))

    def spoken(self, start: float, end: float) -> dict[int, float]:
        """Seconds that each speaker speaks between the two."""
        found: dict[int, float] = {}
        for turn in self._around(start, end):
            shared = min(turn.end, end) - max(turn.start, start)
            if shared > 0:
                found[turn.speaker] = found.get(turn.speaker, 0.0) + shared
        return found

    def nearest(self, start: float, end: float, within_s: float = math.inf) -> int | None:
        """Who speaks nearest to that stretch of time, if so near."""
        near = self._around(start - within_s, end + within_s) if math.isfinite(within_s) else self._turns
        gaps = [(max(turn.start - end, start - turn.end, 0.0), turn.speaker) for turn in near]
        return min(gaps)[1] if gaps else None

    def _around(self, start: float, end: float) -> list[Turn]:
        """All turns that reach into that stretch, and few others."""
        last = bisect_left(self._starts, end)
        first = min(bisect_left(self._latest_ends, start), last)
        return [turn for turn in self._turns[first:last] if turn.end >= start]


def told(segments: Sequence[TranscriptSegment], turns: Sequence[Turn]) -> tuple[TranscriptSegment, ...]:
    """The segments with their speakers, cut where another one begins to speak; numbered anew.

    A word is the speaker's who speaks most while it lasts, else who speaks nearest. Speakers are named SPEAKER_00,
    SPEAKER_01 … as they first appear. NOTE: tokens and their log probabilities are not told by word: where a segment
    is cut they all stay with its first part.
    """
    timeline, names = Timeline(turns), dict[int, str]()
    parts = [part for segment in segments for part in of_speakers(segment, timeline, names)]
    return tuple(replace(part, id=number) for number, part in enumerate(parts))


def of_speakers(segment: TranscriptSegment, timeline: Timeline, names: dict[int, str]) -> list[TranscriptSegment]:
    """The segment's parts, each of one speaker. *names* learns who is new."""

    def name(speaker: int | None) -> str | None:
        return None if speaker is None else names.setdefault(speaker, f"SPEAKER_{len(names):02}")

    if not segment.words:
        spoken = timeline.spoken(segment.start, segment.end)
        speaker = max(spoken, key=lambda one: spoken[one]) if spoken else None
        return [replace(segment, speaker=name(speaker if spoken else nearest_to(segment, timeline)))]
    speakers = speakers_of(segment.words, timeline)
    parts: list[TranscriptSegment] = []
    for speaker, run in itertools.groupby(zip(speakers, segment.words, strict=True), key=lambda pair: pair[0]):
        named = name(speaker)
        words = tuple(replace(word, speaker=named) for _, word in run)
        parts.append(
            replace(
                segment,
                start=words[0].start if parts else segment.start,
                end=words[-1].end,
                text="".join(word.text for word in words),
                words=words,
                speaker=named,
                tokens=() if parts else segment.tokens,
                logprobs=() if parts and segment.logprobs is not None else segment.logprobs,
            )
        )
    parts[-1] = replace(parts[-1], end=segment.end)
    return [replace(parts[0], text=segment.text)] if len(parts) == 1 else parts


def speakers_of(words: Sequence[Word], timeline: Timeline) -> list[int | None]:
    """Who says each word of a segment. Who cannot be known is whoever says the word next to it."""
    found: list[int | None] = []
    shares = []
    for word in words:
        start, end = stretch(word)
        spoken = timeline.spoken(start, end)
        shares.append({speaker: seconds / (end - start) for speaker, seconds in spoken.items()})
        # Where two speak at once, the one who has been speaking goes on.
        before = found[-1] if found else None
        best = max(spoken, key=lambda one: (round(spoken[one], 3), one == before), default=None)
        found.append(nearest_to(word, timeline) if best is None else best)
    for place in range(1, len(words) - 1):
        before, own, after = found[place - 1 : place + 2]
        if own is None or before is None or before != after or own == before:
            continue
        if shares[place].get(own, 0.0) < 0.5 or shares[place].get(before, 0.0) >= 0.5:
            found[place] = before
    known = [place for place, speaker in enumerate(found) if speaker is not None]
    return [found[min(known, key=lambda one: abs(one - place))] if known else None for place in range(len(words))]


def stretch(timed: Word | TranscriptSegment) -> tuple[float, float]:
    """When it is said: for at least a moment."""
    short = max(0.0, MOMENT_S - (timed.end - timed.start)) / 2
    return timed.start - short, timed.end + short


def nearest_to(timed: Word | TranscriptSegment, timeline: Timeline) -> int | None:
    return timeline.nearest(*stretch(timed), within_s=NEAR_S)
