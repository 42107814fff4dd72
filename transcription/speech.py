"""Where somebody speaks, and how the recording is cut there: voice activity over PCM, in windows.

The probability of speech in each frame of 32 ms -> spans of speech (`SpeechFinder`) -> spans joined over short pauses
(`Joiner`) -> segments (`SpeechCutter`), each out as soon as nothing that follows can change it. So the first one leaves
while the recording is still being decoded, and a ten-hour recording costs no more memory than a short one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

# NOTE: read when it is imported; without it onnxruntime tells its makers of each process, and keeps an id in the user's
# home. The engine's processes, which import it too, inherit this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

from errors import EngineFailed, VoiceActivityUnavailable
from transcription.core import MAX_SEGMENT_S, SAMPLE_RATE, Segment, VoiceActivity
from transcription.pcm import ALL, GrowingPcm, Samples

FRAME_SAMPLES = 512
"""Silero's frame at 16 kHz: 32 ms."""

CONTEXT_SAMPLES = 64
"""Samples of the frame before that Silero sees in front of each frame."""

WINDOW_SAMPLES = 250 * FRAME_SAMPLES
"""Samples per run of the network: 8 s, so that memory stays low and flat and the first segment comes early."""

QUIET_STEP_SAMPLES = 1_600
"""Where speech must be cut without a pause, the quietest 100 ms are looked for."""

Visit = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes a context to work in, such as one that takes the time."""

Floats = npt.NDArray[np.float32]


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


class SpeechFinder:
    """Stretches of speech, in order, from the probability of speech in each frame of FRAME_SAMPLES."""

    def __init__(self, rule: CuttingRule) -> None:
        self._rule = rule
        self._min_pause = int(rule.min_pause_s * SAMPLE_RATE)
        self._min_speech = int(rule.min_speech_s * SAMPLE_RATE)
        self._at = 0
        self._start: int | None = None
        self._pause: int | None = None

    @property
    def next_from(self) -> int:
        """The sample before which no speech begins that is still to be told."""
        return self._at if self._start is None else self._start

    def add(self, probabilities: Iterable[float]) -> list[Span]:
        """The speech that the next frames bring to an end."""
        return [span for probability in probabilities if (span := self._ended_by(probability))]

    def end(self, total_samples: int) -> list[Span]:
        """What is left when the recording is over: speech under way lasts to its end."""
        if self._start is None or total_samples - self._start < self._min_speech:
            return []
        return [Span(self._start, total_samples)]

    def _ended_by(self, probability: float) -> Span | None:
        at, self._at = self._at, self._at + FRAME_SAMPLES
        if probability >= self._rule.speech_above:
            self._pause = None
            if self._start is None:
                self._start = at
        elif self._start is not None and (probability < self._rule.silence_below or self._pause is not None):
            if self._pause is None:
                self._pause = at
            if self._at - self._pause >= self._min_pause:
                span = Span(self._start, self._pause)
                self._start = self._pause = None
                return span if span.end - span.start >= self._min_speech else None
        return None


class Joiner:
    """Joins speech over short pauses while the whole, padded, fits into one segment; and pads it.

    Padding goes to the middle of a pause at most, so that no two stretches overlap.
    """

    def __init__(self, rule: CuttingRule) -> None:
        self._padding = int(rule.padding_s * SAMPLE_RATE)
        self._longest = int((rule.max_segment_s - 2 * rule.padding_s) * SAMPLE_RATE)
        self._widest_pause = int(rule.merge_pause_s * SAMPLE_RATE)
        self._final_pause = max(self._widest_pause, 2 * self._padding)
        """After a longer one, neither the stretch before nor its padding depends on what follows."""
        self._floor = 0
        self._current: Span | None = None

    def add(self, speech: Iterable[Span], next_from: int) -> list[Span]:
        """The stretches that nothing changes any more: after *speech*, the next begins at *next_from* or later."""
        complete = []
        for span in speech:
            current = self._current
            if current is None:
                self._current = span
            elif span.start - current.end <= self._widest_pause and span.end - current.start <= self._longest:
                self._current = Span(current.start, span.end)
            else:
                middle = (current.end + span.start) // 2
                complete.append(self._padded(current, middle))
                self._floor, self._current = middle, span
        if self._current and next_from - self._current.end > self._final_pause:
            complete.append(self._padded(self._current, next_from))
            self._current = None
        return complete

    def end(self, total_samples: int) -> list[Span]:
        """The stretch that is left when the recording is over."""
        return [self._padded(self._current, total_samples)] if self._current else []

    def _padded(self, span: Span, ceiling: int) -> Span:
        return Span(max(self._floor, span.start - self._padding), min(ceiling, span.end + self._padding))


def quietest(pcm: Samples) -> int:
    """The middle of the quietest 100 ms of *pcm*."""
    steps = pcm[: len(pcm) // QUIET_STEP_SAMPLES * QUIET_STEP_SAMPLES].astype(np.float32)
    loudness = np.square(steps.reshape(-1, QUIET_STEP_SAMPLES)).mean(axis=1)
    return int(np.argmin(loudness)) * QUIET_STEP_SAMPLES + QUIET_STEP_SAMPLES // 2


@dataclass(frozen=True, slots=True)
class Memory:
    """What the network keeps of a recording from one window to the next."""

    state_h: Floats = field(default_factory=lambda: np.zeros((1, 1, 128), np.float32))
    state_c: Floats = field(default_factory=lambda: np.zeros((1, 1, 128), np.float32))
    context: Floats = field(default_factory=lambda: np.zeros(CONTEXT_SAMPLES, np.float32))
    """The last of the sound."""


class Silero:
    """Silero's voice activity network (v6, ONNX), the file that lies in the faster-whisper wheel.

    Holds no state of a recording: many may be heard at once. Torch is not needed.
    """

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            str(silero_file()), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def hear(self, window: Samples, memory: Memory) -> tuple[list[float], Memory]:
        """The probability of speech in each frame of *window*, and what is to be known before the next window.

        A window is whole frames; only the recording's last one need not be, and is filled up with silence.
        """
        sound = window.astype(np.float32) / np.float32(32_768)
        sound = np.pad(sound, (0, -len(sound) % FRAME_SAMPLES))
        frames = np.lib.stride_tricks.sliding_window_view(
            np.concatenate((memory.context, sound)), CONTEXT_SAMPLES + FRAME_SAMPLES
        )[::FRAME_SAMPLES]
        speech, state_h, state_c = self._session.run(
            None, {"input": np.ascontiguousarray(frames), "h": memory.state_h, "c": memory.state_c}
        )
        return np.ravel(speech).tolist(), Memory(state_h, state_c, sound[-CONTEXT_SAMPLES:])


def silero_file() -> Path:
    """Where the network lies; found without importing faster_whisper, which would bring CTranslate2 along."""
    package = find_spec("faster_whisper")
    if package is None or package.origin is None:
        raise EngineFailed("The faster-whisper package is not installed: run scripts/serve to set everything up.")
    return Path(package.origin).parent / "assets" / "silero_vad_v6.onnx"


class SpeechCutter:
    """Cuts recordings into segments where nobody speaks."""

    def __init__(self, rule: CuttingRule | None = None, silero: Silero | None = None) -> None:
        """*silero*: None loads the network when it is first needed."""
        self._rule = rule or CuttingRule()
        self._silero = silero

    async def segments(
        self, pcm: GrowingPcm, vad: VoiceActivity, *, at_work: Visit = contextlib.nullcontext
    ) -> AsyncGenerator[Segment]:
        """The segments of *pcm*, in order, as they are found; no further than they are asked for.

        *at_work* is entered for as long as work is done, which waiting for *pcm* is not. Raises
        VoiceActivityUnavailable, and what the writing of *pcm* raises.
        """
        index = 0
        async with contextlib.aclosing(self._stretches(pcm, vad, at_work)) as stretches:
            async for left in stretches:
                while (end := await self._segment_end(pcm, left, at_work)) > left.start:
                    yield Segment(path=pcm.path, first_sample=left.start, samples=end - left.start, index=index)
                    left, index = Span(end, left.end), index + 1

    async def _stretches(self, pcm: GrowingPcm, vad: VoiceActivity, at_work: Visit) -> AsyncGenerator[Span]:
        """What is to be transcribed, in stretches of any length."""
        if vad is VoiceActivity.NONE:
            yield Span(0, ALL)
            return
        joiner = Joiner(self._rule)
        if vad is VoiceActivity.PYANNOTE:
            heard = await pcm.wait_for(ALL)
            with at_work():
                speech = await pyannote_spans(pcm.path)
        else:
            finder, memory, heard = SpeechFinder(self._rule), Memory(), 0
            while (there := await pcm.wait_for(heard + WINDOW_SAMPLES)) > heard:
                window = Span(heard, min(there, heard + WINDOW_SAMPLES))
                with at_work():
                    # NOTE: the network lets go of the interpreter's lock, so a thread keeps the event loop free.
                    probabilities, memory = await asyncio.to_thread(self._hear, pcm, window, memory)
                for stretch in joiner.add(finder.add(probabilities), finder.next_from):
                    yield stretch
                heard = window.end
            speech = finder.end(heard)
        for stretch in joiner.add(speech, heard) + joiner.end(heard):
            yield stretch

    def _hear(self, pcm: GrowingPcm, window: Span, memory: Memory) -> tuple[list[float], Memory]:
        if self._silero is None:
            self._silero = Silero()
        return self._silero.hear(pcm.read(window.start, window.end), memory)

    async def _segment_end(self, pcm: GrowingPcm, left: Span, at_work: Visit) -> int:
        """Where the first segment of *left* ends: with it, or at the quietest 100 ms of the segment's second half."""
        longest = int(self._rule.max_segment_s * SAMPLE_RATE)
        middle, last = left.start + longest // 2, left.start + longest
        # One sample more tells that the recording goes on.
        end = min(left.end, await pcm.wait_for(min(left.end, last + 1)))
        if end <= last:
            return end
        with at_work():
            return middle + await asyncio.to_thread(lambda: quietest(pcm.read(middle, last)))


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
