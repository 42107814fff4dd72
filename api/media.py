"""POST /download and POST /extract-audio: media in, a stored file out that /transcribe takes by its id."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Depends, Request
from pydantic import Field

import prices
from api.fetching import fetch_into
from api.files import described
from api.gate import GATE_ERRORS, Patient, admitted
from api.hangup import while_connected
from api.parameters import Parameters, documentation, read_request
from api.problems import InvalidParameters, responses
from api.schemas import DownloadedFile, ExtractedFile
from api.security import require_key
from api.services import Services, services
from api.uploads import MAX_FORM_BYTES, Upload
from api.workplace import private_folder
from downloads.extract import AudioFormat, ExtractOptions, extract
from downloads.fetch import MediaKind
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
from reservation import Reservation, Work

router = APIRouter(tags=["media"], dependencies=[Depends(require_key)])


class DownloadParameters(Parameters):
    url: str | None = Field(None, description="A link to audio or video, or to a page that holds it.")
    kind: MediaKind = Field(MediaKind.AUDIO, description="audio: the best sound alone; video: with pictures.")
    format: str | None = Field(
        None,
        max_length=200,
        description="yt-dlp's format notation; replaces kind and max_height.",
        examples=["bestaudio"],
    )
    max_height: int | None = Field(None, ge=100, le=4320, description="Lines of the picture at most, for video.")


class ExtractParameters(Parameters):
    video_file: str | None = Field(None, description="Id or path of a file on the server, as /download returns it.")
    format: AudioFormat = Field(AudioFormat.MP3, description="Container and codec of the result.")
    sample_rate: int | None = Field(None, ge=8000, le=192_000, description="Hertz; absent: as in the source.")
    channels: int | None = Field(None, ge=1, le=2, description="1: mono, 2: stereo; absent: as in the source.")
    bit_rate: int | None = Field(None, ge=16_000, le=512_000, description="Bits a second, for mp3, m4a and opus.")


@router.post(
    "/download",
    summary="Fetch the media behind a link",
    responses=responses(
        *(Unauthorized, InvalidRequest, InvalidLink, LinkNotAllowed, NoMediaAtLink, DownloadFailed, DownloadTooLarge),
        *(DownloadTimeout, UploadTooLarge, ShuttingDown, StorageFull, NotReady, *GATE_ERRORS),
    ),
    openapi_extra=documentation(
        DownloadParameters, example={"url": "https://example.com/talk.mp4", "kind": "audio"}, required=["url"]
    ),
)
async def download(request: Request, patience: Patient) -> DownloadedFile:
    """The file stays on the server; give its `id` to /transcribe as `audio_file`."""
    parts = services(request)
    async with admitted(request, Work.DOWNLOAD, patience) as place:
        with private_folder(parts.work_folder) as folder:
            asked, upload = await read_request(
                request, DownloadParameters, folder / "upload", MAX_FORM_BYTES, check=_link_of
            )
            if upload is not None:
                raise InvalidParameters([("file", "not taken here; send it to /transcribe or /extract-audio")])
            return await while_connected(request, _download(parts, asked, folder, place))


def _link_of(asked: DownloadParameters) -> str:
    if asked.url is None:
        raise InvalidParameters([("url", "a link is needed")])
    return asked.url


async def _download(parts: Services, asked: DownloadParameters, folder: Path, place: Reservation) -> DownloadedFile:
    fetched = await fetch_into(
        folder,
        parts.fetcher,
        _link_of(asked),
        place,
        kind=asked.kind,
        format=asked.format,
        max_height=asked.max_height,
    )
    media = parts.media.add(
        fetched.path,
        name=fetched.name,
        media_type=fetched.media_type,
        duration_s=fetched.duration_s,
        title=fetched.title,
        extractor=fetched.extractor,
        source=fetched.source,
    )
    stored = described(media)
    return DownloadedFile(**stored.model_dump(), title=fetched.title, extractor=fetched.extractor, audio_file=stored.id)


@router.post(
    "/extract-audio",
    summary="Take the sound out of a video",
    responses=responses(
        *(Unauthorized, InvalidRequest, NoAudio, AmbiguousAudio, MediaNotFound, PathNotAllowed, UploadTooLarge),
        *(AudioTooLong, EmptyMedia, UnsupportedMedia, NoAudioStream, MediaTimeout, ShuttingDown, StorageFull, NotReady),
        *GATE_ERRORS,
    ),
    openapi_extra=documentation(
        ExtractParameters,
        example={"video_file": "5e0d7c1b9a3f4e21", "format": "flac"},
        file="The video, or audio to be converted.",
    ),
)
async def extract_audio(request: Request, patience: Patient) -> ExtractedFile:
    """Send exactly one of `file` and `video_file`."""
    parts = services(request)
    async with admitted(request, Work.EXTRACTION, patience) as place:
        with private_folder(parts.work_folder) as folder:
            asked, upload = await read_request(
                request, ExtractParameters, folder / "upload", parts.max_upload_bytes, check=_extract_options
            )
            if upload is None and asked.video_file is None:
                raise NoAudio("No video was given: send a file, or name one with video_file.")
            if upload is not None and asked.video_file is not None:
                raise AmbiguousAudio("Both file and video_file were given: send exactly one.")
            if upload is not None and upload.bytes == 0:
                raise EmptyMedia
            return await while_connected(request, _extract(parts, asked, upload, folder, place))


def _extract_options(asked: ExtractParameters) -> ExtractOptions:
    return ExtractOptions(
        format=asked.format, sample_rate=asked.sample_rate, channels=asked.channels, bit_rate=asked.bit_rate
    )


async def _extract(
    parts: Services, asked: ExtractParameters, upload: Upload | None, folder: Path, place: Reservation
) -> ExtractedFile:
    source = upload.path if upload is not None else parts.media.resolve(asked.video_file or "")
    name = Path(upload.name or "audio").stem if upload is not None else source.stem
    target = folder / f"audio.{asked.format}"
    await place.granted({prices.MEMORY: prices.FFMPEG_BYTES})
    made = await extract(
        parts.ffmpeg, source, target, options=_extract_options(asked), max_duration_s=parts.max_duration_s
    )
    media = parts.media.add(
        target,
        name=f"{name}.{asked.format}",
        media_type=made.media_type,
        duration_s=made.duration_s,
        title=made.title,
    )
    stored = described(media)
    return ExtractedFile(**stored.model_dump(), audio_file=stored.id)
