"""The engine's process: holds the models once and answers calls, as many at a time as it has streams.

Started by `engine.py`, which alone talks to it, as `python -m transcription.engine_child CONFIG`. It ends when its
stdin ends or its parent dies, so it never outlives the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ctranslate2
import structlog

import telemetry
from transcription import protocol
from transcription.core import SegmentRequest, TranscriptSegment
from transcription.loaded_models import LoadedModels
from transcription.whisper import Whisper

log = structlog.get_logger(__name__)

OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "bad_alloc",
    "failed to allocate memory",
    "could not create a memory object",
)
"""What CTranslate2, and MKL and oneDNN beneath it, say when an allocation fails: there is no exception for it."""

PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def decoded(model: Whisper, requests: Sequence[SegmentRequest]) -> list[TranscriptSegment | str]:
    """A result or an error for each request: one that fails does not take its neighbours along.

    Raises what says that memory ran out: fewer at once may do.
    """
    try:
        return [*model.transcribe(requests)]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if isinstance(error, FileNotFoundError):
            log.debug("a recording is gone: whoever sent it has left", segments=len(requests))
        else:
            log.exception("decoding failed", segments=len(requests))
        if len(requests) == 1:
            return [f"{type(error).__name__}: {error}"]
    return [result for request in requests for result in decoded(model, [request])]


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def answer(call: dict[str, Any], models: LoadedModels) -> dict[str, Any]:
    """Do what *call* asks. Whatever it raises becomes an error answer: the process lives on."""
    request_id = call.get("request_id")
    with telemetry.request_bound(request_id) if request_id else contextlib.nullcontext():
        try:
            return _done(call, models) | {"models": models.names}
        except Exception as error:
            log.exception("call failed", op=call.get("op"))
            out_of_memory = is_out_of_memory(error)
        if out_of_memory:
            models.unload_idle()
        return {"error": "call failed, see the log", "out_of_memory": out_of_memory, "models": models.names}


def _done(call: dict[str, Any], models: LoadedModels) -> dict[str, Any]:
    if call["op"] == "unload":
        models.unload(call["model"])
        return {}
    with models.using(call["model"], Path(call["path"]), call["bytes"]) as model:
        before_s = model.busy_s
        try:
            if call["op"] == "transcribe":
                requests = [protocol.request_from(data) for data in call["requests"]]
                results = decoded(model, requests)
                log.debug(
                    "batch decoded",
                    model=call["model"],
                    segments=len(requests),
                    busy_s=round(model.busy_s - before_s, 4),
                    stream=threading.current_thread().name,
                )
                return {
                    "results": [
                        {"error": result} if isinstance(result, str) else protocol.plain(result) for result in results
                    ]
                }
            if call["op"] == "detect_language":
                segments = [protocol.segment_from(data) for data in call["segments"]]
                return {"language": protocol.plain(model.detect_language(segments))}
            return {}
        except Exception as error:
            if is_out_of_memory(error):
                model.empty_cache()
            raise


def resolved(device: str, compute_type: str) -> tuple[str, int, str]:
    """Device, its index and the compute type, "auto" resolved: CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    kind, _, index = device.partition(":")
    if compute_type == "auto":
        compute_type = "float16" if kind == "cuda" else "int8"
    return kind, int(index or 0), compute_type


class Answers:
    """The way back to the server: one line at a time, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._stream.write(protocol.line(message))
            self._stream.flush()


def read_calls(stream: BinaryIO, calls: queue.SimpleQueue[dict[str, Any]], answers: Answers) -> None:
    """Put each call on the queue; heartbeats are answered here, however busy the streams are.

    When *stream* ends the server is gone, and so is this process, at once.
    """
    for line in stream:
        call = json.loads(line)
        if call["op"] == "ping":
            answers.send({"id": call["id"]})
        else:
            calls.put(call)
    os._exit(0)


def decode_calls(calls: queue.SimpleQueue[dict[str, Any]], answers: Answers, models: LoadedModels) -> None:
    """One stream: answers calls one after another, for ever."""
    while True:
        call = calls.get()
        answers.send({"id": call["id"]} | answer(call, models))


def die_with(parent: int) -> None:
    """Be killed when *parent* dies, even while stopped. Only Linux can do that; the end of stdin does the rest."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main() -> None:
    config = json.loads(sys.argv[1])
    die_with(config["parent"])
    telemetry.configure(config["log_level"], process="engine")
    # Ctrl-C in a terminal reaches the whole group: the server decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # NOTE: stdout belongs to the protocol; what libraries print goes to stderr.
    answers = Answers(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    device, index, compute_type = resolved(config["device"], config["compute_type"])
    if device == "cpu":
        os.nice(config["niceness"])

    def load(path: Path) -> Whisper:
        return Whisper(
            path,
            device=device,
            device_index=index,
            compute_type=compute_type,
            threads=config["threads"],
            streams=config["streams"],
        )

    models = LoadedModels(load, config["models_bytes"])
    calls: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    answers.send(protocol.plain(protocol.Hello(device, compute_type)))
    for number in range(config["streams"]):
        threading.Thread(target=decode_calls, args=(calls, answers, models), name=f"{number}", daemon=True).start()
    read_calls(sys.stdin.buffer, calls, answers)


if __name__ == "__main__":
    main()
