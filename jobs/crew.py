"""What jobs do: transcribe, download, take out the sound. The same for a call that waits, a job, a worker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import TypeAdapter

import prices
from admission import AdmissionController
from downloads.extract import ExtractOptions, extract
from downloads.fetch import Fetched, MediaKind
from downloads.stored_files import Media, MediaFile
from downloads.subtitled import check_can_burn, subtitled
from downloads.ytdlp import Progress
from errors import ProviderNotAllowed
from ffmpeg import FFmpeg
from jobs.journal import JobJournal
from jobs.model import Job, Stage
from reservation import Reservation, Work
from transcription.core import ResponseFormat, Task, Transcript, TranscriptionOptions
from transcription.formats import render
from transcription.journal import Journal

LOGGED_EVERY_BYTES = 16 * 2**20

log = structlog.get_logger(__name__)

OPTIONS = TypeAdapter(TranscriptionOptions)
EXTRACT_OPTIONS = TypeAdapter(ExtractOptions)
TRANSCRIPT = TypeAdapter(Transcript)
"""Between the dataclasses and the JSON in which jobs keep them."""


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """What of a link is wanted."""

    kind: MediaKind = MediaKind.AUDIO
    format: str | None = None
    """yt-dlp's notation; in place of kind and max_height."""
    max_height: int | None = None


DOWNLOAD_OPTIONS = TypeAdapter(DownloadOptions)


class Transcriber(Protocol):
    """Turns a file into a transcript, when its place's turn comes. Cancelling stops it and removes what it wrote."""

    async def run(
        self, source: Path, options: TranscriptionOptions, reservation: Reservation, journal: Journal = ...
    ) -> Transcript: ...

    async def measure(self, source: Path, key: str = ..., priority: int = ...) -> float: ...


class Upstream(Protocol):
    """Has another server do it, when the place's turn comes. Cancelling hangs up."""

    async def run(
        self, source: Path, options: TranscriptionOptions, reservation: Reservation, journal: Journal = ...
    ) -> Transcript: ...


class Fetcher(Protocol):
    """Brings the media behind a link into *folder*."""

    def check(self, url: str) -> None:
        """Refuse what can be told from the link's text."""

    async def fetch(
        self,
        url: str,
        folder: Path,
        *,
        kind: MediaKind = ...,
        format: str | None = ...,
        max_height: int | None = ...,
        on_progress: Callable[..., None] | None = ...,
    ) -> Fetched: ...


Outcome = Transcript | MediaFile


class Crew:
    """Does jobs of every kind. Holds nothing of any of them."""

    def __init__(
        self,
        transcriber: Transcriber,
        fetcher: Fetcher,
        media: Media,
        ffmpeg: FFmpeg,
        admission: AdmissionController,
        *,
        max_duration_s: float,
        upstream: Upstream | None = None,
    ) -> None:
        """*upstream*: another server, where this one hands recordings on."""
        self._transcriber = transcriber
        self._upstream = upstream
        self._fetcher = fetcher
        self._media = media
        self._ffmpeg = ffmpeg
        self._admission = admission
        self._max_duration_s = max_duration_s

    async def do(self, job: Job, upload: Path | None, folder: Path, place: Reservation, journal: JobJournal) -> Outcome:
        """Do the work of *job*, when it is *place*'s turn. *upload*: what its caller sent; *folder*: where to write.

        Cancelling stops it within a batch. Raises what the parts raise that it needs.
        """
        match job.work:
            case Work.TRANSCRIPTION | Work.UPSTREAM:
                return await self._transcribe(job, upload, folder, place, journal)
            case Work.DOWNLOAD:
                return await self._download(job, folder, place, journal)
            case Work.EXTRACTION:
                return await self._extract(job, upload, folder, place, journal)
            case Work.LIVE:
                raise AssertionError("a live session is no job")

    async def _transcribe(
        self, job: Job, upload: Path | None, folder: Path, place: Reservation, journal: JobJournal
    ) -> Outcome:
        options = OPTIONS.validate_python(job.options)
        if job.source.get("video") and "spans" not in job.source:
            return await self._subtitle(job, upload, options, folder, place, journal)
        if upload is None and (url := job.source.get("url")):
            return await self._transcribe_link(url, options, folder, place, journal)
        async with self._source(job, upload) as source:
            return await self._hear(source, options, place, journal)

    async def _hear(
        self, source: Path, options: TranscriptionOptions, place: Reservation, journal: JobJournal
    ) -> Transcript:
        """By whom the place is meant for."""
        if place.work is not Work.UPSTREAM:
            return await self._transcriber.run(source, options, place, journal)
        if self._upstream is None:
            raise ProviderNotAllowed
        return await self._upstream.run(source, options, place, journal)

    def _source(self, job: Job, upload: Path | None) -> contextlib.AbstractAsyncContextManager[Path]:
        """Where the recording can be read, while the context lasts."""
        if upload is not None:
            return contextlib.nullcontext(upload)
        return self._media.opened(job.source["file"], job.key)

    async def _subtitle(
        self,
        job: Job,
        upload: Path | None,
        options: TranscriptionOptions,
        folder: Path,
        place: Reservation,
        journal: JobJournal,
    ) -> MediaFile:
        """The video with subtitles of what is said in it."""
        burn = bool(job.source.get("burn"))
        if burn:
            await check_can_burn(self._ffmpeg)
        async with self._source(job, upload) as video:
            transcript = await self._hear(video, options, place, journal)
            # NOTE: now, not at the end: who waits for more memory must not hold what others wait for.
            place.give_back()
            subtitles = folder / "subtitles.srt"
            text = await asyncio.to_thread(render, transcript, ResponseFormat.SRT, request_id="")
            await asyncio.to_thread(subtitles.write_text, str(text), "utf-8")
            with self._admission.reserve(
                Work.EXTRACTION, place.key, place.priority, no_wait=place.no_wait, counted=False, accepted=True
            ) as muxing:
                await muxing.granted({prices.MEMORY: prices.BURNING_BYTES if burn else prices.FFMPEG_BYTES})
                journal.at(Stage.SUBTITLING)
                made = await subtitled(
                    self._ffmpeg,
                    video,
                    subtitles,
                    folder / "subtitled",
                    burn=burn,
                    language="en" if options.task is Task.TRANSLATE else transcript.language,
                    max_duration_s=self._max_duration_s,
                )
            if made.lacks_letters:
                log.warning("no font has some letters of a video's subtitles", language=transcript.language)
            stem = Path(job.source.get("name") or "video").stem if upload else video.stem
        return await asyncio.to_thread(
            self._media.add,
            made.path,
            owner=job.key,
            name=f"{stem}{made.path.suffix}",
            media_type=made.media_type,
            duration_s=made.duration_s,
            title=made.title,
        )

    async def _transcribe_link(
        self, url: str, options: TranscriptionOptions, folder: Path, place: Reservation, journal: JobJournal
    ) -> Transcript:
        started = time.monotonic()
        # A part of this request, with a line of its own: downloads are few at once.
        with self._admission.reserve(
            Work.DOWNLOAD, place.key, place.priority, no_wait=place.no_wait, counted=False, accepted=place.accepted
        ) as download:
            fetched = await self._fetch(url, DownloadOptions(), folder, download, journal)
        download_s = time.monotonic() - started
        transcript = await self._hear(fetched.path, options, place, journal)
        timings_s = {"download": download_s, **transcript.timings_s}
        timings_s["total"] = timings_s.get("total", 0.0) + download_s
        return dataclasses.replace(transcript, timings_s=timings_s)

    async def _download(self, job: Job, folder: Path, place: Reservation, journal: JobJournal) -> MediaFile:
        options = DOWNLOAD_OPTIONS.validate_python(job.options)
        fetched = await self._fetch(job.source["url"], options, folder, place, journal)
        return await asyncio.to_thread(
            self._media.add,
            fetched.path,
            owner=job.key,
            name=fetched.name,
            media_type=fetched.media_type,
            duration_s=fetched.duration_s,
            title=fetched.title,
            extractor=fetched.extractor,
            source=fetched.source,
        )

    async def _fetch(
        self, url: str, options: DownloadOptions, folder: Path, place: Reservation, journal: JobJournal
    ) -> Fetched:
        await place.granted({prices.MEMORY: prices.DOWNLOAD_BYTES})
        journal.at(Stage.DOWNLOADING)
        logged = logged_progress()

        def on_progress(progress: Progress) -> None:
            logged(progress)
            if progress.total_bytes:
                journal.at(Stage.DOWNLOADING, min(1.0, progress.downloaded_bytes / progress.total_bytes))

        # The fetcher empties its folder when it fails; nothing else may lie in it.
        target = folder / "download"
        target.mkdir()
        fetched = await self._fetcher.fetch(
            url,
            target,
            kind=options.kind,
            format=options.format,
            max_height=options.max_height,
            on_progress=on_progress,
        )
        log.info("downloaded", bytes=fetched.bytes, media_type=fetched.media_type, extractor=fetched.extractor)
        return fetched

    async def _extract(
        self, job: Job, upload: Path | None, folder: Path, place: Reservation, journal: JobJournal
    ) -> MediaFile:
        options = EXTRACT_OPTIONS.validate_python(job.options)
        target = folder / f"audio.{options.format}"
        await place.granted({prices.MEMORY: prices.FFMPEG_BYTES})
        async with self._source(job, upload) as source:
            name = Path(job.source.get("name") or "audio").stem if upload else source.stem
            journal.at(Stage.EXTRACTING)
            made = await extract(self._ffmpeg, source, target, options=options, max_duration_s=self._max_duration_s)
        return await asyncio.to_thread(
            self._media.add,
            target,
            owner=job.key,
            name=f"{name}.{options.format}",
            media_type=made.media_type,
            duration_s=made.duration_s,
            title=made.title,
        )


def logged_progress(every_bytes: int = LOGGED_EVERY_BYTES) -> Callable[[Progress], None]:
    """Tells the log how far a download is, each time another *every_bytes* have come: yt-dlp tells it all the time."""
    steps_told = 0

    def on_progress(progress: Progress) -> None:
        nonlocal steps_told
        steps = progress.downloaded_bytes // every_bytes
        if steps > steps_told:
            steps_told = steps
            log.info("downloading", bytes=progress.downloaded_bytes, of_bytes=progress.total_bytes)

    return on_progress


def written(outcome: Outcome) -> str:
    """*outcome* as a job's result is kept: a transcript whole, a stored file by its id."""
    if isinstance(outcome, Transcript):
        return TRANSCRIPT.dump_json(outcome).decode()
    return f'{{"file": "{outcome.id}"}}'
