"""Stand-ins with behaviour for the slow parts, and a caller that speaks ASGI one message at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prices
from access.keyring import Keys
from admission import AdmissionController, Bounds
from api.services import Services
from disk import Disk
from downloads.egress import EgressProxy
from downloads.fetch import Fetched, MediaKind
from downloads.media import MediaStore
from downloads.urls import AddressPolicy, check_link
from errors import NotReady
from ffmpeg import FFmpeg
from jobs.bells import Bells
from jobs.crew import Crew
from jobs.database import Database
from jobs.desk import Desk
from jobs.fleet import Fleet, FleetWatch
from jobs.leases import LEASE_S, Leases
from jobs.runner import Runner
from jobs.signatures import new_secret
from jobs.store import JobStore
from jobs.tables import metadata
from jobs.uploads import UploadStore
from jobs.vocabulary import Vocabularies
from jobs.webhooks import Webhooks
from limits import MemorySemaphore
from memory import MemoryReading
from memory_watch import MemoryView, MemoryWatch
from metrics import Metrics, State
from reservation import Reservation, Work
from transcription.alignment_models import AlignmentModels
from transcription.core import SAMPLE_RATE, Segment, Transcript, TranscriptionOptions, TranscriptSegment, Word
from transcription.journal import SILENT, Journal
from transcription.models import ModelLibrary, spec
from transcription.seen_memory import SeenMemory
from transcription.sizing import Sizing, Wish, sized

KEY = "test-api-key-123"
AUTH = {"X-API-Key": KEY}
MIB = 2**20


def owner_of(key: str) -> str:
    """Whose the jobs and files of that key are."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


OWNER = owner_of(KEY)


class FakeTranscriber:
    """Hears the file's bytes as its text. Can be told to fail, or to hold its work until it is released."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.runs: list[tuple[Path, TranscriptionOptions]] = []
        self.places: list[Reservation] = []
        self.journals: list[Journal] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.cancelled = False

    async def measure(self, source: Path, key: str = "", priority: int = 0) -> float:
        if self.error is not None:
            raise self.error
        return 10.0

    async def run(
        self, source: Path, options: TranscriptionOptions, reservation: Reservation, journal: Journal = SILENT
    ) -> Transcript:
        self.runs.append((source, options))
        self.places.append(reservation)
        self.journals.append(journal)
        try:
            await reservation.granted({prices.MEMORY: 100 * MIB}, amount=10.0, short=True)
            journal.begun(10.0)
            self.started.set()
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        text = " " + source.read_bytes().decode("utf-8", "replace")
        words = (Word(0.0, 0.9, text, 0.8),) if options.word_timestamps else None
        segment = TranscriptSegment(0, 0.0, 1.0, text, -0.2, 0.01, 1.1, 0.0, words)
        journal.segment_heard(Segment(source, 0, SAMPLE_RATE, 0), segment)
        return Transcript(
            segments=(segment,),
            language=options.language or "en",
            language_probability=0.9,
            duration_s=1.0,
            task=options.task,
            model=options.model,
            device="cpu",
            compute_type="int8",
            timings_s={"transcribe": 0.5, "total": 0.6},
        )


@dataclass
class FakeEngine:
    ready: bool = True
    names: list[str] = field(default_factory=lambda: ["tiny.en"])
    resident_bytes: int = 400 * MIB

    def check_ready(self) -> None:
        if not self.ready:
            raise NotReady("The model is still being loaded.")

    def loaded(self) -> list[str]:
        return self.names


def make_admission(metrics: Metrics, **bounds: Any) -> AdmissionController:
    """A gate with room for five of the fake transcriber's requests, and for two of everything else."""
    slots = {Work.TRANSCRIPTION: 5, Work.DOWNLOAD: 2, Work.EXTRACTION: 2, Work.LIVE: 2, Work.UPSTREAM: 2}
    return AdmissionController(
        {prices.MEMORY: MemorySemaphore(500 * MIB)},
        Bounds(**{"slots": slots} | bounds),
        on_granted=metrics.waited,
    )


def seen() -> MemoryView:
    """A container of 2 GiB, half of it used."""
    return MemoryView({prices.MEMORY: MemoryReading(2048 * MIB, 1024 * MIB, "cgroup v2")}, None, None, 300 * MIB)


def make_sizes(memory_bytes: int = 2048 * MIB, cores: int = 2) -> Sizing:
    """What a machine of that size would run, with base."""
    ram = MemoryReading(memory_bytes, 0, "cgroup v2")
    return sized(spec("base"), Wish(devices=("cpu",)), ram, [], cores)


class FakeFetcher:
    """Writes the link itself into the folder as the media. Can be told to fail, or to hold."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []
        self.folders: list[Path] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()

    def check(self, url: str) -> None:
        check_link(url)

    async def fetch(
        self,
        url: str,
        folder: Path,
        *,
        kind: MediaKind = MediaKind.AUDIO,
        format: str | None = None,
        max_height: int | None = None,
        on_progress: Callable[..., None] | None = None,
    ) -> Fetched:
        self.asked.append({"url": url, "kind": kind, "format": format, "max_height": max_height})
        self.folders.append(folder)
        path = folder / "fetched.mp3"
        path.write_bytes(url.encode())
        self.started.set()
        await self.release.wait()
        if self.error is not None:
            raise self.error
        return fetched(path, url)


def fetched(path: Path, url: str) -> Fetched:
    return Fetched(
        path=path,
        name="A talk.mp3",
        title="A talk",
        extractor="generic",
        media_type="audio/mpeg",
        bytes=path.stat().st_size,
        duration_s=1.0,
        source=url,
    )


@dataclass
class Parts:
    """The fakes behind one application, to be asked what happened."""

    services: Services
    transcriber: FakeTranscriber
    engine: FakeEngine
    fetcher: FakeFetcher
    runner: Runner
    """Does what callers wait for; claims jobs once it is entered."""

    @property
    def work_folder(self) -> Path:
        return self.services.work_folder


def make_parts(folder: Path, *, keys: Keys | None = None, max_upload_bytes: int = 1024 * 1024, **limits: Any) -> Parts:
    """*limits*: default_model, the memory_bytes that engines are planned with, and the gate's bounds."""
    default_model = limits.pop("default_model", "base")
    sizes = make_sizes(limits.pop("memory_bytes", 16_384 * MIB))
    metrics = Metrics()
    max_queued, grace_s = limits.pop("max_queued", 0), limits.pop("grace_s", 0.0)
    disk = limits.pop("disk", Disk(folder, 0))
    admission = make_admission(metrics, **limits)
    work, media = folder / "work", MediaStore(folder / "media", (folder / "allowed",))
    work.mkdir()
    transcriber, engine, fetcher = FakeTranscriber(), FakeEngine(), FakeFetcher()
    database, bells, uploads = make_database(folder), Bells(), UploadStore(folder / "uploads")
    store = JobStore(database, lease_s=LEASE_S, max_queued=max_queued)
    leases = Leases(database, "here", max_running=admission.keys.max_requests)
    crew = Crew(transcriber, fetcher, media, FFmpeg.locate(""), admission, max_duration_s=3600.0)
    runner = Runner(
        store,
        leases,
        crew,
        uploads,
        admission,
        bells,
        disk,
        work_folder=work,
        poll_s=60.0,
        grace_s=grace_s,
        on_transcript=metrics.transcribed,
    )
    desk = Desk(store, leases, uploads, media, bells, runner, admission=admission)
    memory = MemoryWatch(seen, admission)
    memory.view = seen()
    metrics.show(State(admission, memory, engine, engines_bytes=600 * MIB))
    services = Services(
        keys=keys or Keys([KEY]),
        admission=admission,
        memory=memory,
        metrics=metrics,
        sizes=sizes,
        seen=SeenMemory(folder / "seen-memory.json"),
        engine=engine,
        desk=desk,
        fleet=FleetWatch(Fleet(database)),
        webhooks=Webhooks(database, EgressProxy(AddressPolicy()), new_secret()),
        transcriber=transcriber,
        alignment_models=AlignmentModels(),
        library=ModelLibrary(folder / "models", downloads=False, hf_token=None),
        media=media,
        disk=disk,
        fetcher=fetcher,
        vocabularies=Vocabularies(database),
        link_secret=b"secret",
        work_folder=work,
        default_model=default_model,
        default_beam_size=5,
        max_upload_bytes=max_upload_bytes,
    )
    return Parts(services, transcriber, engine, fetcher, runner)


OPENED: list[Database] = []
"""Databases of the test that is running: closed after it."""


def make_database(folder: Path) -> Database:
    """An empty one, with its tables: made from their description, as migrating takes ten times as long."""
    database = Database(f"sqlite:///{folder / 'jobs.db'}")
    OPENED.append(database)
    with database.writing() as connection:
        metadata.create_all(connection)
    return database


class Caller:
    """Speaks ASGI to an application: body in pieces, hang-ups, and what was taken of the body."""

    def __init__(
        self,
        path: str,
        pieces: Iterable[bytes] = (),
        *,
        headers: dict[str, str] | list[tuple[bytes, bytes]] | None = None,
        method: str = "POST",
        query: str = "",
        server: tuple[str, int | None] | None = ("127.0.0.1", 8000),
        ends: bool = True,
    ) -> None:
        self._pieces = list(pieces)
        self._ends = ends
        self.taken = 0
        """Pieces of the body that the application took."""
        self.gone = asyncio.Event()
        self.messages: list[dict[str, Any]] = []
        raw = headers if isinstance(headers, list) else [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in raw],
            "client": ("127.0.0.1", 50000),
            "server": server,
            "state": {},
        }

    async def receive(self) -> dict[str, Any]:
        if self.taken < len(self._pieces):
            piece = self._pieces[self.taken]
            self.taken += 1
            more = self.taken < len(self._pieces) or not self._ends
            return {"type": "http.request", "body": piece, "more_body": more}
        if self._ends and self.taken == 0:
            self.taken = 1
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    async def call(self, app: Any) -> Caller:
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])
