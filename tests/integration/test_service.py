"""A recording's whole way through the real parts: ffmpeg, voice activity, engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import wave
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from errors import AudioTooLong, ModelUnavailable, QuotaUsed, UnsupportedMedia, WorkerCrashed
from ffmpeg import FFmpeg
from metrics import Metrics
from reservation import Work
from tests.engines import made_replicas
from tests.fakes import make_admission
from tests.speech import sample_call, speech_file, spoken
from transcription.alignment_models import AlignmentModels
from transcription.core import Segment, TranscriptionOptions, TranscriptSegment, VoiceActivity
from transcription.engine import Engine
from transcription.planner import BatchPlanner
from transcription.protocol import Language
from transcription.scheduler import SegmentScheduler
from transcription.service import Stopwatch, Transcriber
from transcription.speaker_finder import SpeakerFinder
from transcription.speech import SpeechCutter
from transcription.torch_process import TorchProcess
from transcription.word_alignment import WordAlignment

OPTIONS = TranscriptionOptions("tiny.en", "en")


@contextlib.asynccontextmanager
async def parts(
    folder: Path, model: str = "tiny.en", max_duration_s: float = 3_600, **torch: Any
) -> AsyncIterator[tuple[Transcriber, Engine]]:
    """*torch*: of the processes that align and tell speakers apart; without, nobody may ask for these."""
    work = folder / "work"
    work.mkdir()
    async with (
        made_replicas(folder / "models", model) as replicas,
        SegmentScheduler(replicas.engines, BatchPlanner(4)) as scheduler,
        WordAlignment(TorchProcess("alignment", **torch), AlignmentModels()) as alignment,
        SpeakerFinder(TorchProcess("diarization", **torch)) as finder,
    ):
        [engine] = replicas.engines
        await engine.load(model)
        yield (
            Transcriber(
                FFmpeg.locate(),
                SpeechCutter(),
                replicas,
                scheduler,
                alignment,
                finder,
                work_dir=work,
                max_duration_s=max_duration_s,
                max_decodes=2,
            ),
            engine,
        )


@pytest_asyncio.fixture
async def transcriber(tmp_path: Path) -> AsyncIterator[Transcriber]:
    async with parts(tmp_path) as (transcriber, _):
        yield transcriber


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "work").iterdir())


async def test_a_call_becomes_a_transcript(transcriber: Transcriber, tmp_path: Path) -> None:
    """The reference's first words are "Hello?" at 6.7 s."""
    transcript = await transcriber.run(sample_call(), replace(OPTIONS, word_timestamps=True))
    assert "hello" in transcript.text.lower()
    assert transcript.duration_s == pytest.approx(30, abs=0.1)
    assert (transcript.language, transcript.model, transcript.device) == ("en", "tiny.en", "cpu")
    assert transcript.segments[0].start > 5.5
    starts = [word.start for segment in transcript.segments for word in segment.words or ()]
    assert starts == sorted(starts)
    assert {"decode", "voice_activity", "transcribe", "total"} <= transcript.timings_s.keys()
    assert transcript.timings_s["total"] >= transcript.timings_s["transcribe"]
    assert left_over(tmp_path) == []


async def test_four_at_once_say_what_one_says(transcriber: Transcriber) -> None:
    """They share batches and nothing else."""
    alone = await transcriber.run(sample_call(), OPTIONS)
    together = await asyncio.gather(*(transcriber.run(sample_call(), OPTIONS) for _ in range(4)))
    assert {one.text for one in together} == {alone.text}


async def test_a_killed_engine_costs_a_retry_not_the_request(tmp_path: Path) -> None:
    """Its segments are done again by the next one; the transcript is the same."""
    async with parts(tmp_path) as (transcriber, engine):
        whole = await transcriber.run(sample_call(), OPTIONS)
        again = asyncio.create_task(transcriber.run(sample_call(), replace(OPTIONS, beam_size=6)))
        await until(lambda: "calls=1" in repr(engine))
        assert engine.pid is not None
        first = engine.pid
        os.kill(first, signal.SIGKILL)
        transcript = await again
        assert engine.pid != first
    assert len(transcript.segments) == len(whole.segments)


async def test_leaving_removes_the_pcm(transcriber: Transcriber, tmp_path: Path) -> None:
    """A client that hangs up leaves nothing on the disk."""
    work = asyncio.create_task(transcriber.run(sample_call(), replace(OPTIONS, beam_size=16)))
    await until(lambda: left_over(tmp_path) != [])
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert left_over(tmp_path) == []


async def test_too_long_is_refused_from_the_header(tmp_path: Path) -> None:
    """Before anything is decoded."""
    async with parts(tmp_path, max_duration_s=10) as (transcriber, _):
        with pytest.raises(AudioTooLong, match="30 s"):
            await transcriber.run(sample_call(), OPTIONS)


async def test_an_absent_model_is_told_before_decoding(transcriber: Transcriber, tmp_path: Path) -> None:
    """Minutes of ffmpeg for nothing would annoy."""
    with pytest.raises(ModelUnavailable):
        await transcriber.run(sample_call(), replace(OPTIONS, model="medium"))
    assert left_over(tmp_path) == []


async def test_an_error_leaves_no_file(transcriber: Transcriber, tmp_path: Path) -> None:
    """Nor an empty transcript as success."""
    text = tmp_path / "notes.mp3"
    text.write_text("This is not sound.\n" * 100)
    with pytest.raises(UnsupportedMedia):
        await transcriber.run(text, OPTIONS)
    assert left_over(tmp_path) == []


async def test_the_language_is_heard_after_a_minute_of_silence(tmp_path: Path) -> None:
    """Whisper's own detection looks at the first 30 seconds, and hears English in silence."""
    said = spoken("Guten Morgen. Heute ist ein schöner Tag, und die Sonne scheint.", tmp_path / "de.wav", "de")
    late = tmp_path / "late.wav"
    ffmpeg = await asyncio.create_subprocess_exec(
        str(FFmpeg.locate().path), "-v", "error", "-i", str(said), "-af", "adelay=60000:all=1", str(late)
    )
    assert await ffmpeg.wait() == 0
    async with parts(tmp_path, "base") as (transcriber, _):
        transcript = await transcriber.run(late, TranscriptionOptions("base"))
    assert transcript.language == "de"
    assert transcript.segments[0].start > 59


@pytest.mark.parametrize(
    "name", ["silence_10s.wav", "silent_s2t.mp3", "tone_440hz_5s.wav", "white_noise_10s.flac", "big_buck_bunny_5s.mp4"]
)
async def test_nonspeech_gives_no_text(transcriber: Transcriber, name: str) -> None:
    """Silence is a success with empty text."""
    transcript = await transcriber.run(speech_file(f"nonspeech/{name}"), OPTIONS)
    assert (transcript.text, transcript.segments) == ("", ())


# --- while ffmpeg is still decoding ----------------------------------------------------------------------------------


class Listener:
    """Engine and scheduler in one, without a model: each segment is done at once. Can be told to hold its work."""

    device, compute_type = "cpu", "int8"

    def __init__(self) -> None:
        self.heard: list[Segment] = []
        self.asked_for_language: list[Segment] = []
        self.release = asyncio.Event()
        self.release.set()

    async def find_weights(self, model: str) -> None:
        pass

    async def detect_language(self, segments: Sequence[Segment], *_: object) -> Language:
        self.asked_for_language += segments
        return Language("de", 0.9)

    async def submit(
        self, segments: AsyncIterator[Segment], options: TranscriptionOptions, *_: object
    ) -> AsyncGenerator[TranscriptSegment]:
        async for segment in segments:
            self.heard.append(segment)
            await self.release.wait()
            end = segment.start_s + segment.duration_s
            yield TranscriptSegment(segment.index, segment.start_s, end, " word", -0.2, 0.01, 1.1, 0.0)


def calls(path: Path, repeats: int) -> Path:
    """The call, again and again, in a new wav file."""
    with wave.open(str(sample_call())) as call, wave.open(str(path), "wb") as file:
        file.setparams(call.getparams())
        file.writeframes(call.readframes(call.getnframes()) * repeats)
    return path


class Gate:
    """An ffmpeg that gets the second half of its source only when it is opened. Then it may fail, too."""

    def __init__(self, folder: Path, *, fails: bool = False) -> None:
        """The source is the call, eight times over: language is heard in 30 s of speech."""
        self._pipe = folder / "gate"
        os.mkfifo(self._pipe)
        self.source = calls(folder / "calls.wav", 8)
        half = self.source.stat().st_size // 2
        script = folder / "ffmpeg"
        script.write_text(f"""#!/bin/bash
            arguments=("$@")
            [ "${{@: -1}}" = - ] && exec "{FFmpeg.locate().path}" "$@"  # the header
            for n in "${{!arguments[@]}}"; do
                [ "${{arguments[n]}}" = "file:{self.source}" ] && arguments[n]=pipe:0
            done
            {{
                head -c {half} "{self.source}"
                cat "{self._pipe}"
                tail -c +{half + 1} "{self.source}"
            }} | "{FFmpeg.locate().path}" "${{arguments[@]}}" && exit {int(fails)}
        """)
        script.chmod(0o700)
        self.ffmpeg = FFmpeg(script)

    async def open(self) -> None:
        await asyncio.to_thread(self._pipe.write_bytes, b"")


def own_children() -> set[psutil.Process]:
    """The processes below this one; other tests' servers are among them."""
    return set(psutil.Process().children(recursive=True))


def hearing_by(listener: Listener, ffmpeg: FFmpeg, folder: Path, max_duration_s: float) -> Transcriber:
    """One at a time, with *listener* for an engine; nobody aligns or tells speakers apart."""
    return Transcriber(
        ffmpeg,
        SpeechCutter(),
        listener,
        listener,
        WordAlignment(TorchProcess("alignment"), AlignmentModels()),
        SpeakerFinder(TorchProcess("diarization")),
        work_dir=folder / "work",
        max_duration_s=max_duration_s,
        max_decodes=1,
    )


@contextlib.asynccontextmanager
async def listened_to(folder: Path, gate: Gate, listener: Listener) -> AsyncIterator[asyncio.Task[object]]:
    """A run that is under way: a first segment has come, and ffmpeg waits at the gate. Nothing is left of it."""
    (folder / "work").mkdir()
    others, children = asyncio.all_tasks(), own_children()
    transcriber = hearing_by(listener, gate.ffmpeg, folder, 3_600)
    run = asyncio.create_task(transcriber.run(gate.source, replace(OPTIONS, language=None)))
    try:
        await until(lambda: run.done() or bool(listener.heard))
        assert not run.done()
        yield run
        assert run.done()
    finally:
        run.cancel()
        await asyncio.wait({run})
    assert left_over(folder) == []
    assert asyncio.all_tasks() == others
    assert own_children() <= children


async def test_the_first_segment_leaves_before_the_recording_is_decoded(tmp_path: Path) -> None:
    """Ten hours are decoded for a minute; their first sentence is known after a second."""
    gate, listener = Gate(tmp_path), Listener()
    async with listened_to(tmp_path, gate, listener) as run:
        assert max(segment.start_s + segment.duration_s for segment in listener.heard) < 120
        await gate.open()
        transcript = await run
    assert transcript.duration_s == pytest.approx(240, abs=0.1)
    assert transcript.segments[-1].end > 230
    assert transcript.language == "de"
    assert listener.asked_for_language == listener.heard[: len(listener.asked_for_language)]
    assert {"probe", "decode", "voice_activity", "language", "transcribe", "total"} == transcript.timings_s.keys()


async def test_decoding_that_fails_later_fails_the_request(tmp_path: Path) -> None:
    """What was heard up to there is no transcript."""
    gate, listener = Gate(tmp_path, fails=True), Listener()
    async with listened_to(tmp_path, gate, listener) as run:
        await gate.open()
        with pytest.raises(UnsupportedMedia):
            await run


async def test_decoding_that_fails_is_told_while_others_are_served(tmp_path: Path) -> None:
    """The engine may be busy for minutes before it is this request's turn again."""
    gate, listener = Gate(tmp_path, fails=True), Listener()
    listener.release.clear()
    async with listened_to(tmp_path, gate, listener) as run:
        await gate.open()
        with pytest.raises(UnsupportedMedia):
            await run


async def test_leaving_while_ffmpeg_decodes_ends_it(tmp_path: Path) -> None:
    """A client that hangs up leaves no child, no task and no file."""
    gate, listener = Gate(tmp_path), Listener()
    children = own_children()
    async with listened_to(tmp_path, gate, listener) as run:
        assert own_children() - children
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run


async def test_an_engine_that_fails_ends_the_decoding(tmp_path: Path) -> None:
    """Its error reaches the caller as it is; ffmpeg has nobody left to work for."""

    class Failing(Listener):
        async def submit(
            self, segments: AsyncIterator[Segment], options: TranscriptionOptions, *_: object
        ) -> AsyncGenerator[TranscriptSegment]:
            self.heard.append(await anext(segments))
            await self.release.wait()
            raise WorkerCrashed
            yield

    gate, listener = Gate(tmp_path), Failing()
    listener.release.clear()
    async with listened_to(tmp_path, gate, listener) as run:
        listener.release.set()
        with pytest.raises(WorkerCrashed):
            await run


@pytest.mark.parametrize("vad", list(VoiceActivity))
async def test_a_recording_whose_length_no_header_tells_is_refused_past_the_bound(
    tmp_path: Path, vad: VoiceActivity
) -> None:
    """Also where its beginning has been heard when that is found out."""
    (tmp_path / "work").mkdir()
    listener, ffmpeg, live = Listener(), FFmpeg.locate(), tmp_path / "live.mkv"
    made = await asyncio.create_subprocess_exec(
        *(str(ffmpeg.path), "-v", "error", "-i", str(calls(tmp_path / "calls.wav", 8))),
        *("-f", "matroska", "-live", "1", str(live)),
    )
    assert await made.wait() == 0
    transcriber = hearing_by(listener, ffmpeg, tmp_path, 99)
    with pytest.raises(AudioTooLong, match="99 seconds"):
        await transcriber.run(live, replace(OPTIONS, vad=vad))
    assert left_over(tmp_path) == []


def lying(folder: Path, claims_s: float) -> Path:
    """The call twice over (60 s) in a FLAC whose header claims that it ends after *claims_s*."""
    path = folder / "lying.flac"
    arguments = ("-v", "error", "-i", str(calls(folder / "calls.wav", 2)), "-ar", "16000", str(path))
    subprocess.run([str(FFmpeg.locate().path), *arguments], check=True)
    content = bytearray(path.read_bytes())
    # Of STREAMINFO, the lower 32 of the 36 bits that hold the number of samples.
    content[22:26] = round(claims_s * 16_000).to_bytes(4)
    path.write_bytes(content)
    return path


async def test_a_recording_that_goes_on_past_its_header_pays_for_all_of_it(tmp_path: Path) -> None:
    """It is heard whole: honest files have such headers too, where somebody has joined two."""
    (tmp_path / "work").mkdir()
    admission, source = make_admission(Metrics(), max_audio_s_a_day=1_000.0), lying(tmp_path, 10.0)
    transcriber = hearing_by(Listener(), FFmpeg.locate(), tmp_path, 3_600)
    assert await transcriber.measure(source) == 10.0
    with admission.reserve(Work.TRANSCRIPTION, "a") as place:
        transcript = await transcriber.run(source, OPTIONS, place)
        assert transcript.duration_s == pytest.approx(60, abs=0.5)
        assert place.amount >= 60
        assert not place.short
    assert admission.audio_left_s("a") == 1_000 - place.amount


async def test_a_recording_that_goes_on_past_what_its_key_may_have_is_stopped(tmp_path: Path) -> None:
    """Whatever its header says: the day's seconds are decoded seconds."""
    (tmp_path / "work").mkdir()
    children = own_children()
    admission, source = make_admission(Metrics(), max_audio_s_a_day=30.0), lying(tmp_path, 10.0)
    transcriber = hearing_by(Listener(), FFmpeg.locate(), tmp_path, 3_600)
    with admission.reserve(Work.TRANSCRIPTION, "a") as place, pytest.raises(QuotaUsed):
        await transcriber.run(source, OPTIONS, place)
    assert left_over(tmp_path) == []
    assert own_children() <= children


def test_the_stopwatch_sums_visits() -> None:
    """Voice activity is visited once a segment."""
    now = 0.0
    watch = Stopwatch(lambda: now)
    for _ in range(2):
        with watch.stage("decode"):
            now += 1.5
    now += 1.0
    assert watch.timings_s() == {"decode": 3.0, "total": 4.0}


async def until(reached: Callable[[], bool]) -> None:
    """Let the loop run until it is so; the test's own time limit ends it otherwise."""
    while not reached():  # noqa: ASYNC110 - files and processes send no events
        await asyncio.sleep(0)
