"""Where sound that is still being spoken is cut, and when its beginning is worth a look. Pure: counts samples.

A stretch of speech is final at a pause, or where it has become as long as Whisper's window, at its quietest place.
Until then it is a partial stretch, decoded again and again as it grows: each time by a share of itself at least, so
that a second of speech is decoded no more than a few times, however long somebody speaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from transcription.core import MAX_SEGMENT_S, SAMPLE_RATE
from transcription.pcm import Samples
from transcription.speech import CuttingRule, SpeechFinder, quietest


@dataclass(frozen=True, slots=True)
class LiveRule:
    """How sound is cut while it is heard."""

    pause_s: float = 0.6
    """A pause so long ends a stretch: shorter ones are breaths, and whoever reads waits for longer ones."""
    padding_s: float = 0.3
    """Kept before and after, as for recordings: consonants are quiet."""
    longest_s: float = MAX_SEGMENT_S
    shortest_s: float = 0.25
    """What is left of a stretch that was cut, and shorter, is no speech."""
    partial_s: float = 1.0
    """Between two looks at a stretch, and before the first."""
    partial_growth: float = 0.25
    """Of its length, what a stretch must have grown by since it was last looked at. All looks at a stretch together
    decode at most 1 / partial_growth times its length: each is that share shorter than the next."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Samples with speech in them; the first is number *first_sample* of the whole session."""

    first_sample: int
    sound: Samples

    @property
    def start_s(self) -> float:
        return self.first_sample / SAMPLE_RATE

    @property
    def duration_s(self) -> float:
        return len(self.sound) / SAMPLE_RATE

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s


class LiveCutter:
    """Takes sound as it comes and gives out stretches of speech, in order, no sample twice.

    Holds no more than the longest stretch and what was added last; of silence, only the padding.
    """

    def __init__(self, rule: LiveRule | None = None) -> None:
        self._rule = rule or LiveRule()
        self._finder = SpeechFinder(CuttingRule(min_pause_s=self._rule.pause_s))
        self._padding = int(self._rule.padding_s * SAMPLE_RATE)
        self._longest = int(self._rule.longest_s * SAMPLE_RATE)
        self._shortest = int(self._rule.shortest_s * SAMPLE_RATE)
        self._sound: Samples = np.empty(0, np.int16)
        self._first = 0
        """The number of the first sample that is kept."""
        self._floor = 0
        """What lies before was given out."""
        self._looked_from = -1
        self._looked_to = 0
        self._rest_until = 0

    def __repr__(self) -> str:
        return f"<LiveCutter heard={self.heard} kept={len(self._sound)} speaking={self.speaking}>"

    @property
    def heard(self) -> int:
        """Samples so far."""
        return self._first + len(self._sound)

    @property
    def speaking(self) -> bool:
        """Whether speech is under way that was not given out."""
        return self._finder.next_from < self.heard and self.heard - self._start > self._shortest

    @property
    def _start(self) -> int:
        """Where the stretch under way begins, or the next one may."""
        return max(self._floor, self._finder.next_from - self._padding, 0)

    def add(self, sound: Samples, probabilities: Sequence[float]) -> list[Stretch]:
        """The stretches that *sound* brings to an end. *probabilities*: of speech, in each of its frames."""
        self._sound = np.concatenate((self._sound, sound))
        found: list[Stretch] = []
        for span in self._finder.add(probabilities):
            end = min(self.heard, span.end + self._padding)
            found += self._given(max(self._floor, span.start - self._padding), end, ended=True)
        if self._finder.next_from < self.heard:
            found += self._given(self._start, self.heard, ended=False)
        self._forget()
        return found

    def flush(self) -> list[Stretch]:
        """The speech under way, ended here."""
        found = list(self._given(self._start, self.heard, ended=True)) if self.speaking else []
        self._forget()
        return found

    def partial(self) -> Stretch | None:
        """The stretch under way, where it is time to look at it. NOTE: tell `looked` when that is over."""
        if not self.speaking:
            return None
        start, heard = self._start, self.heard
        if start != self._looked_from:
            self._looked_from, self._looked_to = start, start
        step = max(self._rule.partial_s * SAMPLE_RATE, self._rule.partial_growth * (heard - start))
        if heard < self._rest_until or heard - self._looked_to < step:
            return None
        self._looked_to = heard
        return Stretch(start, self._sound[start - self._first :].copy())

    def looked(self) -> None:
        """The last look is over. The next waits for as long as that took: a busy server has fewer to do."""
        self._rest_until = self.heard + (self.heard - self._looked_to)

    def _given(self, start: int, end: int, *, ended: bool) -> Iterator[Stretch]:
        """What of *start* to *end* nothing changes any more, in stretches of which none is too long."""
        while end - start > self._longest:
            middle = start + self._longest // 2
            cut = middle + quietest(self._kept(middle, start + self._longest))
            yield self._given_out(start, cut)
            start = cut
        if ended and end - start > self._shortest:
            yield self._given_out(start, end)

    def _given_out(self, start: int, end: int) -> Stretch:
        self._floor = end
        return Stretch(start, self._kept(start, end).copy())

    def _kept(self, start: int, end: int) -> Samples:
        return self._sound[start - self._first : end - self._first]

    def _forget(self) -> None:
        """Keep only what a stretch can still be made of."""
        keep_from = max(self._first, min(self._start, self.heard))
        self._sound = self._sound[keep_from - self._first :]
        self._first = keep_from
