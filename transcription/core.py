"""The words that every room of the transcription speaks: what is asked, what is cut, what comes out. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import ClassVar

KEPT_AS_JSON = {"ser_json_inf_nan": "strings"}
"""For pydantic, which jobs are kept with: JSON has no NaN and no infinity, and what was kept must be read back."""

SAMPLE_RATE = 16_000
"""Samples a second of all PCM inside the service: Whisper's own rate, mono, signed 16 bit."""

BYTES_PER_SAMPLE = 2

MAX_SEGMENT_S = 30.0
"""Whisper's window: no segment is longer."""


class Task(StrEnum):
    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Priority(IntEnum):
    """The class of a request: a lower number is served first."""

    INTERACTIVE = 0
    """Somebody waits for the answer."""
    BATCH = 1


class VoiceActivity(StrEnum):
    SILERO = "silero"
    PYANNOTE = "pyannote"
    NONE = "none"


class Channels(StrEnum):
    """What becomes of a recording's channels."""

    MIX = "mix"
    """All are heard as one."""
    SPLIT = "split"
    """Each is heard alone, and its speech told as a speaker's of its own: calls have one party on each."""


class Provider(StrEnum):
    """Who transcribes."""

    LOCAL = "local"
    """This server, or a worker of its own."""
    OPENAI = "openai"
    """Its upstream: a server that speaks OpenAI's interface."""
    AUTO = "auto"
    """This server while it has room, else its upstream; decided before the work begins."""


class ResponseFormat(StrEnum):
    JSON = "json"
    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    VTT_WORDS = "vtt_words"
    """WebVTT in which each word is lit when it is said."""
    ASS = "ass"
    TSV = "tsv"
    DOCX = "docx"
    VERBOSE_JSON = "verbose_json"

    @property
    def needs_words(self) -> bool:
        """Subtitles are cut by word times, whether the caller asked for words or not."""
        return self in (ResponseFormat.SRT, ResponseFormat.VTT, ResponseFormat.VTT_WORDS, ResponseFormat.ASS)


@dataclass(frozen=True, slots=True)
class TranscriptionOptions:
    """What the caller wants, validated: every name in it exists, every number is in range."""

    model: str
    language: str | None = None
    """Whisper's code, such as "en"; None: detect it on the first speech."""
    task: Task = Task.TRANSCRIBE
    word_timestamps: bool = False
    beam_size: int = 5
    temperature: float = 0.0
    """0: greedy or beam search, then hotter where the safeguards fail. Above 0: sample at just that temperature."""
    initial_prompt: str | None = None
    hotwords: str | None = None
    """Words that are likely to be said, as they are spelled."""
    multilingual: bool = False
    """Detect the language of each segment anew."""
    logprobs: bool = False
    """Give each token's log probability."""
    once: bool = False
    """Decode once: what fails the safeguards is left out and not done again. For looks at speech that goes on."""
    vad: VoiceActivity = VoiceActivity.SILERO
    clips: tuple[tuple[float, float], ...] = ()
    """Only these stretches are heard: (start, end) in seconds, in order. None: all of it."""
    channels: Channels = Channels.MIX
    align: bool = False
    """Time the words by forced alignment."""
    align_model: str | None = None
    """In place of the language's own."""
    diarize: bool = False
    """Tell who speaks."""
    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None
    drop_fillers: bool = False
    mask_profanity: bool = False
    provider: Provider = Provider.LOCAL

    @property
    def decoding(self) -> TranscriptionOptions:
        """Of all this, what the engine needs to know: segments that agree in it may share a batch."""
        return TranscriptionOptions(
            model=self.model,
            language=self.language,
            task=self.task,
            word_timestamps=self.word_timestamps,
            beam_size=self.beam_size,
            temperature=self.temperature,
            initial_prompt=self.initial_prompt,
            hotwords=self.hotwords,
            multilingual=self.multilingual,
            logprobs=self.logprobs,
            once=self.once,
        )


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the container's header says; headers lie, so nothing relies on it but the price."""

    duration_s: float | None
    """None where the header does not tell."""
    sample_rate: int
    channels: int
    codec: str
    container: str
    has_video: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of PCM on disk, at most MAX_SEGMENT_S long. Travels between processes in place of its samples."""

    path: Path
    first_sample: int
    samples: int
    index: int
    """Its place in the recording: 0, 1, 2 …"""

    @property
    def start_s(self) -> float:
        return self.first_sample / SAMPLE_RATE

    @property
    def duration_s(self) -> float:
        return self.samples / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """A segment, and how it is to be decoded."""

    segment: Segment
    options: TranscriptionOptions


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and how urgent: callers take turns."""

    key: str = ""
    """Which API key's, as a name that tells nothing of the key."""
    priority: Priority = Priority.INTERACTIVE


NOBODY = Caller()
"""Who calls where nobody else does."""


@dataclass(frozen=True, slots=True)
class Word:
    """Times are seconds from the start of the recording. *text* keeps the space before it, as Whisper spells it."""

    __pydantic_config__: ClassVar = KEPT_AS_JSON

    start: float
    end: float
    text: str
    probability: float
    score: float | None = None
    """How well its sound fits it (0 to 1), where forced alignment has timed it."""
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One of the model's tokens as it was decoded. *text* shows what is no whole character as U+FFFD."""

    __pydantic_config__: ClassVar = KEPT_AS_JSON

    text: str
    bytes: tuple[int, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class TranscriptSegment:
    """What was said in one segment. Times are seconds from the start of the recording.

    *text* keeps the space before it, as Whisper spells it: languages without spaces have none there.
    """

    __pydantic_config__: ClassVar = KEPT_AS_JSON

    id: int
    start: float
    end: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    words: tuple[Word, ...] | None = None
    """None: not asked for."""
    speaker: str | None = None
    """Who speaks: "SPEAKER_00" …, or "CHANNEL_00" … where channels were split. None: not asked for, or not known."""
    language: str | None = None
    """Whisper's code, where each segment's was detected."""
    aligned: bool | None = None
    """Whether forced alignment has timed its words. None: not asked for."""
    tokens: tuple[int, ...] = ()
    """Whisper's, without times."""
    logprobs: tuple[Token, ...] | None = None
    """Of each token. None: not asked for."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The whole answer, before it is rendered."""

    __pydantic_config__: ClassVar = KEPT_AS_JSON

    segments: tuple[TranscriptSegment, ...]
    language: str | None
    """Whisper's code; None where it was to be detected and nobody speaks."""
    language_probability: float
    duration_s: float
    task: Task
    model: str
    device: str
    compute_type: str
    timings_s: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: "download", "decode", "voice_activity", "transcribe", "total" … where they took place.

    Stages overlap: their sum is no total.
    """
    warnings: tuple[str, ...] = ()
    """What could not be done as asked, in sentences."""
    provider: str = "local"
    """Who did it: this server, or "openai", its upstream."""

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def real_time_factor(self) -> float:
        """RTFx: seconds of audio per second of work, waiting for a turn left out; 0 before the total is known."""
        total_s = self.timings_s.get("total", 0.0) - self.timings_s.get("queue", 0.0)
        return self.duration_s / total_s if total_s > 0 else 0.0
