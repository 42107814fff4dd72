"""Tells speakers apart in a process of its own, for tests/integration/test_diarization.py: JSON in, JSON out.

Given the folder of the diarization models (which must be on PYTHONPATH, too), PCM files and names of models that are
not there; the answer has what WhisperX's pipeline says as it comes, and what ours says.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.speakers_child import error_rate, heard, remember
from transcription.core import SAMPLE_RATE, Segment
from transcription.diarization import Diarizer, NoDiarizationModel
from transcription.pcm import samples_of
from transcription.speakers import BLOCK_S


def whole(path: str) -> Segment:
    return Segment(Path(path), 0, Path(path).stat().st_size // 2, 0)


def start_of(whole: Segment, seconds: int) -> Segment:
    return Segment(whole.path, 0, seconds * SAMPLE_RATE, 0)


VBX = """params:
  clustering:
    threshold: 0.6
    Fa: 0.07
    Fb: 0.8
  segmentation:
    min_duration_off: 0.0
"""
"""How WhisperX's default model finds speakers, with its own figures."""


def message(name: str) -> str:
    try:
        Diarizer(name, None, "cpu")
    except NoDiarizationModel as error:
        return str(error)
    return ""


def as_it_comes(model: str, segment: Segment) -> list[tuple[float, float]]:
    """Turns of WhisperX's pipeline with its configuration's batch sizes."""
    import whisperx.diarize

    found = whisperx.diarize.DiarizationPipeline(model, device="cpu")(samples_of(segment))
    return sorted(zip(found["start"], found["end"], strict=True))


def share(heard_by: Any, pipeline: Any) -> None:
    """Let *pipeline* have the networks of another, and what they remember: its clustering is its own."""
    vars(pipeline)["_embedding"] = heard_by._embedding
    pipeline._segmentation.infer = heard_by._segmentation.infer


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    models = Path(asked["models"])
    runpy.run_path(str(models / "write_config.py"))
    config = str(models / "config.yaml")
    call = whole(asked["call"])
    start = Segment(call.path, 5 * SAMPLE_RATE, 13 * SAMPLE_RATE, 0)
    diarizer = Diarizer(str(models), None, "cpu")
    # Many of the windows below are the same; the first to be heard are those held against the pipeline as it comes.
    remember(diarizer._pipeline.model)
    said: dict[str, Any] = {
        "tells_its_makers": os.environ["PYANNOTE_METRICS_ENABLED"],
        "not_here": {name: message(name) for name in asked["not_here"]},
        "as_it_comes": as_it_comes(config, start),
        "start": asdict(diarizer.diarize(start, None, None, None)),
        "silence": asdict(diarizer.diarize(whole(asked["silence"]), None, None, None)),
        "too_short": asdict(diarizer.diarize(Segment(call.path, 7 * SAMPLE_RATE, 4_000, 0), 2, None, None)),
        "a_second": asdict(diarizer.diarize(Segment(call.path, 7 * SAMPLE_RATE, SAMPLE_RATE, 0), 3, None, None)),
    }
    vbx = models / "vbx.yaml"
    text = Path(config).read_text()
    vbx.write_text(
        text[: text.index("params:\n  clustering:")].replace("AgglomerativeClustering", "VBxClustering") + VBX
    )
    by_vbx = Diarizer(str(vbx), None, "cpu")
    share(diarizer._pipeline.model, by_vbx._pipeline.model)
    said["few_windows"] = asdict(by_vbx.diarize(start_of(call, 12), 9, None, None))
    for name, block_s, num in (
        ("one block", BLOCK_S, None),
        ("two blocks", 15.0, None),
        ("one speaker", BLOCK_S, 1),
        ("three speakers", BLOCK_S, 3),
        ("one speaker in two blocks", 15.0, 1),
    ):
        turns = heard(diarizer, call.path, call.samples, block_s, num)
        said[name] = {
            "error_rate": error_rate(turns, Path(asked["reference"])),
            "speakers": len({turn.speaker for turn in turns}),
        }
    if asked["reading"]:
        reading = whole(asked["reading"])
        said["reading"] = [asdict(turn) for turn in heard(diarizer, reading.path, reading.samples, BLOCK_S)]
    return said


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        told = answer(json.loads(sys.stdin.read()))
    print(json.dumps(told))
