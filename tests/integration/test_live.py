"""A call heard as it is spoken, by the real voice activity and engine, at a pace that waits for no clock."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from benchmarks.scoring import score
from errors import UnsupportedMedia
from ffmpeg import FFmpeg
from tests.engines import made_replicas, until
from tests.speech import sample_call
from transcription.core import SAMPLE_RATE, Segment, TranscriptionOptions, TranscriptSegment
from transcription.live import LiveText
from transcription.live_session import Heard, LiveSession, Partial
from transcription.live_sound import Encoding, LiveSound
from transcription.planner import BatchPlanner
from transcription.protocol import Language
from transcription.replicas import Replicas
from transcription.scheduler import SegmentScheduler
from transcription.speech import FRAME_SAMPLES

OPTIONS = TranscriptionOptions("tiny.en", "en", beam_size=1)
SAMPLES = LiveSound()
TENTH = 3_200
"""Bytes of 100 ms."""


def call_as(*arguments: str) -> bytes:
    """The sample call, written by ffmpeg in another way."""
    command = [FFmpeg.locate().path, "-v", "error", "-i", sample_call(), *arguments, "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def samples(rate: int = 16_000) -> bytes:
    return call_as("-ac", "1", "-ar", str(rate), "-f", "s16le")


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[first : first + size] for first in range(0, len(data), size)]


@dataclass
class Place:
    """One server's parts, and what was told and decoded."""

    live: LiveText
    scheduler: SegmentScheduler
    work: Path
    batches: list[int] = field(default_factory=list)
    told: list[Heard] = field(default_factory=list)

    async def tell(self, heard: Heard) -> None:
        self.told.append(heard)

    @property
    def partials(self) -> list[Partial]:
        return [one for one in self.told if isinstance(one, Partial)]

    @property
    def segments(self) -> list[TranscriptSegment]:
        return [one for one in self.told if isinstance(one, TranscriptSegment)]

    async def hear(
        self, sound: LiveSound, data: Sequence[bytes], options: TranscriptionOptions = OPTIONS, *, partials: bool = True
    ) -> LiveSession:
        """A whole session, in which decoding takes no time of the speaker's."""
        async with self.live.session(sound, options, self.tell, partials=partials) as session:
            for piece in data:
                await session.feed(piece)
                if sound.is_ready:
                    await until(lambda: session.quiet)
            await session.stop()
        return session


@contextlib.asynccontextmanager
async def placed(folder: Path, replicas: Replicas) -> AsyncIterator[Place]:
    work = folder / "work"
    work.mkdir()
    batches: list[int] = []
    async with SegmentScheduler(
        replicas.engines, BatchPlanner(4), lambda segments, _: batches.append(segments)
    ) as scheduler:
        live = LiveText(FFmpeg.locate(), replicas, scheduler, work_dir=work, max_duration_s=600.0)
        yield Place(live, scheduler, work, batches)
        assert list(work.iterdir()) == []
        assert children() == []


def children() -> list[str]:
    return [child.name() for child in psutil.Process().children(recursive=True) if "ffmpeg" in child.name()]


@pytest.fixture
async def place(tmp_path: Path, models_dir: Path) -> AsyncIterator[Place]:
    async with made_replicas(models_dir) as replicas:
        await replicas.engines[0].load("tiny.en")
        async with placed(tmp_path, replicas) as place:
            yield place


async def by_file(place: Place, tmp_path: Path) -> str:
    """What the same engine makes of the whole call at once."""
    path = tmp_path / "call.pcm"
    path.write_bytes(samples())
    [result] = [
        one async for one in place.scheduler.submit(only(Segment(path, 0, path.stat().st_size // 2, 0)), OPTIONS)
    ]
    path.unlink()
    return result.text


async def only(segment: Segment) -> AsyncIterator[Segment]:
    yield segment


async def test_a_call_is_heard_as_it_is_spoken(place: Place, tmp_path: Path) -> None:
    """The words of the whole recording, with their times, after looks that come sooner."""
    options = replace(OPTIONS, word_timestamps=True)
    session = await place.hear(SAMPLES, pieces(samples(), TENTH), options)
    assert session.duration_s == pytest.approx(30.0, abs=0.05)
    assert [segment.id for segment in place.segments] == list(range(len(place.segments)))
    assert place.segments[0].start == pytest.approx(6.5, abs=0.5)
    words = [word for segment in place.segments for word in segment.words or ()]
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert 6.0 < words[0].start < words[-1].end <= 30.1
    assert session.text == "".join(segment.text for segment in place.segments).strip()
    assert score(await by_file(place, tmp_path), session.text, "en").error_rate < 0.25

    partials = place.partials
    assert len(partials) >= 4
    assert partials[0].end < place.segments[-1].end - 5
    speech_s = sum(segment.end - segment.start for segment in place.segments)
    assert sum(partial.end - partial.start for partial in partials) <= 4 * speech_s
    last = place.told.index(place.segments[-1])
    assert not any(isinstance(one, Partial) for one in place.told[last:])


async def test_silence_is_not_decoded(place: Place) -> None:
    """Not even once."""
    session = await place.hear(SAMPLES, [bytes(TENTH)] * 200)
    assert session.duration_s == pytest.approx(20.0, abs=0.1)
    assert (place.told, place.batches) == ([], [])


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        (Encoding.WEBM, ("-c:a", "libopus", "-b:a", "32k", "-f", "webm")),
        (Encoding.OGG, ("-c:a", "libopus", "-b:a", "32k", "-f", "ogg")),
    ],
)
async def test_what_browsers_record_is_heard(
    place: Place, tmp_path: Path, encoding: Encoding, arguments: tuple[str, ...]
) -> None:
    """Cut anywhere, as it comes over the wire."""
    session = await place.hear(LiveSound(encoding), pieces(call_as(*arguments), 701), partials=False)
    assert session.duration_s == pytest.approx(30.0, abs=0.2)
    assert score(await by_file(place, tmp_path), session.text, "en").error_rate < 0.3


async def test_other_sample_rates_are_heard(place: Place) -> None:
    """Sound cards run at 48 kHz."""
    session = await place.hear(LiveSound(sample_rate=48_000), pieces(samples(48_000), 3 * TENTH), partials=False)
    assert session.duration_s == pytest.approx(30.0, abs=0.1)
    assert "diane in new jersey" in session.text.lower()


async def test_what_is_no_sound_is_said_to_be_none(place: Place) -> None:
    """At once, not when the caller stops."""
    with pytest.raises(UnsupportedMedia):
        await place.hear(LiveSound(Encoding.WEBM), [b"no sound at all" * 1000] * 20)
    assert place.told == []


async def test_nothing_sent_is_no_error(place: Place) -> None:
    """Who is ready and then does not speak."""
    session = await place.hear(LiveSound(Encoding.WEBM), [])
    assert (session.text, session.duration_s) == ("", 0.0)


async def test_who_leaves_in_the_middle_leaves_nothing(place: Place) -> None:
    """No child, no file: the fixture looks."""
    data = pieces(call_as("-c:a", "libopus", "-f", "webm"), 701)
    seen: list[str] = []

    async def leave() -> None:
        async with place.live.session(LiveSound(Encoding.WEBM), OPTIONS, place.tell) as session:
            for piece in data[: len(data) // 2]:
                await session.feed(piece)
            seen.extend(children())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave()
    assert len(seen) == 1


async def test_a_look_that_fails_the_safeguards_is_left_out(place: Place, tmp_path: Path) -> None:
    """Doing it again can take ten times as long, for what the next look replaces. Words cut in the middle fail."""
    path = tmp_path / "call.pcm"
    path.write_bytes(samples())
    left_out = 0
    for frames in range(130, 145, 3):
        segment = Segment(path, int(7.38 * SAMPLE_RATE), frames * FRAME_SAMPLES, 0)
        whole, look = [
            (await anext(place.scheduler.submit(only(segment), options))).text
            for options in (OPTIONS, replace(OPTIONS, once=True))
        ]
        assert look in ("", whole)
        left_out += look != whole
    assert left_out > 0


async def test_the_language_is_heard_in_the_first_speech(tmp_path: Path, models_dir: Path) -> None:
    """As for recordings, where none was named."""
    async with made_replicas(models_dir, "base") as replicas:
        await replicas.engines[0].load("base")
        async with placed(tmp_path, replicas) as place:
            options = TranscriptionOptions("base", beam_size=1)
            session = await place.hear(SAMPLES, pieces(samples()[: 14 * 32_000], TENTH), options, partials=False)
    assert isinstance(place.told[0], Language)
    assert session.language == place.told[0].code == "en"
