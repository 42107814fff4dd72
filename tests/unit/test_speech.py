"""Where recordings are cut. Pure parts only: the network itself is in tests/integration/test_voice_activity.py."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.growing import WatchedPcm, growing
from transcription import pcm as pcm_module
from transcription.core import SAMPLE_RATE, Segment, VoiceActivity
from transcription.pcm import GrowingPcm
from transcription.speech import FRAME_SAMPLES, CuttingRule, Joiner, Memory, Silero, Span, SpeechCutter, SpeechFinder

RULE = CuttingRule()

ROOT = Path(__file__).parents[2]


class LoudIsSpeech(Silero):
    """Hears speech in every frame that is not silent."""

    def __init__(self) -> None:
        pass

    def hear(self, window: np.ndarray, memory: Memory) -> tuple[list[float], Memory]:
        frames = np.pad(window, (0, -len(window) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
        return frames.any(axis=1).astype(float).tolist(), memory


class Told(LoudIsSpeech):
    """Hears what it was told, whatever the sound."""

    def __init__(self, probabilities: list[float]) -> None:
        self._probabilities = iter(probabilities)

    def hear(self, window: np.ndarray, memory: Memory) -> tuple[list[float], Memory]:
        frames = -(-len(window) // FRAME_SAMPLES)
        return list(itertools.islice(self._probabilities, frames)), memory


@pytest.fixture(autouse=True)
def _no_pause_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcm_module, "POLL_S", 0)


async def cut(pcm: np.ndarray, vad: VoiceActivity, silero: Silero | None = None) -> list[tuple[int, int]]:
    """First and last sample of each segment of a file that is complete."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pcm"
        pcm.tofile(path)
        return spans_of([one async for one in SpeechCutter(RULE, silero).segments(GrowingPcm(path), vad)])


def spans_of(segments: list[Segment]) -> list[tuple[int, int]]:
    assert [segment.index for segment in segments] == list(range(len(segments)))
    return [(segment.first_sample, segment.first_sample + segment.samples) for segment in segments]


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8_000, 8_000, int(duration_s * SAMPLE_RATE)).astype(np.int16)


def silence(duration_s: float) -> np.ndarray:
    return np.zeros(int(duration_s * SAMPLE_RATE), np.int16)


def seconds(*times: tuple[float, float]) -> list[Span]:
    return [Span(int(start * SAMPLE_RATE), int(end * SAMPLE_RATE)) for start, end in times]


def frames(*stretches: tuple[float, float]) -> list[float]:
    """Probabilities: (probability, seconds) one after another."""
    return [p for p, duration_s in stretches for _ in range(round(duration_s * SAMPLE_RATE / FRAME_SAMPLES))]


def found(*stretches: tuple[float, float]) -> list[tuple[float, float]]:
    probabilities, finder = frames(*stretches), SpeechFinder(RULE)
    spans = finder.add(probabilities) + finder.end(len(probabilities) * FRAME_SAMPLES)
    return [(round(span.start / SAMPLE_RATE, 1), round(span.end / SAMPLE_RATE, 1)) for span in spans]


def joined(speech: list[Span], total_s: float) -> list[Span]:
    joiner, total = Joiner(RULE), int(total_s * SAMPLE_RATE)
    return joiner.add(speech, total) + joiner.end(total)


def test_silence_has_no_speech() -> None:
    """Nothing is sent to the model, so nothing can be invented."""
    assert found((0.02, 10)) == []


def test_speech_ends_where_a_pause_begins() -> None:
    """The pause itself belongs to nobody."""
    assert found((0.0, 1), (0.9, 2), (0.0, 1), (0.9, 1)) == [(1.0, 3.0), (4.0, 5.0)]


def test_a_breath_is_no_pause() -> None:
    """Two frames below the threshold occur inside words."""
    assert found((0.9, 1), (0.1, 0.064), (0.9, 1)) == [(0.0, 2.0)]


def test_doubtful_frames_go_on_as_before() -> None:
    """Between the thresholds speech stays speech and silence stays silence."""
    assert found((0.9, 1), (0.4, 1), (0.0, 1), (0.4, 1)) == [(0.0, 2.0)]


def test_a_click_is_no_speech() -> None:
    """Shorter than any word."""
    assert found((0.0, 1), (0.9, 0.064), (0.0, 1)) == []


def test_short_pauses_are_merged_long_ones_cut() -> None:
    """Whisper stops early after a long silence inside its window, and loses what follows."""
    assert joined(seconds((0, 3), (3.9, 6), (7.2, 9)), 20) == seconds((0, 6.3), (6.9, 9.3))


def test_a_segment_never_grows_past_the_window() -> None:
    """What does not fit any more starts the next segment."""
    assert joined(seconds((0, 15), (15.5, 28), (28.5, 31)), 60) == seconds((0, 28.25), (28.25, 31.3))


def test_padding_stops_in_the_middle_of_a_pause() -> None:
    """Consonants are quiet; but no sound is heard twice, and none beyond the recording."""
    assert joined(seconds((0.1, 29), (29.2, 50), (50.2, 70)), 70.1) == seconds((0, 29.1), (29.1, 50.1), (50.1, 70.1))


def test_a_stretch_is_told_after_a_pause_whatever_follows() -> None:
    """Half an hour of silence, or of speech without a pause, does not hold up what was said before it."""
    joiner = Joiner(RULE)
    assert joiner.add(seconds((1, 3)), int(3.9 * SAMPLE_RATE)) == []
    assert joiner.add([], int(4.1 * SAMPLE_RATE)) == seconds((0.7, 3.3))
    assert joiner.add(seconds((5, 6)), 9 * SAMPLE_RATE) == seconds((4.7, 6.3))


def test_speech_under_way_tells_where_it_began() -> None:
    """What follows a pause may be long, and is not over when the pause is known."""
    finder = SpeechFinder(RULE)
    finder.add(frames((0.9, 1.024), (0.0, 2.048)))
    assert finder.next_from == int(3.072 * SAMPLE_RATE)
    finder.add(frames((0.9, 60)))
    assert finder.next_from == int(3.072 * SAMPLE_RATE)


async def test_speech_without_a_pause_is_cut_where_it_is_quietest() -> None:
    """A word cut in two is two words wrong."""
    pcm = noise(40)
    pcm[20 * SAMPLE_RATE : int(20.3 * SAMPLE_RATE)] //= 100
    for vad in (VoiceActivity.SILERO, VoiceActivity.NONE):
        first, second = await cut(pcm, vad, LoudIsSpeech())
        assert first[0] == 0
        assert 20.0 <= first[1] / SAMPLE_RATE <= 20.3
        assert second == (first[1], len(pcm))


async def test_endless_noise_is_cut_all_the_same() -> None:
    """A digital silence of ten minutes, with voice activity turned off."""
    segments = await cut(silence(600), VoiceActivity.NONE)
    assert (segments[0][0], segments[-1][1]) == (0, 600 * SAMPLE_RATE)
    assert all(one[1] == following[0] for one, following in itertools.pairwise(segments))
    assert max(last - first for first, last in segments) <= 30 * SAMPLE_RATE


@pytest.mark.parametrize("samples", [30 * SAMPLE_RATE - 1, 30 * SAMPLE_RATE])
async def test_what_fits_into_a_segment_is_one(samples: int) -> None:
    """A cut costs context, and here buys nothing."""
    assert await cut(np.zeros(samples, np.int16), VoiceActivity.NONE) == [(0, samples)]
    assert len(await cut(np.zeros(samples + 2, np.int16), VoiceActivity.NONE)) == 2


@given(st.lists(st.floats(0, 1), max_size=3_000), st.integers(0, FRAME_SAMPLES - 1))
async def test_any_probabilities_give_ordered_segments_within_bounds(probabilities: list[float], less: int) -> None:
    """Segments lie in the recording, in order, do not overlap, and none is longer than Whisper's window."""
    total = max(0, len(probabilities) * FRAME_SAMPLES - less)
    at = 0
    for start, end in await cut(np.zeros(total, np.int16), VoiceActivity.SILERO, Told(probabilities)):
        assert at <= start < end <= total
        assert end - start <= 30 * SAMPLE_RATE
        at = end


@pytest.mark.parametrize("pause_s", [0.2, 0.9, 5.0])
@given(st.lists(st.floats(0.2, 40), min_size=1, max_size=6))
async def test_no_speech_is_lost_between_the_segments(pause_s: float, lengths_s: list[float]) -> None:
    """Every sample of speech lies in some segment."""
    pcm = np.concatenate([part for length_s in lengths_s for part in (ones(length_s), silence(pause_s))])
    heard = np.zeros(len(pcm), bool)
    for start, end in await cut(pcm, VoiceActivity.SILERO, LoudIsSpeech()):
        heard[start:end] = True
    assert not pcm[~heard].any()


def ones(duration_s: float) -> np.ndarray:
    return np.ones(int(duration_s * SAMPLE_RATE), np.int16)


# --- while the recording is still being written ----------------------------------------------------------------------

TALK = np.concatenate(
    [silence(2.1), noise(9.3), silence(0.6), noise(35), silence(1.4), noise(3.3), silence(12), noise(1), noise(40)]
)
"""Speech with short and long pauses, and two stretches without any."""


@pytest.mark.parametrize("vad", [VoiceActivity.SILERO, VoiceActivity.NONE])
@given(steps=st.lists(st.integers(1, 400_001), max_size=40))
@example(steps=[30 * SAMPLE_RATE * 2])
async def test_a_growing_recording_is_cut_as_a_complete_one(vad: VoiceActivity, steps: list[int]) -> None:
    """However ffmpeg hands it out, down to half a sample."""
    with tempfile.TemporaryDirectory() as folder:
        async with growing(Path(folder) / "a.pcm", TALK, steps) as pcm:
            segments = [one async for one in SpeechCutter(RULE, LoudIsSpeech()).segments(pcm, vad)]
    assert spans_of(segments) == await cut(TALK, vad, LoudIsSpeech())
    assert len(segments) > 4


@pytest.mark.parametrize("vad", [VoiceActivity.SILERO, VoiceActivity.NONE])
async def test_the_first_segment_is_out_while_the_recording_grows(vad: VoiceActivity, tmp_path: Path) -> None:
    """Ten hours are decoded for a minute: who waits for the whole file answers a minute late."""
    talk = np.concatenate([noise(9.3), silence(2), noise(100)])
    first_half_minute = [32 * SAMPLE_RATE * 2]
    async with (
        growing(tmp_path / "a.pcm", talk, first_half_minute, ends=False) as pcm,
        contextlib.aclosing(SpeechCutter(RULE, LoudIsSpeech()).segments(pcm, vad)) as segments,
    ):
        first = await anext(segments)
    assert 9 < first.duration_s <= 30


@pytest.mark.parametrize("vad", [VoiceActivity.SILERO, VoiceActivity.NONE])
async def test_nothing_is_read_before_it_is_asked_for(vad: VoiceActivity, tmp_path: Path) -> None:
    """Who takes segments slowly is not overrun by them."""
    path = tmp_path / "a.pcm"
    np.tile(TALK, 10).tofile(path)
    pcm = WatchedPcm(path)
    async with contextlib.aclosing(SpeechCutter(RULE, LoudIsSpeech()).segments(pcm, vad)) as segments:
        assert pcm.samples_read == 0
        for taken in range(1, 5):
            await anext(segments)
            assert pcm.samples_read <= (taken + 1) * 45 * SAMPLE_RATE


async def test_waiting_for_the_recording_is_no_work(tmp_path: Path) -> None:
    """The time that voice activity takes must not hide that ffmpeg was slow."""
    at_work, visits = False, 0

    @contextlib.contextmanager
    def work() -> Iterator[None]:
        nonlocal at_work, visits
        at_work, visits = True, visits + 1
        yield
        at_work = False

    class Waiting(GrowingPcm):
        async def wait_for(self, samples: int) -> int:
            assert not at_work
            return await super().wait_for(samples)

        def read(self, first: int, last: int) -> np.ndarray:
            assert at_work
            return super().read(first, last)

    TALK.tofile(tmp_path / "a.pcm")
    for vad in (VoiceActivity.SILERO, VoiceActivity.NONE):
        visits = 0
        cutter = SpeechCutter(RULE, LoudIsSpeech())
        assert [one async for one in cutter.segments(Waiting(tmp_path / "a.pcm"), vad, at_work=work)]
        assert visits > 2


async def test_a_recording_that_fails_fails_its_segments(tmp_path: Path) -> None:
    """Half of a text must not pass for the whole."""
    async with growing(tmp_path / "a.pcm", TALK, [60 * SAMPLE_RATE * 2], ends=False) as pcm:
        segments = SpeechCutter(RULE, LoudIsSpeech()).segments(pcm, VoiceActivity.SILERO)
        await anext(segments)
        pcm.fail(OSError("the disk is gone"))
        with pytest.raises(OSError, match="the disk is gone"):
            async for _ in segments:
                pass


def test_no_library_tells_its_makers_of_this(tmp_path: Path) -> None:
    """What people say here is nobody's business, nor is that this server runs: onnxruntime would keep an id at home."""
    script = "from transcription.speech import Silero; Silero()"
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    assert list(tmp_path.rglob("*")) == []
