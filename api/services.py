"""What the endpoints work with: made by main.py, read-only here. The protocols say what each part must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from fastapi import Request

from admission import AdmissionController
from api.keys import Keys
from downloads.fetch import Fetched, MediaKind
from downloads.media import MediaStore
from ffmpeg import FFmpeg
from memory_watch import MemoryWatch
from metrics import Metrics
from reservation import Reservation
from transcription.core import Transcript, TranscriptionOptions
from transcription.models import ModelLibrary
from transcription.seen_memory import SeenMemory
from transcription.sizing import Sizing


class Transcriber(Protocol):
    """Turns a file into a transcript, when its place's turn comes. Cancelling stops it and removes what it wrote."""

    async def run(self, source: Path, options: TranscriptionOptions, reservation: Reservation) -> Transcript: ...


class EngineStatus(Protocol):
    """What the engine tells of itself."""

    def check_ready(self) -> None:
        """Raises NotReady with the reason."""

    def loaded(self) -> list[str]: ...


class Fetcher(Protocol):
    """Brings the media behind a link into *folder*."""

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


@dataclass(frozen=True, slots=True)
class Services:
    """One server's parts and limits. Frozen: nothing of a request is kept here."""

    keys: Keys
    admission: AdmissionController
    memory: MemoryWatch
    metrics: Metrics
    sizes: Sizing
    seen: SeenMemory
    engine: EngineStatus
    transcriber: Transcriber
    library: ModelLibrary
    media: MediaStore
    fetcher: Fetcher
    ffmpeg: FFmpeg
    work_folder: Path
    """Requests make their private folders in it and remove them when they end."""
    default_model: str
    default_beam_size: int
    max_upload_bytes: int
    max_duration_s: float


def services(request: Request) -> Services:
    return cast(Services, request.app.state.services)
