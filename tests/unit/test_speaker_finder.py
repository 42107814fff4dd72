"""A recording's speakers, block by block: what each block is asked, and what a process that dies costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errors import DiarizationUnavailable, WorkerCrashed
from transcription.core import SAMPLE_RATE, TranscriptionOptions
from transcription.scheduler import MAX_ATTEMPTS
from transcription.speaker_finder import SpeakerFinder
from transcription.speakers import BLOCK_S

ONE_BLOCK = int(BLOCK_S * SAMPLE_RATE)
OPTIONS = TranscriptionOptions("base", "en", diarize=True)


class FakeProcess:
    """Hears one speaker in each block, always with the same voice. *deaths*: how often it dies first."""

    def __init__(self, deaths: int = 0, unavailable: str = "") -> None:
        self.deaths = deaths
        self.unavailable = unavailable
        self.calls: list[dict[str, Any]] = []

    async def call(self, within_s: float, **content: Any) -> dict[str, Any]:
        self.calls.append(content)
        if len(self.calls) <= self.deaths:
            raise WorkerCrashed
        if self.unavailable:
            return {"unavailable": self.unavailable}
        start_s = content["segment"]["first_sample"] / SAMPLE_RATE
        return {"turns": [{"start": start_s, "end": start_s + 1, "speaker": 0}], "embeddings": [[1.0, 0.0]]}


async def test_a_short_recording_is_one_block_with_all_that_is_known() -> None:
    process = FakeProcess()
    options = TranscriptionOptions("base", "en", diarize=True, min_speakers=2, max_speakers=3)
    [turn] = await SpeakerFinder(process).turns(Path("a.pcm"), 16_000, options)  # type: ignore[arg-type]
    assert (turn.start, turn.end, turn.speaker) == (0.0, 1.0, 0)
    [call] = process.calls
    assert (call["num"], call["least"], call["most"]) == (None, 2, 3)


async def test_a_voice_is_known_again_in_the_next_block() -> None:
    """Nobody need have all of a long recording in memory."""
    process = FakeProcess()
    turns = await SpeakerFinder(process).turns(Path("a.pcm"), 3 * ONE_BLOCK, OPTIONS)  # type: ignore[arg-type]
    assert len(process.calls) == 3
    assert [turn.speaker for turn in turns] == [0, 0, 0]
    assert sum(call["segment"]["samples"] for call in process.calls) == 3 * ONE_BLOCK
    assert max(call["segment"]["samples"] for call in process.calls) == ONE_BLOCK


async def test_a_process_that_dies_costs_a_retry() -> None:
    process = FakeProcess(deaths=MAX_ATTEMPTS - 1)
    assert len(await SpeakerFinder(process).turns(Path("a.pcm"), 16_000, OPTIONS)) == 1  # type: ignore[arg-type]


async def test_a_block_that_kills_each_process_ends_its_request() -> None:
    """It would be tried for ever."""
    process = FakeProcess(deaths=MAX_ATTEMPTS)
    with pytest.raises(WorkerCrashed):
        await SpeakerFinder(process).turns(Path("a.pcm"), 16_000, OPTIONS)  # type: ignore[arg-type]


async def test_a_model_that_is_not_there_is_told_in_its_own_words() -> None:
    """The operator must learn which terms are to be accepted, or which token is missing."""
    with pytest.raises(DiarizationUnavailable, match="HF_TOKEN"):
        await SpeakerFinder(FakeProcess(unavailable="It needs HF_TOKEN.")).turns(Path("a"), 16_000, OPTIONS)  # type: ignore[arg-type]
