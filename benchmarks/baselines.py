"""The libraries that Stenogate is measured against, each in a process of its own.

    python -m benchmarks.baselines faster-whisper-batched --weights FOLDER < requests > answers

Loads once, says `{"event": "loaded"}`, then answers each line `{"path": …, "language": …}` with one line that holds
`seconds` and `text`, until its input ends. Clocks run in here, so that pipes and process starts are in nobody's figure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

Transcribe = Callable[[str, str | None], str]
"""(path, language) -> text."""

CUT_GAP_S = 0.25
CUT_LONGEST_S = 30.0


def _whisper(arguments: argparse.Namespace) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(
        arguments.weights, device="cpu", compute_type=arguments.compute_type, cpu_threads=arguments.threads
    )


def faster_whisper_batched(arguments: argparse.Namespace) -> Transcribe:
    """BatchedInferencePipeline with its defaults: speech merged up to 30 s."""
    from faster_whisper import BatchedInferencePipeline

    pipeline = BatchedInferencePipeline(_whisper(arguments))

    def transcribe(path: str, language: str | None) -> str:
        segments, _ = pipeline.transcribe(
            path, language=language, beam_size=arguments.beam_size, batch_size=arguments.batch_size
        )
        return "".join(segment.text for segment in segments).strip()

    return transcribe


def faster_whisper_cut(arguments: argparse.Namespace) -> Transcribe:
    """BatchedInferencePipeline, given clips that are merged over short gaps only: slower, and keeps the words."""
    from faster_whisper import BatchedInferencePipeline
    from faster_whisper.audio import decode_audio
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    pipeline = BatchedInferencePipeline(_whisper(arguments))

    def transcribe(path: str, language: str | None) -> str:
        samples = decode_audio(path)
        speech = get_speech_timestamps(
            samples, VadOptions(max_speech_duration_s=CUT_LONGEST_S, min_silence_duration_ms=160)
        )
        clips = merged((span["start"] / 16_000, span["end"] / 16_000) for span in speech)
        if not clips:
            return ""
        segments, _ = pipeline.transcribe(
            samples,
            language=language,
            beam_size=arguments.beam_size,
            batch_size=arguments.batch_size,
            clip_timestamps=[{"start": start_s, "end": end_s} for start_s, end_s in clips],
        )
        return "".join(segment.text for segment in segments).strip()

    return transcribe


def faster_whisper_sequential(arguments: argparse.Namespace) -> Transcribe:
    """WhisperModel.transcribe with its voice activity filter: windows one by one, each told the text before it."""
    model = _whisper(arguments)

    def transcribe(path: str, language: str | None) -> str:
        segments, _ = model.transcribe(path, language=language, beam_size=arguments.beam_size, vad_filter=True)
        return "".join(segment.text for segment in segments).strip()

    return transcribe


def whisperx(arguments: argparse.Namespace) -> Transcribe:
    """WhisperX with its defaults: pyannote's voice activity, speech merged up to 30 s."""
    import torch
    import whisperx

    torch.set_num_threads(arguments.threads)
    pipeline = whisperx.load_model(
        arguments.weights,
        "cpu",
        compute_type=arguments.compute_type,
        asr_options={"beam_size": arguments.beam_size},
        threads=arguments.threads,
    )

    def transcribe(path: str, language: str | None) -> str:
        result = pipeline.transcribe(whisperx.load_audio(path), batch_size=arguments.batch_size, language=language)
        return " ".join(segment["text"].strip() for segment in result["segments"])

    return transcribe


SYSTEMS: dict[str, Callable[[argparse.Namespace], Transcribe]] = {
    "faster-whisper-batched": faster_whisper_batched,
    "faster-whisper-cut": faster_whisper_cut,
    "faster-whisper-sequential": faster_whisper_sequential,
    "whisperx": whisperx,
}


def merged(
    spans: Iterable[tuple[float, float]], gap_s: float = CUT_GAP_S, longest_s: float = CUT_LONGEST_S
) -> list[tuple[float, float]]:
    """Join spans (seconds) that lie at most *gap_s* apart, as long as the whole stays within *longest_s*."""
    joined: list[tuple[float, float]] = []
    for start_s, end_s in spans:
        if joined and start_s - joined[-1][1] <= gap_s and end_s - joined[-1][0] <= longest_s:
            joined[-1] = (joined[-1][0], end_s)
        else:
            joined.append((start_s, end_s))
    return joined


def answer(transcribe: Transcribe, requests: Iterable[str], answers: TextIO) -> None:
    """Transcribe request by request until there are no more."""
    for line in requests:
        request = json.loads(line)
        started = time.perf_counter()
        text = transcribe(request["path"], request["language"])
        seconds = time.perf_counter() - started
        print(json.dumps({"event": "done", "seconds": seconds, "text": text}), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--weights", required=True, help="folder of a CTranslate2 Whisper model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--compute-type", default="int8")
    arguments = parser.parse_args()

    # Answers own the real standard output: what the libraries print goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    started = time.perf_counter()
    transcribe = SYSTEMS[arguments.system](arguments)
    print(json.dumps({"event": "loaded", "seconds": time.perf_counter() - started}), file=answers, flush=True)
    answer(transcribe, sys.stdin, answers)


if __name__ == "__main__":
    main()
