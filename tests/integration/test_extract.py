"""Sound taken out of real videos by the real ffmpeg, in every format that can be asked for."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import psutil
import pytest

from downloads.extract import AudioFormat, ExtractOptions, extract
from errors import AudioTooLong, EmptyMedia, InvalidRequest, NoAudioStream, ServiceError, StorageFull, UnsupportedMedia
from ffmpeg import FFmpeg
from recording import Header, read_header
from tests.speech import speech_file

MAX_S = 600.0
FFMPEG = FFmpeg.locate()


def make(target: Path, *arguments: str) -> Path:
    command = [str(FFMPEG.path), "-nostdin", "-loglevel", "error", *arguments, "-y", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def said_of(path: Path) -> str:
    """What ffmpeg prints of a file: its streams, tags and chapters."""
    return subprocess.run([FFMPEG.path, "-hide_banner", "-i", path], capture_output=True, text=True).stderr


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of pictures with stereo sound, subtitles, chapters and tags."""
    folder = tmp_path_factory.mktemp("film")
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nwritten words\n")
    (folder / "tags").write_text(
        ";FFMETADATA1\ntitle=Ein Ärger; \\= x\nartist=somebody\ncomment=private\nlocation=+48.1+011.5/\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1000\ntitle=first chapter\n"
    )
    return make(
        folder / "film.mkv",
        *("-f", "lavfi", "-i", "testsrc=duration=2:size=64x64:rate=5"),
        *("-f", "lavfi", "-i", "sine=duration=2:sample_rate=44100"),
        *("-i", str(folder / "a.srt"), "-i", str(folder / "tags")),
        *("-map", "0", "-map", "1", "-map", "2", "-map_metadata", "3", "-map_chapters", "3", "-ac", "2"),
    )


@pytest.mark.parametrize(
    ("kind", "media_type", "codec", "container", "sample_rate"),
    [
        (AudioFormat.MP3, "audio/mpeg", "mp3", "mp3", 44100),
        (AudioFormat.WAV, "audio/wav", "pcm_s16le", "wav", 44100),
        (AudioFormat.FLAC, "audio/flac", "flac", "flac", 44100),
        (AudioFormat.M4A, "audio/mp4", "aac", "mov", 44100),
        (AudioFormat.OPUS, "audio/ogg", "opus", "ogg", 48000),
    ],
)
async def test_each_format_holds_the_sound_and_its_title_alone(
    film: Path, tmp_path: Path, kind: AudioFormat, media_type: str, codec: str, container: str, sample_rate: int
) -> None:
    """Tags tell where and by whom a video was made; who passes its sound on need not pass these on."""
    target = tmp_path / f"out.{kind}"
    made = await extract(FFMPEG, film, target, options=ExtractOptions(kind), max_duration_s=MAX_S)
    assert (made.media_type, made.bytes) == (media_type, target.stat().st_size)
    assert made.duration_s == pytest.approx(2, abs=0.1)
    assert target.stat().st_mode & 0o777 == 0o600
    header = await read_header(FFMPEG, target)
    assert (header.codec, header.sample_rate, header.channels, header.has_video) == (codec, sample_rate, 2, False)
    assert container in header.container.split(",")
    assert header.duration_s == pytest.approx(made.duration_s, abs=0.1)
    assert header.title == made.title == "Ein Ärger; = x"
    said = said_of(target)
    for word in ("somebody", "private", "+48.1", "chapter", "Subtitle", "Video"):
        assert word not in said


@pytest.mark.parametrize(
    ("options", "sample_rate", "channels"),
    [
        (ExtractOptions(AudioFormat.MP3, sample_rate=16000, channels=1, bit_rate=32_000), 16000, 1),
        (ExtractOptions(AudioFormat.WAV, sample_rate=8000, channels=1), 8000, 1),
        (ExtractOptions(AudioFormat.FLAC, sample_rate=96000), 96000, 2),
        (ExtractOptions(AudioFormat.M4A, channels=1, bit_rate=320_000), 44100, 1),
        (ExtractOptions(AudioFormat.OPUS, sample_rate=16000, channels=1, bit_rate=256_000), 48000, 1),
    ],
)
async def test_what_is_asked_for_is_written(
    film: Path, tmp_path: Path, options: ExtractOptions, sample_rate: int, channels: int
) -> None:
    """Opus always plays at 48 kHz, whatever it was made from."""
    target = tmp_path / "out"
    await extract(FFMPEG, film, target, options=options, max_duration_s=MAX_S)
    header = await read_header(FFMPEG, target)
    assert (header.sample_rate, header.channels) == (sample_rate, channels)


async def test_a_lower_bit_rate_makes_a_smaller_file(tmp_path: Path) -> None:
    noise = make(tmp_path / "noise.wav", "-f", "lavfi", "-i", "anoisesrc=duration=3:sample_rate=44100")
    sizes = [
        (
            await extract(
                *(FFMPEG, noise, tmp_path / f"{rate}.mp3"), options=ExtractOptions(bit_rate=rate), max_duration_s=MAX_S
            )
        ).bytes
        for rate in (64_000, 192_000)
    ]
    assert sizes[1] > 2.5 * sizes[0]


@pytest.mark.parametrize("kind", list(AudioFormat))
async def test_surround_sound_becomes_stereo(tmp_path: Path, kind: AudioFormat) -> None:
    """mp3 holds no more than two channels, and nobody asked for six."""
    source = make(tmp_path / "a.wav", "-f", "lavfi", "-i", "sine=duration=1", "-af", "pan=5.1|FL=c0|FC=c0|BR=c0")
    target = tmp_path / "out"
    await extract(FFMPEG, source, target, options=ExtractOptions(kind), max_duration_s=MAX_S)
    assert (await read_header(FFMPEG, target)).channels == 2


@pytest.mark.parametrize("name", ["formats/libri_2spk_video.mov", "formats/libri_2spk_video.webm"])
async def test_real_videos_give_their_speech(tmp_path: Path, name: str) -> None:
    made = await extract(
        FFMPEG, speech_file(name), tmp_path / "a.opus", options=ExtractOptions(AudioFormat.OPUS), max_duration_s=MAX_S
    )
    assert made.duration_s == pytest.approx(58.1, abs=0.3)
    assert made.title is None


# --- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"format": AudioFormat.OPUS, "sample_rate": 44100}, "must be one of 8000, 12000, 16000, 24000, 48000"),
        ({"format": AudioFormat.MP3, "sample_rate": 96000}, "sample_rate for mp3 must be one of 8000, 11025"),
        ({"format": AudioFormat.M4A, "sample_rate": 8001}, "sample_rate for m4a must be one of"),
        ({"format": AudioFormat.WAV, "sample_rate": 7999}, "between 8000 and 192000"),
        ({"format": AudioFormat.FLAC, "sample_rate": 192_001}, "between 8000 and 192000"),
        ({"channels": 3}, "1 \\(mono\\) or 2 \\(stereo\\)"),
        ({"channels": 0}, "1 \\(mono\\) or 2 \\(stereo\\)"),
        ({"format": AudioFormat.MP3, "bit_rate": 320_001}, "between 8000 and 320000 bits a second"),
        ({"format": AudioFormat.OPUS, "bit_rate": 5_999}, "between 6000 and 256000 bits a second"),
        ({"format": AudioFormat.M4A, "bit_rate": 0}, "between 16000 and 320000 bits a second"),
        ({"format": AudioFormat.WAV, "bit_rate": 128_000}, "wav is lossless and has no bit_rate"),
        ({"format": AudioFormat.FLAC, "bit_rate": 128_000}, "flac is lossless and has no bit_rate"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(asked: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        ExtractOptions(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "source_rate", "written_rate"),
    [
        (AudioFormat.MP3, 44100, 44100),
        (AudioFormat.MP3, 96000, 48000),
        (AudioFormat.MP3, 10000, 11025),
        (AudioFormat.OPUS, 22050, 24000),
        (AudioFormat.OPUS, 44100, 48000),
        (AudioFormat.WAV, 500, 8000),
        (AudioFormat.WAV, 11111, 11111),
        (AudioFormat.FLAC, 384_000, 192_000),
    ],
)
def test_a_rate_that_the_format_lacks_is_rounded_up(kind: AudioFormat, source_rate: int, written_rate: int) -> None:
    """Rounded down, the highest tones would be lost."""
    assert ExtractOptions(kind).output_rate(source_rate) == written_rate


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def refusal(
    source: Path, folder: Path, max_duration_s: float = MAX_S, ffmpeg: FFmpeg = FFMPEG
) -> type[Exception]:
    target = folder / "refused.mp3"
    with pytest.raises(ServiceError) as caught:
        await extract(ffmpeg, source, target, options=ExtractOptions(), max_duration_s=max_duration_s)
    assert not target.exists()
    return caught.type


async def test_what_holds_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert await refusal(tmp_path / "empty.mp4", tmp_path) is EmptyMedia
    (tmp_path / "noise.mp4").write_bytes(random.Random(1).randbytes(50_000))
    assert await refusal(tmp_path / "noise.mp4", tmp_path) is UnsupportedMedia
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nempty.mp4\n#EXT-X-ENDLIST\n")
    assert await refusal(tmp_path / "list.mp4", tmp_path) is UnsupportedMedia
    mute = make(tmp_path / "mute.mp4", "-f", "lavfi", "-i", "testsrc=duration=1:size=64x64")
    assert await refusal(mute, tmp_path) is NoAudioStream


async def test_random_bytes_named_mp3_are_refused(tmp_path: Path) -> None:
    for seed in range(5):
        (tmp_path / "noise.mp3").write_bytes(random.Random(seed).randbytes(100_000))
        assert await refusal(tmp_path / "noise.mp3", tmp_path) is UnsupportedMedia, seed


async def test_a_longer_recording_is_stopped(film: Path, tmp_path: Path) -> None:
    assert await refusal(film, tmp_path, max_duration_s=1.5) is AudioTooLong
    assert await refusal(film, tmp_path, max_duration_s=0.2) is AudioTooLong


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="There is no device that is always full.")
async def test_a_full_disk_is_told(film: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.write_text(
        f'#!/bin/bash\ncase "${{@: -1}}" in -) exec "{FFMPEG.path}" "$@";; esac\n'
        f'exec "{FFMPEG.path}" "${{@:1:$#-1}}" file:/dev/full\n'
    )
    full.chmod(0o700)
    assert await refusal(film, tmp_path, ffmpeg=FFmpeg(full)) is StorageFull


async def test_no_child_is_left(film: Path, tmp_path: Path) -> None:
    """Whether it went well or not."""
    before = psutil.Process().children()
    await extract(FFMPEG, film, tmp_path / "a.wav", options=ExtractOptions(AudioFormat.WAV), max_duration_s=MAX_S)
    await refusal(film, tmp_path, max_duration_s=1)
    assert psutil.Process().children() == before


def test_a_title_is_taken_from_the_stream_where_the_container_has_none() -> None:
    """Ogg keeps its tags there; a chapter's title is not the recording's."""
    header = Header()
    for line in (
        "Input #0, ogg, from 'file:a':",
        "  Duration: 00:00:01.00, start: 0.000000, bitrate: 107 kb/s",
        "  Chapters:",
        "    Chapter #0:0: start 0.000000, end 1.000000",
        "      Metadata:",
        "        title           : A chapter",
        "  Stream #0:0: Audio: opus, 48000 Hz, mono, fltp",
        "    Metadata:",
        "      TITLE           : A talk",
    ):
        header.add(line)
    assert header.title == "A talk"
