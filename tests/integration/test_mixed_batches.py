"""A model itself, on batches in which languages and tasks differ. In this process: an engine would hide its errors.

(It does a batch that failed again, one segment after another.)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import pcm, weights_in
from tests.speech import speech_file, spoken
from transcription.core import Segment, SegmentRequest, Task, TranscriptionOptions
from transcription.whisper import Whisper

FRENCH = TranscriptionOptions("base", "fr", word_timestamps=True)
ENGLISH = replace(FRENCH, language="en")
FROM_FRENCH = replace(FRENCH, task=Task.TRANSLATE)


@pytest.fixture(scope="module")
def whisper(models_dir: Path) -> Whisper:
    return Whisper(weights_in(models_dir)("base").path, device="cpu", device_index=0, compute_type="int8", threads=2)


@pytest.fixture
def french(tmp_path: Path, ffmpeg_binary: Path) -> Segment:
    """ "Cliquez sur le nom du test pour afficher la page de détails correspondante.\""""
    return pcm(speech_file("lang/azure_fr-FR.wav"), tmp_path / "fr.pcm", ffmpeg_binary, duration_s=6.0)


@pytest.fixture
def english(tmp_path: Path, ffmpeg_binary: Path) -> Segment:
    said = spoken("The quick brown fox jumps over the lazy dog.", tmp_path / "fox.wav")
    return pcm(said, tmp_path / "en.pcm", ffmpeg_binary)


def test_each_segment_is_heard_as_if_it_were_alone(whisper: Whisper, french: Segment, english: Segment) -> None:
    """Text and word times, whatever its neighbours speak or are to become."""
    requests = [
        SegmentRequest(french, FRENCH),
        SegmentRequest(english, ENGLISH),
        SegmentRequest(replace(french, index=1), FROM_FRENCH),
        SegmentRequest(replace(english, index=1), ENGLISH),
    ]
    together = whisper.transcribe(requests)
    assert [result.id for result in together] == [0, 0, 1, 1]
    for result, phrase in zip(
        together, ("le nom du test", "lazy dog", "the name of the test", "lazy dog"), strict=True
    ):
        assert phrase in result.text
    for one, request in zip(together, requests, strict=True):
        [alone] = whisper.transcribe([request])
        assert one.text == alone.text
        assert one.words is not None
        assert alone.words is not None
        assert len(one.words) > 5
        assert [word.text for word in one.words] == [word.text for word in alone.words]
        assert [word.start for word in one.words] == pytest.approx([word.start for word in alone.words], abs=0.05)
        assert [word.end for word in one.words] == pytest.approx([word.end for word in alone.words], abs=0.05)
