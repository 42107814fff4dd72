"""POST /transcribe: a recording, a stored file or a link in, a transcript out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, StringConstraints, field_validator

from api.event_stream import documented, message, rounded
from api.gate import GATE_ERRORS, Patient
from api.handing_in import ACCEPTED, JOB_ERRORS, IdempotencyKey, JobParameters, Prefer, Wanted, handed_in
from api.parameters import LanguageName, Reference, documentation
from api.problems import InvalidParameters, problem_of, responses
from api.providers import check_provider
from api.schemas import TRANSCRIPTION_RESPONSES
from api.security import may_transcribe
from api.services import Services, services
from api.uploads import Upload
from errors import (
    AlignmentUnavailable,
    AmbiguousAudio,
    AudioTooLong,
    DiarizationUnavailable,
    DownloadFailed,
    DownloadTimeout,
    DownloadTooLarge,
    EmptyMedia,
    EngineFailed,
    GpuOutOfMemory,
    InvalidLink,
    InvalidRequest,
    LinkNotAllowed,
    MediaNotFound,
    MediaTimeout,
    ModelUnavailable,
    NoAudio,
    NoAudioStream,
    NoMediaAtLink,
    NotReady,
    OutOfMemory,
    PathNotAllowed,
    ProviderNotAllowed,
    ServiceError,
    ShuttingDown,
    StorageFull,
    Unauthorized,
    UnknownModel,
    UnsupportedLanguage,
    UnsupportedMedia,
    UploadTooLarge,
    UpstreamFailed,
    UpstreamTimeout,
    VoiceActivityUnavailable,
    WorkerCrashed,
)
from jobs.crew import OPTIONS, Outcome
from jobs.journal import Told
from reservation import Work
from telemetry import current_request_id
from transcription import formats, languages, models
from transcription.core import (
    Channels,
    Provider,
    ResponseFormat,
    Task,
    Transcript,
    TranscriptionOptions,
    VoiceActivity,
)
from transcription.protocol import Language

router = APIRouter(tags=["transcription"])

Prompt = Annotated[str, StringConstraints(max_length=1000)]


class TranscribeParameters(JobParameters):
    audio_file: Reference | None = Field(
        None, description="Id or path of a file on the server, as /download and /extract-audio return it."
    )
    url: str | None = Field(None, description="A link to audio or video: fetched, then transcribed.")
    provider: Provider = Field(
        Provider.LOCAL,
        description="Who transcribes: this server; openai: its upstream; auto: the upstream where this server is full.",
    )
    model_size: str | None = Field(
        None, description="tiny, base, small, medium, large-v3, turbo … as GET /models lists them.", examples=["base"]
    )
    language: LanguageName | None = Field(
        None, description="Code or name of the language that is spoken; absent: it is detected.", examples=["en"]
    )
    task: Task = Field(Task.TRANSCRIBE, description="translate: into English.")
    response_format: ResponseFormat = Field(ResponseFormat.JSON, description="How the transcript is written.")
    word_timestamps: bool = Field(False, description="Give each word's start, end and probability.")
    beam_size: int | None = Field(None, ge=1, le=16, description="Hypotheses kept while decoding; 1 is greedy.")
    temperature: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, description="0: most likely words. Above 0: sampled at that temperature."
    )
    initial_prompt: Prompt | None = Field(
        None, description="Text that sets spelling and style, at most 1000 characters."
    )
    hotwords: Prompt | None = Field(
        None, description="Names and words that are likely to be said, as they are spelled.", examples=["Stenogate"]
    )
    vad: VoiceActivity = Field(VoiceActivity.SILERO, description="Which model finds the speech; none: all is decoded.")
    clip_timestamps: str | None = Field(
        None,
        max_length=10_000,
        description="Only these stretches: start,end,start,end … in seconds; a last start without end: to the end.",
        examples=["0,30,60,90"],
    )
    multilingual: bool = Field(False, description="Detect the language of each segment anew.")
    align: bool = Field(False, description="Time the words by forced alignment.")
    align_model: str | None = Field(
        None, max_length=500, description="One of this server's alignment models, in place of the language's own."
    )
    diarize: bool = Field(False, description="Tell who speaks.")
    num_speakers: int | None = Field(None, ge=1, le=50, description="Speakers there are, where that is known.")
    min_speakers: int | None = Field(None, ge=1, le=50, description="Speakers there are at least.")
    max_speakers: int | None = Field(None, ge=1, le=50, description="Speakers there are at most.")
    channels: Channels = Field(
        Channels.MIX, description="split: each channel is heard alone, as a speaker of its own, with no model at all."
    )
    filter_fillers: bool = Field(False, description="Leave out hesitations: um, uh, äh, euh …")
    filter_profanity: bool = Field(False, description="Mask swear words beyond their first letter.")
    stream: bool = Field(
        False, description="Answer with server-sent events: each segment as it is finished, at last the whole."
    )
    reuse: bool = Field(
        False, description="Take the transcript that this key has had made, or is having made, of the same samples."
    )

    @field_validator("clip_timestamps")
    @classmethod
    def _clips_in_order(cls, text: str | None) -> str | None:
        if text is not None:
            clips_in(text)
        return text

    @field_validator("model_size")
    @classmethod
    def _known_model(cls, name: str | None) -> str | None:
        return None if name is None else models.spec(name).name

    @field_validator("language")
    @classmethod
    def _known_language(cls, name: str | None) -> str | None:
        return None if name is None else languages.language_code(name)


END_S = 1e9
"""Past the end of any recording."""


def clips_in(text: str) -> tuple[tuple[float, float], ...]:
    """The stretches that clip_timestamps names. Raises ValueError."""
    times = [float(part) for part in text.split(",")]
    if len(times) % 2:
        times.append(END_S)
    if not all(0 <= time <= END_S for time in times) or sorted(times) != times:
        raise ValueError("must be seconds that do not run backwards: start,end,start,end …")
    clips = tuple(zip(times[::2], times[1::2], strict=True))
    if any(start == end for start, end in clips):
        raise ValueError("a stretch must last some time: its end comes after its start")
    return clips


def check_speakers(asked: TranscribeParameters) -> None:
    """Numbers of speakers agree, and go with diarize. Raises InvalidParameters."""
    numbers = {name: getattr(asked, name) for name in ("num_speakers", "min_speakers", "max_speakers")}
    given = [name for name, number in numbers.items() if number is not None]
    if given and not asked.diarize:
        raise InvalidParameters([(name, "goes with diarize=true") for name in given])
    if asked.num_speakers is not None and len(given) > 1:
        raise InvalidParameters([(name, "num_speakers says it already") for name in given if name != "num_speakers"])
    if asked.min_speakers and asked.max_speakers and asked.min_speakers > asked.max_speakers:
        raise InvalidParameters([("min_speakers", "is more than max_speakers")])


def check_source(asked: TranscribeParameters, upload: Upload | None) -> None:
    """Exactly one audio must be given, and not an empty one. Raises NoAudio, AmbiguousAudio, EmptyMedia."""
    given = sum(source is not None for source in (upload, asked.audio_file, asked.url))
    if given == 0:
        raise NoAudio
    if given > 1:
        raise AmbiguousAudio
    if upload is not None and upload.bytes == 0:
        raise EmptyMedia


def options_of(asked: TranscribeParameters, *, default_model: str, default_beam_size: int) -> TranscriptionOptions:
    """What the caller wants, with this server's defaults.

    Raises AmbiguousAudio, UnsupportedLanguage, InvalidRequest: what must not go together.
    """
    if asked.audio_file is not None and asked.url is not None:
        raise AmbiguousAudio
    check_speakers(asked)
    if asked.stream and asked.response_format is ResponseFormat.DOCX:
        raise InvalidParameters([("stream", "a document cannot be sent as events: choose another response_format")])
    if asked.stream and asked.mode == "async":
        raise InvalidParameters([("stream", "goes with mode=sync; a job's events are at its events_url")])
    model = models.spec(asked.model_size or default_model)
    elsewhere = asked.provider is Provider.OPENAI
    if elsewhere and (own := [name for name in ("model_size", "beam_size") if getattr(asked, name) is not None]):
        raise InvalidParameters([(name, "goes with provider=local: the upstream has its own") for name in own])
    if not elsewhere and asked.language is not None and not model.knows(asked.language):
        raise UnsupportedLanguage(f"The model {model.name} does not know the language {asked.language!r}.")
    if not elsewhere and asked.task is Task.TRANSLATE and not model.translates:
        raise InvalidRequest(f"The model {model.name} cannot translate: choose another, or task=transcribe.")
    return TranscriptionOptions(
        model=model.name,
        # A model that knows English only must not be asked to detect the language.
        language="en" if model.english_only and not elsewhere else asked.language,
        task=asked.task,
        word_timestamps=needs_words(asked),
        beam_size=asked.beam_size or default_beam_size,
        temperature=asked.temperature,
        initial_prompt=asked.initial_prompt,
        hotwords=asked.hotwords,
        multilingual=asked.multilingual and (elsewhere or not model.english_only),
        vad=asked.vad,
        clips=clips_in(asked.clip_timestamps) if asked.clip_timestamps else (),
        channels=asked.channels,
        align=asked.align or asked.align_model is not None,
        align_model=asked.align_model,
        diarize=asked.diarize,
        num_speakers=asked.num_speakers,
        min_speakers=asked.min_speakers,
        max_speakers=asked.max_speakers,
        drop_fillers=asked.filter_fillers,
        mask_profanity=asked.filter_profanity,
        provider=asked.provider,
    )


def needs_words(asked: TranscribeParameters) -> bool:
    """Whether somebody reads their times: the caller, subtitles, or what comes after the decoder."""
    after = asked.align or asked.align_model is not None or asked.diarize
    return asked.word_timestamps or asked.response_format.needs_words or after


_EVENTS = """event: language
data: {"language":"en","language_probability":0.99}

event: segment
data: {"start":0.3,"end":7.9,"text":"And so, my fellow Americans,"}

event: transcript
data: {"text":"And so, my fellow Americans, …"}
"""
_DONE = TRANSCRIPTION_RESPONSES[200]
_ANSWERS = {200: _DONE | {"content": _DONE["content"] | documented(_EVENTS)}} | ACCEPTED


@router.post(
    "/transcribe",
    summary="Transcribe a recording, a stored file or a link",
    dependencies=[Depends(may_transcribe)],
    response_class=Response,
    responses=_ANSWERS
    | responses(
        *(Unauthorized, InvalidRequest, NoAudio, AmbiguousAudio, UnknownModel, ModelUnavailable, UnsupportedLanguage),
        *(
            VoiceActivityUnavailable,
            AlignmentUnavailable,
            DiarizationUnavailable,
            MediaNotFound,
            PathNotAllowed,
            UploadTooLarge,
            AudioTooLong,
            EmptyMedia,
        ),
        *(UnsupportedMedia, NoAudioStream, MediaTimeout, InvalidLink, LinkNotAllowed, NoMediaAtLink, DownloadFailed),
        *(DownloadTooLarge, DownloadTimeout, WorkerCrashed, OutOfMemory, GpuOutOfMemory, EngineFailed, NotReady),
        *(ProviderNotAllowed, UpstreamFailed, UpstreamTimeout),
        *(ShuttingDown, StorageFull, *GATE_ERRORS, *JOB_ERRORS),
    ),
    openapi_extra=documentation(
        TranscribeParameters,
        example={"audio_file": "5e0d7c1b9a3f4e21", "word_timestamps": True},
        file="The recording: audio or video in any usual format.",
    ),
)
async def transcribe(
    request: Request, patience: Patient, idempotency_key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Send exactly one of `file`, `audio_file` and `url`."""
    parts = services(request)
    return await handed_in(
        request,
        Work.TRANSCRIPTION,
        patience,
        idempotency_key,
        prefer,
        TranscribeParameters,
        max_bytes=parts.max_upload_bytes,
        check=partial(fitting_options, parts=parts),
        want=partial(_wanted, parts=parts),
        answer=_answer,
        telling=lambda asked: _Teller(asked.response_format) if asked.stream else None,
    )


class _Teller:
    """`language`, `segment` …, then `transcript` or `error`, in the words of the answer that is not streamed."""

    def __init__(self, response_format: ResponseFormat) -> None:
        self._format = response_format

    def heard(self, told: Told) -> Iterable[str]:
        if isinstance(told, Language):
            yield message("language", {"language": told.code, "language_probability": rounded(told.probability, 4)})
        elif told.text:
            yield message("segment", formats.segment_json(told))

    async def over(self, outcome: Outcome) -> Iterable[str]:
        assert isinstance(outcome, Transcript)
        content = await asyncio.to_thread(formats.render, outcome, self._format, request_id=current_request_id() or "")
        return [message("transcript", content if isinstance(content, dict) else {"text": content})]

    def failed(self, error: ServiceError) -> Iterable[str]:
        yield message("error", problem_of(error).model_dump(exclude_none=True))


def fitting_options(asked: TranscribeParameters, parts: Services) -> TranscriptionOptions:
    """As `options_of`; raises TooLarge, too, for a model that no engine here can hold, and what `check_provider`
    raises."""
    options = options_of(asked, default_model=parts.default_model, default_beam_size=parts.default_beam_size)
    check_provider(options, parts)
    if options.align_model is not None:
        parts.alignment_models.check(options.align_model)
    return options


def _wanted(asked: TranscribeParameters, upload: Upload | None, parts: Services) -> Wanted:
    check_source(asked, upload)
    source = {"name": upload.name if upload else None, "file": asked.audio_file, "url": asked.url}
    given = {name: value for name, value in source.items() if value is not None}
    options = OPTIONS.dump_python(fitting_options(asked, parts), mode="json")
    return Wanted(given | {"response_format": asked.response_format}, options, asked.reuse)


async def _answer(asked: TranscribeParameters, outcome: Outcome) -> Response:
    assert isinstance(outcome, Transcript)
    # A long recording's subtitles take a second of CPU: not on the event loop.
    return await asyncio.to_thread(rendered, outcome, asked.response_format, current_request_id() or "")


def rendered(transcript: Transcript, response_format: ResponseFormat, request_id: str) -> Response:
    """*transcript* as its caller wants it written."""
    content = formats.render(transcript, response_format, request_id=request_id)
    # Texts and subtitles have no other place to say it.
    headers = {"X-Transcribed-By": transcript.provider}
    if isinstance(content, dict):
        return JSONResponse(content, headers=headers)
    return Response(content, headers=headers, media_type=formats.media_type(response_format))
