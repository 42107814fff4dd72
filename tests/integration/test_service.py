"""A recording's whole way through the real parts: ffmpeg, voice activity, engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from errors import AudioTooLong, ModelUnavailable, UnsupportedMedia
from ffmpeg import FFmpeg
from tests.speech import sample_call, speech_file, spoken
from transcription.core import TranscriptionOptions
from transcription.engine import Engine
from transcription.models import ModelLibrary
from transcription.scheduler import SegmentScheduler
from transcription.service import Stopwatch, Transcriber
from transcription.speech import SpeechCutter

OPTIONS = TranscriptionOptions("tiny.en", "en")


@contextlib.asynccontextmanager
async def parts(
    folder: Path, model: str = "tiny.en", max_duration_s: float = 3_600
) -> AsyncIterator[tuple[Transcriber, Engine]]:
    work = folder / "work"
    work.mkdir()
    library = ModelLibrary(folder / "models", downloads=False, hf_token=None)
    async with (
        Engine(library.ensure, model=model, threads=2, log_level="warning") as engine,
        SegmentScheduler(engine, batch_size=4) as scheduler,
    ):
        await engine.load(model)
        yield (
            Transcriber(
                FFmpeg.locate(),
                SpeechCutter(),
                engine,
                scheduler,
                work_dir=work,
                max_duration_s=max_duration_s,
                max_decodes=2,
            ),
            engine,
        )


@pytest_asyncio.fixture
async def transcriber(tmp_path: Path) -> AsyncIterator[Transcriber]:
    async with parts(tmp_path) as (transcriber, _):
        yield transcriber


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "work").iterdir())


async def test_a_call_becomes_a_transcript(transcriber: Transcriber, tmp_path: Path) -> None:
    """The reference's first words are "Hello?" at 6.7 s."""
    transcript = await transcriber.run(sample_call(), replace(OPTIONS, word_timestamps=True))
    assert "hello" in transcript.text.lower()
    assert transcript.duration_s == pytest.approx(30, abs=0.1)
    assert (transcript.language, transcript.model, transcript.device) == ("en", "tiny.en", "cpu")
    assert transcript.segments[0].start > 5.5
    starts = [word.start for segment in transcript.segments for word in segment.words or ()]
    assert starts == sorted(starts)
    assert {"decode", "voice_activity", "transcribe", "total"} <= transcript.timings_s.keys()
    assert transcript.timings_s["total"] >= transcript.timings_s["transcribe"]
    assert left_over(tmp_path) == []


async def test_four_at_once_say_what_one_says(transcriber: Transcriber) -> None:
    """They share batches and nothing else."""
    alone = await transcriber.run(sample_call(), OPTIONS)
    together = await asyncio.gather(*(transcriber.run(sample_call(), OPTIONS) for _ in range(4)))
    assert {one.text for one in together} == {alone.text}


async def test_a_killed_engine_costs_a_retry_not_the_request(tmp_path: Path) -> None:
    """Its segments are done again by the next one; the transcript is the same."""
    async with parts(tmp_path) as (transcriber, engine):
        whole = await transcriber.run(sample_call(), OPTIONS)
        again = asyncio.create_task(transcriber.run(sample_call(), replace(OPTIONS, beam_size=6)))
        await until(lambda: "calls=1" in repr(engine))
        assert engine.pid is not None
        first = engine.pid
        os.kill(first, signal.SIGKILL)
        transcript = await again
        assert engine.pid != first
    assert len(transcript.segments) == len(whole.segments)


async def test_leaving_removes_the_pcm(transcriber: Transcriber, tmp_path: Path) -> None:
    """A client that hangs up leaves nothing on the disk."""
    work = asyncio.create_task(transcriber.run(sample_call(), replace(OPTIONS, beam_size=16)))
    await until(lambda: left_over(tmp_path) != [])
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert left_over(tmp_path) == []


async def test_too_long_is_refused_from_the_header(tmp_path: Path) -> None:
    """Before anything is decoded."""
    async with parts(tmp_path, max_duration_s=10) as (transcriber, _):
        with pytest.raises(AudioTooLong, match="30 s"):
            await transcriber.run(sample_call(), OPTIONS)


async def test_an_absent_model_is_told_before_decoding(transcriber: Transcriber, tmp_path: Path) -> None:
    """Minutes of ffmpeg for nothing would annoy."""
    with pytest.raises(ModelUnavailable):
        await transcriber.run(sample_call(), replace(OPTIONS, model="medium"))
    assert left_over(tmp_path) == []


async def test_an_error_leaves_no_file(transcriber: Transcriber, tmp_path: Path) -> None:
    """Nor an empty transcript as success."""
    text = tmp_path / "notes.mp3"
    text.write_text("This is not sound.\n" * 100)
    with pytest.raises(UnsupportedMedia):
        await transcriber.run(text, OPTIONS)
    assert left_over(tmp_path) == []


async def test_the_language_is_heard_after_a_minute_of_silence(tmp_path: Path) -> None:
    """Whisper's own detection looks at the first 30 seconds, and hears English in silence."""
    said = spoken("Guten Morgen. Heute ist ein schöner Tag, und die Sonne scheint.", tmp_path / "de.wav", "de")
    late = tmp_path / "late.wav"
    ffmpeg = await asyncio.create_subprocess_exec(
        str(FFmpeg.locate().path), "-v", "error", "-i", str(said), "-af", "adelay=60000:all=1", str(late)
    )
    assert await ffmpeg.wait() == 0
    async with parts(tmp_path, "base") as (transcriber, _):
        transcript = await transcriber.run(late, TranscriptionOptions("base"))
    assert transcript.language == "de"
    assert transcript.segments[0].start > 59


@pytest.mark.parametrize(
    "name", ["silence_10s.wav", "silent_s2t.mp3", "tone_440hz_5s.wav", "white_noise_10s.flac", "big_buck_bunny_5s.mp4"]
)
async def test_nonspeech_gives_no_text(transcriber: Transcriber, name: str) -> None:
    """Silence is a success with empty text."""
    transcript = await transcriber.run(speech_file(f"nonspeech/{name}"), OPTIONS)
    assert (transcript.text, transcript.segments) == ("", ())


def test_the_stopwatch_sums_visits() -> None:
    """Voice activity is visited once a segment."""
    now = 0.0
    watch = Stopwatch(lambda: now)
    for _ in range(2):
        with watch.stage("decode"):
            now += 1.5
    now += 1.0
    assert watch.timings_s() == {"decode": 3.0, "total": 4.0}


async def until(reached: Callable[[], bool]) -> None:
    """Let the loop run until it is so; the test's own time limit ends it otherwise."""
    while not reached():  # noqa: ASYNC110 - files and processes send no events
        await asyncio.sleep(0)
