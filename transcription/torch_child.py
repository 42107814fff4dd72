"""A process that holds torch's models and answers calls one after another: `python -m transcription.torch_child`.

Started by `torch_process.py`, which alone talks to it. The first line of its stdin says what it is for; each further
one is a call. One process aligns, another tells speakers apart: neither waits for the other, and neither dies with it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import structlog

import telemetry
from transcription import protocol
from transcription.child import begin, is_out_of_memory

if TYPE_CHECKING:
    from transcription.alignment import Aligner

log = structlog.get_logger(__name__)

Json = dict[str, Any]
Call = Callable[[Json], Json]


def device_named(name: str) -> str:
    """*name* as torch knows it; "auto": CUDA where there is one, then Apple's GPU, then the CPU."""
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Alignment:
    """Aligners by language and model, the least recently used given up for another that has no room."""

    def __init__(self, config: Json) -> None:
        self._device = device_named(config["device"])
        self._folder: str | None = config["model_dir"]
        self._local_only: bool = config["local_only"]
        self._budget_bytes: int = config["models_bytes"]
        self._held: OrderedDict[tuple[str, str | None], Aligner] = OrderedDict()

    def __call__(self, call: Json) -> Json:
        """Word times for each of the call's requests, or why there can be none in that language."""
        from transcription.alignment import NoAlignmentModel
        from transcription.alignment_text import AlignmentRequest

        try:
            aligner = self._aligner(call["language"], call["name"])
        except NoAlignmentModel as error:
            return {"unavailable": str(error)}
        requests = [
            AlignmentRequest(protocol.segment_from(asked["segment"]), tuple(asked["words"]))
            for asked in call["requests"]
        ]
        found = aligner.align(requests)
        return {"results": [None if words is None else [asdict(word) for word in words] for words in found]}

    def _aligner(self, language: str, name: str | None) -> Aligner:
        from transcription.alignment import Aligner

        which = language, name
        if which not in self._held:
            # NOTE: before it is loaded: two large ones at once may be more than there is room for.
            while self._held and sum(one.bytes for one in self._held.values()) > self._budget_bytes // 2:
                self._held.popitem(last=False)
                gc.collect()
            self._held[which] = Aligner.load(language, name, self._device, self._folder, self._local_only)
            log.info("alignment model loaded", language=language, model=name, bytes=self._held[which].bytes)
        self._held.move_to_end(which)
        return self._held[which]


class Diarization:
    """The diarization pipeline, loaded at the first call."""

    def __init__(self, config: Json) -> None:
        self._config = config
        self._diarizer: Any = None

    def __call__(self, call: Json) -> Json:
        """Who speaks when in the call's segment, or why that cannot be told here."""
        from transcription.diarization import Diarizer, NoDiarizationModel

        if self._diarizer is None:
            config = self._config
            try:
                self._diarizer = Diarizer(config["model"], config["token"], device_named(config["device"]))
            except NoDiarizationModel as error:
                return {"unavailable": str(error)}
        segment = protocol.segment_from(call["segment"])
        return asdict(self._diarizer.diarize(segment, call["num"], call["least"], call["most"]))


ROLES: dict[str, Callable[[Json], Call]] = {"alignment": Alignment, "diarization": Diarization}


def answer(call: Json, work: Call) -> Json:
    """Whatever *work* raises becomes an error answer: the process lives on."""
    with telemetry.request_bound(call.get("request_id") or ""):
        try:
            return work(call)
        except Exception as error:
            log.exception("call failed")
            return {"error": "call failed, see the log", "out_of_memory": is_out_of_memory(error)}


def main() -> None:
    config = json.loads(sys.stdin.buffer.readline())
    answers = begin(config["parent"], config["log_level"], config["role"])
    os.nice(config["niceness"])
    if config["local_only"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(config["threads"])
    work = ROLES[config["role"]](config)
    for line in sys.stdin.buffer:
        call = json.loads(line)
        answers.send({"id": call["id"]} | answer(call, work))


if __name__ == "__main__":
    main()
