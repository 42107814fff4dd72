"""A video with subtitles: as a stream that viewers turn on and off, or drawn into its picture for good."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from downloads.stored_files import media_type_of
from errors import AudioTooLong, InvalidRequest, ServiceError, StorageFull, UnsupportedMedia
from ffmpeg import FFmpeg, Finished, input_arguments, output_argument
from recording import MEMORY_BYTES, Header, new_file, read_header
from transcription import language_tags

BURN_MEMORY_BYTES = 4 << 30
"""Address space of a run that encodes. Seen resident, with two threads: 0.4 GiB for 1080p, 1.2 GiB for 2160p."""

_MAX_TITLE_CHARS = 300
_OVERRUN_S = 1.0
_DEMUXERS = {".srt": "srt", ".vtt": "webvtt", ".ass": "ass"}

_COPIED_BYTES_A_S = 4 << 20
"""Slower than this, a disk has too much else to do."""
_ENCODING_S = 12.0
"""Of wall clock and of CPU, for a second of video. Seen of CPU, 30 pictures a second: 1.1 for 1080p, 6 for 2160p."""
_ENCODED_BYTES_A_S = 4 << 20
"""32 Mbit/s: more than the encoders make of anything that was filmed."""


@dataclass(frozen=True, slots=True)
class _Container:
    """How a video is written into it: the codec of its subtitles, or the encoder of a picture they are drawn into."""

    suffix: str
    output: tuple[str, ...]
    subtitle_codec: str
    encoder: str
    encoding: tuple[str, ...]


_X264 = ("-preset", "veryfast", "-crf", "20")
_VP9 = ("-crf", "32", "-b:v", "0", "-deadline", "realtime", "-cpu-used", "6", "-row-mt", "1")
_MP4 = _Container(".mp4", ("-movflags", "+faststart", "-f", "mp4"), "mov_text", "libx264", _X264)
_WEBM = _Container(".webm", ("-f", "webm"), "webvtt", "libvpx-vp9", _VP9)
_MKV = _Container(".mkv", ("-f", "matroska"), "srt", "libx264", _X264)

_WEBM_DOCTYPE = b"\x42\x82\x84webm"


@dataclass(frozen=True, slots=True)
class SubtitledVideo:
    """What was written."""

    path: Path
    media_type: str
    duration_s: float
    bytes: int
    title: str | None
    """The source's, which is all that is kept of what it tells of itself as a whole."""
    lacks_letters: bool = False
    """No font here has some of the letters that were drawn: boxes stand for them."""


async def subtitled(
    ffmpeg: FFmpeg,
    video: Path,
    subtitles: Path,
    target: Path,
    *,
    burn: bool,
    language: str | None,
    max_duration_s: float,
    threads: int = 2,
) -> SubtitledVideo:
    """Write *video* with *subtitles* to a new file (mode 0600): *target* with the ending of the container it gets.

    Pictures and sound are copied, not encoded: an mp4, mov or m4v becomes an mp4, a webm a webm, all else an mkv, as
    does what the first two cannot hold. *subtitles* is UTF-8 in srt, vtt or ass, told by its suffix, and in Whisper's
    *language*; subtitles that the video had are not kept. *burn*: they are drawn into the picture, which is encoded
    anew by *threads* threads, unless there is no cue to be drawn.

    On any error, and on cancellation, nothing is left. Raises MediaNotFound, EmptyMedia, UnsupportedMedia,
    NoAudioStream, AudioTooLong, MediaTimeout, StorageFull; InvalidRequest where this server cannot draw subtitles.
    """
    header = await read_header(ffmpeg, video)
    if not header.has_video:
        raise UnsupportedMedia("The file has no moving picture: subtitles need a video.")
    burn = burn and _has_cues(subtitles)
    title = header.title[:_MAX_TITLE_CHARS] if header.title else None
    for container in _containers(header, video):
        if burn:
            await check_can_burn(ffmpeg, container.encoder)
        path = target.with_suffix(container.suffix)
        with new_file(path):
            notes = _Notes()
            finished = await ffmpeg.run(
                [
                    *("-nostats", "-threads", str(threads), "-filter_threads", str(threads), "-fflags", "+genpts"),
                    *input_arguments(video),
                    *(_burning(container, subtitles) if burn else _copying(container, subtitles, language)),
                    *("-map_metadata:g", "-1", *(("-metadata", f"title={title}") if title else ())),
                    *("-threads", str(threads), "-t", f"{max_duration_s + _OVERRUN_S:.3f}"),
                    *container.output,
                    *("-y", output_argument(path)),
                ],
                reads=[video, subtitles],
                writes=[path],
                on_stderr_line=notes.add,
                **_limits(video, subtitles, header, burn, max_duration_s),
            )
            _check(finished, notes)
            if finished.returncode == 0:
                duration_s = (await read_header(ffmpeg, path)).duration_s or 0.0
                if duration_s > max_duration_s:
                    raise AudioTooLong(f"The video is longer than {max_duration_s:g} seconds, the most accepted here.")
                size = path.stat().st_size
                return SubtitledVideo(path, media_type_of(path), duration_s, size, title, notes.lacks_letters)
            path.unlink()
    raise UnsupportedMedia


async def check_can_burn(ffmpeg: FFmpeg, encoder: str = _MP4.encoder) -> None:
    """Raises InvalidRequest where this ffmpeg cannot draw subtitles, or cannot write what it has drawn them into."""
    picture = ("-loglevel", "error", "-f", "lavfi", "-i", "color=size=64x64:duration=0.1")
    # Both are tried on a small picture: lists of what there is go to stdout, which is not read.
    for name, arguments, refusal in (
        ("subtitles", ("-vf", "subtitles"), "No such filter"),
        (encoder, ("-c:v", encoder), "Unknown encoder"),
    ):
        finished = await ffmpeg.run(
            [*picture, *arguments, "-f", "null", "-"], wall_s=30, cpu_s=15, memory_bytes=MEMORY_BYTES
        )
        if refusal in finished.stderr_tail:
            raise InvalidRequest(f"This server's ffmpeg was built without {name} and cannot burn: leave burn out.")


def _containers(header: Header, video: Path) -> list[_Container]:
    """Those to be tried, the fitting one first. Matroska holds all that this server opens."""
    if "mp4" in header.container.split(","):
        return [_MP4, _MKV]
    with video.open("rb") as file:
        is_webm = _WEBM_DOCTYPE in file.read(64)
    return [_WEBM, _MKV] if is_webm and "webm" in header.container.split(",") else [_MKV]


def _has_cues(subtitles: Path) -> bool:
    return (b"\nDialogue:" if subtitles.suffix == ".ass" else b"-->") in subtitles.read_bytes()


def _copying(container: _Container, subtitles: Path, language: str | None) -> list[str]:
    name = language_tags.name(language)
    return [
        # Told what it is, ffmpeg does not guess: a text may begin like anything.
        *("-protocol_whitelist", "file,pipe", "-f", _DEMUXERS[subtitles.suffix]),
        *("-i", f"file:{os.path.abspath(subtitles)}"),
        *("-map", "0:V:0", "-map", "0:a", "-map", "1:s:0", "-c:v", "copy", "-c:a", "copy"),
        *("-c:s", _subtitle_codec(container, subtitles), "-disposition:s:0", "default"),
        *("-metadata:s:s:0", f"language={language_tags.tag(language)}"),
        *(("-metadata:s:s:0", f"title={name}") if name else ()),
    ]


def _subtitle_codec(container: _Container, subtitles: Path) -> str:
    """What the container holds without a loss of style, where it can."""
    if container is _WEBM and subtitles.suffix == ".vtt":
        return "copy"
    return "ass" if container is _MKV and subtitles.suffix == ".ass" else container.subtitle_codec


def _burning(container: _Container, subtitles: Path) -> list[str]:
    # The encoders want an even number of lines and columns.
    drawn = f"subtitles=filename={in_filter(os.path.abspath(subtitles))},pad=ceil(iw/2)*2:ceil(ih/2)*2"
    return [
        *("-map", "0:V:0", "-map", "0:a", "-c:a", "copy", "-vf", drawn),
        *("-c:v", container.encoder, *container.encoding, "-pix_fmt", "yuv420p"),
    ]


def in_filter(value: str) -> str:
    """*value* as it stands in a description of filters: escaped once as an option's value, once as a part of a chain.

    See "Notes on filtergraph escaping" in ffmpeg's manual; no shell comes after.
    """
    option = re.sub(r"([\\':])", r"\\\1", value)
    return re.sub(r"([\\'\[\],; \t\n])", r"\\\1", option)


class _Limits(TypedDict):
    wall_s: float
    cpu_s: float
    file_size_bytes: int
    memory_bytes: int


def _limits(video: Path, subtitles: Path, header: Header, burn: bool, max_duration_s: float) -> _Limits:
    source_bytes = video.stat().st_size + 2 * subtitles.stat().st_size
    if not burn:
        work_s = 60 + source_bytes / _COPIED_BYTES_A_S
        return _Limits(
            wall_s=work_s, cpu_s=work_s, file_size_bytes=source_bytes * 11 // 10 + (16 << 20), memory_bytes=MEMORY_BYTES
        )
    duration_s = min(header.duration_s or max_duration_s, max_duration_s) + _OVERRUN_S
    work_s = 60 + duration_s * _ENCODING_S
    return _Limits(
        wall_s=work_s,
        cpu_s=work_s,
        file_size_bytes=source_bytes + int(duration_s * _ENCODED_BYTES_A_S),
        memory_bytes=BURN_MEMORY_BYTES,
    )


@dataclass(slots=True)
class _Notes:
    """What ffmpeg says of fonts while it draws, gathered line by line."""

    has_no_font: bool = False
    lacks_letters: bool = False

    def add(self, line: str) -> None:
        # NOTE: a file's tags, which may say anything, are indented.
        if line.startswith("[Parsed_subtitles") and "failed to find any fallback with glyph" in line:
            self.lacks_letters = True
            self.has_no_font = self.has_no_font or "glyph 0x0 " in line


def _check(finished: Finished, notes: _Notes) -> None:
    """Raise what another container would not cure."""
    said = [line for line in finished.stderr_tail.splitlines() if not line.startswith(" ")]
    if any(line.endswith(("No space left on device", "Disk quota exceeded")) for line in said):
        raise StorageFull
    if notes.has_no_font:
        raise InvalidRequest("This server has no font to draw subtitles with and cannot burn: leave burn out.")
    if finished.returncode == -signal.SIGXFSZ:
        raise UnsupportedMedia("With subtitles, the video would be larger than this server writes.")
    if finished.returncode == -signal.SIGKILL:
        raise ServiceError("The process that wrote the video was killed; the server may be short of memory.")
