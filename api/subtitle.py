"""POST /subtitle: a video in, the same video with subtitles of what is said in it out, as a stored file."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from api.files import described
from api.gate import GATE_ERRORS, Patient
from api.handing_in import ACCEPTED, JOB_ERRORS, IdempotencyKey, JobParameters, Prefer, Wanted, handed_in
from api.parameters import LanguageName, Reference, documentation, parse
from api.problems import responses
from api.schemas import SubtitledFile
from api.security import may_transcribe
from api.services import Services, services
from api.transcribe import TranscribeParameters, fitting_options
from api.uploads import Upload
from downloads.stored_files import MediaFile
from errors import (
    AlignmentUnavailable,
    AmbiguousAudio,
    AudioTooLong,
    DiarizationUnavailable,
    EmptyMedia,
    EngineFailed,
    GpuOutOfMemory,
    InvalidRequest,
    MediaNotFound,
    MediaTimeout,
    ModelUnavailable,
    NoAudio,
    NoAudioStream,
    NotReady,
    OutOfMemory,
    PathNotAllowed,
    ShuttingDown,
    StorageFull,
    Unauthorized,
    UnknownModel,
    UnsupportedLanguage,
    UnsupportedMedia,
    UploadTooLarge,
    VoiceActivityUnavailable,
    WorkerCrashed,
)
from jobs.crew import OPTIONS, Outcome
from reservation import Work
from transcription.core import ResponseFormat, Task, TranscriptionOptions, VoiceActivity

router = APIRouter(tags=["media"], dependencies=[Depends(may_transcribe)])

_OWN = {"video_file", "burn", *JobParameters.model_fields}
"""All others mean what they mean in /transcribe, and are checked as they are there."""


class SubtitleParameters(JobParameters):
    video_file: Reference | None = Field(
        None, description="Id or path of a file on the server, as /download returns it."
    )
    burn: bool = Field(
        False,
        description="Draw the subtitles into the picture, which is encoded anew; else viewers can turn them off.",
    )
    model_size: str | None = Field(None, description="As in /transcribe.", examples=["base"])
    language: LanguageName | None = Field(None, description="What is spoken; absent: it is detected.", examples=["en"])
    task: Task = Field(Task.TRANSCRIBE, description="translate: subtitles in English.")
    beam_size: int | None = Field(None, ge=1, le=16, description="As in /transcribe.")
    temperature: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="As in /transcribe.")
    initial_prompt: str | None = Field(None, max_length=1000, description="As in /transcribe.")
    hotwords: str | None = Field(None, max_length=1000, description="Names and words that are likely to be said.")
    vad: VoiceActivity = Field(VoiceActivity.SILERO, description="Which model finds the speech.")
    multilingual: bool = Field(False, description="Detect the language of each segment anew.")
    align: bool = Field(False, description="Time the words by forced alignment.")
    align_model: str | None = Field(None, max_length=500, description="As in /transcribe.")
    diarize: bool = Field(False, description="Tell who speaks where another begins.")
    num_speakers: int | None = Field(None, ge=1, le=50, description="As in /transcribe.")
    min_speakers: int | None = Field(None, ge=1, le=50, description="As in /transcribe.")
    max_speakers: int | None = Field(None, ge=1, le=50, description="As in /transcribe.")
    filter_fillers: bool = Field(False, description="Leave out hesitations: um, uh, äh, euh …")
    filter_profanity: bool = Field(False, description="Mask swear words beyond their first letter.")


@router.post(
    "/subtitle",
    summary="Put subtitles into a video",
    responses={200: {"description": "The stored video.", "model": SubtitledFile}}
    | ACCEPTED
    | responses(
        *(Unauthorized, InvalidRequest, NoAudio, AmbiguousAudio, UnknownModel, ModelUnavailable, UnsupportedLanguage),
        *(VoiceActivityUnavailable, AlignmentUnavailable, DiarizationUnavailable, MediaNotFound, PathNotAllowed),
        *(UploadTooLarge, AudioTooLong, EmptyMedia, UnsupportedMedia, NoAudioStream, MediaTimeout, WorkerCrashed),
        *(OutOfMemory, GpuOutOfMemory, EngineFailed, NotReady, ShuttingDown, StorageFull, *GATE_ERRORS, *JOB_ERRORS),
    ),
    openapi_extra=documentation(
        SubtitleParameters, example={"video_file": "5e0d7c1b9a3f4e21", "burn": False}, file="The video."
    ),
)
async def subtitle(
    request: Request, patience: Patient, idempotency_key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Send exactly one of `file` and `video_file`. The video stays on the server: GET /files/{id} fetches it."""
    parts = services(request)
    return await handed_in(
        request,
        Work.TRANSCRIPTION,
        patience,
        idempotency_key,
        prefer,
        SubtitleParameters,
        max_bytes=parts.max_upload_bytes,
        check=partial(_options, parts=parts),
        want=partial(_wanted, parts=parts),
        answer=_answer,
    )


def _options(asked: SubtitleParameters, parts: Services) -> TranscriptionOptions:
    """What is to be transcribed, and how. Raises what /transcribe raises for the same parameters."""
    given = asked.model_dump(exclude=_OWN, exclude_unset=True)
    transcribe = parse(TranscribeParameters, [*given.items(), ("response_format", ResponseFormat.SRT)])
    return fitting_options(transcribe, parts)


def _wanted(asked: SubtitleParameters, upload: Upload | None, parts: Services) -> Wanted:
    if upload is None and asked.video_file is None:
        raise NoAudio("No video was given: send a file, or name one with video_file.")
    if upload is not None and asked.video_file is not None:
        raise AmbiguousAudio("Both file and video_file were given: send exactly one.")
    if upload is not None and upload.bytes == 0:
        raise EmptyMedia
    given = {"name": upload.name} if upload else {"file": asked.video_file}
    options = OPTIONS.dump_python(_options(asked, parts), mode="json")
    return Wanted(given | {"video": True, "burn": asked.burn}, options)


async def _answer(_: SubtitleParameters, outcome: Outcome) -> Response:
    assert isinstance(outcome, MediaFile)
    return JSONResponse(subtitled_file(outcome).model_dump(mode="json"))


def subtitled_file(media: MediaFile) -> SubtitledFile:
    """What /subtitle answers."""
    stored = described(media)
    return SubtitledFile(**stored.model_dump(), video_file=stored.id)
