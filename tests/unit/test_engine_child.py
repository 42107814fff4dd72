"""The engine's side of a call, without weights."""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from telemetry import current_request_id
from transcription import protocol
from transcription.core import Segment, SegmentRequest, TranscriptionOptions, TranscriptSegment
from transcription.engine_child import Answers, Models, answer, decoded, is_out_of_memory, read_calls, resolved

OPTIONS = TranscriptionOptions("a", "en")
OUT_OF_MEMORY = RuntimeError("CUDA failed with error out of memory")


class FakeWhisper:
    """Writes each segment's number as its text, and fails at those that it is told to."""

    busy_s = 0.0

    def __init__(self, failures: dict[int, Exception] | None = None) -> None:
        self.failures = failures or {}
        self.batches: list[list[int]] = []
        self.caches_emptied = 0

    def transcribe(self, requests: Sequence[SegmentRequest]) -> list[TranscriptSegment]:
        self.batches.append([request.segment.index for request in requests])
        for request in requests:
            if failure := self.failures.get(request.segment.index):
                raise failure
        return [
            TranscriptSegment(request.segment.index, 0.0, 1.0, f" {request.segment.index}", -0.1, 0.0, 1.0, 0.0)
            for request in requests
        ]

    def empty_cache(self) -> None:
        self.caches_emptied += 1


class Shelf:
    """Loads fakes, and notes which. Can be told to hold, or to fail."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.failure: Exception | None = None
        self.whispers: dict[str, FakeWhisper] = {}
        self.release = threading.Event()
        self.release.set()

    def load(self, path: Path) -> FakeWhisper:
        self.loads.append(path.name)
        self.release.wait()
        if self.failure:
            raise self.failure
        return self.whispers.get(path.name) or FakeWhisper()

    def models(self, budget_bytes: int) -> Models:
        return Models(cast(Any, self.load), budget_bytes)


class User:
    """A thread that uses a model until it is told to leave."""

    def __init__(self, models: Models, name: str) -> None:
        self._models = models
        self._name = name
        self.model: object = None
        self.failure: Exception | None = None
        self.leave = threading.Event()
        self._thread = threading.Thread(target=self._use, daemon=True)
        self._thread.start()

    def _use(self) -> None:
        try:
            with self._models.using(self._name, Path(self._name), 1) as model:
                self.model = model
                self.leave.wait()
        except Exception as error:
            self.failure = error

    @property
    def waits(self) -> bool:
        """Whether the thread stands still, for a model or to be told to leave."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return frame is not None and frame.f_code is threading.Condition.wait.__code__

    def left(self) -> User:
        self.leave.set()
        self._thread.join()
        return self


@contextlib.contextmanager
def in_use(models: Models, name: str) -> Iterator[User]:
    user = User(models, name)
    try:
        until(lambda: user.model is not None)
        yield user
    finally:
        user.left()


def until(reached: Callable[[], bool]) -> None:
    """Let other threads run until it is so; the test's own time limit ends it otherwise."""
    while not reached():
        time.sleep(0)


def use(models: Models, name: str, size_bytes: int = 1) -> None:
    with models.using(name, Path(name), size_bytes):
        pass


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
    answer(call("load") | request_id, cast(Models, models))
    assert models.asked_for == [bound]
    assert current_request_id() is None


# --- models ----------------------------------------------------------------------------------------------------------


def test_twenty_that_ask_at_once_cause_one_load() -> None:
    """Twenty copies of the weights would end the process."""
    shelf = Shelf()
    models = shelf.models(1)
    shelf.release.clear()
    users = [User(models, "a") for _ in range(20)]
    until(lambda: all(user.waits for user in users))
    assert models.names == []
    shelf.release.set()
    until(lambda: all(user.model for user in users))
    assert shelf.loads == ["a"]
    assert len({id(user.left().model) for user in users}) == 1


def test_another_model_is_used_while_one_is_loaded() -> None:
    """A load takes seconds, and other streams go on meanwhile."""
    shelf = Shelf()
    models = shelf.models(2)
    use(models, "a")
    shelf.release.clear()
    loading = User(models, "b")
    until(lambda: shelf.loads == ["a", "b"])
    use(models, "a")
    assert models.names == ["a"]
    shelf.release.set()
    until(lambda: loading.model is not None)
    loading.left()


def test_models_lie_side_by_side_while_they_fit_and_the_least_recently_used_goes_first() -> None:
    """Loading takes seconds, so what may be asked for again stays as long as it can."""
    shelf = Shelf()
    models = shelf.models(2)
    use(models, "a")
    use(models, "b")
    assert models.names == ["a", "b"]
    use(models, "a")
    use(models, "c")
    assert models.names == ["a", "c"]
    assert shelf.loads == ["a", "b", "c"]


def test_a_model_larger_than_all_memory_for_models_is_held_alone() -> None:
    """The budget is an estimate; whether it truly fits shows when it is loaded."""
    shelf = Shelf()
    models = shelf.models(2)
    use(models, "a")
    use(models, "large", 5)
    assert models.names == ["large"]
    use(models, "a")
    assert models.names == ["a"]


def test_what_is_in_use_stays() -> None:
    """Though it was asked for before the others were."""
    models = Shelf().models(2)
    with in_use(models, "a"):
        use(models, "b")
        use(models, "c")
        assert models.names == ["a", "c"]


def test_who_needs_the_room_of_a_model_in_use_waits_and_then_takes_its_place() -> None:
    """Two models that do not fit together would end the process; an error would fail a request for nothing."""
    shelf = Shelf()
    models = shelf.models(1)
    with in_use(models, "a"):
        second = User(models, "b")
        until(lambda: second.waits)
        assert (models.names, shelf.loads) == (["a"], ["a"])
    until(lambda: second.model is not None)
    assert models.names == ["b"]
    second.left()


def test_a_failed_load_leaves_nothing_and_is_tried_again() -> None:
    """Memory may be there the next time; room kept for a model that is not there would be lost."""
    shelf = Shelf()
    models = shelf.models(1)
    shelf.failure = RuntimeError("no such file")
    with pytest.raises(RuntimeError, match="no such file"):
        use(models, "a")
    shelf.failure = None
    assert models.names == []
    use(models, "b")
    use(models, "a")
    assert (models.names, shelf.loads) == (["a"], ["a", "b", "a"])


def test_who_waits_for_a_load_that_fails_tries_it_too() -> None:
    """Each hears of its own failure, and nobody waits for ever."""
    shelf = Shelf()
    models = shelf.models(1)
    shelf.release.clear()
    shelf.failure = RuntimeError("no such file")
    users = [User(models, "a") for _ in range(3)]
    until(lambda: all(user.waits for user in users))
    shelf.release.set()
    assert [str(user.left().failure) for user in users] == ["no such file"] * 3
    assert shelf.loads == ["a"] * 3


def test_work_that_fails_keeps_its_model() -> None:
    """It is not the model's fault, and nobody uses it any more."""
    models = Shelf().models(1)
    with pytest.raises(ZeroDivisionError), models.using("a", Path("a"), 1):
        raise ZeroDivisionError
    assert models.names == ["a"]
    use(models, "b")
    assert models.names == ["b"]


def test_unloading_spares_what_is_in_use() -> None:
    """It was idle when the server asked, and is not any more."""
    models = Shelf().models(3)
    use(models, "b")
    with in_use(models, "a"):
        for name in ("a", "b", "never loaded"):
            answer(call("unload", name), models)
        assert models.names == ["a"]
        models.unload_idle()
        assert models.names == ["a"]
    models.unload_idle()
    assert models.names == []


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
