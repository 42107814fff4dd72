"""All parts of one process made from the settings and put together: main.py adds HTTP, worker.py a broker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from pydantic import ValidationError
from sqlalchemy import make_url

import prices
from access.failures import Failures
from access.kept import kept_key
from access.keyring import Keys
from access.store import KeyStore
from admission import AdmissionController, Bounds
from api.pace import Pace
from api.services import Services
from cores import available_cores
from disk import Disk
from downloads.egress import EgressProxy
from downloads.fetch import Fetcher
from downloads.local_copies import LocalCopies
from downloads.media import MediaStore
from downloads.object_media import ObjectMedia
from downloads.objects import Objects
from downloads.stored_files import Media
from downloads.urls import AddressPolicy
from errors import ConfigurationError, ServiceError
from ffmpeg import FFmpeg
from jobs.bells import Bells
from jobs.crew import Crew
from jobs.database import Database
from jobs.desk import Desk
from jobs.fleet import Facts, Fleet, FleetWatch, keep_reporting
from jobs.fleet_metrics import FleetState
from jobs.leases import Leases
from jobs.model import Job
from jobs.reaper import reap
from jobs.runner import POLL_S, Runner
from jobs.signatures import new_secret
from jobs.store import JobStore
from jobs.sweeper import Lifetimes, sweep
from jobs.uploads import ObjectUploads, Uploads, UploadStore
from jobs.vocabulary import Vocabularies
from jobs.webhooks import Webhooks
from limits import MemorySemaphore
from memory import MemoryReading, cuda_memory, memory_events, mps_memory, own_bytes, pressure, read_ram
from memory_watch import MemoryView, MemoryWatch
from metrics import Metrics, State
from reservation import Work
from settings import Settings
from transcription import models
from transcription.alignment_models import LARGE_BYTES, AlignmentModels, read_own
from transcription.live import LiveText
from transcription.models import ModelLibrary
from transcription.placement import Weights
from transcription.planner import BatchPlanner
from transcription.replicas import Replicas
from transcription.scheduler import SegmentScheduler
from transcription.seen_memory import SeenMemory
from transcription.service import Transcriber
from transcription.sizing import Sizing, Wish, sized
from transcription.speaker_finder import SpeakerFinder
from transcription.speech import SpeechCutter
from transcription.torch_process import TorchProcess
from transcription.upstream import Upstream, UpstreamAccess
from transcription.word_alignment import WordAlignment
from workfolder import claimed

MIB = 2**20

THREADS = 32

LEAST_LIVE_SESSIONS = 2
"""One who speaks must not keep a second from trying."""

KEYS_S = 15.0
"""How often keys are looked at that nobody sends."""

log = structlog.get_logger("main")


def read_settings() -> Settings:
    """The settings from the environment and `.env`. Raises ConfigurationError that names each wrong one."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"These settings are wrong: {wrong}.") from None


@contextlib.asynccontextmanager
async def wired(settings: Settings, *, listens: bool = True) -> AsyncIterator[Services]:
    """All parts of one process, made from plain values, closed in the opposite order.

    *listens*: False for a worker, and for who works without a server: it does jobs whatever ROLE says, and is reached
    by nobody whatever HOST says. Raises ConfigurationError.
    """
    does_jobs = settings.does_jobs or not listens
    # More than there are cores: most threads wait, for the database or for the network.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "stenogate"))
    async with contextlib.AsyncExitStack() as stack:
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            first = stack.enter_context(claimed(settings.work_path))
            own_keys = _own_keys(settings)
            webhook_secret = _webhook_secret(settings)
        except OSError as error:
            raise ConfigurationError(f"DATA_DIR={settings.data_dir} cannot be used: {error.strerror}.") from error
        database = Database(settings.database)
        stack.callback(database.close)
        await asyncio.to_thread(database.migrate)
        keys = await known_keys(settings, own_keys, database)
        if listens:
            refuse_unguarded(settings, keys)
        try:
            media, uploads = await asyncio.to_thread(stores, settings, stack)
            # NOTE: in a folder that machines share, others may be writing.
            if first and isinstance(media, MediaStore) and not settings.media_url:
                media.clear_incoming()
        except OSError as error:
            raise ConfigurationError(f"MEDIA_DIR={settings.media_path} cannot be used: {error.strerror}.") from error
        try:
            default_model = models.spec(settings.model_size).name
        except ServiceError as error:
            raise ConfigurationError(f"MODEL_SIZE={settings.model_size}: {error.message}") from error
        token = settings.hf_token.get_secret_value() if settings.hf_token else None
        library = ModelLibrary(settings.model_path, downloads=settings.model_downloads, hf_token=token)
        ffmpeg = FFmpeg.locate(settings.ffmpeg)
        anywhere, by_link = policies(settings)
        proxy = await stack.enter_async_context(EgressProxy(anywhere))
        ram = read_ram(limit_bytes=settings.memory_limit_mb * MIB)
        ledger = SeenMemory(settings.data_dir / "seen-memory.json")
        sizes = sizing(settings, default_model, ram, ledger)
        if not does_jobs:
            sizes = dataclasses.replace(sizes, plans=(), engine_bytes=0, elsewhere=True)
        log.info("sized", plans=[dataclasses.asdict(plan) for plan in sizes.plans])
        metrics = Metrics()
        admission = gate(settings, ram, sizes, metrics, keys)
        stack.callback(ledger.save)
        watch = await stack.enter_async_context(MemoryWatch(partial(look, settings), admission))
        engines = await stack.enter_async_context(
            Replicas(
                lambda name: Weights(library.ensure(name), sizes.weights_bytes(name)),
                sizes.placements if does_jobs else (),
                model=default_model,
                model_ttl_s=settings.model_ttl_s,
                log_level=settings.log_level,
                on_seen=lambda sight: ledger.note(sight, sizes.cost(sight.model), *sizes.busiest(sight.model)),
            )
        )
        metrics.show(State(admission, watch, engines, engines_bytes=sizes.engine_bytes))
        planner = BatchPlanner(sizes.batch_size, sizes.batch_s, smaller=sizes.smaller_batches, together=sizes.together)
        scheduler = await stack.enter_async_context(SegmentScheduler(engines.engines, planner, metrics.batch))
        alignment, finder = await torch_parts(settings, token, stack)
        watch.on_pressed = lambda: end_idle(alignment.process, finder.process)
        transcriber = Transcriber(
            ffmpeg,
            SpeechCutter(),
            engines,
            scheduler,
            alignment,
            finder,
            work_dir=settings.work_path,
            max_duration_s=settings.max_duration_s,
            max_decodes=available_cores(),
        )
        live = LiveText(
            ffmpeg,
            engines,
            scheduler,
            work_dir=settings.work_path,
            max_duration_s=settings.max_duration_s,
            idle_s=settings.live_idle_s,
        )
        fetcher = Fetcher(
            proxy=proxy,
            ffmpeg_path=ffmpeg.path,
            max_bytes=settings.max_download_mb * MIB,
            timeout_s=settings.download_timeout_s,
            policy=by_link,
        )
        upstream = upstream_of(settings, ffmpeg, transcriber)
        if upstream is not None:
            await stack.enter_async_context(upstream)
        crew = Crew(
            transcriber,
            fetcher,
            media,
            ffmpeg,
            admission,
            max_duration_s=settings.max_duration_s,
            upstream=upstream,
        )
        disk = Disk(settings.data_dir, settings.disk_reserve_mb * MIB)
        workers = FleetWatch(Fleet(database))
        await workers.look()
        await stack.enter_async_context(background(workers.keep_looking(), "fleet watch"))
        metrics.show(FleetState(workers))

        def facts(running: int) -> Facts:
            plans = [dataclasses.asdict(plan) for plan in sizes.plans]
            return Facts(
                host=socket.gethostname(),
                devices=[plan.device for plan in sizes.plans],
                plans=plans,
                slots={work.value: slots for work, slots in admission.bounds.slots.items() if work is not Work.LIVE},
                running=running,
                model=default_model,
                loaded=engines.loaded(),
                version=own_version(),
            )

        # Before the desk: it still sends while the runner drains.
        webhooks = await stack.enter_async_context(Webhooks(database, proxy, webhook_secret))
        desk = await stack.enter_async_context(
            job_desk(
                settings,
                database,
                crew,
                media,
                uploads,
                disk,
                admission,
                metrics,
                keys,
                alone=first,
                facts=facts if does_jobs else None,
            )
        )
        yield Services(
            keys=keys,
            admission=admission,
            memory=watch,
            metrics=metrics,
            sizes=sizes,
            seen=ledger,
            engine=engines if does_jobs else workers,
            desk=desk,
            fleet=workers,
            webhooks=webhooks,
            transcriber=transcriber,
            library=library,
            alignment_models=alignment.models,
            media=media,
            disk=disk,
            fetcher=fetcher,
            upstream=upstream,
            vocabularies=Vocabularies(database),
            link_secret=hashlib.sha256(f"links {webhook_secret}".encode()).digest(),
            work_folder=settings.work_path,
            default_model=default_model,
            pace=Pace(settings.body_idle_s, settings.min_body_bytes_s),
            cors_origins=settings.cors_origins,
            default_beam_size=settings.beam_size,
            max_upload_bytes=settings.max_upload_mb * MIB,
            admin_only=frozenset(settings.admin_only),
            live=live if does_jobs else None,
        )


async def torch_parts(
    settings: Settings, token: str | None, stack: contextlib.AsyncExitStack
) -> tuple[WordAlignment, SpeakerFinder]:
    """What aligns words and what tells speakers apart: a process each, once somebody needs it."""
    cores = settings.cpu_threads or available_cores()
    process = partial(
        TorchProcess,
        idle_s=settings.torch_ttl_s,
        log_level=settings.log_level,
        device=settings.torch_device,
        local_only=not settings.model_downloads,
    )
    models = AlignmentModels(read_own(settings.align_models))
    # NOTE: the engine has the cores as well, and torch's threads wait for each other without letting go of theirs:
    # two of them, beside other work on two cores, took minutes where one took four seconds (30 s of a call diarized).
    aligns = process(
        "alignment",
        threads=max(1, cores // 2),
        config={"model_dir": str(settings.model_path), "models_bytes": LARGE_BYTES},
    )
    tells_apart = process(
        "diarization",
        threads=max(1, cores // 4),
        config={"model": settings.diarization_model or None, "token": token},
    )
    return (
        await stack.enter_async_context(WordAlignment(aligns, models)),
        await stack.enter_async_context(SpeakerFinder(tells_apart)),
    )


def end_idle(*processes: TorchProcess) -> None:
    """Memory is short: what nobody needs just now gives its own back."""
    for process in processes:
        process.end_if_idle()


def upstream_of(settings: Settings, ffmpeg: FFmpeg, transcriber: Transcriber) -> Upstream | None:
    """The server that recordings may be handed on to; None where there is none."""
    if not settings.openai_base_url:
        return None
    access = UpstreamAccess(
        settings.openai_base_url.rstrip("/"),
        settings.openai_model,
        settings.upstream_timeout_s,
        settings.upstream_max_mb * 1_000_000,
        settings.openai_api_key.get_secret_value(),
    )
    return Upstream(
        access,
        ffmpeg,
        transcriber.measure,
        work_dir=settings.work_path,
        max_duration_s=settings.max_duration_s,
        when_full=settings.upstream_when_full,
    )


def policies(settings: Settings) -> tuple[AddressPolicy, AddressPolicy]:
    """Where this server may go at all, and where links may lead: webhooks need not stay where links do."""
    anywhere = AddressPolicy(settings.private_hosts_allowed, settings.link_hosts_denied)
    return anywhere, dataclasses.replace(anywhere, hosts_allowed=settings.link_hosts_allowed)


def sizing(settings: Settings, model: str, ram: MemoryReading, ledger: SeenMemory) -> Sizing:
    """The engines for this machine. Raises ConfigurationError for devices that have no such name."""
    return sized(
        models.spec(model),
        Wish(
            devices=settings.devices,
            compute_type=settings.compute_type,
            replicas=settings.engine_replicas,
            streams=settings.engine_streams,
            batch_size=settings.batch_size,
            beam_size=settings.beam_size,
        ),
        ram=ram,
        cuda=cuda_memory(),
        cores=settings.cpu_threads or available_cores(),
        seen=ledger.known,
    )


async def known_keys(settings: Settings, own: Sequence[str], database: Database) -> Keys:
    """The settings' keys, or the one that this server has made itself, and those in the database."""
    keys = Keys(
        own,
        batch_keys=(key.get_secret_value() for key in settings.batch_keys),
        loopback_only=not settings.api_keys,
        store=KeyStore(database),
        failures=Failures(settings.max_failures_per_minute),
    )
    await keys.look()
    return keys


def refuse_unguarded(settings: Settings, keys: Keys) -> None:
    """Raises ConfigurationError where other machines can reach a server that has no key for them."""
    if keys.loopback_only and not settings.is_loopback:
        raise ConfigurationError(
            f"HOST={settings.host} lets other machines reach this server, but there is no key for them. Make one "
            "(scripts/keys make), set API_KEYS to one or more long random strings (such as: export "
            "API_KEYS=$(openssl rand -hex 32)), or set HOST=127.0.0.1."
        )


def gate(settings: Settings, ram: MemoryReading, sizes: Sizing, metrics: Metrics, keys: Keys) -> AdmissionController:
    """The gate, with the memory that the engines and the server leave."""
    budget_bytes = max(prices.LARGEST_BYTES, ram.total_bytes - sizes.engine_bytes - prices.SERVER_BYTES)
    return AdmissionController(
        {prices.MEMORY: MemorySemaphore(budget_bytes)},
        Bounds(
            slots={
                Work.TRANSCRIPTION: settings.max_concurrent_transcriptions or sizes.slots,
                Work.DOWNLOAD: settings.max_concurrent_downloads,
                Work.EXTRACTION: settings.max_concurrent_extractions,
                Work.UPSTREAM: settings.max_upstream_requests if settings.openai_base_url else 0,
                Work.LIVE: settings.max_live_sessions or max(LEAST_LIVE_SESSIONS, available_cores()),
            },
            max_waiting=0 if settings.fail_fast else settings.max_queue_length,
            max_wait_s=settings.max_queue_wait_s,
            timeout_s=settings.queue_timeout_s,
            max_per_key=settings.max_requests_per_key,
            max_audio_s_a_day=settings.max_audio_s_per_day,
        ),
        limits_of=keys.limits,
        several_keys=lambda: keys.several,
        on_granted=metrics.waited,
    )


@contextlib.asynccontextmanager
async def job_desk(
    settings: Settings,
    database: Database,
    crew: Crew,
    media: Media,
    uploads: Uploads,
    disk: Disk,
    admission: AdmissionController,
    metrics: Metrics,
    keys: Keys,
    *,
    alone: bool,
    facts: Callable[[int], Facts] | None,
) -> AsyncIterator[Desk]:
    """Where jobs are handed in, and this process's runner behind it. *alone*: no other process that still lives
    has this data. *facts*: what this process says of itself, by
    the number of jobs that run; None: it does no jobs."""
    owner = f"{socket.gethostname()[:40]}:{secrets.token_hex(8)}"
    leases = Leases(database, owner, lease_s=settings.job_lease_s, max_running=admission.keys.max_requests)
    bells = Bells()
    store = JobStore(
        database,
        lease_s=settings.job_lease_s,
        max_queued=settings.max_queued_jobs,
        several_keys=lambda: keys.several,
    )
    fleet = Fleet(database)
    # A database with an address of its own may be others', too, whose data lies elsewhere.
    if alone and not settings.database_url.get_secret_value():
        await asyncio.to_thread(leases.expire, all_owners=True)
    async with contextlib.AsyncExitStack() as stack:
        publish = stack.enter_context(publisher(settings.broker_url.get_secret_value()))
        runner: Runner | None = None
        if facts is not None:
            runner = Runner(
                store,
                leases,
                crew,
                uploads,
                admission,
                bells,
                disk,
                work_folder=settings.work_path,
                poll_s=POLL_S,
                grace_s=settings.shutdown_grace_s,
                on_transcript=metrics.transcribed,
                others=lambda: sum(member.id != owner for member in fleet.members()),
                split_above_s=settings.split_above_s,
            )
            await stack.enter_async_context(runner)
            say, own = facts, runner
            reporting = keep_reporting(fleet, owner, lambda: say(len(own.running)))
            await stack.enter_async_context(background(reporting, "fleet"))
            await stack.enter_async_context(background(_keep_looking(keys), "keys"))
        desk = Desk(store, leases, uploads, media, bells, runner, publish=publish, admission=admission)
        reaping = reap(leases, desk.tell, republishes=publish is not None)
        await stack.enter_async_context(background(reaping, "reaper"))
        lifetimes = Lifetimes(settings.result_ttl_s, settings.media_ttl_s, int(settings.media_quota_gb * 2**30))
        await stack.enter_async_context(background(sweep(store, uploads, media, lifetimes), "sweeper"))
        yield desk


async def _keep_looking(keys: Keys) -> None:
    """Whoever does jobs goes by the limits of keys that others have made, and that never come here. For ever."""
    while True:
        await asyncio.sleep(KEYS_S)
        await keys.look(KEYS_S)


def stores(settings: Settings, stack: contextlib.AsyncExitStack) -> tuple[Media, Uploads]:
    """Where media and uploads lie. Raises OSError, ConfigurationError, StoreUnavailable."""
    if not settings.media_url.startswith("s3://"):
        return MediaStore(settings.media_path, settings.media_roots), UploadStore(settings.upload_path)
    objects = Objects.at(settings.media_url)
    stack.callback(objects.close)
    objects.check()
    copies = LocalCopies(settings.data_dir / "copies", settings.media_cache_mb * MIB)
    stack.callback(copies.close)
    media = ObjectMedia(objects.below("media"), copies, settings.media_roots)
    return media, ObjectUploads(objects.below("uploads"), copies)


@contextlib.contextmanager
def publisher(broker_url: str) -> Iterator[Callable[[Sequence[Job]], None] | None]:
    """What tells workers of jobs; None where there is no broker. Raises ConfigurationError."""
    if not broker_url:
        yield None
        return
    try:
        from jobs.celery_queue import Publisher, celery_app
    except ImportError as error:
        raise ConfigurationError(
            "BROKER_URL is set, but Celery is not installed: it comes with the extra fleet."
        ) from error
    with Publisher(celery_app(broker_url)) as running:
        yield running.publish


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """*work* goes on while the context lasts."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_of_failure)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _tell_of_failure(task: asyncio.Task[None]) -> None:
    """Nobody awaits what goes on in the background before the server stops."""
    if not task.cancelled() and (error := task.exception()):
        log.error("what went on in the background has ended", task=task.get_name(), exc_info=error)


def write_for_its_user_alone() -> None:
    """What this process writes from now on, no other user of the machine reads: recordings, transcripts, links."""
    os.umask(0o077)


def own_version() -> str:
    """As installed; else of the sources."""
    try:
        return importlib.metadata.version("stenogate")
    except importlib.metadata.PackageNotFoundError:
        return "0.1.0"


def look(settings: Settings) -> MemoryView:
    """One look at the memory of all devices."""
    devices = {prices.MEMORY: read_ram(limit_bytes=settings.memory_limit_mb * MIB)}
    devices |= {f"cuda:{index}": reading for index, reading in enumerate(cuda_memory())}
    if mps := mps_memory(devices[prices.MEMORY]):
        devices["mps"] = mps
    return MemoryView(devices, pressure(), memory_events(), own_bytes())


def _own_keys(settings: Settings) -> list[str]:
    """Raises OSError where one is to be made, and cannot be kept."""
    return [key.get_secret_value() for key in settings.api_keys] or [kept_key(key_file(settings))]


def _webhook_secret(settings: Settings) -> str:
    if settings.webhook_secret:
        return settings.webhook_secret.get_secret_value()
    return kept_key(settings.data_dir.resolve() / "webhook-secret", new_secret)


def key_file(settings: Settings) -> Path:
    return settings.data_dir.resolve() / "api-key"


def secrets_of(settings: Settings) -> list[str]:
    hidden = [*settings.api_keys, *(one for one in (settings.hf_token, settings.webhook_secret) if one)]
    hidden += [settings.openai_api_key] if settings.openai_api_key.get_secret_value() else []
    passwords = [make_url(settings.database).password, urlsplit(settings.broker_url.get_secret_value()).password]
    passwords.append(os.environ.get("AWS_SECRET_ACCESS_KEY"))
    return [*(secret.get_secret_value() for secret in hidden), *(str(password) for password in passwords if password)]
