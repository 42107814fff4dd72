"""What can go wrong, as the caller sees it. Knows nothing of HTTP frameworks; `api/problems.py` renders it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ServiceError(Exception):
    """Something went wrong inside the service; the log has the details."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(self, message: str | None = None, *, retry_after_s: int | None = None) -> None:
        """*retry_after_s*: when to come back, where that is known."""
        super().__init__(message or self.default_message())
        self.retry_after_s = retry_after_s

    @classmethod
    def default_message(cls) -> str:
        """The first paragraph of the class's docstring: the sentence that a caller reads."""
        return " ".join((cls.__doc__ or "").split("\n\n")[0].split())

    @property
    def message(self) -> str:
        return str(self.args[0])


# --- who is asking ---------------------------------------------------------------------------------------------------


class Unauthorized(ServiceError):
    """The key is missing or not one of this server's: send it as X-API-Key, or as Authorization: Bearer."""

    status, code = 401, "UNAUTHORIZED"


# --- what is asked ---------------------------------------------------------------------------------------------------


class OriginNotAllowed(ServiceError):
    """A page of another origin may not open this: CORS_ORIGINS names those that may."""

    status, code = 403, "ORIGIN_NOT_ALLOWED"


class ScopeMissing(ServiceError):
    """This key does not open that: it lacks the scope."""

    status, code = 403, "SCOPE_MISSING"


class TooManyFailures(ServiceError):
    """Too many wrong keys came from this address."""

    status, code = 429, "TOO_MANY_FAILURES"


class InvalidRequest(ServiceError):
    """A parameter is missing, unknown or out of range."""

    status, code = 422, "INVALID_REQUEST"


class MalformedRequest(ServiceError):
    """What was sent is not HTTP as this server reads it."""

    status, code = 400, "MALFORMED_REQUEST"


class TargetTooLong(ServiceError):
    """The request's address with its query is longer than 64 KiB: send parameters in the body."""

    status, code = 414, "ADDRESS_TOO_LONG"


class HeadTooLarge(ServiceError):
    """The request's address and headers are larger than 64 KiB together."""

    status, code = 431, "HEADERS_TOO_LARGE"


class NoAudio(ServiceError):
    """No audio was given: send a file, or name one with audio_file or url."""

    status, code = 422, "NO_AUDIO"


class AmbiguousAudio(ServiceError):
    """More than one audio was given: send exactly one of file, audio_file and url."""

    status, code = 422, "AMBIGUOUS_AUDIO"


class UnknownModel(ServiceError):
    """There is no model of that name."""

    status, code = 422, "UNKNOWN_MODEL"


class ModelUnavailable(ServiceError):
    """The model's weights are not on this machine and cannot be fetched."""

    status, code = 422, "MODEL_UNAVAILABLE"


class UnsupportedLanguage(ServiceError):
    """The language is unknown, or the chosen model does not know it."""

    status, code = 422, "UNSUPPORTED_LANGUAGE"


class VoiceActivityUnavailable(ServiceError):
    """That voice activity model needs the full requirements, which are not installed here."""

    status, code = 422, "VAD_UNAVAILABLE"


class AlignmentUnavailable(ServiceError):
    """Forced alignment needs the full requirements, which are not installed here."""

    status, code = 422, "ALIGNMENT_UNAVAILABLE"


class DiarizationUnavailable(ServiceError):
    """Telling speakers apart needs the full requirements and a diarization model, which this server lacks."""

    status, code = 422, "DIARIZATION_UNAVAILABLE"


class NotFound(ServiceError):
    """There is nothing at this address."""

    status, code = 404, "NOT_FOUND"


class MethodNotAllowed(ServiceError):
    """This address does not answer that method."""

    status, code = 405, "METHOD_NOT_ALLOWED"


class MediaNotFound(ServiceError):
    """There is no file of that id or path."""

    status, code = 404, "FILE_NOT_FOUND"


class VocabularyNotFound(ServiceError):
    """This key has no vocabulary."""

    status, code = 404, "VOCABULARY_NOT_FOUND"


class RangeNotSatisfiable(ServiceError):
    """The Range header asks for bytes that the file does not have."""

    status, code = 416, "RANGE_NOT_SATISFIABLE"


class PathNotAllowed(ServiceError):
    """The path lies outside the folders that this server may read: MEDIA_DIR and those in MEDIA_ROOTS."""

    status, code = 403, "PATH_NOT_ALLOWED"


# --- what was sent ---------------------------------------------------------------------------------------------------


class UploadTooLarge(ServiceError):
    """The request's body is larger than this server accepts."""

    status, code = 413, "UPLOAD_TOO_LARGE"


class AudioTooLong(ServiceError):
    """The recording is longer than this server accepts."""

    status, code = 413, "AUDIO_TOO_LONG"


class EmptyMedia(ServiceError):
    """The file is empty."""

    status, code = 422, "EMPTY_FILE"


class UnsupportedMedia(ServiceError):
    """The file is not audio or video that can be read."""

    status, code = 415, "UNSUPPORTED_MEDIA"


class NoAudioStream(ServiceError):
    """The file has no sound in it."""

    status, code = 422, "NO_AUDIO_STREAM"


class MediaTimeout(ServiceError):
    """Reading the file took longer than this server allows."""

    status, code = 422, "MEDIA_TIMEOUT"


# --- links -----------------------------------------------------------------------------------------------------------


class InvalidLink(ServiceError):
    """The link is not a plain http or https address."""

    status, code = 422, "INVALID_URL"


class LinkNotAllowed(ServiceError):
    """The link leads to an address that this server does not fetch from."""

    status, code = 403, "URL_NOT_ALLOWED"


class NoMediaAtLink(ServiceError):
    """No audio or video was found at the link."""

    status, code = 422, "NO_MEDIA_AT_URL"


class DownloadFailed(ServiceError):
    """The link's server failed or went away before the download was complete."""

    status, code = 502, "DOWNLOAD_FAILED"


class DownloadTooLarge(ServiceError):
    """The media behind the link is larger than this server fetches."""

    status, code = 413, "DOWNLOAD_TOO_LARGE"


class DownloadTimeout(ServiceError):
    """The download took longer than this server allows."""

    status, code = 504, "DOWNLOAD_TIMEOUT"


# --- the upstream ----------------------------------------------------------------------------------------------------


class ProviderNotAllowed(ServiceError):
    """This server does not hand recordings on: choose provider=local."""

    status, code = 422, "PROVIDER_NOT_ALLOWED"


class UpstreamFailed(ServiceError):
    """The upstream did not transcribe this recording."""

    status, code = 502, "UPSTREAM_FAILED"


class UpstreamTimeout(ServiceError):
    """The upstream took longer than this server, or its caller, waits."""

    status, code = 504, "UPSTREAM_TIMEOUT"


# --- admission -------------------------------------------------------------------------------------------------------


class TooLarge(ServiceError):
    """This piece of work needs more memory than this server has for it."""

    status, code = 413, "TOO_LARGE"


class QueueFull(ServiceError):
    """The waiting line is full; come back when the backlog has been worked off."""

    status, code = 429, "QUEUE_FULL"


class KeyBusy(ServiceError):
    """This key has as many requests in flight as it may have."""

    status, code = 429, "KEY_BUSY"


class QuotaUsed(ServiceError):
    """This key has had the audio that it may have today."""

    status, code = 429, "QUOTA_USED"


class QueueTimeout(ServiceError):
    """The request waited for its turn as long as this server, or its X-Request-Timeout, allows."""

    status, code = 503, "TIMEOUT"


class DeadlineTooNear(ServiceError):
    """The transcript cannot be ready within X-Request-Timeout."""

    status, code = 503, "DEADLINE_TOO_NEAR"


# --- jobs ------------------------------------------------------------------------------------------------------------


class JobNotFound(ServiceError):
    """There is no job of that id."""

    status, code = 404, "JOB_NOT_FOUND"


class JobNotOver(ServiceError):
    """The job has no result yet: look at its state, or follow its events."""

    status, code = 409, "JOB_NOT_FINISHED"


class JobCancelled(ServiceError):
    """The job was cancelled, and has no result."""

    status, code = 409, "JOB_CANCELLED"


class NotRetryable(ServiceError):
    """Only a job that has failed or was cancelled can be tried again."""

    status, code = 409, "NOT_RETRYABLE"


class UploadGone(ServiceError):
    """What was uploaded for this job has been removed: send it again."""

    status, code = 410, "UPLOAD_GONE"


class IdempotencyConflict(ServiceError):
    """The Idempotency-Key was used before, for another request."""

    status, code = 409, "IDEMPOTENCY_CONFLICT"


class StoreUnavailable(ServiceError):
    """The database that keeps the jobs does not answer."""

    status, code = 503, "STORE_UNAVAILABLE"


# --- the engine ------------------------------------------------------------------------------------------------------


class WorkerCrashed(ServiceError):
    """The engine died while it worked on this request, as often as it was tried."""

    status, code = 503, "WORKER_CRASHED"


class EngineFailed(ServiceError):
    """The engine could not transcribe this recording."""

    status, code = 500, "TRANSCRIPTION_FAILED"


class OutOfMemory(ServiceError):
    """The engine's memory does not suffice for this recording, not even for one segment of it at a time."""

    status, code = 503, "OUT_OF_MEMORY"


class GpuOutOfMemory(OutOfMemory):
    """The GPU's memory does not suffice for this recording, not even for one segment of it at a time."""

    status, code = 503, "GPU_OOM"


class NotReady(ServiceError):
    """The service is up but cannot transcribe yet."""

    status, code = 503, "NOT_READY"


class ShuttingDown(ServiceError):
    """The service is stopping and takes no new work."""

    status, code = 503, "SHUTTING_DOWN"


class StorageFull(ServiceError):
    """There is no room left on the server's disk."""

    status, code = 507, "STORAGE_FULL"


class ConfigurationError(ServiceError):
    """The service cannot start with these settings."""

    code = "CONFIGURATION_ERROR"


# --- live text -------------------------------------------------------------------------------------------------------


class TooManyConnections(ServiceError):
    """There are too many connections to this server."""

    status, code = 503, "TOO_MANY_CONNECTIONS"


class ClientStalled(ServiceError):
    """What was to come came too slowly, or what was sent was not read."""

    status, code = 408, "CLIENT_STALLED"


# --- kept and brought back -------------------------------------------------------------------------------------------


def told_of(error: ServiceError) -> dict[str, Any]:
    """*error* as a job keeps it."""
    return {"code": error.code, "status": error.status, "message": error.message}


def raised_again(told: Mapping[str, Any]) -> ServiceError:
    """The error that `told_of` was given."""
    kind = _by_code().get(str(told.get("code")), ServiceError)
    return kind(str(told.get("message") or "") or None)


def _by_code() -> dict[str, type[ServiceError]]:
    kinds = [ServiceError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.code: kind for kind in reversed(kinds)}
