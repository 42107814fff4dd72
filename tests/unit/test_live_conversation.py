"""The conversation on WS /transcribe/live, with an engine that hears what it likes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from access.keyring import FRESH_S, Keys
from access.keys import Key, Scope, digest_of, owner_of
from api.live import MAX_MESSAGE_BYTES, close_code
from errors import QueueFull, ServiceError, ShuttingDown, WorkerCrashed
from ffmpeg import FFmpeg
from reservation import Work
from tests.fakes import KEY, Parts
from transcription.core import NOBODY, Caller, Priority, Segment, TranscriptionOptions, TranscriptSegment
from transcription.live import LiveText
from transcription.protocol import Language
from transcription.speech import FRAME_SAMPLES, Memory, Silero

SPEECH = np.random.default_rng(0).integers(-8_000, 8_000, 100 * FRAME_SAMPLES).astype("<i2").tobytes()
"""3.2 s."""
SILENCE = bytes(len(SPEECH))


class LoudIsSpeech(Silero):
    def __init__(self) -> None:
        pass

    def hear(self, window: np.ndarray, memory: Memory) -> tuple[list[float], Memory]:
        frames = window.reshape(-1, FRAME_SAMPLES)
        return frames.any(axis=1).astype(float).tolist(), memory


class Hearing:
    """A scheduler and its engines: hears how long each segment is."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, TranscriptionOptions, Caller]] = []
        self.error: Exception | None = None
        self.languages = 0
        self.looks = asyncio.Event()
        """Until it is set, looks at what goes on are under way."""
        self.looks.set()

    async def find_weights(self, model: str) -> None: ...

    async def detect_language(self, segments: list[Segment], options: Any, caller: Caller) -> Language:
        self.languages += 1
        return Language("de", 0.9)

    async def submit(
        self, segments: AsyncIterator[Segment], options: TranscriptionOptions, caller: Caller = NOBODY
    ) -> AsyncGenerator[TranscriptSegment]:
        async for segment in segments:
            assert segment.path.stat().st_size == segment.samples * 2
            # Its own, and one of a look that is being dropped.
            assert len(list(segment.path.parent.iterdir())) <= 2
            self.asked.append((segment.duration_s, options, caller))
            if options.once:
                await self.looks.wait()
            if self.error is not None:
                raise self.error
            text = f" {segment.duration_s:.1f} s"
            yield TranscriptSegment(0, 0.0, segment.duration_s, text, -0.1, 0.0, 1.0, 0.0)


class Line:
    """One connection: what is sent comes in order; what the server says is kept. May stop reading."""

    def __init__(self, query: str = "language=de", headers: dict[str, str] | None = None) -> None:
        headers = {"X-API-Key": KEY} if headers is None else headers
        self.said: list[dict[str, Any]] = []
        self.code: int | None = None
        self.reads = asyncio.Event()
        self.reads.set()
        self._coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._coming.put_nowait({"type": "websocket.connect"})
        self._news = asyncio.Event()
        self.scope = {
            "type": "websocket",
            "path": "/transcribe/live",
            "raw_path": b"/transcribe/live",
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "ws",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "subprotocols": [],
            "state": {},
        }

    def send(self, *messages: bytes | dict[str, Any]) -> Line:
        for message in messages:
            content = {"bytes": message} if isinstance(message, bytes) else {"text": json.dumps(message)}
            self._coming.put_nowait({"type": "websocket.receive"} | content)
        return self

    def hang_up(self) -> Line:
        self._coming.put_nowait({"type": "websocket.disconnect", "code": 1005})
        return self

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] != "websocket.accept":
            await self.reads.wait()
        if message["type"] == "websocket.send":
            self.said.append(json.loads(message["text"]))
        elif message["type"] == "websocket.close":
            self.code = message["code"]
        self._news.set()

    async def held(self, app: FastAPI) -> Line:
        await app(self.scope, self._coming.get, self._send)
        return self

    async def until(self, kind: str) -> None:
        while kind not in self.kinds:
            self._news.clear()
            await self._news.wait()

    @property
    def kinds(self) -> list[str]:
        return [one["type"] for one in self.said]

    @property
    def last(self) -> dict[str, Any]:
        return self.said[-1]


@pytest.fixture
def hearing() -> Hearing:
    return Hearing()


@pytest.fixture
def live(parts: Parts, hearing: Hearing) -> LiveText:
    made = LiveText(
        FFmpeg(Path("/bin/false")),
        hearing,  # type: ignore[arg-type]
        hearing,  # type: ignore[arg-type]
        work_dir=parts.work_folder,
        max_duration_s=60.0,
    )
    made._silero = LoudIsSpeech()
    return made


@pytest.fixture
def talk(parts: Parts, live: LiveText, app: FastAPI) -> FastAPI:
    """The application with live text."""
    app.state.services = dataclasses.replace(parts.services, live=live)
    return app


@pytest.fixture(autouse=True)
def _nothing_is_left(parts: Parts, live: LiveText) -> Any:
    yield
    assert list(parts.work_folder.iterdir()) == []
    assert repr(live) == "<LiveText sessions=0>"
    lane = parts.services.admission.lanes[Work.LIVE]
    assert (lane.arriving, len(lane.active), lane.waiting) == (0, 0, 0)
    assert not any(memory.lent_bytes for memory in parts.services.admission.memory.values())


STOP = {"type": "stop"}


async def test_a_session_is_ready_tells_segments_and_ends(talk: FastAPI, hearing: Hearing) -> None:
    """Two sentences with a pause between, then the whole."""
    line = await Line("language=de&partials=false").send(SPEECH, SILENCE, SPEECH, STOP).held(talk)
    assert line.kinds == ["ready", "segment", "segment", "end"]
    ready, first, second, end = line.said
    assert (ready["model"], ready["language"], ready["encoding"], ready["sample_rate"]) == (
        "base",
        "de",
        "pcm_s16le",
        16000,
    )
    assert (first["id"], second["id"]) == (0, 1)
    assert first["start"] == 0.0
    assert second["start"] == pytest.approx(6.1, abs=0.05)
    assert second["end"] == pytest.approx(9.6, abs=0.05)
    assert end == {"type": "end", "duration": 9.6, "language": "de", "text": f"{first['text']} {second['text']}"}
    assert line.code == 1000


async def test_partials_are_greedy_come_last_and_give_way(talk: FastAPI, hearing: Hearing) -> None:
    """They must cost others nothing."""
    line = Line("language=de&word_timestamps=true")
    task = asyncio.create_task(line.send(SPEECH).held(talk))
    await line.until("partial")
    line.send(STOP)
    await task
    assert list(dict.fromkeys(line.kinds)) == ["ready", "partial", "segment", "end"]
    (_, quick, whose), *_, (_, whole, own) = hearing.asked
    assert (quick.beam_size, quick.word_timestamps, quick.once, whose.priority) == (1, False, True, Priority.BATCH)
    assert (whole.beam_size, whole.word_timestamps, whole.once, own.priority) == (5, True, False, Priority.INTERACTIVE)


async def test_a_look_that_comes_too_late_is_dropped(talk: FastAPI, hearing: Hearing) -> None:
    """What is final must not be followed by what it sounded like before."""
    hearing.looks.clear()
    line = Line()
    task = asyncio.create_task(line.send(SPEECH, SILENCE).held(talk))
    await line.until("segment")
    hearing.looks.set()
    line.send(STOP)
    await task
    assert [options.once for _, options, _ in hearing.asked] == [True, False]
    assert line.kinds == ["ready", "segment", "end"]


async def test_one_look_at_a_time(talk: FastAPI, hearing: Hearing) -> None:
    """A server that is behind is not asked again."""
    hearing.looks.clear()
    line = Line()
    await line.send(*[SPEECH] * 5, STOP).held(talk)
    assert [options.once for _, options, _ in hearing.asked] == [True, False]


async def test_silence_is_not_decoded(talk: FastAPI, hearing: Hearing) -> None:
    """A session in which nobody speaks costs a network run a second."""
    line = await Line().send(*[SILENCE] * 10, STOP).held(talk)
    assert line.kinds == ["ready", "end"]
    assert line.last["duration"] == 32.0
    assert hearing.asked == []


async def test_the_language_is_heard_in_the_first_speech(talk: FastAPI, hearing: Hearing) -> None:
    """It is told once, and settled after some seconds."""
    line = await Line("partials=false").send(*[SPEECH, SILENCE] * 4, STOP).held(talk)
    assert line.kinds == ["ready", "language", *["segment"] * 4, "end"]
    assert line.said[1] == {"type": "language", "language": "de", "language_probability": 0.9}
    assert hearing.languages == 2
    assert {options.language for _, options, _ in hearing.asked} == {"de"}


async def test_flush_and_ping(talk: FastAPI) -> None:
    """A stretch ends where its speaker says so."""
    line = Line("language=de&partials=false").send({"type": "ping"}, SPEECH, {"type": "flush"}, STOP)
    await line.held(talk)
    assert line.kinds == ["ready", "pong", "segment", "end"]
    assert line.said[2]["end"] == 3.2


async def test_samples_may_be_cut_anywhere(talk: FastAPI) -> None:
    """A message is not a frame."""
    pieces = [SPEECH[first : first + 1001] for first in range(0, len(SPEECH), 1001)]
    whole = await Line("language=de&partials=false").send(SPEECH, STOP).held(talk)
    cut = await Line("language=de&partials=false").send(*pieces, STOP).held(talk)
    assert cut.said[1] == whole.said[1]


@pytest.mark.parametrize(
    ("headers", "first", "code"),
    [
        ({"X-API-Key": "wrong"}, None, 4401),
        ({"Authorization": "Bearer wrong"}, None, 4401),
        ({}, {"type": "start", "key": "wrong"}, 4401),
        ({}, {"type": "start"}, 4401),
        ({}, b"sound", 4401),
        ({"Authorization": f"Bearer {KEY}"}, None, 1000),
        ({}, {"type": "start", "key": KEY}, 1000),
    ],
)
async def test_the_key_comes_in_a_header_or_in_the_first_message(
    talk: FastAPI, headers: dict[str, str], first: Any, code: int
) -> None:
    """Browsers cannot send headers with a WebSocket, and addresses are logged."""
    line = Line(headers=headers)
    await line.send(*([first] if first else []), STOP).held(talk)
    assert line.code == code
    assert line.last["type"] == ("end" if code == 1000 else "error")
    assert line.last.get("code") == (None if code == 1000 else "UNAUTHORIZED")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("key=secret-of-mine", "INVALID_REQUEST"),
        ("encoding=mp3", "INVALID_REQUEST"),
        ("sample_rate=1", "INVALID_REQUEST"),
        ("diarize=true", "INVALID_REQUEST"),
        ("beam_size=99", "INVALID_REQUEST"),
        ("language=klingon", "UNSUPPORTED_LANGUAGE"),
        ("model_size=none", "UNKNOWN_MODEL"),
    ],
)
async def test_parameters_are_checked_first(talk: FastAPI, query: str, code: str) -> None:
    """Who asks for what there is not hears of it before speaking."""
    line = await Line(query).held(talk)
    assert (line.kinds, line.last["code"], line.code) == (["error"], code, 4422)
    assert "secret-of-mine" not in json.dumps(line.said)


async def test_a_full_gate_refuses_at_once(talk: FastAPI, parts: Parts) -> None:
    """Whoever speaks cannot wait in a line."""
    admission = parts.services.admission
    with admission.reserve(Work.LIVE) as one, admission.reserve(Work.LIVE) as two:
        for place in (one, two):
            await place.granted({})
        line = await Line().held(talk)
    assert (line.last["code"], line.code) == ("QUEUE_FULL", 4429)
    assert line.last["retry_after"] >= 1
    assert (await Line().send(STOP).held(talk)).code == 1000


async def test_what_no_engine_here_can_do_is_refused(app: FastAPI) -> None:
    """A server that only takes jobs has nobody who listens."""
    line = await Line().held(app)
    assert (line.last["code"], line.code) == ("NOT_READY", 4503)


async def test_who_sends_nothing_is_cut_off(talk: FastAPI, live: LiveText) -> None:
    """A forgotten tab must not keep a place."""
    live.idle_s = 0.01
    line = await Line().held(talk)
    assert (line.kinds, line.last["code"], line.code) == (["ready", "error"], "CLIENT_STALLED", 4408)


async def test_who_does_not_read_is_cut_off(talk: FastAPI, live: LiveText, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told waits for whoever reads it, and not for ever."""
    monkeypatch.setattr("api.live.LAST_WORD_S", 0.01)
    line = Line()
    task = asyncio.create_task(line.held(talk))
    await line.until("ready")
    live.idle_s = 0.05
    line.reads.clear()
    line.send(*[SPEECH, SILENCE] * 5)
    await task
    assert line.kinds == ["ready"]


async def test_who_hangs_up_leaves_nothing(talk: FastAPI) -> None:
    """Files, place and memory: the fixture looks."""
    line = await Line().send(SPEECH).hang_up().held(talk)
    assert line.code is None
    assert "end" not in line.kinds


async def test_a_stop_of_the_server_is_told(talk: FastAPI, live: LiveText) -> None:
    """Clients come again elsewhere."""
    line = Line()
    task = asyncio.create_task(line.held(talk))
    await line.until("ready")
    live.close()
    await live.closed(5.0)
    await task
    assert (line.last["code"], line.code) == ("SHUTTING_DOWN", 1012)
    assert (await Line().held(talk)).code == 1012


async def test_an_engine_that_cannot_ends_the_session_with_its_error(talk: FastAPI, hearing: Hearing) -> None:
    """A segment that is lost must not look like silence; a look that fails is no loss."""
    hearing.error = WorkerCrashed()
    line = await Line().send(SPEECH, STOP).held(talk)
    assert (line.kinds[-1], line.last["code"], line.code) == ("error", "WORKER_CRASHED", 4503)


async def test_a_session_has_an_end(talk: FastAPI, live: LiveText) -> None:
    """What was said until then is told."""
    live.max_duration_s = 3.0
    line = await Line("language=de&partials=false").send(SPEECH, SPEECH).held(talk)
    assert line.kinds == ["ready", "segment", "error"]
    assert (line.last["code"], line.code) == ("AUDIO_TOO_LONG", 4413)


@pytest.mark.parametrize(
    ("message", "code"), [({"type": "dance"}, 4422), (bytes(MAX_MESSAGE_BYTES + 1), 4413)], ids=["unknown", "large"]
)
async def test_messages_that_are_none_end_the_session(talk: FastAPI, message: Any, code: int) -> None:
    """A client that is wrong must learn of it."""
    line = await Line().send(message).held(talk)
    assert line.code == code


async def test_a_key_has_no_more_than_its_day(talk: FastAPI, parts: Parts) -> None:
    """Live seconds count as others do."""
    bounds = parts.services.admission.keys
    bounds._max_audio_s_a_day = 2.0
    line = await Line("language=de&partials=false").send(SPEECH, SPEECH, STOP).held(talk)
    assert (line.last["code"], line.code) == ("QUOTA_USED", 4429)


async def test_a_session_ends_with_its_key(talk: FastAPI, parts: Parts) -> None:
    """It may last for hours: a leaked key must not be good for so long after it was revoked."""
    known = Key(digest_of("made-key"), owner_of("alice"), frozenset({Scope.TRANSCRIBE}), name="alice")
    now = 0.0

    class Shelf:
        def all(self) -> list[Key]:
            return [known]

    keys = Keys([], store=Shelf(), clock=lambda: now)
    talk.state.services = dataclasses.replace(talk.state.services, keys=keys)
    line = Line("language=de&partials=false", {"X-API-Key": "made-key"}).send(SPEECH)
    holding = asyncio.create_task(line.held(talk))
    await line.until("ready")
    known, now = dataclasses.replace(known, revoked_at=0.0), FRESH_S
    line.send({"type": "ping"})
    await holding
    assert "pong" not in line.kinds
    assert (line.last["code"], line.code) == ("UNAUTHORIZED", 4401)


async def test_a_key_that_may_not_transcribe_may_not_speak(talk: FastAPI) -> None:
    """Live text is text."""
    known = Key(digest_of("made-key"), owner_of("alice"), frozenset({Scope.DOWNLOAD, Scope.ADMIN}), name="alice")

    class Shelf:
        def all(self) -> list[Key]:
            return [known]

    talk.state.services = dataclasses.replace(talk.state.services, keys=Keys([], store=Shelf()))
    line = await Line("language=de", {"X-API-Key": "made-key"}).send(SPEECH).held(talk)
    assert (line.last["code"], line.code) == ("SCOPE_MISSING", 4403)


def test_close_codes_follow_the_status() -> None:
    """A browser sees the code alone where the message is lost."""
    assert close_code(ShuttingDown()) == 1012
    assert close_code(ServiceError()) == 1011
    assert close_code(QueueFull()) == 4429
