"""The real engine process with real weights: what it says, alone and to several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from errors import EngineFailed, ModelUnavailable, ServiceError
from tests.engines import OPTIONS, asked, made_engine, parts, pcm, until
from tests.speech import speech_file, spoken
from transcription.core import SAMPLE_RATE, Segment, SegmentRequest, Task, TranscriptionOptions, TranscriptSegment
from transcription.engine import Engine

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models_dir: Path) -> AsyncIterator[Engine]:
    async with made_engine(models_dir) as engine:
        await engine.load("tiny.en")
        yield engine


async def heard(engine: Engine, *requests: SegmentRequest) -> list[TranscriptSegment]:
    """What *engine* hears in all of them, in one batch."""
    return [result for result in await engine.transcribe(requests) if not isinstance(result, ServiceError)]


async def test_speech_becomes_text_with_word_times(engine: Engine, tmp_path: Path, ffmpeg_binary: Path) -> None:
    """Text, times inside the segment, probabilities."""
    said = spoken("The quick brown fox jumps over the lazy dog.", tmp_path / "fox.wav")
    segment = pcm(said, tmp_path / "fox.pcm", ffmpeg_binary)
    [result] = await heard(engine, *asked(segment, options=replace(OPTIONS, word_timestamps=True)))
    assert "brown fox" in result.text
    assert "lazy dog" in result.text
    assert result.words is not None
    assert "".join(word.text for word in result.words).strip() == result.text.strip()
    assert all(0 <= word.start <= word.end <= segment.duration_s for word in result.words)
    assert all(0 < word.probability <= 1 for word in result.words)
    assert result.avg_logprob > -1.0


async def test_a_segment_says_the_same_alone_and_in_company(engine: Engine, speech: Segment) -> None:
    """Requests share batches; what one hears must not depend on its neighbours."""
    requests = asked(*parts(speech, 4))
    together = await heard(engine, *requests)
    alone = [result for request in requests for result in await heard(engine, request)]
    assert [result.text for result in together] == [result.text for result in alone]
    assert any(result.text for result in together)


async def test_two_streams_decode_side_by_side_and_hear_what_one_hears(engine: Engine, speech: Segment) -> None:
    """A short clip is done while a batch of others' is under way; both read the same weights."""
    first, *others = asked(*parts(speech, 4))
    alone = [result.text for request in (first, *others) for result in await heard(engine, request)]
    long = asyncio.create_task(heard(engine, *(others * 20)))
    await until(lambda: engine.calls == 1)
    [short] = await heard(engine, first)
    assert not long.done()
    assert [short.text, *(result.text for result in await long)] == alone[:1] + alone[1:] * 20


async def test_languages_and_tasks_may_differ_in_a_batch(engine: Engine, tmp_path: Path, ffmpeg_binary: Path) -> None:
    """People speak different languages at the same time (more in test_mixed_batches.py)."""
    said = spoken("The quick brown fox jumps over the lazy dog.", tmp_path / "fox.wav")
    english = pcm(said, tmp_path / "en.pcm", ffmpeg_binary)
    french = pcm(speech_file("lang/azure_fr-FR.wav"), tmp_path / "fr.pcm", ffmpeg_binary, duration_s=6.0)
    options = TranscriptionOptions("base", "fr")
    results = await heard(
        engine,
        SegmentRequest(french, options),
        SegmentRequest(english, replace(options, language="en")),
        SegmentRequest(french, replace(options, task=Task.TRANSLATE)),
    )
    for result, phrase in zip(results, ("le nom du test", "lazy dog", "the name of the test"), strict=True):
        assert phrase in result.text


async def test_words_are_only_timed_where_asked(engine: Engine, speech: Segment) -> None:
    """It costs a tenth of the time."""
    [result] = await heard(engine, *asked(speech))
    assert result.words is None
    assert result.text


async def test_silence_that_reaches_the_model_is_no_text(engine: Engine, tmp_path: Path) -> None:
    """With vad=none nothing else stands between silence and an invented "Thank you."."""
    path = tmp_path / "silence.pcm"
    path.write_bytes(bytes(20 * SAMPLE_RATE))
    [result] = await heard(engine, *asked(Segment(path, 0, 10 * SAMPLE_RATE, 0)))
    assert result.text == ""


async def test_an_unreadable_segment_fails_alone(engine: Engine, tmp_path: Path, speech: Segment) -> None:
    """Its neighbours are other people's, and the process lives on."""
    pid = engine.pid
    before, after = parts(speech, 2)
    results = await engine.transcribe(asked(before, Segment(tmp_path / "gone.pcm", 0, 16_000, 0), after))
    assert isinstance(results[1], EngineFailed)
    assert [result.text for result in (results[0], results[2]) if isinstance(result, TranscriptSegment)] == [
        result.text for result in await heard(engine, *asked(before, after))
    ]
    assert engine.pid == pid


async def test_a_call_that_cannot_be_answered_fails_and_the_process_lives_on(engine: Engine, tmp_path: Path) -> None:
    """An error in a call is an answer."""
    pid = engine.pid
    with pytest.raises(EngineFailed):
        await engine.detect_language([Segment(tmp_path / "gone.pcm", 0, 16_000, 0)], "base")
    await engine.load("base")
    assert engine.pid == pid


async def test_an_absent_model_is_said_and_what_can_be_used(engine: Engine, speech: Segment) -> None:
    """Offline, without its weights."""
    with pytest.raises(ModelUnavailable, match=r"tiny\.en"):
        await engine.transcribe(asked(speech, options=replace(OPTIONS, model="medium")))


@pytest.mark.parametrize(
    ("name", "code"), [("azure_fr-FR.wav", "fr"), ("ru.wav", "ru"), ("nst_sv_2.wav", "sv"), ("chinese.flac", "zh")]
)
async def test_the_language_is_heard(name: str, code: str, engine: Engine, tmp_path: Path, ffmpeg_binary: Path) -> None:
    """The multilingual model, on the packaged weights."""
    segment = pcm(speech_file(f"lang/{name}"), tmp_path / "a.pcm", ffmpeg_binary)
    language = await engine.detect_language([segment], "base")
    assert language.code == code
    assert 0.4 < language.probability <= 1.0
