"""Forced alignment on real sound: our words' times beside those of `whisperx.align`, by the same acoustic model.

All in one process of its own, since it holds torch. The model is the stand-in of tests/stand_ins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.engines import FOR_TORCH
from tests.speech import ROOT, SPEECH_DIR, manifest, sample_call
from tests.stand_ins.sitecustomize import models_shared_dir
from transcription.core import SAMPLE_RATE

STAND_INS = ROOT / "tests" / "stand_ins"
NEAR_S = 0.02
"""One frame of the models."""
CLIPS = 4

Told = dict[str, Any]


def words_of(text: str) -> list[str]:
    """As Whisper spells them, each with the space before it."""
    return [f" {word}" for word in text.split()]


def of_the_call(folder: Path, ffmpeg: Path) -> Iterator[Told]:
    """What is said in the telephone call, every other turn of it, by the STM beside it."""
    path = raw(sample_call(), folder / "call.pcm", ffmpeg)
    for line in sample_call().with_suffix(".stm").read_text().splitlines()[1::2]:
        start, end, text = line.split(maxsplit=5)[3:]
        first, last = (int(float(edge) * SAMPLE_RATE) for edge in (start, end))
        yield {"path": str(path), "first": first, "samples": last - first, "words": words_of(text)}


def of_the_recordings(folder: Path, ffmpeg: Path) -> Iterator[Told]:
    """Read English of several speakers, where there are recordings."""
    if not SPEECH_DIR.is_dir():
        return
    clips = [clip for clip in manifest() if clip["file"].startswith("librispeech_other/") and clip["duration_s"] < 20]
    for clip in clips[:: len(clips) // CLIPS][:CLIPS]:
        path = raw(SPEECH_DIR / clip["file"], folder / f"{Path(clip['file']).stem}.pcm", ffmpeg)
        yield {"path": str(path), "first": 0, "samples": path.stat().st_size // 2, "words": words_of(clip["text"])}


def raw(source: Path, target: Path, ffmpeg: Path) -> Path:
    command = [ffmpeg, "-v", "error", "-i", source, "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", target]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, ffmpeg_binary: Path) -> list[Told]:
    """Segments with their words; some with figures and marks that no alignment model knows."""
    folder = tmp_path_factory.mktemp("sounds")
    told = [*of_the_call(folder, ffmpeg_binary), *of_the_recordings(folder, ffmpeg_binary)]
    for one in told[::3]:
        one["words"][len(one["words"]) // 2] += " 7 –"
        one["words"] = words_of("".join(one["words"]))
    return told


@pytest.fixture(scope="module")
def hopeless(spoken: list[Told]) -> list[Told]:
    """Segments that cannot be aligned."""
    sound = spoken[3]
    return [sound | {"words": words} for words in ([" 1984", " –"], [" 你好"], [], [" again"] * 300)] + [
        sound | {"samples": 0}
    ]


NOT_HERE = [["yue", None], ["de", None], ["en", "nobody/has-this-model"]]


@pytest.fixture(scope="module")
def done(
    spoken: list[Told], hopeless: list[Told], models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the process found."""
    models = models_shared_dir()
    if not (models / "alignment").is_dir():
        pytest.skip(f"There is no alignment model in {models}; set MODELS_SHARED_DIR to the folder of models.")
    from transcription.models import ModelLibrary

    told = {
        "requests": [*spoken, *hopeless],
        "compared": len(spoken),
        "folder": str(tmp_path_factory.mktemp("empty")),
        "not_here": NOT_HERE,
    }
    environment = (
        os.environ
        | FOR_TORCH
        | {
            "PYTHONPATH": f"{STAND_INS}{os.pathsep}{ROOT}",
            "MODELS_SHARED_DIR": str(models),
            "ALIGNMENT_WHISPER_DIR": str(ModelLibrary(models_dir, downloads=False, hf_token=None).ensure("base")),
            "NLTK_DATA": str(models / "alignment" / "nltk_data"),
        }
    )
    ended = subprocess.run(
        [sys.executable, str(STAND_INS / "aligning.py")],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_words_are_timed_as_whisperx_times_them(spoken: list[Told], done: dict[str, Any]) -> None:
    """Who comes from there gets the same times: 98 % of starts and ends within a frame."""
    near = []
    for one, ours, theirs in zip(spoken, done["ours"], done["whisperx"], strict=False):
        assert [word["word"] for word in theirs] == [word.strip() for word in one["words"]]
        near += [
            abs(word[edge] - other[edge]) <= NEAR_S
            for word, other in zip(ours, theirs, strict=True)
            for edge in ("start", "end")
        ]
    assert len(near) > 2 * 60
    assert sum(near) / len(near) >= 0.98


def test_scores_are_those_of_whisperx(done: dict[str, Any]) -> None:
    """A word that the model knows nothing of has none; WhisperX gives it the wildcard's."""
    ours = [word["score"] for words in done["ours"][: len(done["whisperx"])] for word in words]
    theirs = [word["score"] for words in done["whisperx"] for word in words]
    known = [(mine, other) for mine, other in zip(ours, theirs, strict=True) if mine is not None]
    assert 0 < len(known) < len(ours)
    assert all(mine == pytest.approx(other, abs=0.01) for mine, other in known)


def test_words_are_in_order_and_inside_their_segment(spoken: list[Told], done: dict[str, Any]) -> None:
    """Each of the request's words has its times, and none overlaps another."""
    for one, words in zip(spoken, done["ours"], strict=False):
        assert len(words) == len(one["words"])
        assert all(0 <= word["start"] <= word["end"] <= one["samples"] / SAMPLE_RATE for word in words)
        assert all(word["end"] <= after["start"] for word, after in pairwise(words))


def test_what_cannot_be_aligned_is_said(spoken: list[Told], done: dict[str, Any]) -> None:
    """Figures alone, another script, no words, too many of them, no sound: the decoder's times stay."""
    assert done["ours"][len(spoken) :] == [None] * 5


@pytest.mark.parametrize("kind", ["torchaudio, group", "torchaudio, layer", "torchaudio, layer, wrapped"])
def test_a_batch_hears_what_each_sound_alone_would_be_heard_as(kind: str, done: dict[str, Any]) -> None:
    """Silence at the end of a shorter sound changes nothing; padded without more ado, it would."""
    batched, padded = done["batches"][kind]
    assert batched < 1e-4
    assert padded > 1e-3


@pytest.mark.parametrize("kind", ["transformers, group", "transformers, layer"])
def test_so_do_the_hubs_models(kind: str, done: dict[str, Any]) -> None:
    """WhisperX gives them no attention mask, and the sound as it is."""
    batched, padded = done["batches"][kind]
    assert batched < 1e-4
    assert padded > 1e-3


def test_a_model_that_is_not_here_is_not_fetched(done: dict[str, Any]) -> None:
    """The sentence names what is missing: a language, a default's weights, a name."""
    nobody, default, named = done["refusals"]
    assert "no alignment model for the language yue" in nobody
    assert "language de" in default
    assert "nothing may be fetched" in default
    assert "nobody/has-this-model" in named


def test_the_stand_in_costs_nothing_until_it_is_asked_for(done: dict[str, Any]) -> None:
    """Every child process of a test run starts with it."""
    assert done["torch_before"] is False
    assert 1_000_000 < done["bytes"] < 3_000_000
