"""Subtitles put into real videos by the real ffmpeg, and read back from them."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from downloads.subtitled import SubtitledVideo, check_can_burn, in_filter, subtitled
from errors import AudioTooLong, InvalidRequest, NoAudioStream, ServiceError, StorageFull, UnsupportedMedia
from ffmpeg import FFmpeg
from tests.speech import speech_file
from transcription.core import ResponseFormat, Task, Transcript, TranscriptSegment, Word
from transcription.formats import render

MAX_S = 600.0
FFMPEG = FFmpeg.locate()

SRT = (
    "1\n00:00:00,500 --> 00:00:01,200\nSPEAKER_00: Hällo,\n‘you two’\n\n"
    "2\n00:00:01,400 --> 00:00:01,900\nBye & so on.\n"
)  # fmt: skip


def ffmpeg(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [FFMPEG.path, "-nostdin", "-hide_banner", *arguments]
    return subprocess.run(command, check=True, capture_output=True)


def make(target: Path, *arguments: str) -> Path:
    """Two seconds of a grey picture with a tone, and tags that tell too much."""
    ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:duration=2:size=322x180:rate=10"),
        *("-f", "lavfi", "-i", "sine=duration=2:sample_rate=48000"),
        *("-metadata", "title=A talk", "-metadata", "artist=somebody", "-metadata", "location=+48.1+011.5/"),
        *("-metadata:s:a:0", "language=deu", *arguments, "-y", target),
    )
    return target


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("film") / "film.mp4", "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac")


@pytest.fixture(scope="module")
def webm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        tmp_path_factory.mktemp("film") / "film.webm", "-c:v", "libvpx-vp9", "-cpu-used", "8", "-c:a", "libopus"
    )


@pytest.fixture
def srt(tmp_path: Path) -> Path:
    (tmp_path / "subtitles.srt").write_text(SRT, encoding="utf-8")
    return tmp_path / "subtitles.srt"


async def made(
    video: Path, subtitles: Path, burn: bool = False, language: str | None = "de", **how: float
) -> SubtitledVideo:
    target = subtitles.parent / "out"
    done = await subtitled(
        FFMPEG, video, subtitles, target, burn=burn, language=language, max_duration_s=how.get("max_duration_s", MAX_S)
    )
    assert done.path.stat().st_mode & 0o777 == 0o600
    assert done.path.stat().st_size == done.bytes
    return done


def said_of(path: Path) -> str:
    """What ffmpeg prints of a file: its streams, tags and chapters."""
    return subprocess.run([FFMPEG.path, "-hide_banner", "-i", path], capture_output=True, text=True).stderr


def streams(path: Path) -> list[tuple[str, str, str]]:
    """Language, kind and codec of each stream."""
    found = re.findall(r"^  Stream #0:\d+(?:\[\w+\])?(?:\((\w+)\))?: (\w+): (\w+)", said_of(path), re.M)
    return [(language, kind, codec) for language, kind, codec in found]


def read_back(path: Path, form: str = "srt") -> str:
    return ffmpeg("-loglevel", "error", "-i", path, "-map", "0:s:0", "-f", form, "-").stdout.decode()


def digest(path: Path, stream: str) -> bytes:
    """Of a stream's packets as they are stored, not of what they decode to."""
    options = ("-c", "copy", "-bitexact", "-f", "streamhash", "-")
    return ffmpeg("-loglevel", "error", "-i", path, "-map", f"0:{stream}:0", *options).stdout


def picture(path: Path, at_s: float) -> bytes:
    """The grey values of the picture at that time."""
    options = ("-frames:v", "1", "-pix_fmt", "gray", "-f", "rawvideo", "-")
    return ffmpeg("-loglevel", "error", "-ss", str(at_s), "-i", path, *options).stdout


def drawn(pixels: bytes) -> int:
    """How many are neither the film's grey nor near it."""
    return sum(abs(value - 128) > 40 for value in pixels)


# --- streams that can be turned on and off ---------------------------------------------------------------------------


async def test_an_mp4_gets_a_stream_of_its_subtitles(film: Path, srt: Path) -> None:
    """Players offer it by its language, and show it at once; picture and sound stay as they were."""
    done = await made(film, srt)
    assert (done.path.name, done.media_type, done.title) == ("out.mp4", "video/mp4", "A talk")
    assert done.duration_s == pytest.approx(2, abs=0.1)
    assert streams(done.path)[2:] == [("deu", "Subtitle", "mov_text")]
    assert re.search(r"Subtitle: mov_text .*\(default\)\n(?: {4}.*\n)*? +(?:name|title) +: German", said_of(done.path))
    assert read_back(done.path).strip() == SRT.strip()
    for stream in ("v", "a"):
        assert digest(done.path, stream) == digest(film, stream)


async def test_a_webm_stays_one(webm: Path, srt: Path) -> None:
    """Browsers play it, and know no other subtitles in it than WebVTT."""
    done = await made(webm, srt, language="yue")
    assert (done.path.name, done.media_type) == ("out.webm", "video/webm")
    assert [codec for _, _, codec in streams(done.path)] == ["vp9", "opus", "webvtt"]
    assert streams(done.path)[2][0] == "yue"
    assert read_back(done.path).strip() == SRT.strip()
    assert b"\x42\x82\x84webm" in done.path.read_bytes()[:64]


async def test_all_else_becomes_matroska(tmp_path: Path, srt: Path) -> None:
    """It holds what any other container holds."""
    for name, codecs in (
        ("a.mkv", ("-c:v", "libx264", "-c:a", "flac")),
        ("a.avi", ("-c:v", "mpeg4", "-c:a", "libmp3lame")),
        ("a.ts", ("-c:v", "libx264", "-c:a", "aac")),
    ):
        done = await made(make(tmp_path / name, *codecs), srt)
        assert (done.path.name, done.media_type) == ("out.mkv", "video/x-matroska")
        assert streams(done.path)[2][1:] == ("Subtitle", "subrip")
        assert streams(done.path)[2][0] in ("deu", "ger"), "older versions write the other of its two codes"
        assert read_back(done.path).strip() == SRT.strip()
        done.path.unlink()


async def test_what_an_mp4_cannot_hold_becomes_matroska(tmp_path: Path, srt: Path) -> None:
    """A camera's mov has codecs that no mp4 has."""
    video = make(tmp_path / "a.mov", "-c:v", "prores_ks", "-c:a", "pcm_s16le")
    done = await made(video, srt)
    assert done.path.name == "out.mkv"
    assert [codec for _, _, codec in streams(done.path)] == ["prores", "pcm_s16le", "subrip"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mov", "out.mkv", "subtitles.srt"]


async def test_tags_of_the_whole_are_not_passed_on(film: Path, srt: Path) -> None:
    """They tell where and by whom a video was made; a stream's language is of use."""
    done = await made(film, srt)
    assert "title           : A talk" in said_of(done.path)
    assert streams(done.path)[1][0] == "deu"
    for word in ("somebody", "+48.1"):
        assert word in said_of(film)
        assert word not in said_of(done.path)


async def test_subtitles_that_were_there_are_replaced(film: Path, srt: Path, tmp_path: Path) -> None:
    first = await made(film, srt, language="de")
    old = first.path.rename(tmp_path / "old.mp4")
    srt.write_text(SRT.replace("Bye", "Good bye"), encoding="utf-8")
    second = await made(old, srt, language="en")
    assert streams(second.path)[2:] == [("eng", "Subtitle", "mov_text")]
    assert "Good bye & so on." in read_back(second.path)


async def test_silence_makes_a_video_without_cues(film: Path, webm: Path, tmp_path: Path) -> None:
    """A film in which nobody speaks is no error."""
    for name, text in (("a.srt", ""), ("a.vtt", "WEBVTT\n")):
        (tmp_path / name).write_text(text)
        for video in (film, webm):
            for burn in (False, True):
                done = await made(video, tmp_path / name, burn=burn, language=None)
                assert streams(done.path)[2][1] == "Subtitle"
                assert read_back(done.path).strip() == ""
                assert digest(done.path, "v") == digest(video, "v")
                done.path.unlink()


WORDS = (
    Word(0.2, 0.5, " One", 0.9),
    Word(0.6, 0.9, " <b>", 0.9),
    Word(1.0, 1.4, " {two}", 0.9),
    Word(1.4, 1.9, " 2<3", 0.9),
)
SEGMENT = TranscriptSegment(0, 0.2, 1.9, " One <b> {two} 2<3", -0.2, 0.01, 1.2, 0.0, WORDS)
TRANSCRIPT = Transcript((SEGMENT,), "en", 0.99, 2.0, Task.TRANSCRIBE, "tiny.en", "cpu", "int8")
PLAIN = replace(
    SEGMENT, text=" One two", words=(Word(0.2, 0.9, " One", 0.9, speaker="A"), Word(1.0, 1.9, " two", 0.9, speaker="B"))
)
CALL = replace(TRANSCRIPT, segments=(PLAIN,))


@pytest.mark.parametrize("response_format", ["srt", "vtt", "vtt_words", "ass"])
async def test_ffmpeg_reads_each_format(tmp_path: Path, response_format: str) -> None:
    """Not our own reading of the formats counts, but that of the library that half of all players use."""
    path = tmp_path / "subtitles.txt"
    form = {"srt": "srt", "ass": "ass"}.get(response_format, "webvtt")
    for transcript, lines in ((CALL, ["One", "two"]), (TRANSCRIPT, ["One <b> {two} 2<3"])):
        written = render(transcript, ResponseFormat(response_format), request_id="x")
        assert isinstance(written, str)
        path.write_text(written, encoding="utf-8")
        read = ffmpeg("-loglevel", "warning", "-f", form, "-i", path, "-f", "webvtt", "-")
        assert read.stderr == b""
        cues = read.stdout.decode().strip().split("\n\n")[1:]
        times, texts = zip(*(cue.split("\n", 1) for cue in cues), strict=True)
        assert times[0].startswith("00:00.200 --> 00:0")
        if transcript is CALL:
            labelled = response_format in ("srt", "ass")
            assert list(texts) == [
                f"{who}: {said}" if labelled else said for who, said in zip("AB", lines, strict=True)
            ]
        else:
            # ffmpeg spells what it cannot write of a brace or a tag in its own way; the words are all there.
            assert re.sub(r"[^\w ]", "", texts[0]).split()[0] == "One"
            assert "2" in texts[0]


async def test_webvtt_in_a_webm_keeps_its_voices(webm: Path, tmp_path: Path) -> None:
    """Copied as it is: in other containers, ffmpeg writes the bare text."""
    written = render(CALL, ResponseFormat.VTT_WORDS, request_id="x")
    assert isinstance(written, str)
    (tmp_path / "a.vtt").write_text(written)
    done = await made(webm, tmp_path / "a.vtt")
    assert b"<v A>One</v>" in done.path.read_bytes()


# --- drawn into the picture ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".ass"])
async def test_burned_subtitles_are_in_the_picture(film: Path, tmp_path: Path, suffix: str) -> None:
    """While they are said, and neither before nor after; the sound is what it was."""
    written = render(
        replace(CALL, segments=(replace(PLAIN, words=(Word(0.7, 1.3, " WWWWWWWWWW", 0.9),)),)),
        ResponseFormat(suffix[1:]),
        request_id="x",
    )
    assert isinstance(written, str)
    (tmp_path / f"a{suffix}").write_text(written)
    done = await made(film, tmp_path / f"a{suffix}", burn=True)
    assert done.path.name == "out.mp4"
    assert not done.lacks_letters
    assert [kind for _, kind, _ in streams(done.path)] == ["Video", "Audio"]
    assert drawn(picture(done.path, 1.0)) > 100
    assert drawn(picture(done.path, 0.2)) == drawn(picture(film, 1.0)) == 0
    assert digest(done.path, "a") == digest(film, "a")


async def test_a_webm_is_burned_as_one(webm: Path, srt: Path) -> None:
    done = await made(webm, srt, burn=True)
    assert (done.path.name, done.media_type) == ("out.webm", "video/webm")
    assert [codec for _, _, codec in streams(done.path)] == ["vp9", "opus"]
    assert drawn(picture(done.path, 0.8)) > 100


async def test_an_odd_picture_is_burned(tmp_path: Path, srt: Path) -> None:
    """Encoders of 4:2:0 take even sizes alone."""
    video = make(tmp_path / "odd.mkv", "-vf", "scale=161:91", "-pix_fmt", "yuv444p", "-c:v", "libx264", "-c:a", "aac")
    done = await made(video, srt, burn=True)
    assert "162x92" in said_of(done.path)


@pytest.mark.parametrize("name", ["a'b", "a:b", "a,b;c", "[in]", "a\\b", "a b ", "-vf x", "%{x}=y", "ä\n$(x)"])
async def test_a_folder_may_be_called_anything(film: Path, tmp_path: Path, name: str) -> None:
    """A path is neither an option nor a description of filters."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "s'u,b.srt").write_text(SRT, encoding="utf-8")
    done = await made(film, folder / "s'u,b.srt", burn=True)
    assert drawn(picture(done.path, 0.8)) > 100
    done.path.unlink()
    assert read_back((await made(film, folder / "s'u,b.srt")).path).strip() == SRT.strip()


def test_a_filters_description_is_escaped_twice() -> None:
    """As ffmpeg's manual says; once would end the option at the first colon."""
    assert in_filter("/a:b") == r"/a\\:b"
    assert in_filter("/it's") == r"/it\\\'s"
    assert in_filter("/a,[b];c") == r"/a\,\[b\]\;c"


def program(folder: Path, body: str) -> FFmpeg:
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o700)
    return FFmpeg(path)


async def test_an_ffmpeg_that_cannot_draw_is_told_of(film: Path, srt: Path, tmp_path: Path) -> None:
    """Slim builds have no libass: better said before the transcription than after."""
    await check_can_burn(FFMPEG)
    lacking = program(tmp_path, f'exec "{FFMPEG.path}" "${{@/#subtitles/subtitlez}}"')
    with pytest.raises(InvalidRequest, match="built without subtitle"):
        await check_can_burn(lacking)
    with pytest.raises(InvalidRequest, match="built without libnoneatall"):
        await check_can_burn(FFMPEG, "libnoneatall")
    with pytest.raises(InvalidRequest):
        await subtitled(lacking, film, srt, tmp_path / "out", burn=True, language=None, max_duration_s=MAX_S)


async def test_a_server_without_fonts_is_told_of(film: Path, srt: Path, tmp_path: Path) -> None:
    """libass draws nothing then, and says so only in its log."""
    (tmp_path / "fonts.conf").write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig><dir>/nonexistent</dir></fontconfig>'
    )
    bare = program(tmp_path, f'export FONTCONFIG_FILE="{tmp_path}/fonts.conf"\nexec "{FFMPEG.path}" "$@"')
    with pytest.raises(InvalidRequest, match="no font"):
        await subtitled(bare, film, srt, tmp_path / "out", burn=True, language=None, max_duration_s=MAX_S)
    assert not (tmp_path / "out.mp4").exists()


async def test_letters_that_no_font_has_are_told_of(film: Path, srt: Path) -> None:
    """Boxes in place of a whole language are no subtitles: the caller should hear of them."""
    srt.write_text(SRT.replace("Hällo", "\ue123"), encoding="utf-8")
    assert (await made(film, srt, burn=True)).lacks_letters


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def refusal(video: Path, subtitles: Path, max_duration_s: float = MAX_S) -> type[Exception]:
    before = sorted(subtitles.parent.iterdir())
    with pytest.raises(ServiceError) as caught:
        await made(video, subtitles, max_duration_s=max_duration_s)
    assert sorted(subtitles.parent.iterdir()) == before
    return caught.type


async def test_what_is_no_video_is_refused(film: Path, srt: Path, tmp_path: Path) -> None:
    ffmpeg("-i", film, "-vn", tmp_path / "a.m4a")
    assert await refusal(tmp_path / "a.m4a", srt) is UnsupportedMedia
    ffmpeg("-i", film, "-an", "-c", "copy", tmp_path / "mute.mp4")
    assert await refusal(tmp_path / "mute.mp4", srt) is NoAudioStream
    (tmp_path / "noise.mp4").write_bytes(os.urandom(10_000))
    assert await refusal(tmp_path / "noise.mp4", srt) is UnsupportedMedia


async def test_a_longer_video_is_refused(film: Path, srt: Path) -> None:
    assert await refusal(film, srt, max_duration_s=1.0) is AudioTooLong
    assert await refusal(film, srt, max_duration_s=0.1) is AudioTooLong


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="There is no device that is always full.")
async def test_a_full_disk_is_told(webm: Path, srt: Path, tmp_path: Path) -> None:
    full = program(
        tmp_path,
        f'case "${{@: -1}}" in -) exec "{FFMPEG.path}" "$@";; esac\n'
        f'exec "{FFMPEG.path}" "${{@:1:$#-1}}" file:/dev/full',
    )
    with pytest.raises(StorageFull):
        await subtitled(full, webm, srt, tmp_path / "out", burn=False, language=None, max_duration_s=MAX_S)
    assert not list(tmp_path.glob("out.*"))


async def test_no_child_is_left(film: Path, srt: Path) -> None:
    before = psutil.Process().children()
    (await made(film, srt)).path.unlink()
    await refusal(film, srt, max_duration_s=0.1)
    assert psutil.Process().children() == before


# --- real videos -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("nonspeech/big_buck_bunny_5s.mp4", "out.mp4", "mov_text"),
        ("formats/libri_2spk_video.mov", "out.mp4", "mov_text"),
        ("formats/libri_2spk_video.webm", "out.webm", "webvtt"),
    ],
)
async def test_real_videos_are_subtitled(srt: Path, name: str, container: str, codec: str) -> None:
    """What phones, browsers and studios write."""
    video = speech_file(name)
    done = await made(video, srt, language="en")
    assert done.path.name == container
    assert streams(done.path)[-1] == ("eng", "Subtitle", codec)
    assert read_back(done.path).strip() == SRT.strip()
    assert digest(done.path, "v") == digest(video, "v")
    done.path.unlink()
    burned = await made(video, srt, burn=True)
    assert burned.duration_s == pytest.approx(done.duration_s, abs=0.3)
    assert picture(burned.path, 0.8) != picture(video, 0.8)
