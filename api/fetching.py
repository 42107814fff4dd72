"""A link brought into a request's private folder, with its progress in the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

import prices
from api.services import Fetcher
from downloads.fetch import Fetched, MediaKind
from downloads.ytdlp import Progress
from reservation import Reservation

LOGGED_EVERY_BYTES = 16 * 2**20

log = structlog.get_logger("api")


async def fetch_into(
    folder: Path,
    fetcher: Fetcher,
    url: str,
    place: Reservation,
    *,
    kind: MediaKind = MediaKind.AUDIO,
    format: str | None = None,
    max_height: int | None = None,
) -> Fetched:
    """The media behind *url*, in a folder of its own inside *folder*, when it is *place*'s turn in its line.

    Raises what the fetcher and `Reservation.granted` raise.
    """
    await place.granted({prices.MEMORY: prices.DOWNLOAD_BYTES})
    # The fetcher empties its folder when it fails; nothing else may lie in it.
    target = folder / "download"
    target.mkdir()
    fetched = await fetcher.fetch(
        url, target, kind=kind, format=format, max_height=max_height, on_progress=logged_progress()
    )
    log.info("downloaded", bytes=fetched.bytes, media_type=fetched.media_type, extractor=fetched.extractor)
    return fetched


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
