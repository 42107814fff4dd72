"""What the endpoints work with: made by main.py, read-only here. The protocols say what each part must do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from starlette.requests import HTTPConnection

from access.keyring import Keys
from admission import AdmissionController
from api.pace import Pace
from disk import Disk
from downloads.stored_files import Media
from jobs.crew import Fetcher, Transcriber
from jobs.desk import Desk
from jobs.fleet import FleetWatch
from jobs.vocabulary import Vocabularies
from jobs.webhooks import Webhooks
from memory_watch import MemoryWatch
from metrics import Metrics
from transcription.alignment_models import AlignmentModels
from transcription.live import LiveText
from transcription.models import ModelLibrary
from transcription.seen_memory import SeenMemory
from transcription.sizing import Sizing
from transcription.upstream import Upstream


class EngineStatus(Protocol):
    """What the engine tells of itself."""

    def check_ready(self) -> None:
        """Raises NotReady with the reason."""

    def loaded(self) -> list[str]: ...


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
    desk: Desk
    fleet: FleetWatch
    """Who does the jobs, and how many wait for all of them."""
    webhooks: Webhooks
    transcriber: Transcriber
    library: ModelLibrary
    alignment_models: AlignmentModels
    media: Media
    disk: Disk
    fetcher: Fetcher
    vocabularies: Vocabularies
    link_secret: bytes
    """Signs links that open one thing without a key."""
    work_folder: Path
    """Requests make their private folders in it and remove them when they end."""
    default_model: str
    default_beam_size: int
    max_upload_bytes: int
    admin_only: frozenset[str] = frozenset()
    """What only keys with the scope admin see: of metrics, capacity, docs."""
    upstream: Upstream | None = None
    """None where recordings are not handed on."""
    live: LiveText | None = None
    """None where other machines have the engines."""
    pace: Pace = field(default_factory=Pace)
    """That bodies must keep."""
    cors_origins: tuple[str, ...] = ()
    """Whose pages may call."""


def services(request: HTTPConnection) -> Services:
    return cast(Services, request.app.state.services)
