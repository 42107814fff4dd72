"""The real voice activity models on real sound."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from errors import VoiceActivityUnavailable
from tests.engines import FOR_TORCH
from tests.growing import growing
from tests.speech import sample_call, speech_file
from transcription import pcm as pcm_module
from transcription import speech
from transcription.core import SAMPLE_RATE, Segment, VoiceActivity
from transcription.pcm import GrowingPcm
from transcription.speech import FRAME_SAMPLES, Memory, Silero, SpeechCutter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def call() -> np.ndarray:
    """The telephone call's samples: 30 s, 16 kHz, mono."""
    with wave.open(str(sample_call())) as sound:
        assert sound.getframerate() == SAMPLE_RATE
        return np.frombuffer(sound.readframes(sound.getnframes()), np.int16)


async def cut(pcm: np.ndarray, folder: Path, vad: VoiceActivity = VoiceActivity.SILERO) -> list[Segment]:
    path = folder / "a.pcm"
    pcm.tofile(path)
    return [segment async for segment in SpeechCutter().segments(GrowingPcm(path), vad)]


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


def test_windows_change_nothing(call: np.ndarray) -> None:
    """The network keeps its state from window to window: the same probabilities as in one run."""

    def heard(window: int) -> list[float]:
        silero, memory, probabilities = Silero(), Memory(), []
        for first in range(0, len(call), window):
            more, memory = silero.hear(call[first : first + window], memory)
            probabilities += more
        return probabilities

    np.testing.assert_allclose(heard(100 * FRAME_SAMPLES), heard(len(call)), atol=1e-4)


@pytest.mark.parametrize("vad", [VoiceActivity.SILERO, VoiceActivity.NONE])
async def test_a_call_that_grows_is_cut_as_a_complete_one(
    call: np.ndarray, tmp_path: Path, vad: VoiceActivity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text must not depend on how fast ffmpeg was."""
    monkeypatch.setattr(pcm_module, "POLL_S", 0)
    pcm = np.tile(call, 3)
    async with growing(tmp_path / "growing.pcm", pcm, [7, 300_001, 255_999, 2, 256_001, 100_000, 700_003]) as file:
        grown = [segment async for segment in SpeechCutter().segments(file, vad)]
    complete = await cut(pcm, tmp_path, vad)
    assert [(one.first_sample, one.samples, one.index) for one in grown] == [
        (one.first_sample, one.samples, one.index) for one in complete
    ]
    assert len(grown) >= 3


async def test_the_first_segment_is_out_before_the_recording_is_there(call: np.ndarray, tmp_path: Path) -> None:
    """A ten-hour recording starts to be transcribed at once."""
    async with growing(tmp_path / "a.pcm", np.tile(call, 20), [2 * len(call) * 2], ends=False) as pcm:
        segments = SpeechCutter().segments(pcm, VoiceActivity.SILERO)
        first = await anext(segments)
        await segments.aclose()
    assert first.start_s < 7


COUNT_SEGMENTS = """
import asyncio, sys
from pathlib import Path
from transcription.core import VoiceActivity
from transcription.pcm import GrowingPcm
from transcription.speech import SpeechCutter

async def count(path):
    return len([1 async for _ in SpeechCutter().segments(GrowingPcm(path), VoiceActivity.SILERO)])

segments = asyncio.run(count(Path(sys.argv[1])))
peak_kib = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(segments, peak_kib)
"""


def segments_and_peak_mib(call: np.ndarray, repeats: int, path: Path) -> tuple[int, float]:
    """Of a process that cuts the call, *repeats* times over, and does nothing else.

    NOTE: the peak is the system's word on this program. getrusage's counts the process in which it was started too.
    """
    with path.open("wb") as file:
        for _ in range(repeats):
            file.write(call.tobytes())
    done = subprocess.run(
        [sys.executable, "-c", COUNT_SEGMENTS, path], cwd=ROOT, check=True, capture_output=True, text=True
    )
    path.unlink()
    segments, peak_kib = done.stdout.split()
    return int(segments), int(peak_kib) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a program's own peak, others do not.")
def test_an_hour_takes_no_more_memory_than_ten_minutes(call: np.ndarray, tmp_path: Path) -> None:
    """An hour is 110 MiB of samples: what keeps any of them, or maps them, shows."""
    short_segments, short_mib = segments_and_peak_mib(call, 20, tmp_path / "short.pcm")
    long_segments, long_mib = segments_and_peak_mib(call, 120, tmp_path / "long.pcm")
    assert long_mib - short_mib < 20
    assert long_segments / short_segments == pytest.approx(6, rel=0.05)


async def test_pyannote_agrees_on_where_the_call_begins(
    call: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real model from the whisperx package, in its own process. It needs the whole call, so that is waited for."""
    monkeypatch.setattr(pcm_module, "POLL_S", 0)
    for name, value in FOR_TORCH.items():
        monkeypatch.setenv(name, value)
    async with growing(tmp_path / "a.pcm", call, [300_000, 300_001]) as pcm:
        segments = [segment async for segment in SpeechCutter().segments(pcm, VoiceActivity.PYANNOTE)]
    assert 6.0 <= segments[0].start_s <= 6.9
    assert segments[-1].start_s + segments[-1].duration_s > 25
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
    assert [one async for one in SpeechCutter().segments(GrowingPcm(nonspeech), VoiceActivity.SILERO)] == []
