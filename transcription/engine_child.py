"""The engine's process: holds the models once and answers calls, as many at a time as it has streams.

Started by `engine.py`, which alone talks to it, as `python -m transcription.engine_child CONFIG`. It ends when its
stdin ends or its parent dies, so it never outlives the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ctranslate2
import structlog

import telemetry
from transcription import protocol
from transcription.child import Answers, begin, is_out_of_memory
from transcription.core import SegmentRequest, TranscriptSegment
from transcription.loaded_models import LoadedModels
from transcription.whisper import Whisper

log = structlog.get_logger(__name__)


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


def main() -> None:
    config = json.loads(sys.argv[1])
    answers = begin(config["parent"], config["log_level"], "engine")
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
