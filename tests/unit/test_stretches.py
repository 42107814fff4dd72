"""Clips and channels: which samples are heard, and whose and when the words are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcription.core import SAMPLE_RATE, Segment, TranscriptSegment, Word
from transcription.stretches import PAUSE_S, Layout, only, within

RATE = SAMPLE_RATE


def segment(start_s: float, duration_s: float) -> Segment:
    return Segment(Path("a.pcm"), round(start_s * RATE), round(duration_s * RATE), 0)


async def these(*segments: Segment) -> AsyncIterator[Segment]:
    for one in segments:
        yield one


async def kept(layout: Layout, *segments: Segment) -> list[tuple[int, float, float]]:
    return [(one.index, one.start_s, one.duration_s) async for one in only(these(*segments), layout)]


async def test_all_is_heard_where_nothing_was_said_of_it() -> None:
    assert await kept(Layout(), segment(0, 5), segment(7, 1)) == [(0, 0.0, 5.0), (1, 7.0, 1.0)]


async def test_only_what_lies_in_a_clip_is_heard() -> None:
    """A segment that reaches out of its clip is cut, one that reaches over two is two."""
    layout = Layout(clips=((1.0, 3.0), (4.0, 6.0)))
    found = await kept(layout, segment(0, 2), segment(2.5, 3), segment(6.5, 1))
    assert found == [(0, 1.0, 1.0), (1, 2.5, 0.5), (2, 4.0, 1.5)]


def test_a_sliver_is_not_heard() -> None:
    """Whisper invents words for a few milliseconds."""
    assert within(segment(0, 2), [(round(1.99 * RATE), 9 * RATE)]) == []


async def test_clips_are_the_same_in_each_channel() -> None:
    """They are told in the recording's time, not in the PCM's."""
    layout = Layout(channels=2, channel_samples=10 * RATE, clips=((2.0, 4.0),))
    second = 10 + PAUSE_S
    assert await kept(layout, segment(0, 10), segment(second, 10)) == [(0, 2.0, 2.0), (1, second + 2.0, 2.0)]


async def test_a_segment_over_two_channels_is_one_of_each() -> None:
    """Where voice activity is off, segments know nothing of channels."""
    layout = Layout(channels=2, channel_samples=10 * RATE)
    second = 10 + PAUSE_S
    assert await kept(layout, segment(5, 15)) == [(0, 5.0, 5.0), (1, second, 20.0 - second)]


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_words_of_a_channel_have_the_recordings_time(channel: int) -> None:
    """Both parties of a call speak at the same time, on channels that lie one after another."""
    layout = Layout(channels=3, channel_samples=10 * RATE)
    later = channel * (10 + PAUSE_S)
    heard = TranscriptSegment(
        0, later + 1.0, later + 9.0, " hello", -0.1, 0.0, 1.0, 0.0, (Word(later + 1.5, later + 2.0, " hello", 0.9),)
    )
    placed = layout.placed(heard)
    assert (placed.start, placed.end, placed.speaker) == (1.0, 9.0, f"CHANNEL_0{channel}")
    assert placed.words == (Word(1.5, 2.0, " hello", 0.9, speaker=f"CHANNEL_0{channel}"),)


def test_one_channel_has_no_name() -> None:
    heard = TranscriptSegment(0, 1.0, 2.0, " hello", -0.1, 0.0, 1.0, 0.0)
    assert Layout(clips=((0.0, 9.0),)).placed(heard) == heard


@given(
    st.integers(1, 4),
    st.lists(st.floats(0, 30), min_size=2, max_size=8).map(sorted),
    st.lists(st.tuples(st.floats(0, 150), st.floats(0.2, 30)), max_size=5),
)
def test_nothing_outside_is_heard_and_nothing_twice(
    channels: int, times: list[float], spoken: list[tuple[float, float]]
) -> None:
    clips = tuple((start, end) for start, end in zip(times[::2], times[1::2], strict=False) if start < end)
    layout = Layout(channels=channels, channel_samples=20 * RATE, clips=clips)
    stretches = layout.stretches()
    assert stretches == sorted(stretches)
    for start_s, duration_s in spoken:
        whole = segment(start_s, duration_s)
        parts = within(whole, stretches)
        assert sum(part.samples for part in parts) <= whole.samples
        for part in parts:
            first, last = part.first_sample, part.first_sample + part.samples
            assert any(start <= first and last <= end for start, end in stretches)
            assert whole.first_sample <= first
            assert last <= whole.first_sample + whole.samples
