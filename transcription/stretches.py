"""Which stretches of the PCM are heard: the caller's clips, and the channels of a recording that lie one after another.

Where channels are split, one file of PCM has all of them, each after the other with a pause between. So whatever knows
a recording by its samples (segments, a job's journal, parts done elsewhere) knows each channel's apart. Pure.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace

from transcription.core import SAMPLE_RATE, Segment, TranscriptSegment, Word

PAUSE_S = 2.0
"""Between two channels: longer than any that speech is merged over."""

LEAST_SAMPLES = SAMPLE_RATE // 10
"""Less of a segment says nothing."""

Stretch = tuple[int, int]
"""From this sample up to that one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in the PCM each channel lies, and what of it is wanted."""

    channels: int = 1
    channel_samples: int = 0
    """Of each channel; without meaning where there is one."""
    clips: tuple[tuple[float, float], ...] = ()
    """Seconds of the recording; empty: all of it."""

    @property
    def whole(self) -> bool:
        """Whether everything is to be heard, as it lies there."""
        return self.channels == 1 and not self.clips

    @property
    def step(self) -> int:
        """Samples from one channel's start to the next one's."""
        return self.channel_samples + round(PAUSE_S * SAMPLE_RATE)

    def stretches(self) -> list[Stretch]:
        """What is to be heard, in order, none overlapping another."""
        end = self.channel_samples if self.channels > 1 else 2**62
        clips = [(round(start * SAMPLE_RATE), round(stop * SAMPLE_RATE)) for start, stop in self.clips] or [(0, end)]
        return [
            (channel * self.step + start, channel * self.step + min(stop, end))
            for channel in range(self.channels)
            for start, stop in clips
            if start < end
        ]

    def placed(self, result: TranscriptSegment) -> TranscriptSegment:
        """*result* with the recording's times, and its channel as its speaker."""
        if self.channels == 1:
            return result
        step_s = self.step / SAMPLE_RATE
        channel = min(self.channels - 1, int((result.start + result.end) / 2 / step_s))
        back_s, speaker = channel * step_s, f"CHANNEL_{channel:02d}"

        def placed(word: Word) -> Word:
            return replace(word, start=word.start - back_s, end=word.end - back_s, speaker=speaker)

        return replace(
            result,
            start=result.start - back_s,
            end=result.end - back_s,
            speaker=speaker,
            words=None if result.words is None else tuple(map(placed, result.words)),
        )


def within(segment: Segment, stretches: Sequence[Stretch]) -> list[Segment]:
    """What of *segment* lies in *stretches*."""
    parts = []
    for start, end in stretches:
        first = max(start, segment.first_sample)
        samples = min(end, segment.first_sample + segment.samples) - first
        if samples >= min(LEAST_SAMPLES, segment.samples):
            parts.append(replace(segment, first_sample=first, samples=samples))
    return parts


async def only(segments: AsyncIterator[Segment], layout: Layout) -> AsyncGenerator[Segment]:
    """Of *segments*, what *layout* wants, numbered anew."""
    stretches, number = layout.stretches(), 0
    async for segment in segments:
        for part in [segment] if layout.whole else within(segment, stretches):
            yield replace(part, index=number)
            number += 1
