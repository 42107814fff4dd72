"""POST /download and POST /extract-audio: media in, a stored file out that /transcribe takes by its id."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from api.files import described
from api.gate import GATE_ERRORS, Patient
from api.handing_in import ACCEPTED, JOB_ERRORS, IdempotencyKey, JobParameters, Prefer, Wanted, handed_in
from api.parameters import Reference, documentation
from api.problems import InvalidParameters, responses
from api.schemas import DownloadedFile, ExtractedFile
from api.security import may_download, may_transcribe
from api.services import services
from api.uploads import MAX_FORM_BYTES, Upload
from downloads.extract import AudioFormat, ExtractOptions
from downloads.fetch import MediaKind
from downloads.stored_files import MediaFile
from errors import (
    AmbiguousAudio,
    AudioTooLong,
    DownloadFailed,
    DownloadTimeout,
    DownloadTooLarge,
    EmptyMedia,
    InvalidLink,
    InvalidRequest,
    LinkNotAllowed,
    MediaNotFound,
    MediaTimeout,
    NoAudio,
    NoAudioStream,
    NoMediaAtLink,
    NotReady,
    PathNotAllowed,
    ShuttingDown,
    StorageFull,
    Unauthorized,
    UnsupportedMedia,
    UploadTooLarge,
)
from jobs.crew import DOWNLOAD_OPTIONS, EXTRACT_OPTIONS, DownloadOptions, Outcome
from reservation import Work

router = APIRouter(tags=["media"])


class DownloadParameters(JobParameters):
    url: str | None = Field(None, description="A link to audio or video, or to a page that holds it.")
    kind: MediaKind = Field(MediaKind.AUDIO, description="audio: the best sound alone; video: with pictures.")
    format: str | None = Field(
        None,
        max_length=200,
        description="yt-dlp's format notation; replaces kind and max_height.",
        examples=["bestaudio"],
    )
    max_height: int | None = Field(None, ge=100, le=4320, description="Lines of the picture at most, for video.")


class ExtractParameters(JobParameters):
    video_file: Reference | None = Field(
        None, description="Id or path of a file on the server, as /download returns it."
    )
    format: AudioFormat = Field(AudioFormat.MP3, description="Container and codec of the result.")
    sample_rate: int | None = Field(None, ge=8000, le=192_000, description="Hertz; absent: as in the source.")
    channels: int | None = Field(None, ge=1, le=2, description="1: mono, 2: stereo; absent: as in the source.")
    bit_rate: int | None = Field(None, ge=16_000, le=512_000, description="Bits a second, for mp3, m4a and opus.")


@router.post(
    "/download",
    summary="Fetch the media behind a link",
    dependencies=[Depends(may_download)],
    responses={200: {"description": "The stored file.", "model": DownloadedFile}}
    | ACCEPTED
    | responses(
        *(Unauthorized, InvalidRequest, InvalidLink, LinkNotAllowed, NoMediaAtLink, DownloadFailed, DownloadTooLarge),
        *(DownloadTimeout, UploadTooLarge, ShuttingDown, StorageFull, NotReady, *GATE_ERRORS, *JOB_ERRORS),
    ),
    openapi_extra=documentation(
        DownloadParameters, example={"url": "https://example.com/talk.mp4", "kind": "audio"}, required=["url"]
    ),
)
async def download(
    request: Request, patience: Patient, idempotency_key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """The file stays on the server; give its `id` to /transcribe as `audio_file`."""
    return await handed_in(
        request,
        Work.DOWNLOAD,
        patience,
        idempotency_key,
        prefer,
        DownloadParameters,
        max_bytes=MAX_FORM_BYTES,
        check=_link_of,
        want=_wanted_download,
        answer=_answer_download,
    )


def _link_of(asked: DownloadParameters) -> str:
    if asked.url is None:
        raise InvalidParameters([("url", "a link is needed")])
    return asked.url


def _wanted_download(asked: DownloadParameters, upload: Upload | None) -> Wanted:
    if upload is not None:
        raise InvalidParameters([("file", "not taken here; send it to /transcribe or /extract-audio")])
    options = DownloadOptions(asked.kind, asked.format, asked.max_height)
    return Wanted({"url": _link_of(asked)}, DOWNLOAD_OPTIONS.dump_python(options, mode="json"))


async def _answer_download(_: DownloadParameters, outcome: Outcome) -> Response:
    assert isinstance(outcome, MediaFile)
    return JSONResponse(downloaded(outcome).model_dump(mode="json"))


def downloaded(media: MediaFile) -> DownloadedFile:
    """What /download answers."""
    stored = described(media)
    return DownloadedFile(**stored.model_dump(), title=media.title, extractor=media.extractor, audio_file=stored.id)


@router.post(
    "/extract-audio",
    summary="Take the sound out of a video",
    dependencies=[Depends(may_transcribe)],
    responses={200: {"description": "The stored file.", "model": ExtractedFile}}
    | ACCEPTED
    | responses(
        *(Unauthorized, InvalidRequest, NoAudio, AmbiguousAudio, MediaNotFound, PathNotAllowed, UploadTooLarge),
        *(AudioTooLong, EmptyMedia, UnsupportedMedia, NoAudioStream, MediaTimeout, ShuttingDown, StorageFull, NotReady),
        *(*GATE_ERRORS, *JOB_ERRORS),
    ),
    openapi_extra=documentation(
        ExtractParameters,
        example={"video_file": "5e0d7c1b9a3f4e21", "format": "flac"},
        file="The video, or audio to be converted.",
    ),
)
async def extract_audio(
    request: Request, patience: Patient, idempotency_key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Send exactly one of `file` and `video_file`."""
    parts = services(request)
    return await handed_in(
        request,
        Work.EXTRACTION,
        patience,
        idempotency_key,
        prefer,
        ExtractParameters,
        max_bytes=parts.max_upload_bytes,
        check=_extract_options,
        want=_wanted_extraction,
        answer=_answer_extraction,
    )


def _extract_options(asked: ExtractParameters) -> ExtractOptions:
    return ExtractOptions(
        format=asked.format, sample_rate=asked.sample_rate, channels=asked.channels, bit_rate=asked.bit_rate
    )


def _wanted_extraction(asked: ExtractParameters, upload: Upload | None) -> Wanted:
    if upload is None and asked.video_file is None:
        raise NoAudio("No video was given: send a file, or name one with video_file.")
    if upload is not None and asked.video_file is not None:
        raise AmbiguousAudio("Both file and video_file were given: send exactly one.")
    if upload is not None and upload.bytes == 0:
        raise EmptyMedia
    options = EXTRACT_OPTIONS.dump_python(_extract_options(asked), mode="json")
    return Wanted({"name": upload.name} if upload else {"file": asked.video_file}, options)


async def _answer_extraction(_: ExtractParameters, outcome: Outcome) -> Response:
    assert isinstance(outcome, MediaFile)
    return JSONResponse(extracted(outcome).model_dump(mode="json"))


def extracted(media: MediaFile) -> ExtractedFile:
    """What /extract-audio answers."""
    stored = described(media)
    return ExtractedFile(**stored.model_dump(), audio_file=stored.id)
