"""Where somebody speaks, and how the recording is cut there: voice activity over PCM, in windows.

Everything is a chain of generators over frames of 32 ms: probabilities -> spans of speech -> merged spans -> segments.
The first segment is out after the first pause, and a ten-hour recording costs no more memory than a short one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from errors import EngineFailed, VoiceActivityUnavailable
from transcription.core import BYTES_PER_SAMPLE, MAX_SEGMENT_S, SAMPLE_RATE, Segment, VoiceActivity

FRAME_SAMPLES = 512
"""Silero's frame at 16 kHz: 32 ms."""

CONTEXT_SAMPLES = 64
"""Samples of the frame before that Silero sees in front of each frame."""

WINDOW_FRAMES = 250
"""Frames per run of the network: 8 s, so that memory stays low and flat and the first segment comes early."""

QUIET_STEP_SAMPLES = 1_600
"""Where speech must be cut without a pause, the quietest 100 ms are looked for."""

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Span:
    """Speech from *start* up to *end*, in samples."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CuttingRule:
    """How speech becomes segments. The defaults lose the fewest words (docs/decisions/0002-cutting.md)."""

    speech_above: float = 0.5
    silence_below: float = 0.35
    """Between the two a frame is what the one before it was (Silero's own hysteresis)."""
    min_speech_s: float = 0.1
    min_pause_s: float = 0.1
    merge_pause_s: float = 1.0
    """Speech is merged over pauses up to this long: longer ones make Whisper stop before the end of its window."""
    padding_s: float = 0.3
    """Kept before and after, at most half of the pause: consonants are quiet."""
    max_segment_s: float = MAX_SEGMENT_S


def spans(probabilities: Iterable[float], rule: CuttingRule, total_samples: int) -> Iterator[Span]:
    """Stretches of speech, in order, from the probability of speech in each frame of FRAME_SAMPLES."""
    min_pause = int(rule.min_pause_s * SAMPLE_RATE)
    min_speech = int(rule.min_speech_s * SAMPLE_RATE)
    start: int | None = None
    pause: int | None = None
    for frame, probability in enumerate(probabilities):
        at = frame * FRAME_SAMPLES
        if probability >= rule.speech_above:
            pause = None
            if start is None:
                start = at
        elif start is not None and (probability < rule.silence_below or pause is not None):
            if pause is None:
                pause = at
            if at + FRAME_SAMPLES - pause >= min_pause:
                if pause - start >= min_speech:
                    yield Span(start, pause)
                start = pause = None
    if start is not None and total_samples - start >= min_speech:
        yield Span(start, total_samples)


def merged(speech: Iterable[Span], rule: CuttingRule) -> Iterator[Span]:
    """Join neighbours over short pauses while the whole, with its padding, fits into one segment."""
    longest = int((rule.max_segment_s - 2 * rule.padding_s) * SAMPLE_RATE)
    widest_pause = int(rule.merge_pause_s * SAMPLE_RATE)
    current: Span | None = None
    for span in speech:
        if current and span.start - current.end <= widest_pause and span.end - current.start <= longest:
            current = Span(current.start, span.end)
        else:
            if current:
                yield current
            current = span
    if current:
        yield current


def padded(speech: Iterable[Span], rule: CuttingRule, total_samples: int) -> Iterator[Span]:
    """Widen each span by the padding, to the middle of a pause at most, so that no two overlap."""
    padding = int(rule.padding_s * SAMPLE_RATE)
    floor = 0
    current: Span | None = None
    for span in speech:
        if current:
            middle = (current.end + span.start) // 2
            yield Span(max(floor, current.start - padding), min(middle, current.end + padding))
            floor = middle
        current = span
    if current:
        yield Span(max(floor, current.start - padding), min(total_samples, current.end + padding))


def bounded(speech: Iterable[Span], pcm: Samples, rule: CuttingRule) -> Iterator[Span]:
    """Cut what is longer than a segment may be at the quietest 100 ms in the second half of each segment."""
    longest = int(rule.max_segment_s * SAMPLE_RATE)
    for span in speech:
        start = span.start
        while span.end - start > longest:
            cut = quietest(pcm, start + longest // 2, start + longest)
            yield Span(start, cut)
            start = cut
        yield Span(start, span.end)


def quietest(pcm: Samples, first: int, last: int) -> int:
    """The middle of the quietest 100 ms of *pcm* between the samples *first* and *last*."""
    window = pcm[first:last].astype(np.float32)
    steps = window[: len(window) // QUIET_STEP_SAMPLES * QUIET_STEP_SAMPLES].reshape(-1, QUIET_STEP_SAMPLES)
    return first + int(np.argmin(np.square(steps).mean(axis=1))) * QUIET_STEP_SAMPLES + QUIET_STEP_SAMPLES // 2


class Silero:
    """Silero's voice activity network (v6, ONNX), the file that lies in the faster-whisper wheel.

    Holds no state of a recording: many may be read at once. Torch is not needed.
    """

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            str(silero_file()), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def probabilities(self, pcm: Samples) -> Iterator[float]:
        """The probability of speech in each frame of *pcm*, the last one filled up with silence."""
        state_h = np.zeros((1, 1, 128), np.float32)
        state_c = np.zeros((1, 1, 128), np.float32)
        context = np.zeros(CONTEXT_SAMPLES, np.float32)
        window = WINDOW_FRAMES * FRAME_SAMPLES
        for first in range(0, len(pcm), window):
            samples = pcm[first : first + window].astype(np.float32) / np.float32(32_768)
            samples = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
            frames = np.lib.stride_tricks.sliding_window_view(
                np.concatenate((context, samples)), CONTEXT_SAMPLES + FRAME_SAMPLES
            )[::FRAME_SAMPLES]
            speech, state_h, state_c = self._session.run(
                None, {"input": np.ascontiguousarray(frames), "h": state_h, "c": state_c}
            )
            context = samples[-CONTEXT_SAMPLES:]
            yield from np.ravel(speech).tolist()


def silero_file() -> Path:
    """Where the network lies; found without importing faster_whisper, which would bring CTranslate2 along."""
    package = find_spec("faster_whisper")
    if package is None or package.origin is None:
        raise EngineFailed("The faster-whisper package is not installed: run scripts/serve to set everything up.")
    return Path(package.origin).parent / "assets" / "silero_vad_v6.onnx"


class SpeechCutter:
    """Cuts recordings into segments where nobody speaks."""

    def __init__(self, rule: CuttingRule | None = None) -> None:
        self._rule = rule or CuttingRule()
        self._silero: Silero | None = None

    async def segments(self, path: Path, vad: VoiceActivity) -> AsyncGenerator[Segment]:
        """The segments of the PCM at *path*, in order, as they are found. Raises VoiceActivityUnavailable."""
        samples = path.stat().st_size // BYTES_PER_SAMPLE  # noqa: ASYNC240 - one stat, no wait
        if samples == 0:
            return
        pcm = cast(Samples, np.memmap(path, np.int16, "r", shape=(samples,)))
        speech: Iterable[Span]
        if vad is VoiceActivity.SILERO:
            speech = self._silero_spans(pcm)
        elif vad is VoiceActivity.PYANNOTE:
            speech = await pyannote_spans(path)
        else:
            speech = [Span(0, samples)]
        found = self._cut(path, pcm, speech)
        # NOTE: the network lets go of the interpreter's lock, so a thread keeps the event loop free.
        while (segment := await asyncio.to_thread(next, found, None)) is not None:
            yield segment

    def _silero_spans(self, pcm: Samples) -> Iterator[Span]:
        if self._silero is None:
            self._silero = Silero()
        yield from spans(self._silero.probabilities(pcm), self._rule, len(pcm))

    def _cut(self, path: Path, pcm: Samples, speech: Iterable[Span]) -> Iterator[Segment]:
        whole = padded(merged(speech, self._rule), self._rule, len(pcm))
        for index, span in enumerate(bounded(whole, pcm, self._rule)):
            yield Segment(path=path, first_sample=span.start, samples=span.end - span.start, index=index)


async def pyannote_spans(path: Path) -> list[Span]:
    """Speech as WhisperX's pyannote model finds it, in a process of its own, which alone imports torch.

    Raises VoiceActivityUnavailable where the full requirements are not installed.
    """
    if find_spec("whisperx") is None:
        raise VoiceActivityUnavailable()
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "transcription.pyannote_child",
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    try:
        output, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise EngineFailed("The pyannote voice activity model failed on this recording.")
    return [Span(start, end) for start, end in json.loads(output)]
