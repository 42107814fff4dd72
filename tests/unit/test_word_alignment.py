"""Words with new times: whose model, which segments, and what is told where it cannot be done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errors import ConfigurationError, InvalidRequest
from transcription.alignment_models import (
    BASE_BYTES,
    DEFAULTS,
    LARGE_BYTES,
    LARGEST_BYTES,
    AlignmentModels,
    read_own,
    weights_bytes,
)
from transcription.core import SAMPLE_RATE, TranscriptionOptions, TranscriptSegment, Word
from transcription.word_alignment import Decoded, WordAlignment

OPTIONS = TranscriptionOptions("base", "en", align=True)


class FakeProcess:
    """Puts each word a second after the one before it. *unavailable*: models that cannot be had."""

    def __init__(self, unavailable: frozenset[str] = frozenset()) -> None:
        self.unavailable = unavailable
        self.calls: list[dict[str, Any]] = []

    async def __aenter__(self) -> FakeProcess:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def call(self, within_s: float, **content: Any) -> dict[str, Any]:
        self.calls.append(content)
        await asyncio.sleep(0)
        if content["name"] in self.unavailable:
            return {"unavailable": "no such model"}
        return {
            "results": [
                None
                if any(word.strip().isdigit() for word in asked["words"])
                else [{"start": float(at), "end": at + 0.5, "score": 0.9} for at, _ in enumerate(asked["words"])]
                for asked in content["requests"]
            ]
        }


def decoded(index: int, text: str, language: str | None = None) -> Decoded:
    words = tuple(Word(10.0 * index, 10.0 * index + 9, f" {word}", 0.5) for word in text.split())
    result = TranscriptSegment(
        index, 10.0 * index, 10.0 * index + 10, f" {text}", -0.1, 0.0, 1.0, 0.0, words, language=language
    )
    return Decoded(Path("a.pcm"), 10 * index * SAMPLE_RATE, 10 * SAMPLE_RATE, index, result)


async def these(*segments: Decoded) -> AsyncIterator[Decoded]:
    for one in segments:
        yield one


async def aligned(
    process: FakeProcess, *segments: Decoded, options: TranscriptionOptions = OPTIONS, own: dict[str, str] | None = None
) -> tuple[list[TranscriptSegment], list[str]]:
    async with WordAlignment(process, AlignmentModels(own)) as alignment:  # type: ignore[arg-type]
        found = [one async for one in alignment.aligned(these(*segments), options)]
        return found, alignment.warnings(found, options)


async def test_words_have_the_times_that_were_found_from_the_recordings_start() -> None:
    """And the segment lasts from its first word to its last."""
    [first, second], warnings = await aligned(FakeProcess(), decoded(0, "so it was"), decoded(1, "then"))
    assert [(word.start, word.end, word.score) for word in first.words or ()] == [
        (0.0, 0.5, 0.9),
        (1.0, 1.5, 0.9),
        (2.0, 2.5, 0.9),
    ]
    assert (first.start, first.end, first.aligned) == (0.0, 2.5, True)
    assert (second.start, second.end, second.id) == (10.0, 10.5, 1)
    assert [word.probability for word in first.words or ()] == [0.5, 0.5, 0.5], "how sure the decoder was stays"
    assert warnings == []


async def test_what_cannot_be_aligned_keeps_its_times_and_is_marked() -> None:
    [first, second], warnings = await aligned(FakeProcess(), decoded(0, "1984"), decoded(1, "then"))
    assert first == replace(decoded(0, "1984").result, aligned=False)
    assert second.aligned is True
    assert len(warnings) == 1
    assert "1 of 2 segments" in warnings[0]


@pytest.mark.parametrize("why", ["unknown language", "no weights"])
async def test_a_language_without_a_model_is_a_warning(why: str) -> None:
    """The transcript is good all the same."""
    options = replace(OPTIONS, language="haw" if why == "unknown language" else "sv")
    process = FakeProcess(frozenset({DEFAULTS["sv"]}))
    [only], [warning] = await aligned(process, decoded(0, "hej"), options=options)
    assert only == replace(decoded(0, "hej").result, aligned=False)
    assert repr(options.language) in warning


async def test_a_model_that_cannot_be_had_is_not_asked_for_each_segment() -> None:
    """Each time might be a download that fails."""
    process = FakeProcess(frozenset({DEFAULTS["en"]}))
    segments = [decoded(index, "word") for index in range(30)]
    found, _ = await aligned(process, *segments)
    assert [one.aligned for one in found] == [False] * 30
    assert len(process.calls) == 1


async def test_each_segment_has_its_own_languages_model() -> None:
    """In a recording with several."""
    process = FakeProcess()
    found, _ = await aligned(process, decoded(0, "hello", "en"), decoded(1, "bonjour", "fr"), decoded(2, "yes", "en"))
    assert [one.id for one in found] == [0, 1, 2]
    assert {call["name"] for call in process.calls} == {DEFAULTS["en"], DEFAULTS["fr"]}


async def test_the_operators_model_goes_before_whisperxs_and_the_callers_before_both() -> None:
    process = FakeProcess()
    await aligned(process, decoded(0, "hello"), own={"en": "/models/mine"})
    await aligned(process, decoded(0, "hello"), own={"en": "/models/mine"}, options=replace(OPTIONS, align_model="x/y"))
    assert [call["name"] for call in process.calls] == ["/models/mine", "x/y"]


async def test_silence_costs_no_call() -> None:
    process = FakeProcess()
    found, warnings = await aligned(process, decoded(0, ""))
    assert found == [decoded(0, "").result]
    assert (process.calls, warnings) == ([], [])


def test_callers_name_only_models_that_the_server_knows() -> None:
    """A name could be any path, or any repository with any pickle in it."""
    models = AlignmentModels({"sv": "/models/swedish"})
    models.check("/models/swedish")
    models.check(DEFAULTS["de"])
    with pytest.raises(InvalidRequest, match="ALIGN_MODELS"):
        models.check("../../etc/passwd")


def test_the_operators_list_is_read_or_refused() -> None:
    assert read_own(["sv = a/b", "de=/m"]) == {"sv": "a/b", "de": "/m"}
    with pytest.raises(ConfigurationError, match="nonsense"):
        read_own(["nonsense"])


def test_a_models_size_is_known_before_it_is_loaded(tmp_path: Path) -> None:
    """It is the price of a request."""
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "vocab.json").write_bytes(bytes(10))
    assert weights_bytes(str(tmp_path)) == 1000
    assert weights_bytes(DEFAULTS["en"]) == weights_bytes(None) == BASE_BYTES
    assert weights_bytes(DEFAULTS["ja"]) == LARGE_BYTES
    assert weights_bytes(DEFAULTS["no"]) == LARGEST_BYTES
