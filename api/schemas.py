"""What the answers look like, for the docs page and for tests: the endpoints build them elsewhere."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_SAID = "And so, my fellow Americans, ask not what your country can do for you."


class WordSchema(BaseModel):
    """Times are seconds from the start of the recording."""

    model_config = ConfigDict(title="Word", extra="forbid")

    word: str = Field(examples=["country"])
    start: float = Field(examples=[1.24])
    end: float = Field(examples=[1.66])
    probability: float = Field(examples=[0.98])
    score: float | None = Field(None, description="How well its sound fits it, 0 to 1; only with align.")
    speaker: str | None = Field(None, description="Who says it; only where that was asked for.")


class SegmentSchema(BaseModel):
    """A stretch of speech, at most 30 seconds long."""

    model_config = ConfigDict(title="Segment", extra="forbid")

    id: int = Field(examples=[0])
    start: float = Field(examples=[0.3])
    end: float = Field(examples=[7.9])
    text: str = Field(examples=[_SAID])
    avg_logprob: float | None = Field(examples=[-0.21])
    no_speech_prob: float | None = Field(examples=[0.01])
    speaker: str | None = Field(None, description="Who speaks, such as SPEAKER_00; only where that was asked for.")
    language: str | None = Field(None, description="Code of the language; only where each segment's was detected.")
    aligned: bool | None = Field(None, description="Whether forced alignment has timed its words; only with align.")
    words: list[WordSchema] | None = Field(None, description="Only with word_timestamps.")


class AboutTheWork(BaseModel):
    """What every transcript tells of its making."""

    model_config = ConfigDict(extra="forbid")

    task: str = Field(examples=["transcribe"])
    model: str = Field(examples=["base"])
    device: str = Field(examples=["cpu"])
    compute_type: str = Field(examples=["int8"])
    timings: dict[str, float] = Field(
        description="Seconds of each stage.", examples=[{"transcribe": 0.6, "total": 0.9}]
    )
    real_time_factor: float = Field(description="Seconds of audio per second of work.", examples=[12.2])
    provider: str = Field(description="Who did it: local is this server.", examples=["local"])
    warnings: list[str] | None = Field(None, description="What could not be done as asked; absent: all was.")
    request_id: str = Field(examples=["a1b2c3d4"])


class TranscriptionSchema(AboutTheWork):
    """The answer to response_format json."""

    model_config = ConfigDict(title="Transcription")

    text: str = Field(examples=[_SAID])
    language: str | None = Field(description="Code of the language; null where nobody speaks.", examples=["en"])
    language_probability: float | None = Field(examples=[0.99])
    duration: float = Field(description="Seconds of audio.", examples=[11.0])
    segments: list[SegmentSchema]


class VerboseSegmentSchema(SegmentSchema):
    """OpenAI's segment."""

    model_config = ConfigDict(title="VerboseSegment")

    seek: int | None = Field(description="Start in frames of 10 ms.", examples=[30])
    tokens: list[int] = Field(description="Whisper's, without times.", examples=[[400, 370, 11]])
    temperature: float | None = Field(examples=[0.0])
    compression_ratio: float | None = Field(examples=[1.3])


class VerboseTranscriptionSchema(AboutTheWork):
    """The answer to response_format verbose_json: OpenAI's fields, then what else is known."""

    model_config = ConfigDict(title="VerboseTranscription")

    text: str = Field(examples=[_SAID])
    language: str | None = Field(description="Name of the language.", examples=["english"])
    language_code: str | None = Field(examples=["en"])
    language_probability: float | None = Field(examples=[0.99])
    duration: float = Field(description="Seconds of audio.", examples=[11.0])
    segments: list[VerboseSegmentSchema]
    words: list[WordSchema] | None = Field(None, description="All words in a row; only with word_timestamps.")


class StoredFile(BaseModel):
    """A file that this server keeps for the key that had it made. Give `id` as audio_file or video_file to use it."""

    id: str = Field(examples=["5e0d7c1b9a3f4e21"])
    path: str = Field(
        description="Its name in the server's media folder: taken where `id` is.", examples=["5e0d7c1b9a3f4e21.m4a"]
    )
    file_name: str = Field(examples=["A talk.m4a"])
    media_type: str = Field(examples=["audio/mp4"])
    bytes: int = Field(examples=[1482331])
    duration: float | None = Field(None, description="Seconds, where it is known.", examples=[91.4])


class DownloadedFile(StoredFile):
    title: str | None = Field(None, examples=["A talk"])
    extractor: str | None = Field(None, description="yt-dlp's name of the site.", examples=["generic"])
    audio_file: str = Field(description="What to give to /transcribe.", examples=["5e0d7c1b9a3f4e21"])


class ExtractedFile(StoredFile):
    audio_file: str = Field(description="What to give to /transcribe.", examples=["5e0d7c1b9a3f4e21"])


class SubtitledFile(StoredFile):
    video_file: str = Field(description="What to give to /extract-audio or /subtitle.", examples=["5e0d7c1b9a3f4e21"])


class FileList(BaseModel):
    files: list[StoredFile]


class ModelState(BaseModel):
    """One model that can be named as model_size."""

    name: str = Field(examples=["base"])
    available: bool = Field(description="Whether a request can use it; from the hub, after a download.")
    loaded: bool = Field(description="Whether the engine holds it in memory.")
    default: bool = Field(description="Whether it is used where the caller names none.")
    english_only: bool
    translates: bool = Field(description="Whether it takes task=translate.")
    bytes: int = Field(description="Size of its weights on disk.", examples=[145217607])
    source: str | None = Field(
        description="Where its weights come from: folder, package, hub cache, hub (fetched at first use), or nowhere.",
        examples=["package"],
    )


class ModelList(BaseModel):
    models: list[ModelState]


class Health(BaseModel):
    status: str = Field("ok", examples=["ok"])
    version: str = Field(examples=["0.1.0"])


class Readiness(BaseModel):
    status: str = Field("ready", examples=["ready"])
    loaded: list[str] = Field(description="Models in memory.", examples=[["base"]])


TRANSCRIPTION_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The transcript, in the response format that was asked for.",
        "model": TranscriptionSchema | VerboseTranscriptionSchema,
        "content": {
            "text/plain": {"schema": {"type": "string"}, "example": "And so, my fellow Americans …\n"},
            "application/x-subrip": {
                "schema": {"type": "string"},
                "example": "1\n00:00:00,300 --> 00:00:03,900\nAnd so, my fellow Americans,\n",
            },
            "text/vtt": {
                "schema": {"type": "string"},
                "example": "WEBVTT\n\n00:00.300 --> 00:03.900\nAnd so, my fellow Americans,\n",
            },
            "text/x-ssa": {"schema": {"type": "string"}, "example": "[Script Info]\nScriptType: v4.00+\n…"},
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document": {
                "schema": {"type": "string", "format": "binary"}
            },
            "text/tab-separated-values": {
                "schema": {"type": "string"},
                "example": "start\tend\ttext\n300\t7900\tAnd so, my fellow Americans …\n",
            },
        },
    }
}
