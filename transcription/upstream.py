"""Transcription by another server, OpenAI's or one that speaks as it does: the same work, with none of it done here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import structlog

import prices
from errors import AudioTooLong, UpstreamFailed, UpstreamTimeout
from ffmpeg import FFmpeg
from recording import convert
from reservation import Reservation
from transcription.core import BYTES_PER_SAMPLE, SAMPLE_RATE, Segment, Task, Transcript, TranscriptionOptions
from transcription.journal import SILENT, Journal
from transcription.protocol import Language
from transcription.service import Stopwatch, digest, size_of
from transcription.upstream_answers import Answer, fields, transcript_of
from workfolder import private_folder

ATTEMPTS = 4
AGAIN = (408, 409, 429)
"""Statuses after which OpenAI's own client tries again; beside those from 500 on."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
LONGEST_RETRY_AFTER_S = 120.0
"""Who says to come back later than that is taken at its word: it cannot do it now."""

CONNECT_S = 10.0
SILENCE_S = 60.0
"""Of a server that takes nothing of what is sent."""
MOST_ANSWER_BYTES = 64 * 2**20
CHUNK_BYTES = 256 * 1024
MOST_TOLD = 300
"""Characters of an upstream's own words that callers are told."""

FLAC = ("-ac", "1", "-c:a", "flac", "-f", "flac")
FLAC_BYTES_A_SECOND = SAMPLE_RATE * BYTES_PER_SAMPLE + 512
"""At most: of noise. Speech takes half of it."""
OPUS_BITS_A_SECOND = (24_000, 16_000, 12_000)
"""The first with which a recording is small enough. Speech is as well understood at all of them as at higher rates."""
OPUS_SLACK = 1.2
"""Ogg's pages, and a rate that is kept on average only."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UpstreamAccess:
    """Where the upstream is. The key is shown nowhere and goes to no other address."""

    base_url: str
    """Up to and with `/v1`, without a slash at its end."""
    model: str
    timeout_s: float
    """For everything, attempts and pauses included."""
    max_bytes: int
    """Of a file: OpenAI takes 25 MB."""
    key: str = ""

    def __repr__(self) -> str:
        return f"<UpstreamAccess {self.base_url} {self.model}>"


class Upstream:
    """Has recordings transcribed elsewhere. Holds nothing of a request; any number may run at once.

    A recording is decoded here all the same: what it lasts is known then, whatever its header says, and what is sent
    holds nothing but its sound, in 16 kHz and mono as Whisper hears it; losslessly, unless it would be too large.
    """

    def __init__(
        self,
        access: UpstreamAccess,
        ffmpeg: FFmpeg,
        measure: Callable[[Path, str, int], Awaitable[float]],
        *,
        work_dir: Path,
        max_duration_s: float,
        when_full: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """*measure*: seconds of a recording, as `Transcriber.measure`. *when_full*: callers may leave it to this
        server whether the upstream does it."""
        self.access = access
        self.when_full = when_full
        self._ffmpeg = ffmpeg
        self._measure = measure
        self._work_dir = work_dir
        self._max_duration_s = max_duration_s
        self._sleep = sleep
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S, read=access.timeout_s, pool=None),
            follow_redirects=False,
            # Nothing but the settings decides whom the key is shown to.
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"<Upstream {self.access!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def run(
        self,
        source: Path,
        options: TranscriptionOptions,
        reservation: Reservation,
        journal: Journal = SILENT,
    ) -> Transcript:
        """The transcript of the recording at *source*, when it is *reservation*'s turn. Cancelling hangs up.

        Raises the errors of `measure`, `convert` and `Reservation.granted`, UpstreamFailed, UpstreamTimeout.
        """
        watch = Stopwatch()
        with watch.stage("probe"):
            audio_s = await self._measure(source, reservation.key, reservation.priority)
        with watch.stage("queue"):
            await reservation.granted(
                {prices.MEMORY: prices.transcription_bytes(audio_s)}, amount=audio_s, short=audio_s <= prices.SHORT_S
            )
        journal.begun(audio_s)
        with private_folder(self._work_dir) as folder:
            with watch.stage("decode"):
                sent, duration_s = await self._prepared(source, folder, audio_s)
            reservation.give_back(prices.MEMORY, prices.FFMPEG_BYTES)
            hashed = await asyncio.to_thread(digest, sent)
            if journal.reuses and (known := await journal.known(hashed)):
                return replace(known, timings_s=watch.timings_s())
            with watch.stage("upstream"):
                told = await self._told(sent, options, reservation.deadline)
        transcript = await asyncio.to_thread(transcript_of, Answer(told, self.access.model, duration_s), options)
        self._tell(journal, source, transcript)
        if journal.keeps and not journal.reuses:
            journal.samples_known(hashed)
        reservation.advance(duration_s)
        log.info("transcribed by the upstream", audio_s=round(duration_s, 2), model=transcript.model)
        return replace(transcript, timings_s=watch.timings_s())

    @staticmethod
    def _tell(journal: Journal, source: Path, transcript: Transcript) -> None:
        if transcript.language is not None:
            journal.language_heard(Language(transcript.language, transcript.language_probability))
        for segment in transcript.segments:
            first, end = (round(time_s * SAMPLE_RATE) for time_s in (segment.start, segment.end))
            journal.segment_heard(Segment(source, first, max(1, end - first), segment.id), segment)

    # --- what is sent ----------------------------------------------------------------------------------------------

    async def _prepared(self, source: Path, folder: Path, audio_s: float) -> tuple[Path, float]:
        """The sound of *source*, small enough to be sent, and its seconds. Raises AudioTooLong."""
        max_bytes, flac, opus = self.access.max_bytes, folder / "audio.flac", folder / "audio.ogg"
        if audio_s * FLAC_BYTES_A_SECOND <= max_bytes:
            duration_s = await self._converted(source, flac, FLAC, FLAC_BYTES_A_SECOND)
            if size_of(flac) <= max_bytes:
                return flac, duration_s
            # Its header told of less than there is.
            audio_s = duration_s
        rates = [rate for rate in OPUS_BITS_A_SECOND if audio_s * rate / 8 * OPUS_SLACK <= max_bytes]
        if not rates:
            longest_s = max_bytes / (OPUS_BITS_A_SECOND[-1] / 8 * OPUS_SLACK)
            raise AudioTooLong(f"The recording lasts {audio_s:.0f} s; the upstream takes {longest_s:.0f} s.")
        output = ("-ac", "1", "-c:a", "libopus", "-b:a", str(rates[0]), "-application", "voip", "-f", "ogg")
        duration_s = await self._converted(source, opus, output, rates[0] // 4)
        if size_of(opus) > max_bytes:
            raise AudioTooLong("The recording is larger than the upstream takes.")
        return opus, duration_s

    async def _converted(self, source: Path, target: Path, output: Sequence[str], bytes_per_s: int) -> float:
        return await convert(
            self._ffmpeg,
            source,
            target,
            output,
            sample_rate=SAMPLE_RATE,
            bytes_per_s=bytes_per_s,
            max_duration_s=self._max_duration_s,
        )

    # --- asking ----------------------------------------------------------------------------------------------------

    async def _told(self, sent: Path, options: TranscriptionOptions, deadline: float | None) -> dict[str, Any]:
        """The upstream's answer, tried for as long as its time and the caller's last."""
        path = "translations" if options.task is Task.TRANSLATE else "transcriptions"
        url, form = f"{self.access.base_url}/audio/{path}", fields(options, self.access.model)
        left_s = min(
            self.access.timeout_s, deadline - time.monotonic() if deadline is not None else self.access.timeout_s
        )
        ends_at = asyncio.get_running_loop().time() + left_s
        try:
            async with asyncio.timeout_at(ends_at):
                for attempt in range(1, ATTEMPTS + 1):
                    try:
                        return await self._answer(url, form, sent)
                    except _Unwell as unwell:
                        pause_s = unwell.pause_s if unwell.pause_s is not None else paused_s(attempt)
                        left_s = ends_at - asyncio.get_running_loop().time()
                        if attempt == ATTEMPTS or pause_s >= min(left_s, LONGEST_RETRY_AFTER_S + 1):
                            raise unwell.error from unwell.__cause__
                        log.info("the upstream is asked again", attempt=attempt, pause_s=pause_s, why=str(unwell))
                        await self._sleep(pause_s)
        except TimeoutError:
            raise UpstreamTimeout from None
        raise AssertionError("the last attempt returns or raises")

    async def _answer(self, url: str, form: Sequence[tuple[str, str]], sent: Path) -> dict[str, Any]:
        """Raises _Unwell where it may be better next time, UpstreamFailed where not."""
        boundary = secrets.token_hex(16)
        head, tail = parts_around(form, sent.name, boundary)
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + size_of(sent) + len(tail)),
            "Accept": "application/json",
        }
        if self.access.key:
            headers["Authorization"] = f"Bearer {self.access.key}"
        try:
            async with (
                contextlib.aclosing(body(head, sent, tail)) as content,
                self._client.stream("POST", url, headers=headers, content=content) as answer,
            ):
                text = await read(answer)
        except httpx.TransportError as error:
            raise _Unwell(UpstreamFailed("The upstream cannot be reached, or hung up."), None) from error
        if answer.status_code != 200:
            raise self._refusal(answer, text)
        try:
            told = json.loads(text)
        except ValueError as error:
            raise UpstreamFailed("The upstream's answer is no transcript.") from error
        if not isinstance(told, dict):
            raise UpstreamFailed("The upstream's answer is no transcript.")
        return told

    def _refusal(self, answer: httpx.Response, text: bytes) -> Exception:
        status = answer.status_code
        if status in (401, 403):
            # NOTE: OpenAI's own words have half of the key in them.
            return UpstreamFailed(f"The upstream does not let this server in ({status}).")
        said = message_of(text)
        if self.access.key:
            said = said.replace(self.access.key, "[hidden]")
        error = UpstreamFailed(f"The upstream answered {status}{f': {said}' if said else '.'}")
        if status in AGAIN or status >= 500:
            pause_s = retry_after(answer.headers.get("retry-after"), time.time())
            if pause_s is not None:
                error.retry_after_s = max(1, round(min(pause_s, LONGEST_RETRY_AFTER_S)))
            return _Unwell(error, pause_s)
        return error


class _Unwell(Exception):
    """It may be better next time."""

    def __init__(self, error: UpstreamFailed, pause_s: float | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.pause_s = pause_s
        """As the upstream has said."""


def paused_s(attempt: int, chance: Callable[[], float] = random.random) -> float:
    """Before the next attempt: twice as long each time, and a quarter of it by chance, so that callers spread."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * (1 - 0.25 * chance())


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3); None where it says nothing."""
    if not header:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(header)
        return seconds if 0 <= seconds < float("inf") else None
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    return None


def message_of(text: bytes) -> str:
    """The sentence in an error of OpenAI's shape; empty where there is none."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return " ".join(str(json.loads(text)["error"]["message"]).split())[:MOST_TOLD]
    return ""


def parts_around(form: Sequence[tuple[str, str]], file_name: str, boundary: str) -> tuple[bytes, bytes]:
    """What stands before and after the file in a multipart/form-data body (RFC 7578)."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in form
    ]
    media_type = "audio/flac" if file_name.endswith(".flac") else "audio/ogg"
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    )
    return "".join(parts).encode(), f"\r\n--{boundary}--\r\n".encode()


async def body(head: bytes, file: Path, tail: bytes) -> AsyncGenerator[bytes]:
    """The whole, a chunk of the file at a time."""
    yield head
    with await asyncio.to_thread(file.open, "rb") as opened:
        while chunk := await asyncio.to_thread(opened.read, CHUNK_BYTES):
            yield chunk
    yield tail


async def read(answer: httpx.Response) -> bytes:
    """All of it. Raises UpstreamFailed where that is too much."""
    text = bytearray()
    async for chunk in answer.aiter_bytes():
        text += chunk
        if len(text) > MOST_ANSWER_BYTES:
            raise UpstreamFailed("The upstream's answer is too long.")
    return bytes(text)
