"""The engine in this process, where no server runs: the server's own parts without HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

import telemetry
from api.parameters import parse
from api.providers import check_provider, work_of
from api.services import Services
from api.transcribe import TranscribeParameters, options_of
from command_line.files import Source
from command_line.transcribing import Exit, Failed, Made, Shown, as_bytes, with_words
from errors import ConfigurationError, ServiceError
from reservation import Work
from settings import Settings
from transcription import formats
from transcription.core import ResponseFormat, Segment, Transcript, TranscriptionOptions, TranscriptSegment
from transcription.journal import Journal
from wiring import secrets_of, wired
from workfolder import private_folder


class _ShownJournal(Journal):
    """Tells of a recording's work as it goes on."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    def begun(self, audio_s: float) -> None:
        self._shown.length(audio_s)
        self._shown.stage("transcribing")

    def segment_heard(self, segment: Segment, result: TranscriptSegment) -> None:
        self._shown.heard(result.end)


class Local:
    """Transcribes here."""

    at_once = 1

    def __init__(self, parts: Services) -> None:
        self._parts = parts

    async def transcribe(
        self, source: Source, parameters: Mapping[str, str], wanted: Sequence[ResponseFormat], shown: Shown
    ) -> Made:
        try:
            options = self._options(with_words(parameters, wanted))
            with private_folder(self._parts.work_folder) as folder:
                path = source.path or await self._fetched(source.url or "", folder, shown)
                transcript = await self._transcribed(path, options, shown)
            shown.stage("writing")
            rendered = await asyncio.to_thread(_rendered, transcript, wanted)
        except ServiceError as error:
            raise Failed(error.message, error.code) from error
        return Made(rendered, transcript.warnings)

    def _options(self, parameters: Mapping[str, str]) -> TranscriptionOptions:
        """As POST /transcribe reads them."""
        parts = self._parts
        asked = parse(TranscribeParameters, list(parameters.items()))
        options = options_of(asked, default_model=parts.default_model, default_beam_size=parts.default_beam_size)
        check_provider(options, parts)
        if options.align_model is not None:
            parts.alignment_models.check(options.align_model)
        return options

    async def _fetched(self, url: str, folder: Path, shown: Shown) -> Path:
        shown.stage("downloading")
        self._parts.fetcher.check(url)
        (target := folder / "download").mkdir()
        return (await self._parts.fetcher.fetch(url, target)).path

    async def _transcribed(self, path: Path, options: TranscriptionOptions, shown: Shown) -> Transcript:
        upstream = self._parts.upstream if work_of(options) is Work.UPSTREAM else None
        shown.stage("asking the upstream" if upstream else "loading the model")
        # Nobody else is before it; the gate is passed for the memory's sake.
        with self._parts.admission.reserve(work_of(options), counted=False, accepted=True) as place:
            return await (upstream or self._parts.transcriber).run(path, options, place, _ShownJournal(shown))


def _rendered(transcript: Transcript, wanted: Sequence[ResponseFormat]) -> dict[ResponseFormat, bytes]:
    return {one: as_bytes(formats.render(transcript, one, request_id="")) for one in wanted}


def own_settings(settings: Settings) -> Settings:
    """*settings* for an engine that has nothing to do with a server's jobs, and shares its weights."""
    return settings.model_copy(
        update={
            "data_dir": settings.data_dir / "command-line",
            "model_dir": settings.model_path,
            "database_url": SecretStr(""),
            "broker_url": SecretStr(""),
            "media_url": "",
            "media_dir": None,
            "role": "all",
            "disk_reserve_mb": 0,
            "max_audio_s_per_day": 0.0,
            "log_level": "error",
        }
    )


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Local]:
    """The engine, as long as the context lasts. Raises Failed where there can be none."""
    own = own_settings(settings)
    telemetry.configure(own.log_level, hidden=secrets_of(settings))
    async with contextlib.AsyncExitStack() as stack:
        try:
            parts = await stack.enter_async_context(wired(own, listens=False))
        except ConfigurationError as error:
            raise Failed(f"No server was found, and no engine can be started: {error.message}", exit=Exit.NOBODY) from (
                error
            )
        yield Local(parts)
