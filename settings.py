"""Every knob: its unit, its default and the reason for it. Read from the environment, then from `.env`."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from errors import ConfigurationError

CommaSeparated = NoDecode
"""Lists are written `a,b,c` in the environment, not as JSON."""


class Settings(BaseSettings):
    """The service's settings. Frozen: read once at the start, handed on as plain values."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        # Platforms hand on variables that nobody has filled in.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback needs API_KEYS.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: Annotated[tuple[SecretStr, ...], CommaSeparated] = Field(
        (),
        description="Keys that callers may send as X-API-Key, comma-separated. Without any, one is made on loopback.",
    )

    data_dir: Path = Field(Path("data"), description="Everything that must survive a restart: key, media, models.")
    media_dir: Path | None = Field(None, description="Downloads and extracted audio. Default: DATA_DIR/media.")
    media_roots: Annotated[tuple[Path, ...], CommaSeparated] = Field(
        (), description="Further folders that audio_file and video_file may name files in, comma-separated."
    )
    media_url: str = Field(
        "", description="Media and uploads of several machines: a folder that they share, or s3://bucket/prefix."
    )
    media_cache_mb: int = Field(
        4096, ge=0, description="Local copies of what lies in s3://, in MiB: two of the largest uploads."
    )
    media_ttl_s: float = Field(0, ge=0, description="Stored files older than this are deleted, in seconds; 0: never.")
    media_quota_gb: float = Field(0, ge=0, description="Stored files together, in GiB; the oldest go. 0: no limit.")
    disk_reserve_mb: int = Field(512, ge=0, description="Room on the data disk below which no work begins, in MiB.")
    model_dir: Path | None = Field(None, description="Weights, one folder a model. Default: DATA_DIR/models.")

    model_size: str = Field("base", description="Model where the caller names none: multilingual, fits 1 GB.")
    model_downloads: bool = Field(True, description="Fetch absent weights from the model hub. Off: only what is here.")
    hf_token: SecretStr | None = Field(None, description="The model hub's token, for models that need one.")
    devices: Annotated[tuple[str, ...], CommaSeparated] = Field(
        ("auto",),
        validation_alias=AliasChoices("devices", "device"),
        description="cpu, or cuda:0,cuda:1 …, one engine each, comma-separated. auto: every GPU, else the CPU.",
    )
    compute_type: str = Field("auto", description="CTranslate2's compute type. auto: float16 on CUDA, int8 on the CPU.")
    engine_replicas: int = Field(0, ge=0, le=16, description="Engine processes on a CPU; 0: one, as weights are dear.")
    engine_streams: int = Field(0, ge=0, le=64, description="Batches an engine decodes at a time; 0: as fits.")
    cpu_threads: int = Field(0, ge=0, description="Cores of all engines; 0: those that this process may use.")
    batch_size: int = Field(0, ge=0, le=64, description="Segments decoded together at most; 0: as fits.")
    torch_device: str = Field(
        "auto", description="Where words are aligned and speakers told apart: cpu, cuda, mps; auto: as there is."
    )
    align_models: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="Alignment models by language: sv=owner/model,de=/a/folder. For the others WhisperX's own.",
    )
    diarization_model: str = Field(
        "",
        description="Repository or path of a pyannote pipeline. Default: WhisperX's own, which needs HF_TOKEN.",
    )
    torch_ttl_s: float = Field(
        300,
        ge=0,
        description="Aligning and telling speakers apart leave the memory after so many idle seconds; 0: never.",
    )
    model_ttl_s: float = Field(1_800, ge=0, description="A model unused for so long is unloaded, in seconds; 0: never.")
    memory_limit_mb: int = Field(
        0,
        ge=0,
        validation_alias=AliasChoices("memory_limit_mb", "railway_ram_mb"),
        description="Memory of this service in MiB; 0: the machine's, or the container's where it has a limit.",
    )
    beam_size: int = Field(5, ge=1, le=16, description="Beam size where the caller names none: Whisper's own default.")

    max_upload_mb: int = Field(2048, ge=1, description="Largest request body, in MiB: a two-hour video in 1080p.")
    head_timeout_s: float = Field(
        30, gt=0, description="A request's head must be here within so many seconds of its first byte, else 408."
    )
    max_connections: int = Field(
        800,
        ge=0,
        description="Open connections; the next gets 503. Of files, systems often allow 1,024. 0: no limit.",
    )
    max_connections_per_address: int = Field(
        200, ge=0, description="The same for one address, but for trusted proxies: a large office's. 0: no limit."
    )
    trusted_proxies: Annotated[tuple[str, ...], CommaSeparated] = Field(
        ("127.0.0.1", "::1"),
        validation_alias=AliasChoices("trusted_proxies", "forwarded_allow_ips"),
        description="Whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and networks; *: everybody's.",
    )
    cors_origins: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (), description="Origins whose pages may call, such as https://example.com, comma-separated; *: every page."
    )
    body_idle_s: float = Field(
        30, gt=0, description="Longest pause in a request's body, in seconds, then 408: lines come back, or do not."
    )
    min_body_bytes_s: int = Field(
        1024,
        ge=0,
        description="What a body must bring a second while it is waited for, in bytes; 0: any. Slow lines bring more.",
    )
    max_duration_s: float = Field(43_200, gt=0, description="Longest recording, in seconds: 12 hours.")
    max_download_mb: int = Field(2048, ge=1, description="Largest download, in MiB.")
    download_timeout_s: float = Field(1_800, gt=0, description="Longest download, in seconds.")
    private_hosts_allowed: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (), description="Private addresses that links may lead to all the same, as host:port, comma-separated."
    )
    link_hosts_allowed: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="Links, and all they lead to, go here alone: example.com (and below), 203.0.113.0/24.",
    )
    link_hosts_denied: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (), description="Neither links nor webhooks go here, whatever else is allowed; written the same way."
    )
    max_concurrent_transcriptions: int = Field(
        0, ge=0, le=1024, description="Recordings worked on at once; 0: as many as fill the engine's batches."
    )
    max_concurrent_downloads: int = Field(2, ge=1, le=64, description="Links fetched at once: each has two processes.")
    max_concurrent_extractions: int = Field(2, ge=1, le=64, description="Files whose sound is taken out at once.")
    max_live_sessions: int = Field(
        0, ge=0, le=10_000, description="Sessions of live text at once; 0: one a core, two at least."
    )
    live_idle_s: float = Field(
        30, gt=0, description="A session of live text ends after so many seconds in which nothing is sent or read."
    )
    max_queue_length: int = Field(
        100, ge=0, le=100_000, description="Requests that wait for each kind of work; the next is refused with 429."
    )
    max_queue_wait_s: float = Field(
        600, ge=0, description="Expected wait past which a newcomer is refused, in seconds; 0: however long."
    )
    queue_timeout_s: float = Field(
        900, ge=0, description="Longest wait in the line, in seconds, then 503; 0: however long."
    )
    fail_fast: bool = Field(False, description="Nothing waits: what cannot start at once gets 429.")
    max_requests_per_key: int = Field(0, ge=0, description="Requests of one key, waiting or at work; 0: no limit.")
    max_audio_s_per_day: float = Field(
        0, ge=0, description="Audio that one key may have in a day (UTC), in seconds; 0: no limit."
    )
    max_failures_per_minute: int = Field(
        20, ge=0, description="Wrong keys that one address may send in a minute; its next guess waits. 0: no limit."
    )
    admin_only: Annotated[tuple[Literal["metrics", "capacity", "docs", "none"], ...], CommaSeparated] = Field(
        ("metrics", "capacity"),
        description="Of metrics, capacity and docs, what only keys with the scope admin see; none: nothing.",
    )
    batch_keys: Annotated[tuple[SecretStr, ...], CommaSeparated] = Field(
        (), description="Those of API_KEYS whose requests wait for everybody else's, comma-separated."
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="Where jobs are kept: postgresql://… for several machines. Default: DATA_DIR/jobs.db.",
    )
    broker_url: SecretStr = Field(
        SecretStr(""),
        description="Tells workers of jobs: redis://… or amqp://…. Empty: nobody needs to be told.",
    )
    role: Literal["auto", "all", "api"] = Field(
        "auto",
        description="api: this server does no jobs, workers do. auto: api where there is a BROKER_URL, else all.",
    )
    max_queued_jobs: int = Field(
        10_000, ge=0, description="Jobs that wait; the next is refused with 429. 0: no limit but the disk's."
    )
    job_lease_s: float = Field(
        60, ge=2, description="Silent for so long, whoever does a job has lost it, in seconds; kept alive four times."
    )
    split_above_s: float = Field(
        1_800, ge=0, description="Longer recordings are shared among the workers there are, in seconds; 0: never."
    )
    result_ttl_s: float = Field(
        604_800, ge=0, description="A job that is over is forgotten with its result, in seconds: 7 days; 0: never."
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks: whsec_ and base64. Empty: one is kept in DATA_DIR; machines need the same one.",
    )
    openai_base_url: str = Field(
        "",
        description="An upstream that speaks OpenAI's interface: https://api.openai.com/v1. Empty: there is none.",
    )
    openai_api_key: SecretStr = Field(SecretStr(""), description="The upstream's key. It is sent to no other address.")
    openai_model: str = Field("whisper-1", description="The upstream's model: OpenAI's only one that gives times.")
    upstream_timeout_s: float = Field(
        600, gt=0, description="Longest answer of the upstream, in seconds, pauses and further attempts included."
    )
    upstream_max_mb: int = Field(
        25, ge=1, description="Largest file that the upstream takes, in MB: OpenAI's own limit. Larger ones are shrunk."
    )
    upstream_when_full: bool = Field(
        False, description="provider=auto: the upstream does what would be refused here because the line is full."
    )
    max_upstream_requests: int = Field(4, ge=1, le=1024, description="Recordings that the upstream has at once.")
    shutdown_grace_s: float = Field(
        8, ge=0, description="What runs at a stop may run on so long; Docker kills at 10 s."
    )
    ffmpeg: str = Field("", description="Path of ffmpeg. Empty: the system's, else imageio-ffmpeg's.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")

    @field_validator(
        "admin_only",
        "align_models",
        "api_keys",
        "batch_keys",
        "devices",
        "link_hosts_allowed",
        "link_hosts_denied",
        "media_roots",
        "private_hosts_allowed",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        """NOTE: checked here, as uvicorn takes what is no address for a name that never comes."""
        value = cls._split(value)
        for one in value:
            if one != "*":
                ipaddress.ip_network(one)
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: Any) -> Any:
        value = cls._split(value)
        for one in value:
            if one != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", one):
                raise ValueError("an origin is https:// and a host, with nothing after them")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @property
    def media_folder(self) -> Path | None:
        """The folder that several machines share; None where there is none, or object storage in its place."""
        if not self.media_url or self.media_url.startswith("s3://"):
            return None
        return Path(self.media_url.removeprefix("file://")).resolve()

    @property
    def media_path(self) -> Path:
        if self.media_folder is not None:
            return self.media_folder / "media"
        return (self.media_dir or self.data_dir / "media").resolve()

    @property
    def model_path(self) -> Path:
        return (self.model_dir or self.data_dir / "models").resolve()

    @property
    def work_path(self) -> Path:
        """PCM and uploads of the requests in flight; emptied at start."""
        return (self.data_dir / "work").resolve()

    @property
    def upload_path(self) -> Path:
        """Uploads of jobs that are not over."""
        return (self.media_folder or self.data_dir).resolve() / "uploads"

    @property
    def database(self) -> str:
        """The jobs' database, as a URL."""
        return self.database_url.get_secret_value() or f"sqlite:///{(self.data_dir / 'jobs.db').resolve()}"

    @property
    def does_jobs(self) -> bool:
        """Whether the server itself does jobs, with engines of its own."""
        return self.role == "all" or (self.role == "auto" and not self.broker_url.get_secret_value())

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Refuse settings that are unsafe together. Raises ConfigurationError with what to do."""
        if self.media_url and self.media_dir:
            raise ConfigurationError("MEDIA_URL and MEDIA_DIR are both set: keep the one that you mean.")
        if "://" in self.media_url and not self.media_url.startswith(("file://", "s3://")):
            raise ConfigurationError("MEDIA_URL must be a folder, file:///… or s3://bucket/prefix.")
        if self.openai_base_url and not self.openai_base_url.startswith(("https://", "http://")):
            raise ConfigurationError("OPENAI_BASE_URL must begin with https:// or http://.")
        if self.upstream_when_full and not self.openai_base_url:
            raise ConfigurationError("UPSTREAM_WHEN_FULL is set, but no OPENAI_BASE_URL: name the upstream.")
        data = self.data_dir.resolve()
        for root in self.media_roots:
            if data.is_relative_to(root.resolve()):
                raise ConfigurationError(
                    f"MEDIA_ROOTS={root} holds DATA_DIR: what others have sent could be read. Name a folder beside it."
                )
        if set(self.batch_keys) - set(self.api_keys):
            raise ConfigurationError("BATCH_KEYS holds a key that is not in API_KEYS: put it into both.")
