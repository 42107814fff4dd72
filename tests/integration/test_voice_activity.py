"""The real voice activity models on real sound."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from errors import VoiceActivityUnavailable
from tests.speech import sample_call, speech_file
from transcription import speech
from transcription.core import SAMPLE_RATE, Segment, VoiceActivity
from transcription.speech import Silero, SpeechCutter


@pytest.fixture(scope="module")
def call() -> np.ndarray:
    """The telephone call's samples: 30 s, 16 kHz, mono."""
    with wave.open(str(sample_call())) as sound:
        assert sound.getframerate() == SAMPLE_RATE
        return np.frombuffer(sound.readframes(sound.getnframes()), np.int16)


async def cut(pcm: np.ndarray, folder: Path, vad: VoiceActivity = VoiceActivity.SILERO) -> list[Segment]:
    path = folder / "a.pcm"
    pcm.tofile(path)
    return [segment async for segment in SpeechCutter().segments(path, vad)]


async def test_a_call_is_cut_where_its_reference_is_silent(call: np.ndarray, tmp_path: Path) -> None:
    """The package's RTTM tells who speaks when; its first speech begins at 6.7 s."""
    segments = await cut(call, tmp_path)
    assert 6.0 <= segments[0].start_s <= 6.9
    assert segments[-1].start_s + segments[-1].duration_s <= 30.0
    assert [segment.index for segment in segments] == list(range(len(segments)))


async def test_silence_and_a_hum_have_no_speech(tmp_path: Path) -> None:
    """What is not cut out is not sent to the model."""
    seconds = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    hum = (8_000 * np.sin(2 * np.pi * 440 * seconds)).astype(np.int16)
    assert await cut(np.zeros(5 * SAMPLE_RATE, np.int16), tmp_path) == []
    assert await cut(hum, tmp_path) == []
    assert await cut(np.zeros(0, np.int16), tmp_path) == []
    assert await cut(np.zeros(800, np.int16), tmp_path) == []


async def test_without_voice_activity_everything_is_sent(call: np.ndarray, tmp_path: Path) -> None:
    """For those who know that there is speech throughout."""
    segments = await cut(np.tile(call, 2), tmp_path, VoiceActivity.NONE)
    assert sum(segment.samples for segment in segments) == 2 * len(call)


def test_windows_change_nothing(call: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network keeps its state from window to window: the same probabilities as in one run."""
    silero = Silero()
    monkeypatch.setattr(speech, "WINDOW_FRAMES", len(call))
    whole = list(silero.probabilities(call))
    monkeypatch.setattr(speech, "WINDOW_FRAMES", 100)
    np.testing.assert_allclose(list(silero.probabilities(call)), whole, atol=1e-4)


def test_the_first_segment_is_out_before_the_recording_is_read(call: np.ndarray) -> None:
    """A ten-hour recording starts to be transcribed at once."""
    probabilities = Silero().probabilities(np.tile(call, 20))
    taken = 0

    def counted() -> object:
        nonlocal taken
        for probability in probabilities:
            taken += 1
            yield probability

    first = next(speech.merged(speech.spans(counted(), speech.CuttingRule(), 20 * len(call)), speech.CuttingRule()))
    assert first.end < 31 * SAMPLE_RATE
    assert taken <= 40 * SAMPLE_RATE / speech.FRAME_SAMPLES


async def test_pyannote_agrees_on_where_the_call_begins(call: np.ndarray, tmp_path: Path) -> None:
    """The real model from the whisperx package, in its own process."""
    segments = await cut(call, tmp_path, VoiceActivity.PYANNOTE)
    assert 6.0 <= segments[0].start_s <= 6.9
    assert "torch" not in sys.modules


async def test_pyannote_is_refused_where_it_is_not_installed(
    call: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slim requirements have no torch: that is said, not guessed from a crash."""
    monkeypatch.setattr(speech, "find_spec", lambda name: None)
    with pytest.raises(VoiceActivityUnavailable):
        await cut(call, tmp_path, VoiceActivity.PYANNOTE)


@pytest.fixture(params=["silence_10s.wav", "tone_440hz_5s.wav", "white_noise_10s.flac"])
def nonspeech(request: pytest.FixtureRequest, tmp_path: Path, ffmpeg_binary: Path) -> Path:
    """PCM of a sound in which nobody speaks."""
    source, target = speech_file(f"nonspeech/{request.param}"), tmp_path / "sound.pcm"
    subprocess.run(
        [ffmpeg_binary, "-v", "error", "-i", source, "-ac", "1", "-ar", "16000", "-f", "s16le", target], check=True
    )
    return target


async def test_recorded_nonspeech_is_cut_away(nonspeech: Path) -> None:
    """The sounds on which other servers write "you"."""
    assert [one async for one in SpeechCutter().segments(nonspeech, VoiceActivity.SILERO)] == []
