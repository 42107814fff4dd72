"""What OpenAI's interface lets callers ask for, and what that is in this server's own words."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from api.handing_in import JobParameters
from api.parameters import LanguageName, Pairs, parse
from api.problems import InvalidParameters
from api.transcribe import TranscribeParameters, options_of
from api.uploads import MAX_PARTS, JsonObject
from transcription import languages, models
from transcription.core import ResponseFormat, Task, TranscriptionOptions

ALIASES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-transcribe-diarize",
)
"""OpenAI's own models: each stands for this server's default model."""

DIARIZING = "gpt-4o-transcribe-diarize"
TELLS_LANGUAGES = "gpt-transcribe"
"""Its answers have `languages`."""

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_PROMPT_CHARACTERS = 1000
_KEYWORD_CHARACTERS = 1000


class SpeechFormat(StrEnum):
    """OpenAI's response formats."""

    JSON = "json"
    TEXT = "text"
    SRT = "srt"
    VERBOSE_JSON = "verbose_json"
    VTT = "vtt"
    DIARIZED_JSON = "diarized_json"

    @property
    def own(self) -> ResponseFormat:
        """The nearest of this server's."""
        return ResponseFormat.JSON if self is SpeechFormat.DIARIZED_JSON else ResponseFormat(self.value)


class ServerVad(BaseModel):
    """How OpenAI would be told to cut. This server's own rule cuts better with what follows: the values are checked
    and no more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["server_vad"]
    prefix_padding_ms: int = Field(300, ge=0)
    silence_duration_ms: int = Field(200, ge=0)
    threshold: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)


def _strategy(value: Any) -> Any:
    """ "auto", or an object: as JSON text, or gathered from fields."""
    if value in (None, "auto"):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict) or len(value) > MAX_PARTS:
        raise ValueError('must be "auto" or an object of type server_vad')
    return value


class SpeechParameters(JobParameters):
    """What transcriptions and translations share."""

    lists: ClassVar[frozenset[str]] = frozenset()
    """Fields that come as `name[]`, once for each value."""

    objects: ClassVar[frozenset[str]] = frozenset()
    """Fields that may come as `name[part]`."""

    model: str | None = Field(None, max_length=200, description="A model of this server, or one of OpenAI's names.")
    prompt: str | None = Field(None, description="Text that sets spelling and style; its end counts.")
    response_format: SpeechFormat = Field(SpeechFormat.JSON, description="How the transcript is written.")
    temperature: float = Field(0.0, ge=0, le=1, allow_inf_nan=False, description="As in /transcribe.")

    @field_validator("model")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and alias_of(name) is None:
            return models.spec(name).name
        return name

    @classmethod
    def own_fields(cls) -> list[str]:
        """Without what belongs to this server's other endpoints."""
        return [name for name in cls.model_fields if name not in JobParameters.model_fields]

    @classmethod
    def gathered(cls, pairs: Pairs) -> Pairs:
        """`name[]=…`, `name[0]=…` and `name=…` as one list; `name[part]=…` as one object. Raises InvalidParameters."""
        lists: dict[str, list[Any]] = defaultdict(list)
        objects: dict[str, dict[str, Any]] = defaultdict(dict)
        others: list[tuple[str, Any]] = []
        known = cls.own_fields()
        for name, value in pairs:
            base, _, inner = name.partition("[")
            inner = inner.removesuffix("]")
            if base in cls.lists and (inner == "" or inner.isdecimal()):
                lists[base] += value if isinstance(value, list) else [] if value in (None, "") else [value]
            elif base in cls.objects and inner:
                objects[base][inner] = value
            elif name in cls.objects and isinstance(value, JsonObject):
                objects[base] |= dict(value)
            elif name in known:
                others.append((name, value))
            else:
                there = ", ".join(["file", *known])
                raise InvalidParameters([(name, f"unrecognized request argument; there are {there}")])
        return [*others, *lists.items(), *objects.items()]

    @property
    def alias(self) -> str | None:
        """Which of OpenAI's models was named, if one was."""
        return None if self.model is None else alias_of(self.model)

    @property
    def task(self) -> Task:
        raise NotImplementedError


class TranslationParameters(SpeechParameters):
    @field_validator("response_format")
    @classmethod
    def _no_speakers(cls, asked: SpeechFormat) -> SpeechFormat:
        if asked is SpeechFormat.DIARIZED_JSON:
            raise ValueError("must be json, text, srt, verbose_json or vtt")
        return asked

    @property
    def task(self) -> Task:
        return Task.TRANSLATE


class TranscriptionParameters(SpeechParameters):
    lists: ClassVar[frozenset[str]] = frozenset(
        {
            "timestamp_granularities",
            "include",
            "known_speaker_names",
            "known_speaker_references",
            "keywords",
            "languages",
        }
    )
    objects: ClassVar[frozenset[str]] = frozenset({"chunking_strategy"})

    language: LanguageName | None = Field(None, description="Code or name of what is spoken; absent: it is detected.")
    languages: list[LanguageName] = Field(
        [], max_length=MAX_PARTS, description="What may be spoken: one, or leave it out."
    )
    keywords: list[str] = Field(
        [], max_length=MAX_PARTS, description="Words that are likely to be said, as they are spelled."
    )
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        [], max_length=MAX_PARTS, description="What verbose_json tells the times of: word, segment, or both."
    )
    stream: bool = Field(False, description="Answer with server-sent events, as the text is heard.")
    include: list[Literal["logprobs"]] = Field(
        [], max_length=MAX_PARTS, description="logprobs: each token's log probability, in json."
    )
    chunking_strategy: Annotated[ServerVad | None, BeforeValidator(_strategy)] = Field(
        None, description="auto, or an object of type server_vad. This server cuts by its own rule in any case."
    )
    known_speaker_names: list[str] = Field(
        [], max_length=MAX_PARTS, description="Refused: speakers are told apart, not recognized."
    )
    known_speaker_references: list[str] = Field(
        [], max_length=MAX_PARTS, description="Refused, as known_speaker_names."
    )

    @field_validator("language")
    @classmethod
    def _known_language(cls, name: str | None) -> str | None:
        return None if name is None else languages.language_code(name)

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(languages.language_code(name) for name in names))

    @property
    def task(self) -> Task:
        return Task.TRANSCRIBE

    @property
    def diarizes(self) -> bool:
        """Whether the answer says who speaks."""
        subtitles = self.response_format in (SpeechFormat.SRT, SpeechFormat.VTT)
        return self.response_format is SpeechFormat.DIARIZED_JSON or (subtitles and self.alias == DIARIZING)

    @property
    def logprobs(self) -> bool:
        return "logprobs" in self.include

    @property
    def words(self) -> bool:
        return "word" in self.timestamp_granularities

    @property
    def segments(self) -> bool:
        """Whether verbose_json has segments: unless words alone are asked for."""
        return not self.timestamp_granularities or "segment" in self.timestamp_granularities


def alias_of(name: str) -> str | None:
    """Which of OpenAI's models *name* is, be it a dated snapshot of it."""
    plain = _SNAPSHOT.sub("", name.strip().lower())
    return plain if plain in ALIASES else None


def check(asked: SpeechParameters) -> None:
    """A model is named, and what is asked goes together. Raises InvalidParameters."""
    faults: list[tuple[str, str]] = []
    if asked.model is None:
        faults.append(("model", f"you must name a model: one of GET /v1/models, or {ALIASES[0]}"))
    if isinstance(asked, TranscriptionParameters):
        faults += _contradictions(asked)
    if faults:
        raise InvalidParameters(faults)


NOT_RECOGNIZED = "this server tells speakers apart (A, B, C …) but recognizes nobody: leave it out"


def _contradictions(asked: TranscriptionParameters) -> list[tuple[str, str]]:
    faults = [
        (name, NOT_RECOGNIZED) for name in ("known_speaker_names", "known_speaker_references") if getattr(asked, name)
    ]
    if asked.timestamp_granularities and asked.response_format is not SpeechFormat.VERBOSE_JSON:
        faults.append(("timestamp_granularities", "goes with response_format=verbose_json"))
    if asked.logprobs and asked.response_format is not SpeechFormat.JSON:
        faults.append(("include", "logprobs goes with response_format=json"))
    streamed = (SpeechFormat.JSON, SpeechFormat.TEXT, SpeechFormat.DIARIZED_JSON)
    if asked.stream and asked.response_format not in streamed:
        faults.append(("stream", f"goes with response_format {', '.join(streamed)}"))
    if len({*asked.languages, *_given(asked.language)}) > 1:
        faults.append(("languages", "this server can be told one language; leave it out to have it detected"))
    if len(", ".join(asked.keywords)) > _KEYWORD_CHARACTERS:
        faults.append(("keywords", f"are longer than {_KEYWORD_CHARACTERS} characters together"))
    return faults


def _given(value: str | None) -> Sequence[str]:
    return () if value is None else (value,)


def speech_options(asked: SpeechParameters, *, default_model: str, default_beam_size: int) -> TranscriptionOptions:
    """What is to be transcribed, and how.

    Raises InvalidParameters, UnknownModel, UnsupportedLanguage.
    """
    check(asked)
    model = models.spec(default_model if asked.alias or asked.model is None else asked.model)
    if asked.task is Task.TRANSLATE and not model.translates:
        raise InvalidParameters([("model", f"{model.name} cannot translate: name one of GET /models that does")])
    given: dict[str, Any] = {
        "model_size": model.name,
        "task": asked.task,
        "response_format": asked.response_format.own,
        "temperature": asked.temperature,
        # As with OpenAI, of a long prompt the end counts.
        "initial_prompt": asked.prompt and asked.prompt[-_PROMPT_CHARACTERS:],
    }
    if isinstance(asked, TranscriptionParameters):
        given |= {
            "language": asked.language or next(iter(asked.languages), None),
            "hotwords": ", ".join(asked.keywords),
            "word_timestamps": asked.words,
            "diarize": asked.diarizes,
        }
    own = parse(TranscribeParameters, list(given.items()))
    options = options_of(own, default_model=default_model, default_beam_size=default_beam_size)
    logprobs = isinstance(asked, TranscriptionParameters) and asked.logprobs
    return dataclasses.replace(options, logprobs=logprobs)
