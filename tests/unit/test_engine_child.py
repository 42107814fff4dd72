"""The engine's side of a call, without weights."""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from telemetry import current_request_id
from tests.shelf import FakeWhisper, Shelf, in_use, use
from transcription import protocol
from transcription.core import Segment, SegmentRequest, TranscriptionOptions, TranscriptSegment
from transcription.engine_child import Answers, answer, decoded, is_out_of_memory, read_calls, resolved
from transcription.loaded_models import LoadedModels

OPTIONS = TranscriptionOptions("a", "en")
OUT_OF_MEMORY = RuntimeError("CUDA failed with error out of memory")


def requests(count: int) -> list[SegmentRequest]:
    return [SegmentRequest(Segment(Path("a.pcm"), 0, 16_000, index), OPTIONS) for index in range(count)]


def call(op: str = "transcribe", model: str = "a", segments: int = 3) -> dict[str, Any]:
    asked = json.loads(json.dumps([protocol.plain(request) for request in requests(segments)], default=str))
    return {"op": op, "model": model, "path": f"/{model}", "bytes": 1, "requests": asked}


# --- request ids -----------------------------------------------------------------------------------------------------


class ModelsThatNote:
    """Holds no model; notes on whose behalf one was asked for."""

    names = ("tiny.en",)

    def __init__(self) -> None:
        self.asked_for: list[str | None] = []

    @contextlib.contextmanager
    def using(self, name: str, path: Path, size_bytes: int) -> Iterator[FakeWhisper]:
        self.asked_for.append(current_request_id())
        yield FakeWhisper()


@pytest.mark.parametrize(
    ("request_id", "bound"), [({"request_id": "a1b2c3d4"}, "a1b2c3d4"), ({"request_id": None}, None), ({}, None)]
)
def test_only_a_requests_work_bears_a_requests_id(request_id: dict[str, Any], bound: str | None) -> None:
    """Models are loaded at the start too: a made-up id on those lines would look like some caller's."""
    models = ModelsThatNote()
    answer(call("load") | request_id, cast(LoadedModels, models))
    assert models.asked_for == [bound]
    assert current_request_id() is None


# --- failures --------------------------------------------------------------------------------------------------------


def test_one_broken_segment_does_not_take_its_neighbours_along() -> None:
    """They are other people's."""
    model = FakeWhisper({1: FileNotFoundError("gone.pcm")})
    first, second, third = decoded(cast(Any, model), requests(3))
    assert second == "FileNotFoundError: gone.pcm"
    assert [result.text for result in (first, third) if isinstance(result, TranscriptSegment)] == [" 0", " 2"]


def test_a_broken_segment_alone_is_tried_once() -> None:
    """The same again would come of it."""
    model = FakeWhisper({0: ValueError("no")})
    assert decoded(cast(Any, model), requests(1)) == ["ValueError: no"]
    assert model.batches == [[0]]


@pytest.mark.parametrize("failures", [{1: OUT_OF_MEMORY}, {0: ValueError("no"), 1: OUT_OF_MEMORY}])
def test_out_of_memory_is_not_a_segments_fault(failures: dict[int, Exception]) -> None:
    """Who planned the batch must hear of it, to plan smaller ones."""
    with pytest.raises(RuntimeError, match="out of memory"):
        decoded(cast(Any, FakeWhisper(failures)), requests(3))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA failed with error out of memory"),
        RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN failed with status CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("mkl_malloc: failed to allocate memory"),
        RuntimeError("could not create a memory object"),
        RuntimeError("std::bad_alloc"),
        MemoryError("Unable to allocate 1.2 GiB for an array"),
    ],
)
def test_out_of_memory_is_known_by_its_words(error: Exception) -> None:
    """The libraries' own: CTranslate2's on CUDA, MKL's and oneDNN's on a CPU, C++'s, numpy's."""
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA failed with error an illegal memory access was encountered"),
        RuntimeError("cuBLAS failed with status CUBLAS_STATUS_EXECUTION_FAILED"),
        FileNotFoundError("a.pcm"),
    ],
)
def test_other_failures_are_not_out_of_memory(error: Exception) -> None:
    """Smaller batches would not help."""
    assert not is_out_of_memory(error)


def test_each_segments_result_or_error_is_answered() -> None:
    """In the order in which they were asked."""
    shelf = Shelf()
    shelf.whispers["a"] = FakeWhisper({1: ValueError("no")})
    reply = answer(call(), shelf.models(1))
    assert [result.get("text") for result in reply["results"]] == [" 0", None, " 2"]
    assert reply["results"][1] == {"error": "ValueError: no"}
    assert reply["models"] == ["a"]


def test_out_of_memory_is_said_and_gives_back_what_is_idle() -> None:
    """The next try has all the memory that there is; what others use stays theirs."""
    shelf = Shelf()
    shelf.whispers["a"] = model = FakeWhisper({0: OUT_OF_MEMORY})
    models = shelf.models(3)
    use(models, "b")
    with in_use(models, "c"):
        reply = answer(call(), models)
        assert (reply["out_of_memory"], reply["models"]) == (True, ["c"])
    assert "error" in reply
    assert model.caches_emptied == 1


def test_a_model_that_does_not_fit_is_out_of_memory_too() -> None:
    """Where other models lie idle, there is room for it once they are gone."""
    shelf = Shelf()
    models = shelf.models(3)
    use(models, "b")
    shelf.failure = OUT_OF_MEMORY
    reply = answer(call(), models)
    assert (reply["out_of_memory"], reply["models"]) == (True, [])


def test_another_failure_unloads_nothing() -> None:
    """Memory is not its cause."""
    shelf = Shelf()
    models = shelf.models(2)
    use(models, "b")
    shelf.whispers["a"] = FakeWhisper()  # which knows no languages
    reply = answer(call("detect_language") | {"segments": []}, models)
    assert "error" in reply
    assert (reply["out_of_memory"], reply["models"]) == (False, ["b", "a"])


def test_an_unload_call_is_answered_with_the_models_that_stay() -> None:
    """The server keeps its list of them by the answers."""
    models = Shelf().models(2)
    use(models, "a")
    use(models, "b")
    assert answer(call("unload", "a"), models) == {"models": ["b"]}


# --- what is read and written ----------------------------------------------------------------------------------------


def test_pings_are_answered_while_all_streams_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that computes is alive; and when the server is gone, the process ends at once."""

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    work = [call() | {"id": number} for number in (1, 2)]
    said = io.BytesIO(b"".join(map(protocol.line, [*work, {"id": 0, "op": "ping"}])))
    calls: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    heard = io.BytesIO()
    with pytest.raises(SystemExit):
        read_calls(said, calls, Answers(heard))
    assert heard.getvalue() == b'{"id":0}\n'
    assert [calls.get_nowait()["id"], calls.get_nowait()["id"], calls.empty()] == [1, 2, True]


@pytest.mark.parametrize(
    ("device", "compute_type", "found"),
    [
        ("cpu", "auto", ("cpu", 0, "int8")),
        ("cpu", "float32", ("cpu", 0, "float32")),
        ("cuda", "auto", ("cuda", 0, "float16")),
        ("cuda:3", "int8_float16", ("cuda", 3, "int8_float16")),
    ],
)
def test_auto_is_resolved(device: str, compute_type: str, found: tuple[str, int, str]) -> None:
    """Half precision where the hardware has it, whole numbers where it has not."""
    assert resolved(device, compute_type) == found
