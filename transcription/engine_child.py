"""The engine's process: holds the models and answers calls one after another.

Started by `engine.py`, which alone talks to it, as `python -m transcription.engine_child CONFIG`. It ends when its
stdin ends, so it never outlives the server.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import ctranslate2
import structlog

import telemetry
from transcription import protocol
from transcription.whisper import Whisper

log = structlog.get_logger(__name__)

MODELS_HELD = 2
"""Models that lie side by side; the least recently used goes first."""


class Models:
    """The loaded models. Invariant: never more than MODELS_HELD; owned by the one thread that answers calls."""

    def __init__(self, *, device: str, device_index: int, compute_type: str, threads: int) -> None:
        self._placement: dict[str, Any] = {
            "device": device,
            "device_index": device_index,
            "compute_type": compute_type,
            "threads": threads,
        }
        self._loaded: OrderedDict[str, Whisper] = OrderedDict()

    @property
    def names(self) -> list[str]:
        return list(self._loaded)

    def get(self, name: str, path: Path) -> Whisper:
        """The model of that name, loaded from *path* where it is not yet."""
        if name not in self._loaded:
            while len(self._loaded) >= MODELS_HELD:
                self._loaded.popitem(last=False)
                gc.collect()
            self._loaded[name] = Whisper(path, **self._placement)
            log.info("model loaded", model=name, **self._placement)
        self._loaded.move_to_end(name)
        return self._loaded[name]


def answer(call: dict[str, Any], models: Models) -> dict[str, Any]:
    """Do what *call* asks. Whatever it raises becomes an error answer: the process lives on."""
    request_id = call.get("request_id")
    with telemetry.request_bound(request_id) if request_id else contextlib.nullcontext():
        try:
            model = models.get(call["model"], Path(call["path"]))
            segments = [protocol.segment_from(data) for data in call.get("segments", ())]
            reply: dict[str, Any] = {"models": models.names}
            if call["op"] == "transcribe":
                results = model.transcribe(segments, protocol.options_from(call["options"]))
                reply["results"] = [protocol.plain(result) for result in results]
                log.debug("batch decoded", model=call["model"], segments=len(segments))
            elif call["op"] == "detect_language":
                reply["language"] = protocol.plain(model.detect_language(segments))
            return reply
        except Exception as error:
            log.exception("call failed", op=call.get("op"))
            return {"error": f"{type(error).__name__}: {error}", "models": models.names}


def resolved(device: str, compute_type: str) -> tuple[str, int, str]:
    """Device, its index and the compute type, "auto" resolved: CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    kind, _, index = device.partition(":")
    if compute_type == "auto":
        compute_type = "float16" if kind == "cuda" else "int8"
    return kind, int(index or 0), compute_type


def read_calls(stream: BinaryIO, calls: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Put each line of *stream* on the queue; when it ends the server is gone, and so is this process, at once."""
    for line in stream:
        calls.put(json.loads(line))
    os._exit(0)


def main() -> None:
    config = json.loads(sys.argv[1])
    telemetry.configure(config["log_level"], process="engine")
    # Ctrl-C in a terminal reaches the whole group: the server decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # NOTE: stdout belongs to the protocol; what libraries print goes to stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    device, index, compute_type = resolved(config["device"], config["compute_type"])
    models = Models(device=device, device_index=index, compute_type=compute_type, threads=config["threads"])
    calls: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read_calls, args=(sys.stdin.buffer, calls), daemon=True).start()
    answers.write(protocol.line(protocol.plain(protocol.Hello(device, compute_type))))
    answers.flush()
    while True:
        call = calls.get()
        answers.write(protocol.line({"id": call["id"]} | answer(call, models)))
        answers.flush()


if __name__ == "__main__":
    main()
