"""Media behind a link, brought into a folder: yt-dlp in a child process, all its traffic through the egress proxy."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from downloads.egress import EgressProxy, Ticket
from downloads.urls import AddressPolicy, check_link
from downloads.ytdlp import Progress, ask_child
from errors import (
    DownloadFailed,
    DownloadTimeout,
    DownloadTooLarge,
    InvalidRequest,
    LinkNotAllowed,
    NoMediaAtLink,
    ServiceError,
    StorageFull,
)
from ffmpeg import launcher

log = logging.getLogger(__name__)

_CHILD_MEMORY_BYTES = 512 << 20
"""Address space of the child and of its ffmpeg: pages are read into memory whole, and may unpack to more than came."""
_OVERHEAD_BYTES = 64 << 20
"""Pages, manifests, TLS and repeated attempts that pass the proxy beside the media."""
_SOCKET_TIMEOUT_S = 20.0

_FORMAT = re.compile(r"[A-Za-z0-9_+/*.()\[\]<>=!^$~?:|& '\"-]{1,200}")
_MEDIA_TYPES = {
    "3gp": "video/3gpp",
    "aac": "audio/aac",
    "aif": "audio/aiff",
    "aiff": "audio/aiff",
    "avi": "video/x-msvideo",
    "flac": "audio/flac",
    "flv": "video/x-flv",
    "m4a": "audio/mp4",
    "m4v": "video/mp4",
    "mka": "audio/x-matroska",
    "mkv": "video/x-matroska",
    "mov": "video/quicktime",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "mpeg": "video/mpeg",
    "mpg": "video/mpeg",
    "oga": "audio/ogg",
    "ogg": "audio/ogg",
    "ogv": "video/ogg",
    "opus": "audio/ogg",
    "ts": "video/mp2t",
    "wav": "audio/wav",
    "weba": "audio/webm",
    "webm": "video/webm",
    "wma": "audio/x-ms-wma",
    "wmv": "video/x-ms-wmv",
}
_AUDIO_TWINS = {"video/mp4": "audio/mp4", "video/webm": "audio/webm", "video/x-matroska": "audio/x-matroska"}


class MediaKind(StrEnum):
    AUDIO = "audio"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class Fetched:
    """Media on disk, whole."""

    path: Path
    name: str
    """A file name for people, made of the title; never used on disk."""
    title: str
    extractor: str
    media_type: str
    bytes: int
    duration_s: float | None
    """What the page or site says; None where it says nothing."""
    source: str


class Fetcher:
    """Downloads, each in a child process of its own that lives no longer than its fetch()."""

    def __init__(
        self,
        *,
        proxy: EgressProxy,
        ffmpeg_path: Path,
        max_bytes: int,
        timeout_s: float,
        policy: AddressPolicy | None = None,
    ) -> None:
        """*policy*: where links and all that they lead to may go; None: wherever the proxy lets them."""
        self._proxy = proxy
        self._policy = policy
        self._ffmpeg_path = ffmpeg_path
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    def check(self, url: str) -> None:
        """Refuse what can be told from the link's text. Raises InvalidLink, LinkNotAllowed."""
        check_link(url, self._policy or self._proxy.policy)

    async def fetch(
        self,
        url: str,
        folder: Path,
        *,
        kind: MediaKind = MediaKind.AUDIO,
        format: str | None = None,
        max_height: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Fetched:
        """Bring the media behind *url* into *folder*, which exists, is empty and belongs to this download.

        *format* is yt-dlp's own notation and replaces the choice by *kind* and *max_height* (lines of the picture).
        Raises InvalidLink, InvalidRequest, LinkNotAllowed, NoMediaAtLink, DownloadFailed, DownloadTooLarge,
        DownloadTimeout, StorageFull. Then, and when cancelled, the child is dead and *folder* empty.
        """
        link = check_link(url, self._policy or self._proxy.policy)
        request = {
            "url": link.url,
            "format": choose_format(kind, format, max_height),
            "ffmpeg": str(self._ffmpeg_path.absolute()),
            "launcher": launcher("PARENT", paths=[("+d", folder)]),
            "max_bytes": self._max_bytes,
            "cpu_s": int(self._timeout_s) + 5,
            "memory_bytes": _CHILD_MEMORY_BYTES,
            "socket_timeout_s": _SOCKET_TIMEOUT_S,
            "parent_pid": os.getpid(),
        }
        ticket_bytes = self._max_bytes + self._max_bytes // 8 + _OVERHEAD_BYTES
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._proxy.ticket(max_bytes=ticket_bytes, policy=self._policy) as ticket,
            ):
                answer, stderr_tail = await ask_child({**request, "proxy": ticket.url}, folder, on_progress)
            if answer.get("event") != "done":
                said = stderr_tail.decode("utf-8", "replace").replace(ticket.url, "<proxy>")
                log.info("download failed reason=%r bytes=%d stderr=%r", answer.get("reason"), ticket.bytes, said)
                raise _error(answer, ticket)
            return self._fetched(answer, folder, url)
        except TimeoutError as error:
            _empty(folder)
            raise DownloadTimeout from error
        except BaseException:
            _empty(folder)
            raise

    def _fetched(self, answer: dict[str, Any], folder: Path, url: str) -> Fetched:
        path = folder / Path(str(answer["name"])).name
        if path.is_symlink() or not path.is_file() or not path.name.startswith("media."):
            raise DownloadFailed
        size = path.stat().st_size
        if size == 0:
            raise DownloadFailed("The link's server sent an empty file.")
        if size > self._max_bytes:
            raise DownloadTooLarge
        _empty(folder, but=path)
        extension = path.suffix.removeprefix(".").lower()
        media_type = _MEDIA_TYPES.get(extension, "application/octet-stream")
        if not answer["has_video"]:
            media_type = _AUDIO_TWINS.get(media_type, media_type)
        duration_s = answer["duration_s"]
        title = _printable(str(answer["title"]), 300)
        return Fetched(
            path=path,
            name=file_name(title, extension if extension in _MEDIA_TYPES else "bin"),
            title=title,
            extractor=_printable(str(answer["extractor"]), 100),
            media_type=media_type,
            bytes=size,
            duration_s=float(duration_s) if isinstance(duration_s, int | float) and duration_s > 0 else None,
            source=url,
        )


def choose_format(kind: MediaKind, format: str | None, max_height: int | None) -> str:
    """yt-dlp's notation of what to take. Raises InvalidRequest."""
    if max_height is not None and not 1 <= max_height <= 16_384:
        raise InvalidRequest("max_height is a number of lines from 1 to 16384.")
    if format is not None:
        names = re.split(r"[^a-z]+", format.lower())
        # "-" asks at the terminal, "all" and "mergeall" take everything.
        if not _FORMAT.fullmatch(format) or format.startswith("-") or "all" in names or "mergeall" in names:
            raise InvalidRequest("format is not one format in yt-dlp's notation, of at most 200 characters.")
        return format
    if kind is MediaKind.AUDIO:
        return "bestaudio/best"
    limit = f"[height<=?{max_height}]" if max_height is not None else ""
    return f"bestvideo*{limit}+bestaudio/best{limit}"


def file_name(title: str, extension: str) -> str:
    """A name that every file system takes, that begins with no dot or dash and needs no quotes in a header."""
    kept = re.sub(r"[^\w .()+-]", "_", title)[:100].strip(" .-_")
    return f"{kept or 'media'}.{extension}"


def _printable(text: str, length: int) -> str:
    return "".join(char for char in text if char.isprintable())[:length].strip()


def _error(answer: dict[str, Any], ticket: Ticket) -> ServiceError:
    """What the caller is told. What the proxy saw counts before what yt-dlp made of it."""
    reason = answer.get("reason")
    if ticket.refused or reason == "scheme":
        return LinkNotAllowed()
    if ticket.over_limit or reason == "too_large":
        return DownloadTooLarge()
    match reason:
        case "disk_full":
            return StorageFull()
        case "no_media":
            return NoMediaAtLink()
        case "live":
            return NoMediaAtLink("The link is a live stream; only finished recordings are fetched.")
        case "format":
            return NoMediaAtLink("Nothing at the link has the format that was asked for.")
        case "unsupported":
            return NoMediaAtLink("The media behind the link is protected or sent in a way that is not supported.")
        case "http" if 300 <= int(answer["status"]) < 400:
            return DownloadFailed("The link's server redirects too often, or to nowhere.")
        case "http" if not ticket.unreachable:
            return DownloadFailed(f"The link's server answered with HTTP status {int(answer['status'])}.")
        case "said" if message := _printable(str(answer.get("message")), 200):
            return DownloadFailed(f"The link's site does not give this media: {message}")
    if ticket.unreachable:
        return DownloadFailed("The link's server cannot be found or does not answer.")
    return DownloadFailed()


def _empty(folder: Path, but: Path | None = None) -> None:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry == but:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
