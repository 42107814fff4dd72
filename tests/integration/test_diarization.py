"""pyannote's pipeline with real models on real calls, in a process of its own, held against who really speaks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errors import ServiceError
from tests.engines import FOR_TORCH, OPTIONS, asked, made_engine, pcm
from tests.speech import sample_call, speech_file
from transcription.core import SAMPLE_RATE, Segment, TranscriptSegment, VoiceActivity, Word
from transcription.pcm import GrowingPcm
from transcription.speakers import Turn, told
from transcription.speech import SpeechCutter

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "tests" / "stand_ins" / "diarizing.py"
NO_FOLDER, NO_NAME = "/no/such/folder", "nobody/has-this-model"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The diarization models, in a folder that may be written to."""
    shared = Path(os.environ.get("MODELS_SHARED_DIR") or ROOT.parent / "shared" / "models").expanduser().resolve()
    if not (shared / "diarization").is_dir():
        pytest.skip(f"There are no diarization models in {shared}; set MODELS_SHARED_DIR to the folder of models.")
    target = tmp_path_factory.mktemp("models") / "diarization"
    shutil.copytree(shared / "diarization", target, copy_function=shutil.copyfile)
    return target


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory, ffmpeg_binary: Path) -> Segment | None:
    """The sound of a video in which two people read aloud in turn; None where it is not here."""
    try:
        source = speech_file("formats/libri_2spk_video.webm")
    except pytest.skip.Exception:
        return None
    return pcm(source, tmp_path_factory.mktemp("reading") / "reading.pcm", ffmpeg_binary)


@pytest.fixture(scope="module")
def done(
    models: Path, reading: Segment | None, tmp_path_factory: pytest.TempPathFactory, ffmpeg_binary: Path
) -> dict[str, Any]:
    """What the process found."""
    folder = tmp_path_factory.mktemp("diarization")
    np.zeros(12 * SAMPLE_RATE, np.int16).tofile(folder / "silence.pcm")
    question = {
        "models": str(models),
        "call": str(pcm(sample_call(), folder / "call.pcm", ffmpeg_binary).path),
        "reference": str(sample_call().with_suffix(".rttm")),
        "silence": str(folder / "silence.pcm"),
        "reading": str(reading.path) if reading else None,
        "not_here": [NO_FOLDER, NO_NAME],
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYANNOTE_METRICS_ENABLED"}
    ended = subprocess.run(
        [sys.executable, CHILD],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | FOR_TORCH | {"PYTHONPATH": f"{ROOT}{os.pathsep}{models}", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    # NOTE: WhisperX's log goes to stdout, too; the answer is the last line.
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_a_call_of_two_has_two_speakers(done: dict[str, Any]) -> None:
    """Real people who interrupt each other; overlaps count, no collar forgives. Measured: 0.052."""
    assert done["one block"]["speakers"] == 2
    assert done["one block"]["error_rate"] <= 0.10


def test_blocks_of_a_recording_are_linked(done: dict[str, Any]) -> None:
    """In blocks as short as 15 s, with some words of each voice, both speakers are found again. Measured: 0.055."""
    assert done["two blocks"]["speakers"] == 2
    assert done["two blocks"]["error_rate"] <= 0.10
    assert done["two blocks"]["error_rate"] <= done["one block"]["error_rate"] + 0.03


def test_the_caller_says_how_many_speak(done: dict[str, Any]) -> None:
    """More or fewer than are heard, in one block and over several."""
    assert done["three speakers"]["speakers"] == 3
    assert done["one speaker"]["speakers"] == 1
    assert done["one speaker in two blocks"]["speakers"] == 1


def test_what_makes_it_faster_changes_nothing(done: dict[str, Any]) -> None:
    """The pipeline as it comes, and ours: the same turns, from the start of the recording, whatever the block's."""
    ours = [(turn["start"] - 5.0, turn["end"] - 5.0) for turn in done["start"]["turns"]]
    assert len(ours) >= 5
    np.testing.assert_allclose(ours, done["as_it_comes"], atol=1e-3)
    assert len(done["start"]["embeddings"]) == len({turn["speaker"] for turn in done["start"]["turns"]}) == 2
    assert done["start"]["turns"][0]["speaker"] == 0
    assert all(embedding for embedding in done["start"]["embeddings"])


def test_silence_has_no_turns(done: dict[str, Any]) -> None:
    """Nor has what is too short for anybody to be known: no error, whatever number of speakers is asked for."""
    nobody = {"turns": [], "embeddings": []}
    assert done["silence"] == nobody
    assert done["too_short"] == nobody
    assert all(turn["end"] <= 8.0 for turn in done["a_second"]["turns"])


def test_more_speakers_than_can_be_heard_are_no_error(done: dict[str, Any]) -> None:
    """The default model's clustering raises where 12 s are asked for nine speakers; there are as many as there are."""
    assert done["few_windows"]["turns"]
    assert len(done["few_windows"]["embeddings"]) <= 9


def test_a_model_that_is_not_there_is_named(done: dict[str, Any]) -> None:
    """Most need terms accepted and a token: who reads the sentence must know what to do."""
    assert f"no diarization model at {NO_FOLDER}" in done["not_here"][NO_FOLDER]
    assert f"{NO_NAME} is not on this machine" in done["not_here"][NO_NAME]


def test_nobody_is_told_what_is_heard_here(done: dict[str, Any]) -> None:
    """pyannote.audio sends its makers the length of each recording unless it is told not to."""
    assert done["tells_its_makers"] == "false"


async def words_of(sound: Segment, models_dir: Path) -> list[TranscriptSegment]:
    """What is said in *sound*, with word times from the start of the recording, by the engine itself."""
    async with made_engine(models_dir) as engine:
        await engine.load("tiny.en")
        cutter = SpeechCutter()
        segments = [one async for one in cutter.segments(GrowingPcm(sound.path), VoiceActivity.SILERO)]
        results = await engine.transcribe(asked(*segments, options=replace(OPTIONS, word_timestamps=True)))
    heard = [one for one in results if not isinstance(one, ServiceError)]
    assert len(heard) == len(segments)
    return heard


async def test_words_are_told_to_who_says_them(done: dict[str, Any], reading: Segment | None, models_dir: Path) -> None:
    """The words of two readers, by the engine's own word times: who said each is known from the book. Measured: 1.0."""
    if reading is None:
        speech_file("formats/libri_2spk_video.webm")
    assert reading is not None
    turns = [Turn(**turn) for turn in done["reading"]]
    segments = told(await words_of(reading, models_dir), turns)
    words = [word for segment in segments for word in segment.words or ()]
    truth = json.loads(speech_file("ref/libri_2spk_video.segments.json").read_text("utf-8"))
    readers = [nearest(truth, (word.start + word.end) / 2) for word in words]
    names = {
        name: max(set(readers), key=lambda reader: count(words, readers, name, reader)) for name in speakers(words)
    }
    assert len(words) > 100
    assert sorted(names) == ["SPEAKER_00", "SPEAKER_01"]
    assert len(set(names.values())) == 2
    right = sum(names[word.speaker or ""] == reader for word, reader in zip(words, readers, strict=True))
    assert right / len(words) >= 0.97


def speakers(words: list[Word]) -> set[str]:
    return {word.speaker or "" for word in words}


def count(words: list[Word], readers: list[str], name: str, reader: str) -> int:
    return sum(word.speaker == name and one == reader for word, one in zip(words, readers, strict=True))


def nearest(truth: list[dict[str, Any]], at_s: float) -> str:
    """Who reads at that time, or next to it: between two there is half a second of silence."""
    reader: str = min(truth, key=lambda each: max(each["start"] - at_s, at_s - each["end"], 0.0))["speaker"]
    return reader
