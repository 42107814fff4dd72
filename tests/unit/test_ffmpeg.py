"""ffmpeg as a bounded child: what it may open, how it ends, what is left of it."""

from __future__ import annotations

import asyncio
import os
import signal
import wave
from pathlib import Path

import psutil
import pytest

from errors import ConfigurationError, MediaTimeout
from ffmpeg import DEMUXERS, FFmpeg, input_arguments, output_argument

SINE = ("-f", "lavfi", "-i", "sine")


@pytest.fixture(scope="module")
def ffmpeg() -> FFmpeg:
    return FFmpeg.locate()


def script(path: Path, text: str) -> FFmpeg:
    """A program in ffmpeg's place."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return FFmpeg(path)


async def run(ffmpeg: FFmpeg, *arguments: str, wall_s: float = 60, cpu_s: float = 60, **limits: int) -> tuple[int, str]:
    finished = await ffmpeg.run(arguments, wall_s=wall_s, cpu_s=cpu_s, **limits)
    return finished.returncode, finished.stderr_tail


# --- where it is -----------------------------------------------------------------------------------------------------


def test_the_configured_binary_is_taken_before_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "ffmpeg", "")
    mine = script(tmp_path / "mine", "").path
    monkeypatch.setenv("PATH", str(tmp_path))
    assert FFmpeg.locate(str(mine)).path == mine
    assert FFmpeg.locate().path == tmp_path / "ffmpeg"


def test_the_packaged_binary_serves_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fresh machine has no ffmpeg; the wheel brings one."""
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setenv("PATH", str(tmp_path))
    path = FFmpeg.locate().path
    assert path.is_absolute()
    assert "imageio_ffmpeg" in path.parts


def test_a_configured_path_without_a_program_says_what_to_do(tmp_path: Path) -> None:
    """Falling back in silence would hide a typing error."""
    (tmp_path / "notes").write_text("no program")
    with pytest.raises(ConfigurationError, match="Set FFMPEG to the full path"):
        FFmpeg.locate(str(tmp_path / "notes"))


# --- what it may open ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["-version", "http:example.mp3", "concat:a|b", "%03d.wav", "a\nb.wav", "ä ö.wav"])
async def test_a_name_is_never_read_as_option_or_address(ffmpeg: FFmpeg, tmp_path: Path, name: str) -> None:
    """File names come from people: each of these means something else to ffmpeg on its command line."""
    with wave.open(str(tmp_path / name), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    copy = tmp_path / "-copy of it.wav"
    code, said = await run(ffmpeg, *input_arguments(tmp_path / name), "-y", output_argument(copy))
    assert code == 0, said
    assert copy.stat().st_size >= 3200


def test_relative_names_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert input_arguments(Path("-a.wav"))[-1] == f"file:{tmp_path}/-a.wav"


async def test_every_allowed_demuxer_exists(ffmpeg: FFmpeg, tmp_path: Path) -> None:
    """A name that ffmpeg does not know allows nothing, and nobody would notice."""
    known: set[str] = set()

    def add(line: str) -> None:
        if (words := line.split()) and words[0] == "D":
            known.update(words[1].split(","))

    lists = script(tmp_path / "lists", f'exec "{ffmpeg.path}" "$@" >&2')  # it lists on stdout, which is not read
    await lists.run(["-demuxers"], wall_s=60, cpu_s=60, on_stderr_line=add)
    assert set(DEMUXERS) <= known
    forbidden = {"hls", "concat", "dash", "image2", "lavfi", "tty", "srt", "data", "s16le", "rawvideo", "sdp", "imf"}
    assert not forbidden & set(DEMUXERS)


# --- its bounds ------------------------------------------------------------------------------------------------------


async def test_a_child_that_hangs_is_killed_at_its_time(tmp_path: Path) -> None:
    """It must also be gone, with all that it started: a leftover would hold memory and the disk."""
    os.mkfifo(tmp_path / "life")
    hangs = script(tmp_path / "hangs", f"exec 9>{tmp_path}/life; echo started >&9; sleep 1000 & sleep 1000")
    until_all_are_gone = asyncio.create_task(asyncio.to_thread((tmp_path / "life").read_text))
    with pytest.raises(MediaTimeout):
        await run(hangs, wall_s=2)
    assert await until_all_are_gone == "started\n"


async def test_used_up_cpu_time_is_a_timeout(ffmpeg: FFmpeg) -> None:
    """ffmpeg ends itself in good order at this signal, as if it had finished: that must not pass for a success."""
    with pytest.raises(MediaTimeout):
        await run(ffmpeg, *SINE, "-f", "null", "-", cpu_s=1)


async def test_no_file_grows_past_its_bound(ffmpeg: FFmpeg, tmp_path: Path) -> None:
    target = tmp_path / "big.wav"
    code, _ = await run(ffmpeg, *SINE, output_argument(target), file_size_bytes=1 << 20)
    assert code == -signal.SIGXFSZ
    assert target.stat().st_size <= 1 << 20


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="Only Linux limits the address space.")
async def test_memory_is_bounded(ffmpeg: FFmpeg) -> None:
    code, _ = await run(ffmpeg, *SINE, "-t", "1", "-f", "null", "-", memory_bytes=32 << 20)
    assert code != 0


async def test_cancellation_kills_the_child(tmp_path: Path) -> None:
    """A client that hangs up frees the processor at once."""
    os.mkfifo(tmp_path / "pid")
    hangs = script(tmp_path / "hangs", f"trap '' TERM INT; echo $$ > {tmp_path}/pid; sleep 1000; sleep 1000")
    task = asyncio.create_task(run(hangs))
    pid = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    assert psutil.pid_exists(pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)


async def test_cancellation_while_the_child_starts_kills_it(tmp_path: Path) -> None:
    """It runs before asyncio hands it over: who hangs up just then must leave no child either."""
    hangs = script(tmp_path / "hangs", "sleep 1000")
    before = psutil.Process().children()
    task = asyncio.create_task(run(hangs))
    while psutil.Process().children() == before:  # noqa: ASYNC110
        await asyncio.sleep(0)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert psutil.Process().children() == before


async def test_repeated_cancellation_still_waits_for_the_end(tmp_path: Path) -> None:
    """Task groups cancel at every await: the clean-up must not be cut short, or the file would come back."""
    os.mkfifo(tmp_path / "pid")
    hangs = script(tmp_path / "hangs", f"echo $$ > {tmp_path}/pid; sleep 1000")
    task = asyncio.create_task(run(hangs))
    pid = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert not psutil.pid_exists(pid)


async def test_an_error_in_the_listener_ends_the_child(tmp_path: Path) -> None:
    talks = script(tmp_path / "talks", f"echo $$ > {tmp_path}/pid; echo hello >&2; sleep 1000")

    def fail(line: str) -> None:
        raise LookupError(line)

    with pytest.raises(LookupError, match="hello"):
        await talks.run([], wall_s=60, cpu_s=60, on_stderr_line=fail)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


# --- what it says ----------------------------------------------------------------------------------------------------


async def test_endless_talk_is_read_and_not_kept(tmp_path: Path) -> None:
    """A file can make ffmpeg print without end, also without a line's end: neither may fill memory nor block."""
    (tmp_path / "talk").write_text("x" * 3_000_000 + "\nthe end")
    talks = script(tmp_path / "talks", f"cat {tmp_path}/talk >&2")
    lines: list[str] = []
    finished = await talks.run([], wall_s=60, cpu_s=60, on_stderr_line=lines.append)
    assert [len(line) for line in lines] == [4096, 7]
    assert len(finished.stderr_tail) == 8192
    assert finished.stderr_tail.endswith("x\nthe end")


async def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    talks = script(tmp_path / "talks", "printf 'a\\377b\\n' >&2; exit 3")
    assert await run(talks) == (3, "a\ufffdb\n")


async def test_ffmpeg_sees_neither_our_keys_nor_our_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads files from strangers. FFREPORT would have it write a log beside them."""
    monkeypatch.setenv("API_KEYS", "secret")
    monkeypatch.setenv("FFREPORT", "file=log")
    code, said = await run(script(tmp_path / "tells", "env >&2; cat >&2"))
    assert code == 0
    assert "PATH=" in said
    assert "secret" not in said
    assert "FFREPORT" not in said
