"""What ffmpeg tells of a recording, and its sound written elsewhere: within bounds, and with errors that callers know.

There is no ffprobe beside the packaged ffmpeg, so facts are read from what ffmpeg prints.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import (
    AudioTooLong,
    EmptyMedia,
    MediaNotFound,
    NoAudioStream,
    ServiceError,
    StorageFull,
    UnsupportedMedia,
)
from ffmpeg import ARRIVING_NICE, FFmpeg, Finished, input_arguments, output_argument

MEMORY_BYTES = 2 << 30
"""Address space of a run. The packaged binary with its threads needs under 0.4 GiB; long videos have large indexes."""

_MAX_SAMPLE_RATE = 6_000_000
"""Above DSD1024, the fastest that recorders write. A header may say 2 GHz: the filter for that takes half a minute."""
_MAX_CHANNELS = 64
"""As many as ffmpeg resamples."""

_HEADER_WALL_S = 30.0
_HEADER_CPU_S = 15.0
_OVERRUN_S = 1.0
"""How far past its bound a recording is converted: enough to see that it goes on."""

_INPUT = re.compile(r"Input #0, (\S+), from ")
_DURATION = re.compile(r" +Duration: (?:(\d+):(\d\d):(\d\d(?:\.\d+)?)|N/A),")
_STREAM = re.compile(r" {2,4}Stream #0:\d+.*?: (Audio|Video): (\w+)(.*)")
_SOUND = re.compile(r", (\d+) Hz, ([^,]+)")
_TITLE = re.compile(r" {4,8}title +: (.*)", re.IGNORECASE)
_INPUT_COUNTS = re.compile(r" Input stream #0:\d+ \(audio\): (\d+) packets read .*?; (\d+) frames decoded(.*)")
_ERRORS = re.compile(r"(\d+) decode errors")
_OUTPUT_COUNTS = re.compile(r" Output stream #0:0 \(audio\): \d+ frames encoded \((\d+) samples\)")
_CHANNELS = {"mono": 1, "stereo": 2, "downmix": 2, "quad": 4, "hexagonal": 6, "octagonal": 8, "hexadecagonal": 16}


@dataclass(slots=True)
class Header:
    """What ffmpeg says of a file before it works on it, gathered line by line with `add`.

    Facts are believed only where ffmpeg itself puts them: text in the file's tags is printed too, but indented, and the
    streams come after the line with the duration. A tag that forges more than this changes nothing but its own file's
    price: whether there is sound at all is taken from the exit status.
    """

    container: str = ""
    duration_s: float | None = None
    codec: str = ""
    """Of the first audio stream: the one that is used. Empty: none was seen."""
    sample_rate: int = 0
    channels: int = 0
    has_video: bool = False
    """A cover picture is none."""
    title: str | None = None
    _part: str = "before"

    def add(self, line: str) -> None:
        """Take the next line of stderr, at level info or above."""
        if self._part == "over":
            return
        if line.startswith(("Output #0", "Stream mapping:")):
            self._part = "over"
        elif self._part == "before":
            if found := _INPUT.match(line):
                self.container, self._part = found[1], "tags"
        elif found := _STREAM.match(line) if self._part != "tags" else None:
            self._part = "streams"
            self._add_stream(*found.groups())
        elif found := _DURATION.match(line) if self._part == "tags" else None:
            self._part = "chapters"
            if found[1] is not None:
                self.duration_s = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
        elif self.title is None and self._part != "chapters" and (found := _TITLE.match(line)):
            self.title = found[1].strip() or None

    def _add_stream(self, kind: str, codec: str, details: str) -> None:
        if kind == "Video":
            self.has_video = self.has_video or "(attached pic)" not in details
        elif not self.codec:
            self.codec = codec
            if sound := _SOUND.search(details):
                self.sample_rate, self.channels = int(sound[1]), _channels(sound[2])


def _channels(layout: str) -> int:
    """Channels of a layout as ffmpeg names it: "stereo", "5.1(side)", "7.1.4", "12 channels", "ambisonic 1"; else 1."""
    name = layout.split("(")[0].strip()
    if name in _CHANNELS:
        return _CHANNELS[name]
    if found := re.match(r"(\d+) channels", name):
        return int(found[1])
    if found := re.fullmatch(r"ambisonic (\d)", name):
        return (int(found[1]) + 1) ** 2
    if re.fullmatch(r"\d+(\.\d+)+", name):
        return sum(map(int, name.split(".")))
    return 1


@dataclass(slots=True)
class Counts:
    """What ffmpeg counted while it converted, gathered line by line with `add` at level verbose."""

    decoded_frames: int = 0
    decode_errors: int = 0
    encoded_samples: int = 0

    def add(self, line: str) -> None:
        if " stream #0:" not in line:
            return
        if found := _INPUT_COUNTS.search(" " + line):
            self.decoded_frames = int(found[2])
            # Before version 5.1 the errors are not counted: what was read and not decoded stands for them.
            errors = _ERRORS.search(found[3])
            self.decode_errors = int(errors[1]) if errors else max(0, int(found[1]) - self.decoded_frames)
        elif found := _OUTPUT_COUNTS.search(" " + line):
            self.encoded_samples = int(found[1])

    @property
    def are_of_sound(self) -> bool:
        """Whether this was a recording, rather than noise in which a decoder found something.

        Headers of MPEG audio frames are 11 set bits and a few rules, and a file's name alone makes ffmpeg try: in a
        megabyte of random bytes now and then one frame decodes, among a hundred that fail. In a recording, damaged or
        not, frames decode; so most attempts must succeed. (Seen in 1,300 random files: at most 1 frame in 130. ffmpeg
        itself gives up above two thirds of errors, but not in every version and not in each case.)
        """
        return self.decoded_frames > self.decode_errors


async def read_header(ffmpeg: FFmpeg, path: Path) -> Header:
    """Read what the container's header says, without decoding the sound.

    Raises MediaNotFound, EmptyMedia, UnsupportedMedia, NoAudioStream, MediaTimeout.
    """
    _check_file(path)
    header = Header()
    # Selecting the first sound and copying none of it makes the exit status say whether there is any.
    finished = await ffmpeg.run(
        [*input_arguments(path), "-map", "0:a:0", "-c", "copy", "-t", "0", "-f", "null", "-"],
        wall_s=_HEADER_WALL_S,
        cpu_s=_HEADER_CPU_S,
        memory_bytes=MEMORY_BYTES,
        nice=ARRIVING_NICE,
        reads=[path],
        on_stderr_line=header.add,
    )
    if finished.returncode != 0 or not header.sample_rate:
        raise _failure(finished, header)
    if header.sample_rate > _MAX_SAMPLE_RATE or header.channels > _MAX_CHANNELS:
        raise UnsupportedMedia(
            f"The file's sound has {header.channels} channels at {header.sample_rate} Hz; "
            f"up to {_MAX_CHANNELS} at up to {_MAX_SAMPLE_RATE} Hz are read."
        )
    return header


async def convert(
    ffmpeg: FFmpeg,
    source: Path,
    target: Path,
    output: Sequence[str],
    *,
    sample_rate: int,
    bytes_per_s: int,
    max_duration_s: float,
) -> float:
    """Write the first sound of *source* to the new file *target* (mode 0600) at *sample_rate*; return its seconds.

    *output* are the arguments of codec and container; they must not write more than *bytes_per_s* on average. What can
    be decoded of a damaged file is taken. Conversion stops a second past *max_duration_s*, whatever the header said.
    On any error, and on cancellation, *target* is removed.

    Raises MediaNotFound, EmptyMedia, UnsupportedMedia, NoAudioStream, AudioTooLong, MediaTimeout, StorageFull.
    """
    _check_file(source)
    with new_file(target):
        return await _convert(ffmpeg, source, target, output, sample_rate, bytes_per_s, max_duration_s)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[None]:
    """Make *path*, for this user alone, and remove it again where the context fails."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull from error
        raise
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


async def _convert(
    ffmpeg: FFmpeg,
    source: Path,
    target: Path,
    output: Sequence[str],
    sample_rate: int,
    bytes_per_s: int,
    max_duration_s: float,
) -> float:
    header, counts = Header(), Counts()

    def add(line: str) -> None:
        header.add(line)
        counts.add(line)

    finished = await ffmpeg.run(
        [
            *("-loglevel", "verbose", "-nostats", "-threads", "1"),
            *input_arguments(source),
            *("-map", "0:a:0", "-vn", "-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1", "-threads", "1"),
            *("-ar", str(sample_rate), "-t", f"{max_duration_s + _OVERRUN_S:.3f}"),
            *output,
            *("-y", output_argument(target)),
        ],
        # Opus, the slowest usual codec, takes 1 s of CPU for 350 s of sound on a core of 2023: a twentieth of the
        # sound's length leaves room for much slower ones, and twice that for a busy machine.
        wall_s=60 + max_duration_s / 10,
        cpu_s=30 + max_duration_s / 20,
        file_size_bytes=int((max_duration_s + _OVERRUN_S) * bytes_per_s) + (1 << 20),
        memory_bytes=MEMORY_BYTES,
        reads=[source],
        writes=[target],
        on_stderr_line=add,
    )
    if finished.returncode == -signal.SIGXFSZ:
        raise AudioTooLong
    # Damaged and truncated files end with 0; so does a full disk, before version 5.
    if finished.returncode != 0 or _disk_was_full(finished):
        raise _failure(finished, header)
    duration_s = counts.encoded_samples / sample_rate
    if not duration_s or not counts.are_of_sound:
        raise UnsupportedMedia
    if duration_s > max_duration_s:
        raise AudioTooLong(f"The recording is longer than {max_duration_s:g} seconds, the most this server accepts.")
    return duration_s


def _check_file(path: Path) -> None:
    """Only a regular file is handed to ffmpeg: a pipe would hold it up, a device would never end."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MediaNotFound from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsupportedMedia
    if status.st_size == 0:
        raise EmptyMedia


def _disk_was_full(finished: Finished) -> bool:
    """Whether ffmpeg says so itself: a file's tags, which may say anything, are indented."""
    said = [line for line in finished.stderr_tail.splitlines() if not line.startswith(" ")]
    return any(line.endswith(("No space left on device", "Disk quota exceeded")) for line in said)


def _failure(finished: Finished, header: Header) -> ServiceError:
    """The error that a failed run stands for."""
    if finished.returncode == -signal.SIGKILL:
        return ServiceError("The process that read the file was killed; the server may be short of memory.")
    if _disk_was_full(finished):
        return StorageFull()
    if "matches no streams" in finished.stderr_tail and header.has_video:
        return NoAudioStream()
    return UnsupportedMedia()
