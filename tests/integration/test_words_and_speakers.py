"""A recording's whole way with forced alignment and speakers: real engine, real torch processes, no model hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import wave
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from ffmpeg import FFmpeg
from tests.engines import FOR_TORCH, pcm
from tests.integration.test_service import OPTIONS, parts
from tests.speech import ROOT, sample_call, speech_file, spoken
from tests.stand_ins.sitecustomize import models_shared_dir
from transcription.core import SAMPLE_RATE, Channels, Transcript
from transcription.service import Transcriber

STAND_INS = ROOT / "tests" / "stand_ins"

pytestmark = [pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]


def shared(name: str) -> Path:
    folder = models_shared_dir() / name
    if not folder.is_dir():
        pytest.skip(f"There is no {folder}; set MODELS_SHARED_DIR to the folder of models.")
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the diarization pipeline's config.yaml will be: beside its parts, in a folder that may be written to."""
    target = tmp_path_factory.mktemp("models") / "diarization"
    shutil.copytree(shared("diarization"), target, copy_function=shutil.copyfile)
    return target / "config.yaml"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transcriber(tmp_path_factory: pytest.TempPathFactory, pipeline: Path) -> AsyncIterator[Transcriber]:
    """With stand-ins for what would be fetched from a hub; one for all tests, since torch takes long to import."""
    shared("alignment")
    folder = tmp_path_factory.mktemp("service")
    config = {"model": str(pipeline), "token": None, "model_dir": str(folder / "models"), "models_bytes": 2**31}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join(map(str, (STAND_INS, pipeline.parent, ROOT))))
        environment.setenv("DIARIZATION_DIR", str(pipeline.parent))
        for name, value in FOR_TORCH.items():
            environment.setenv(name, value)
        async with parts(folder, config=config, local_only=True, log_level="warning") as (transcriber, _):
            yield transcriber


def check_words(transcript: Transcript) -> None:
    """What a reader may rely on: words in order, none over another, none outside its segment, none for ever."""
    for segment in transcript.segments:
        assert segment.words
        assert "".join(word.text for word in segment.words).split() == segment.text.split()
        assert segment.start <= segment.words[0].start
        assert segment.words[-1].end <= segment.end + 0.001
        for word in segment.words:
            assert 0 <= word.end - word.start <= 3
        for before, after in pairwise(segment.words):
            assert before.end <= after.start + 0.001
    assert all(before.start <= after.start for before, after in pairwise(transcript.segments))


async def test_a_call_with_words_and_speakers(transcriber: Transcriber) -> None:
    """Two people talk; each word is one's of them, each segment one's alone."""
    options = replace(OPTIONS, word_timestamps=True, align=True, diarize=True)
    transcript = await transcriber.run(sample_call(), options)
    check_words(transcript)
    assert transcript.warnings == ()
    assert all(segment.aligned for segment in transcript.segments)
    assert {segment.speaker for segment in transcript.segments} == {"SPEAKER_00", "SPEAKER_01"}
    assert all({word.speaker for word in segment.words or ()} == {segment.speaker} for segment in transcript.segments)
    scores = [word.score for segment in transcript.segments for word in segment.words or () if word.score is not None]
    assert len(scores) > 20
    assert all(0 <= score <= 1 for score in scores)


async def test_a_language_without_a_model_here_is_told_and_not_failed(transcriber: Transcriber) -> None:
    """There are weights for English alone."""
    options = replace(OPTIONS, model="base", language="sv", word_timestamps=True, align=True)
    transcript = await transcriber.run(sample_call(), options)
    check_words(transcript)
    assert [segment.aligned for segment in transcript.segments] == [False] * len(transcript.segments)
    assert "'sv'" in transcript.warnings[0]


async def test_nobody_speaks_and_nobody_is_told_apart(transcriber: Transcriber, tmp_path: Path) -> None:
    """Silence is a success with empty text, and starts no process."""
    silence = tmp_path / "silence.wav"
    with wave.open(str(silence), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(bytes(2 * SAMPLE_RATE * 5))
    transcript = await transcriber.run(silence, replace(OPTIONS, align=True, diarize=True))
    assert (transcript.segments, transcript.warnings) == ((), ())


def made(target: Path, *arguments: str | Path) -> Path:
    """*target*, by ffmpeg."""
    subprocess.run([FFmpeg.locate("").path, "-v", "error", *arguments, target], check=True)
    return target


def speech_in(path: Path) -> tuple[float, float]:
    """Seconds of the first and the last sound in it: where it is a sixteenth as loud as its loudest."""
    samples = np.abs(np.fromfile(path, np.int16).astype(np.float32))
    step = SAMPLE_RATE // 100
    peaks = samples[: len(samples) // step * step].reshape(-1, step).max(axis=1)
    loudest = np.percentile(peaks[peaks > peaks.max() / 50], 98)
    [found] = np.nonzero(peaks > loudest / 16)
    return float(found[0]) / 100, float(found[-1] + 1) / 100


ALIGNED = ["en/librivox_0890.wav", "librispeech_other/2033-164914-0004.flac", "librispeech_other/3331-159605-0002.flac"]
"""Without a breath before the first word, which is no word but is a sound."""


@pytest.mark.parametrize(
    ("name", "align"), [("spoken", False), *((name, align) for name in ALIGNED for align in (0, 1))]
)
async def test_the_first_and_the_last_word_stand_where_they_are_said(
    transcriber: Transcriber, tmp_path: Path, ffmpeg_binary: Path, name: str, align: bool
) -> None:
    """Within 150 ms of the sound, with silence before and after."""
    if name == "spoken":
        source = spoken("The quick brown fox jumps over the lazy dog and runs away", tmp_path / "spoken.wav")
    else:
        source = speech_file(name)
    quiet = made(tmp_path / "quiet.wav", "-i", source, "-af", "adelay=2000:all=1,apad=pad_dur=2", "-ac", "1")
    first_s, last_s = speech_in(pcm(quiet, tmp_path / "quiet.pcm", ffmpeg_binary).path)
    options = replace(OPTIONS, model="base", word_timestamps=True, align=bool(align))
    transcript = await transcriber.run(quiet, options)
    check_words(transcript)
    words = [word for segment in transcript.segments for word in segment.words or ()]
    assert abs(words[0].start - first_s) <= 0.15, (words[0], first_s)
    assert abs(words[-1].end - last_s) <= 0.15, (words[-1], last_s)


async def test_each_segment_has_its_own_language(tmp_path: Path) -> None:
    """A recording in which one speaks English and another French."""
    both = ["-i", speech_file("en/jfk.flac"), "-i", speech_file("lang/azure_fr-FR.wav")]
    graph = "[0:a]apad=pad_dur=2,aresample=16000[a];[1:a]aresample=16000[b];[a][b]concat=n=2:v=0:a=1"
    joined = made(tmp_path / "both.wav", *both, "-filter_complex", graph, "-ac", "1")
    async with parts(tmp_path, "base") as (transcriber, _):
        options = replace(OPTIONS, model="base", language=None, multilingual=True)
        transcript = await transcriber.run(joined, options)
    assert (transcript.segments[0].language, transcript.segments[-1].language) == ("en", "fr")


async def test_channels_are_removed_when_they_are_heard(tmp_path: Path) -> None:
    """Each is decoded into a file of its own on the way."""
    stereo = made(tmp_path / "stereo.wav", "-i", sample_call(), "-ac", "2")
    async with parts(tmp_path) as (transcriber, _):
        transcript = await transcriber.run(stereo, replace(OPTIONS, channels=Channels.SPLIT))
    assert {segment.speaker for segment in transcript.segments} == {"CHANNEL_00", "CHANNEL_01"}
    assert transcript.duration_s == pytest.approx(30, abs=0.1)
    assert list((tmp_path / "work").iterdir()) == []
