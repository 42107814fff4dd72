"""The real engine process with real weights: what it says, how it dies, how it comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from errors import EngineFailed, ModelUnavailable, WorkerCrashed
from tests.speech import sample_call, speech_file, spoken
from transcription.core import SAMPLE_RATE, Segment, TranscriptionOptions
from transcription.engine import Engine
from transcription.models import ModelLibrary

OPTIONS = TranscriptionOptions("tiny.en", "en")


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    library = ModelLibrary(tmp_path / "models", downloads=False, hf_token=None)
    async with Engine(library.ensure, model="tiny.en", threads=2, log_level="warning") as engine:
        await engine.load("tiny.en")
        yield engine


@pytest.fixture
def speech(tmp_path: Path, ffmpeg_binary: Path) -> Segment:
    """ "Now to our left" and more: 12 s of the telephone call."""
    return pcm(sample_call(), tmp_path / "call.pcm", ffmpeg_binary, start_s=6.5, duration_s=12.0)


def pcm(source: Path, target: Path, ffmpeg: Path, start_s: float = 0.0, duration_s: float | None = None) -> Segment:
    subprocess.run([ffmpeg, "-v", "error", "-i", source, "-ac", "1", "-ar", "16000", "-f", "s16le", target], check=True)
    samples = target.stat().st_size // 2 if duration_s is None else int(duration_s * SAMPLE_RATE)
    return Segment(target, int(start_s * SAMPLE_RATE), samples, 0)


async def test_speech_becomes_text_with_word_times(engine: Engine, tmp_path: Path, ffmpeg_binary: Path) -> None:
    """Text, times inside the segment, probabilities."""
    said = spoken("The quick brown fox jumps over the lazy dog.", tmp_path / "fox.wav")
    segment = pcm(said, tmp_path / "fox.pcm", ffmpeg_binary)
    [result] = await engine.transcribe([segment], replace(OPTIONS, word_timestamps=True))
    assert "brown fox" in result.text
    assert "lazy dog" in result.text
    assert result.words is not None
    assert "".join(word.text for word in result.words).strip() == result.text.strip()
    assert all(0 <= word.start <= word.end <= segment.duration_s for word in result.words)
    assert all(0 < word.probability <= 1 for word in result.words)
    assert result.avg_logprob > -1.0


async def test_a_segment_says_the_same_alone_and_in_company(engine: Engine, speech: Segment) -> None:
    """Requests share batches; what one hears must not depend on its neighbours."""
    parts = [Segment(speech.path, speech.first_sample + i * 3 * SAMPLE_RATE, 3 * SAMPLE_RATE, i) for i in range(4)]
    together = await engine.transcribe(parts, OPTIONS)
    alone = [(await engine.transcribe([part], OPTIONS))[0] for part in parts]
    assert [result.text for result in together] == [result.text for result in alone]
    assert any(result.text for result in together)


async def test_words_are_only_timed_where_asked(engine: Engine, speech: Segment) -> None:
    """It costs a tenth of the time."""
    [result] = await engine.transcribe([speech], OPTIONS)
    assert result.words is None
    assert result.text


async def test_silence_that_reaches_the_model_is_no_text(engine: Engine, tmp_path: Path) -> None:
    """With vad=none nothing else stands between silence and an invented "Thank you."."""
    path = tmp_path / "silence.pcm"
    path.write_bytes(bytes(20 * SAMPLE_RATE))
    [result] = await engine.transcribe([Segment(path, 0, 10 * SAMPLE_RATE, 0)], OPTIONS)
    assert result.text == ""


async def test_a_killed_engine_fails_its_call_and_comes_back(engine: Engine, speech: Segment) -> None:
    """The call hears of it; the next one finds a new process."""
    first = engine.pid
    assert first is not None
    call = asyncio.create_task(engine.transcribe([speech] * 8, replace(OPTIONS, beam_size=16)))
    await until(lambda: "calls=1" in repr(engine))
    os.kill(first, signal.SIGKILL)
    with pytest.raises(WorkerCrashed):
        await call
    assert not engine.ready
    [result] = await engine.transcribe([speech], OPTIONS)
    assert result.text
    assert engine.pid != first


async def until(reached: Callable[[], bool]) -> None:
    """Let the loop run until it is so; the test's own time limit ends it otherwise."""
    while not reached():  # noqa: ASYNC110 - a process sends no events
        await asyncio.sleep(0)


async def test_an_unreadable_segment_fails_alone(engine: Engine, tmp_path: Path, speech: Segment) -> None:
    """An error in a call is an answer, not the end of the process."""
    pid = engine.pid
    with pytest.raises(EngineFailed):
        await engine.transcribe([Segment(tmp_path / "gone.pcm", 0, 16_000, 0)], OPTIONS)
    assert (await engine.transcribe([speech], OPTIONS))[0].text
    assert engine.pid == pid


async def test_an_absent_model_is_said_and_what_can_be_used(engine: Engine, speech: Segment) -> None:
    """Offline, without its weights."""
    with pytest.raises(ModelUnavailable, match=r"tiny\.en"):
        await engine.transcribe([speech], replace(OPTIONS, model="medium"))


async def test_the_process_ends_with_the_engine(tmp_path: Path) -> None:
    """No orphan holds the memory."""
    library = ModelLibrary(tmp_path / "models", downloads=False, hf_token=None)
    async with Engine(library.ensure, model="tiny.en", log_level="warning") as engine:
        await engine.load("tiny.en")
        pid = engine.pid
        assert engine.loaded() == ["tiny.en"]
    assert pid is not None
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("name", "code"), [("azure_fr-FR.wav", "fr"), ("ru.wav", "ru"), ("nst_sv_2.wav", "sv"), ("chinese.flac", "zh")]
)
async def test_the_language_is_heard(name: str, code: str, tmp_path: Path, ffmpeg_binary: Path) -> None:
    """The multilingual model, on the packaged weights."""
    library = ModelLibrary(tmp_path / "models", downloads=False, hf_token=None)
    segment = pcm(speech_file(f"lang/{name}"), tmp_path / "a.pcm", ffmpeg_binary)
    async with Engine(library.ensure, model="base", log_level="warning") as engine:
        heard = await engine.detect_language([segment], "base")
        assert heard.code == code
        assert 0.4 < heard.probability <= 1.0
