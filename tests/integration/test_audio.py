"""Recordings of every kind through the real ffmpeg: what is told of them, what is decoded, what is refused."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import struct
import subprocess
import wave
from pathlib import Path

import numpy as np
import psutil
import pytest

from errors import (
    AudioTooLong,
    EmptyMedia,
    MediaNotFound,
    NoAudioStream,
    ServiceError,
    StorageFull,
    UnsupportedMedia,
)
from ffmpeg import FFmpeg
from recording import Counts, Header
from tests.speech import manifest, speech_file
from transcription.audio import decode, probe

MAX_S = 600.0
FFMPEG = FFmpeg.locate()


def make(target: Path, *arguments: str) -> Path:
    """A file made by ffmpeg itself, without the bounds that are under test."""
    command = [str(FFMPEG.path), "-nostdin", "-loglevel", "error", *arguments, "-y", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def sine(seconds: float, frequency: int = 440, rate: int = 44100) -> list[str]:
    return ["-f", "lavfi", "-i", f"sine=frequency={frequency}:duration={seconds}:sample_rate={rate}"]


def pictures(seconds: float) -> list[str]:
    return ["-f", "lavfi", "-i", f"testsrc=duration={seconds}:size=64x64:rate=5"]


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def lying_wav(path: Path, claimed_bytes: int, data: bytes, rate: int = 16000) -> Path:
    """A wav whose header claims *claimed_bytes* of samples."""
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 0xFFFFFFF0, b"WAVE", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    path.write_bytes(header + struct.pack("<4sI", b"data", claimed_bytes) + data)
    return path


async def pcm_of(source: Path, folder: Path, max_duration_s: float = MAX_S) -> np.ndarray:
    """The samples that decode writes, after the checks that hold for every success."""
    target = folder / "out.pcm"
    duration_s = await decode(FFMPEG, source, target, max_duration_s=max_duration_s)
    samples = np.fromfile(target, dtype="<i2")
    assert len(samples) == round(duration_s * 16000)
    assert target.stat().st_mode & 0o777 == 0o600
    target.unlink()
    return samples


async def refusal(source: Path, folder: Path, max_duration_s: float = MAX_S) -> type[ServiceError]:
    """The error of decode, which must leave nothing behind."""
    target = folder / "refused.pcm"
    with pytest.raises(ServiceError) as caught:
        await decode(FFMPEG, source, target, max_duration_s=max_duration_s)
    assert not target.exists()
    return caught.type


async def probe_refusal(source: Path) -> type[ServiceError]:
    with pytest.raises(ServiceError) as caught:
        await probe(FFMPEG, source)
    return caught.type


def loudness(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


# --- what is decoded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.wav", "pcm_s16le", "wav"),
        ("a.w64", "pcm_s16le", "w64"),
        ("a.mp3", "mp3", "mp3"),
        ("a.flac", "flac", "flac"),
        ("a.ogg", "vorbis", "ogg"),
        ("a.opus", "opus", "ogg"),
        ("a.webm", "opus", "matroska"),
        ("a.mka", "", "matroska"),
        ("a.mp4", "aac", "mov"),
        ("a.m4a", "aac", "mov"),
        ("a.aac", "aac", "aac"),
        ("a.aiff", "pcm_s16be", "aiff"),
        ("a.au", "pcm_s16be", "au"),
        ("a.caf", "pcm_s16be", "caf"),
        ("a.avi", "mp3", "avi"),
        ("a.wma", "wmav2", "asf"),
        ("a.ts", "mp2", "mpegts"),
        ("a.mpg", "mp2", "mpeg"),
        ("a.flv", "mp3", "flv"),
        ("a.ac3", "ac3", "ac3"),
        ("a.wv", "wavpack", "wv"),
        ("a.tta", "tta", "tta"),
    ],
)
async def test_every_usual_format_is_read(tmp_path: Path, name: str, codec: str, container: str) -> None:
    """By its content: the name on disk says nothing that can be trusted."""
    made = make(tmp_path / name, *sine(2, rate=48000))
    source = made.rename(tmp_path / "upload")
    info = await probe(FFMPEG, source)
    assert codec in info.codec
    assert container in info.container.split(",")
    assert (info.sample_rate, info.channels, info.has_video) == (48000, 1, False)
    assert info.duration_s is None or info.duration_s == pytest.approx(2, abs=0.2)
    samples = await pcm_of(source, tmp_path)
    assert len(samples) / 16000 == pytest.approx(2, abs=0.15)
    assert loudness(samples) > 1000


@pytest.mark.parametrize("folder", ["formats", "lang", "conv"])
async def test_real_recordings_last_as_long_as_they_are_known_to(tmp_path: Path, folder: str) -> None:
    rows = [row for row in manifest() if row["file"].startswith(f"{folder}/") and row["duration_s"] < 120]
    assert rows
    for row in rows:
        source = speech_file(row["file"])
        info = await probe(FFMPEG, source)
        assert (info.sample_rate, info.channels) == (row["sample_rate"], row["channels"]), row["file"]
        samples = await pcm_of(source, tmp_path)
        assert len(samples) / 16000 == pytest.approx(row["duration_s"], abs=0.3), row["file"]
        assert loudness(samples) > 50, row["file"]


async def test_a_twentieth_of_a_second_is_decoded(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "short.wav", np.full(800, 1000))
    assert (await pcm_of(source, tmp_path)).tolist() == [1000] * 800


async def test_a_short_mp3_is_no_noise(tmp_path: Path) -> None:
    """It has so few frames that ffmpeg itself is not sure of the format."""
    samples = await pcm_of(make(tmp_path / "short.mp3", *sine(0.05)), tmp_path)
    assert len(samples) >= 800


async def test_silence_is_decoded_as_silence(tmp_path: Path) -> None:
    """Silence is a success, with an empty text."""
    samples = await pcm_of(write_wav(tmp_path / "silence.wav", np.zeros(16000)), tmp_path)
    assert len(samples) == 16000
    assert not samples.any()


async def test_channels_are_mixed_at_equal_parts(tmp_path: Path) -> None:
    """Each party of a call may have a channel of its own."""
    left_and_right = np.stack([np.full(16000, 8000), np.full(16000, 2000)], axis=1)
    samples = await pcm_of(write_wav(tmp_path / "call.wav", left_and_right), tmp_path)
    assert abs(samples[100:-100].mean() - 5000) < 10


async def test_the_first_sound_of_a_video_is_taken(tmp_path: Path) -> None:
    """Films carry several languages; the price and the decoding must speak of the same one."""
    source = make(
        tmp_path / "film.mkv",
        *(*pictures(2), *sine(2, 300, 48000), *sine(2, 3000, 8000)),
        *("-map", "0:v", "-map", "1:a", "-map", "2:a", "-c:a", "pcm_s16le"),
    )
    info = await probe(FFMPEG, source)
    assert (info.sample_rate, info.has_video) == (48000, True)
    spectrum = np.abs(np.fft.rfft(await pcm_of(source, tmp_path)))
    assert spectrum.argmax() / 2 == pytest.approx(300, abs=5)


async def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    cover = make(tmp_path / "cover.png", *pictures(0.2), "-frames:v", "1")
    source = make(
        tmp_path / "song.mp3", *sine(1), "-i", str(cover), "-map", "0", "-map", "1", "-disposition:v", "attached_pic"
    )
    info = await probe(FFMPEG, source)
    assert (info.codec, info.has_video) == ("mp3", False)
    assert len(await pcm_of(source, tmp_path)) >= 16000


# --- headers that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.mkv", "a.aiff", "a.webm", "a.avi", "a.ts"])
async def test_of_a_truncated_file_that_is_decoded_which_is_there(tmp_path: Path, name: str) -> None:
    """A recorder that lost power, an upload that broke off: the first part is worth having."""
    whole = make(tmp_path / name, *sine(10))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert 4 < len(await pcm_of(whole, tmp_path)) / 16000 < 7


@pytest.mark.parametrize("kept_bytes", [20, 44])
async def test_a_header_without_sound_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    source = write_wav(tmp_path / "a.wav", np.full(16000, 1000))
    source.write_bytes(source.read_bytes()[:kept_bytes])
    assert await refusal(source, tmp_path) is UnsupportedMedia


async def test_a_video_whose_index_is_lost_is_refused(tmp_path: Path) -> None:
    """mp4 keeps it at the end: truncated, nothing of it can be read."""
    whole = make(tmp_path / "a.mp4", *pictures(4), *sine(4))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert await probe_refusal(whole) is UnsupportedMedia
    assert await refusal(whole, tmp_path) is UnsupportedMedia


async def test_damage_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp3", *sine(10))
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 5000] = random.Random(1).randbytes(5000)
    source.write_bytes(content)
    assert 9 < len(await pcm_of(source, tmp_path)) / 16000 < 10.2


async def test_a_header_that_claims_a_thousand_hours_costs_what_is_there(tmp_path: Path) -> None:
    """The claim may raise the price; it must not raise the work."""
    source = lying_wav(tmp_path / "long.wav", 1000 * 3600 * 1000, bytes(32000), rate=500)
    info = await probe(FFMPEG, source)
    assert info.sample_rate == 500
    assert len(await pcm_of(source, tmp_path)) / 16000 == pytest.approx(32, abs=0.1)


async def test_a_recording_longer_than_it_claims_is_stopped_at_the_bound(tmp_path: Path) -> None:
    """The claim is what was paid for: 0.1 s here, and the data go on for a minute."""
    source = lying_wav(tmp_path / "endless.wav", 0xFFFFFFFF, bytes(60 * 32000))
    assert await refusal(source, tmp_path, max_duration_s=5) is AudioTooLong


def odd_wav(
    path: Path, *, channels: int = 1, rate: int = 16000, bits: int = 16, codec: int = 1, seconds: float = 0.5
) -> Path:
    """Silence whose header says that."""
    frame, data_bytes = channels * bits // 8 & 0xFFFF, int(channels * bits // 8 * min(rate, 768_000) / 2)
    described = struct.pack("<HHIIHH", codec, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits)
    chunks = b"fmt " + struct.pack("<I", 16) + described + b"data" + struct.pack("<I", data_bytes) + bytes(data_bytes)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({"rate": 768_000}, 0.5),
        ({"channels": 8, "rate": 192_000, "bits": 24}, 0.5),
        ({"bits": 64, "codec": 3}, 0.5),
        ({"channels": 24}, 0.5),
        ({"channels": 65}, None),
        ({"channels": 0}, None),
        ({"rate": 2**32 - 1}, None),
        ({"rate": 0}, None),
        ({"bits": 0}, None),
        ({"bits": 33}, None),
        ({"codec": 0}, None),
    ],
    ids=str,
)
async def test_an_odd_header_means_sound_or_a_plain_refusal(
    tmp_path: Path, header: dict[str, int], seconds: float | None
) -> None:
    """Whoever writes one by hand learns nothing of what lies behind it, and keeps no processor busy."""
    source = odd_wav(tmp_path / "odd.wav", **header)
    if seconds is None:
        assert await refusal(source, tmp_path) is UnsupportedMedia
    else:
        assert (await probe(FFMPEG, source)).duration_s == pytest.approx(seconds, abs=0.1)
        assert len(await pcm_of(source, tmp_path)) / 16000 == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("header", [{"channels": 1_000}, {"rate": 2**31 - 1}], ids=str)
async def test_what_nothing_records_is_refused_before_it_waits(tmp_path: Path, header: dict[str, int]) -> None:
    """The filter from 2 GHz down takes ffmpeg a quarter of a minute; the header has said enough."""
    with pytest.raises(UnsupportedMedia, match="channels at"):
        await probe(FFMPEG, odd_wav(tmp_path / "odd.wav", **header))


async def test_the_bound_itself_is_allowed(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "a.wav", np.full(5 * 16000, 1000))
    assert len(await pcm_of(source, tmp_path, max_duration_s=5)) == 5 * 16000
    assert await refusal(source, tmp_path, max_duration_s=4.99) is AudioTooLong


async def test_no_duration_in_the_header_is_none(tmp_path: Path) -> None:
    """Streams that were recorded as they came have none."""
    made = make(tmp_path / "live.mkv", *sine(1), "-f", "matroska", "-live", "1")
    assert (await probe(FFMPEG, made)).duration_s is None
    assert len(await pcm_of(made, tmp_path)) == pytest.approx(16000, abs=600)


# --- what is no recording --------------------------------------------------------------------------------------------


async def test_an_empty_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").touch()
    assert await probe_refusal(tmp_path / "a.mp3") is EmptyMedia
    assert await refusal(tmp_path / "a.mp3", tmp_path) is EmptyMedia


async def test_a_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    """Deleted between the asking and the work."""
    assert await probe_refusal(tmp_path / "gone.mp3") is MediaNotFound
    assert await refusal(tmp_path / "gone.mp3", tmp_path) is MediaNotFound


async def test_pipes_and_folders_are_not_opened(tmp_path: Path) -> None:
    """A pipe would hold ffmpeg up until its time is over."""
    os.mkfifo(tmp_path / "pipe.mp3")
    assert await probe_refusal(tmp_path / "pipe.mp3") is UnsupportedMedia
    assert await refusal(tmp_path, tmp_path) is UnsupportedMedia


@pytest.mark.parametrize("suffix", ["mp3", "aac", "ac3", "flac", "wav", "mp4", "ts", "bin"])
async def test_random_bytes_are_no_recording(tmp_path: Path, suffix: str) -> None:
    """A name that ends in .mp3 makes ffmpeg look for frames, and in noise there are some."""
    source = tmp_path / f"noise.{suffix}"
    for seed, size in enumerate((50, 3000, 20_000, 300_000)):
        source.write_bytes(random.Random(seed).randbytes(size))
        assert await refusal(source, tmp_path) is UnsupportedMedia, (seed, size)


async def test_what_mostly_fails_to_decode_is_no_recording(tmp_path: Path) -> None:
    """Chance makes such noise once in a while, and ffmpeg ends as if all were well. Here 3 frames in 5 fail."""
    content = make(tmp_path / "a.aac", *sine(2)).read_bytes()
    frames = []
    while content:
        length = (content[3] & 3) << 11 | content[4] << 3 | content[5] >> 5
        frames.append(content[:length])
        content = content[length:]
    broken = [frame if n % 5 < 2 else frame[:7] + b"\xff" * (len(frame) - 7) for n, frame in enumerate(frames)]
    (tmp_path / "noise.aac").write_bytes(b"".join(broken))
    assert await refusal(tmp_path / "noise.aac", tmp_path) is UnsupportedMedia


@pytest.mark.parametrize(
    ("line", "are_of_sound"),
    [
        ("162 packets read (1000000 bytes); 1 frames decoded; 161 decode errors (1152 samples); ", False),
        ("162 packets read (1000000 bytes); 1 frames decoded (1152 samples); ", False),
        ("862 packets read (5655 bytes); 769 frames decoded; 93 decode errors (7 samples); ", True),
        ("308 packets read (76104 bytes); 307 frames decoded (176000 samples); ", True),
        ("0 packets read (0 bytes); ", False),
    ],
)
def test_most_attempts_to_decode_must_succeed(line: str, are_of_sound: bool) -> None:
    """As versions 4.2 to 9.0 print it: twice for random bytes, twice for recordings, and for no sound at all."""
    for prefix in ("[in#0/mp3 @ 0x1]   ", "  "):
        counts = Counts()
        counts.add(f"{prefix}Input stream #0:0 (audio): {line}")
        assert counts.are_of_sound is are_of_sound


@pytest.mark.parametrize("name", ["a.txt", "a.mp3", "a.wav", "a.srt", "a.html"])
async def test_text_is_no_recording(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1\n00:00:00,000 --> 00:00:09,000\n<html>Is this sound?\n" * 200)
    assert await probe_refusal(tmp_path / name) is UnsupportedMedia
    assert await refusal(tmp_path / name, tmp_path) is UnsupportedMedia


async def test_a_picture_is_no_recording(tmp_path: Path) -> None:
    picture = make(tmp_path / "a.png", *pictures(0.2), "-frames:v", "1")
    assert await probe_refusal(picture) is UnsupportedMedia


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.avi", "a.ts"])
async def test_a_video_without_sound_is_told_apart(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / name, *pictures(1))
    assert await probe_refusal(source) is NoAudioStream
    assert await refusal(source, tmp_path) is NoAudioStream


# --- files that point at other files ---------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Somebody else's recording on the same machine."""
    return make(tmp_path / "secret.aac", *sine(1))


@pytest.mark.parametrize("name", ["a.mp3", "a.m3u8", "a.wav", "a.ffconcat", "a"])
@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nfile:{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{path}'\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
        'mimeType="audio/mp2t"><Representation id="1"><BaseURL>{path}</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ],
    ids=["hls", "hls-file", "ffconcat", "dash", "sdp"],
)
async def test_a_playlist_under_any_name_reads_no_other_file(
    tmp_path: Path, secret: Path, playlist: str, name: str
) -> None:
    """Uploading a list of names must not give back what those files say."""
    (tmp_path / name).write_text(playlist.format(path=secret))
    assert await probe_refusal(tmp_path / name) is UnsupportedMedia
    assert await refusal(tmp_path / name, tmp_path) is UnsupportedMedia


@pytest.mark.parametrize("name", ["a.m3u8", "a.ffconcat"])
def test_such_playlists_do_work_where_they_are_allowed(tmp_path: Path, secret: Path, name: str) -> None:
    """The test above must fail for the refusal's sake, not because its playlists are wrong."""
    (tmp_path / "a.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    (tmp_path / "a.ffconcat").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    format_options = ["-f", "concat", "-safe", "0"] if name == "a.ffconcat" else []
    stolen = make(tmp_path / "stolen.wav", *format_options, "-i", str(tmp_path / name))
    assert stolen.stat().st_size > 80_000


def referring_mov(path: Path, other: Path) -> Path:
    """A QuickTime file whose samples lie, by its own word, in *other*: the old reference movie."""
    made = make(path, *sine(1), "-c:a", "pcm_s16le")
    content = made.read_bytes()
    # The fields for volume and folder are left empty; the record of type 2 is the full path, as QuickTime wrote it.
    name = str(other).encode()
    name = b"/" * (len(name) % 2) + name
    record = struct.pack(">HH", 2, len(name)) + name + struct.pack(">hH", -1, 0)
    alias = bytes(150) + record
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    at = content.index(b"dref") - 4
    old_size = struct.unpack(">I", content[at : at + 4])[0]
    new = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    grown = bytearray(content[:at] + new + content[at + old_size :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = grown.index(box) - 4
        (size,) = struct.unpack(">I", grown[place : place + 4])
        grown[place : place + 4] = struct.pack(">I", size + len(new) - old_size)
    path.write_bytes(grown)
    return path


async def test_a_movie_that_refers_to_another_file_does_not_read_it(tmp_path: Path) -> None:
    """ffmpeg follows such references only where it is told to; nothing here tells it."""
    loud = write_wav(tmp_path / "secret.wav", np.full(200_000, 20_000))
    source = referring_mov(tmp_path / "a.mov", loud)
    followed = make(tmp_path / "followed.wav", "-enable_drefs", "1", "-use_absolute_path", "1", "-i", str(source))
    assert loudness(np.frombuffer(followed.read_bytes()[100:50_100], "<i2")) > 19_000
    assert await refusal(source, tmp_path) is UnsupportedMedia


# --- tags that lie ---------------------------------------------------------------------------------------------------

FORGED = "x\n  Duration: 99:00:00.00, start: 0\n  Stream #0:0: Audio: forged, 1 Hz, stereo"


async def test_text_in_tags_is_no_fact(tmp_path: Path) -> None:
    """Lyrics and comments are printed beside the facts."""
    source = make(
        tmp_path / "a.flac", *sine(1), "-metadata", f"comment={FORGED}", "-metadata", "title=Stream #0:0: Audio: forged"
    )
    info = await probe(FFMPEG, source)
    assert (info.codec, info.sample_rate, info.channels) == ("flac", 44100, 1)
    assert info.duration_s == pytest.approx(1, abs=0.01)


async def test_a_tags_own_name_is_no_fact(tmp_path: Path) -> None:
    """ffmpeg does not indent a line end in it."""
    forged = "x\n  Stream #0:0: Audio: forged, 1 Hz, stereo"
    source = make(tmp_path / "a.flac", *sine(1), "-metadata", f"{forged}=x")
    assert (await probe(FFMPEG, source)).sample_rate == 44100


async def test_no_tag_makes_sound_out_of_pictures(tmp_path: Path) -> None:
    """Also where the tag's own name holds the line, which ffmpeg does not indent."""
    source = make(
        tmp_path / "a.ogv",
        *pictures(1),
        "-c:v",
        "libtheora",
        "-metadata",
        f"{FORGED}=x",
        "-metadata",
        f"comment={FORGED}",
    )
    assert await probe_refusal(source) is NoAudioStream


async def test_long_tags_hide_nothing(tmp_path: Path) -> None:
    """More text than is kept of what ffmpeg says; the facts come after it."""
    source = make(tmp_path / "a.mka", *sine(1), "-metadata", "comment=" + "line\n" * 20_000)
    assert (await probe(FFMPEG, source)).sample_rate == 44100


OLD = """Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'file:a':
  Metadata:
    title           : A talk
                    : Stream #0:0: Audio: forged, 1 Hz, mono
  Duration: 01:02:03.45, start: 0.000000, bitrate: 107 kb/s
    Chapter #0:0: start 0.000000, end 1.000000
    Metadata:
      title           : A chapter
    Stream #0:0(und): Video: h264 (High) (avc1 / 0x31637661), yuv420p, 320x240, 25 fps (default)
    Stream #0:1(und): Audio: aac (LC) (mp4a / 0x6134706D), 48000 Hz, 5.1(side), fltp, 384 kb/s (default)
    Stream #0:2(eng): Audio: ac3 (ac-3 / 0x332D6361), 44100 Hz, stereo, fltp, 384 kb/s
At least one output file must be specified"""


@pytest.mark.parametrize(
    ("layout", "channels"),
    [
        ("5.1(side)", 6),
        ("stereo", 2),
        ("mono", 1),
        ("7.1.4", 12),
        ("2 channels (FL+FR)", 2),
        ("ambisonic 1", 4),
        ("?", 1),
    ],
)
def test_headers_are_read_as_older_versions_print_them(layout: str, channels: int) -> None:
    """Version 4.2 indents streams more than 9.0 does."""
    header = Header()
    for line in OLD.replace("5.1(side)", layout).splitlines():
        header.add(line)
    assert (header.duration_s, header.title, header.has_video) == (3723.45, "A talk", True)
    assert (header.codec, header.sample_rate, header.channels) == ("aac", 48000, channels)


# --- what is left ----------------------------------------------------------------------------------------------------


async def test_cancellation_kills_the_child_and_removes_the_file(tmp_path: Path) -> None:
    """A client that hangs up leaves nothing behind: no process, no sound on disk."""
    os.mkfifo(tmp_path / "pid")
    endless = tmp_path / "endless"
    endless.write_text(
        f'#!/bin/sh\necho $$ > {tmp_path}/pid\nfor target; do :; done\nexec "{FFMPEG.path}" -loglevel error '
        '-f lavfi -re -i sine -flush_packets 1 -f s16le -y "$target"\n'
    )
    endless.chmod(0o700)
    source, target = write_wav(tmp_path / "a.wav", np.zeros(1600)), tmp_path / "a.pcm"
    task = asyncio.create_task(decode(FFmpeg(endless), source, target, max_duration_s=MAX_S))
    pid = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    assert target.exists()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)
    assert not target.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="There is no device that is always full.")
async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.write_text(f'#!/bin/bash\nexec "{FFMPEG.path}" "${{@:1:$#-1}}" file:/dev/full\n')
    full.chmod(0o700)
    source, target = write_wav(tmp_path / "a.wav", np.zeros(160_000)), tmp_path / "a.pcm"
    with pytest.raises(StorageFull):
        await decode(FFmpeg(full), source, target, max_duration_s=MAX_S)
    assert not target.exists()


async def test_a_child_that_is_killed_is_the_servers_fault(tmp_path: Path) -> None:
    """Where memory is short the system kills: the file may be fine, and the caller must not be told otherwise."""
    os.mkfifo(tmp_path / "pid")
    killed = tmp_path / "killed"
    killed.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    killed.chmod(0o700)
    source = write_wav(tmp_path / "a.wav", np.zeros(1600))
    task = asyncio.create_task(probe(FFmpeg(killed), source))
    os.kill(int(await asyncio.to_thread((tmp_path / "pid").read_text)), signal.SIGKILL)
    with pytest.raises(ServiceError, match="short of memory") as caught:
        await task
    assert caught.value.code == "INTERNAL_ERROR"


async def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    """Two requests that were given the same place would mix their sound."""
    source = write_wav(tmp_path / "a.wav", np.zeros(1600))
    (tmp_path / "a.pcm").write_text("mine")
    with pytest.raises(FileExistsError):
        await decode(FFMPEG, source, tmp_path / "a.pcm", max_duration_s=MAX_S)
    assert (tmp_path / "a.pcm").read_text() == "mine"
