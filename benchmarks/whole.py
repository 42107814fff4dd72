"""Words and speakers of the long file, end to end, beside WhisperX's own command line with the same weights.

Weights that no package has lie in MODELS_SHARED_DIR: a stand-in to align with, and a diarization pipeline. Both sides
get them through the same PYTHONPATH, WhisperX at its own defaults (pyannote's voice activity, 30 s chunks).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.processes import MemoryWatch, TreeMemory, environment, stop
from benchmarks.scoring import score
from benchmarks.server import Server
from benchmarks.speech_set import ROOT, Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, percent
from benchmarks.weights import weights_folder

LONGEST_S = 5_400.0

STAGES = {
    "Performing transcription": "transcribe",
    "Performing alignment": "align",
    "Performing diarization": "diarization",
}
"""What WhisperX's command line says when a stage begins."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The file, once."""

    system: str
    wall_s: float
    stages_s: dict[str, float]
    """Seconds; ours overlap, and are of work, not of the clock."""
    peak: TreeMemory
    error_rate: float
    speakers: int
    first_text_s: float | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Where both sides find what no package has."""

    pipeline: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def weights_in(folder: Path) -> Weights:
    """The shared models, the diarization pipeline's with its paths written. Raises FileNotFoundError."""
    from tests.stand_ins.sitecustomize import models_shared_dir

    target = folder / "diarization"
    shutil.copytree(models_shared_dir() / "diarization", target, copy_function=shutil.copyfile)
    path = os.pathsep.join(map(str, (ROOT / "tests" / "stand_ins", target, ROOT)))
    known = {
        "PYTHONPATH": path,
        "NLTK_DATA": str(models_shared_dir() / "alignment" / "nltk_data"),
        "ALIGNMENT_WHISPER_DIR": str(weights_folder("base")),
    }
    subprocess.run([sys.executable, "-W", "ignore", "write_config.py"], cwd=target, env=os.environ | known, check=True)
    return Weights(target / "config.yaml", known)


def by_server(clip: Clip, weights: Weights) -> Whole:
    """One request to a server whose processes with torch are not there yet; then one more, for its first text."""
    settings = {**weights.environment, "DIARIZATION_MODEL": str(weights.pipeline)}
    with Server(MODEL, log_level="debug", settings=settings) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=LONGEST_S, trust_env=False) as client:
            headers = {"X-API-Key": server.key}
            asked = {"language": clip.language or "en", "align": "true", "diarize": "true"}
            with MemoryWatch(server.pid, 0.2) as memory, clip.path.open("rb") as file:
                began = time.perf_counter()
                answer = client.post("/transcribe", params=asked, files={"file": file}, headers=headers)
                wall_s = time.perf_counter() - began
            answer.raise_for_status()
            document = answer.json()
            first_text_s = first_text(client, clip, headers)
        busy = {
            name: sum(float(event["busy_s"]) for event in server.events(event))
            for name, event in (("transcribe", "batch decoded"), ("align", "batch aligned"))
        }
    stages_s = busy | {
        name: document["timings"][name] for name in ("diarization", "voice_activity") if name in document["timings"]
    }
    heard = score(clip.text or "", document["text"], "en").error_rate
    speakers = {segment.get("speaker") for segment in document["segments"]} - {None}
    return Whole("stenogate", wall_s, stages_s, memory.peak, heard, len(speakers), first_text_s)


def first_text(client: httpx.Client, clip: Clip, headers: Mapping[str, str]) -> float:
    """Seconds from the request to the first segment's event, with nothing but the transcript asked for."""
    began = time.perf_counter()
    with (
        clip.path.open("rb") as file,
        client.stream("POST", "/transcribe", params={"stream": "true"}, files={"file": file}, headers=headers) as told,
    ):
        for line in told.iter_lines():
            if line == "event: segment":
                return time.perf_counter() - began
    raise RuntimeError("the stream ended without a segment")


def by_whisperx(clip: Clip, weights: Weights, threads: int) -> Whole:
    """`python -m whisperx`, its start included: that is how it is used."""
    with tempfile.TemporaryDirectory(prefix="stenogate-whisperx-") as name:
        folder = Path(name)
        command = [
            *(sys.executable, "-W", "ignore", "-u", "-m", "whisperx", str(clip.path)),
            *("--model", str(weights_folder(MODEL)), "--device", "cpu", "--compute_type", "int8"),
            *("--language", clip.language or "en", "--batch_size", "8", "--beam_size", "5", "--threads", str(threads)),
            *("--diarize", "--diarize_model", str(weights.pipeline), "--model_cache_only", "True"),
            *("--output_format", "json", "--output_dir", str(folder)),
        ]
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment(folder, threads), **weights.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        starts: list[tuple[str, float]] = []
        said: list[str] = []
        try:
            with MemoryWatch(process.pid, 0.2) as memory:
                for line in process.stdout:
                    said.append(line)
                    starts += [(stage, time.perf_counter()) for words, stage in STAGES.items() if words in line]
                process.wait()
        finally:
            stop(process)
        ended = time.perf_counter()
        if process.returncode:
            raise RuntimeError("".join(said)[-3000:])
        document: dict[str, Any] = json.loads((folder / f"{clip.path.stem}.json").read_text())
    stages_s = {
        stage: until - start for (stage, start), (_, until) in zip(starts, [*starts[1:], ("", ended)], strict=True)
    }
    text = " ".join(segment["text"].strip() for segment in document["segments"])
    speakers = {segment.get("speaker") for segment in document["segments"]} - {None}
    error_rate = score(clip.text or "", re.sub(r"\s+", " ", text), "en").error_rate
    return Whole("whisperx", ended - began, stages_s, memory.peak, error_rate, len(speakers))


def measure(plan: Plan) -> Report:
    speech = SpeechSet(speech_dir())
    with tempfile.TemporaryDirectory(prefix="stenogate-whole-") as name:
        folder = Path(name)
        clip = plan.long_clip(speech, folder)
        weights = weights_in(folder)
        runs: list[Whole] = []
        for repeat in range(plan.repeats):
            say(f"whole, repeat {repeat + 1}: stenogate")
            runs.append(by_server(clip, weights))
            say(f"whole, repeat {repeat + 1}: whisperx")
            runs.append(by_whisperx(clip, weights, plan.threads))
    return report(clip.duration_s, runs)


def report(duration_s: float, runs: list[Whole]) -> Report:
    """A line a system, the shares of its stages, and how they compare."""
    lines, walls, peaks = [], {}, {}
    for system in dict.fromkeys(run.system for run in runs):
        of = [run for run in runs if run.system == system]
        wall_s = walls[system] = median(run.wall_s for run in of)
        peaks[system] = max(run.peak.pss or run.peak.rss for run in of)
        names = of[0].stages_s
        stages = {name: median(run.stages_s[name] for run in of) for name in names}
        total_s = sum(stages.values())
        shares = ", ".join(f"{name} {percent(seconds / total_s)} ({seconds:.0f} s)" for name, seconds in stages.items())
        lines.append(
            [
                *(system, f"{wall_s:.0f}", f"{duration_s / wall_s:.2f}", shares, f"{peaks[system] / 2**20:.0f}"),
                *(percent(median(run.error_rate for run in of)), str(of[0].speakers)),
            ]
        )
    header = ["system", "wall s", "audio s / s", "shares of its stages", "peak MiB", "word error rate", "speakers"]
    first = [run.first_text_s for run in runs if run.first_text_s is not None]
    return Report(
        f"Words and speakers of the long file ({duration_s / 60:.1f} min)",
        [
            markdown(header, lines),
            f"Medians of {len(first)}. WhisperX's seconds include its start, ours the start of the two processes with "
            "torch. Our stages overlap: their seconds are of work, added up over streams.",
        ],
        [
            Aim("WhisperX's seconds over ours", walls["whisperx"] / walls["stenogate"], least=1.0),
            Aim("our peak memory over WhisperX's", peaks["stenogate"] / peaks["whisperx"]),
            Aim("first text of the file, streamed", median(first), most=3.0, unit="s"),
        ],
        [asdict(run) for run in runs],
    )
