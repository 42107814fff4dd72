"""provider=openai and provider=auto: what is sent, what is made of the answer, when it is asked again, who does it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI

from admission import AdmissionController
from api.application import assemble
from errors import AudioTooLong, ConfigurationError, UpstreamFailed, UpstreamTimeout
from ffmpeg import FFmpeg
from jobs.journal import JobJournal
from metrics import Metrics
from reservation import Reservation, Work
from settings import Settings
from tests.fakes import Parts, make_admission, make_parts
from tests.stand_ins.upstream import Reply, StandIn, stand_in, told
from transcription.core import Channels, Provider, Task, TranscriptionOptions, TranscriptSegment
from transcription.upstream import FLAC_BYTES_A_SECOND, Upstream, UpstreamAccess, paused_s, retry_after
from transcription.upstream_answers import Answer, fields, transcript_of, undoable, with_words
from wiring import secrets_of

SECRET = "sk-upstream-secret-0123456789"
HELLO = {
    "task": "transcribe",
    "language": "english",
    "duration": 2.0,
    "text": "Hello, world. It's me.",
    "segments": [
        {"id": 0, "start": 0.0, "end": 1.0, "text": " Hello, world.", "tokens": [1, 2], "avg_logprob": -0.2},
        {"id": 1, "start": 1.0, "end": 2.0, "text": " It's me.", "tokens": [], "no_speech_prob": 0.1},
    ],
    "words": [
        {"word": "Hello", "start": 0.0, "end": 0.4},
        {"word": "world", "start": 0.5, "end": 0.9},
        {"word": "It's", "start": 1.0, "end": 1.3},
        {"word": "me", "start": 1.4, "end": 1.8},
    ],
}
OPTIONS = TranscriptionOptions("base", provider=Provider.OPENAI)


def changed(**changes: Any) -> TranscriptionOptions:
    return dataclasses.replace(OPTIONS, **changes)


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_the_form_asks_for_what_is_wanted() -> None:
    """As OpenAI's reference has it: granularities are a list, and hot words are part of the prompt."""
    asked = changed(language="de", hotwords="Stenogate", initial_prompt="Hi.", word_timestamps=True, temperature=0.2)
    assert fields(asked, "whisper-1") == [
        ("model", "whisper-1"),
        ("response_format", "verbose_json"),
        ("temperature", "0.2"),
        ("prompt", "Stenogate Hi."),
        ("language", "de"),
        ("timestamp_granularities[]", "segment"),
        ("timestamp_granularities[]", "word"),
    ]


def test_translations_and_models_without_times_are_asked_for_less() -> None:
    """What they do not take would be refused."""
    assert fields(changed(task=Task.TRANSLATE, language="de", word_timestamps=True), "whisper-1") == [
        ("model", "whisper-1"),
        ("response_format", "verbose_json"),
    ]
    assert fields(changed(word_timestamps=True), "gpt-4o-transcribe") == [
        ("model", "gpt-4o-transcribe"),
        ("response_format", "json"),
    ]


def test_what_cannot_be_done_there_is_named() -> None:
    """Silently left out, a speaker would be missed by nobody but the reader."""
    asked = changed(align=True, diarize=True, channels=Channels.SPLIT, clips=((0.0, 1.0),), multilingual=True)
    assert [name for name, _ in undoable(asked)] == ["align", "diarize", "channels", "clip_timestamps", "multilingual"]
    assert undoable(changed(word_timestamps=True, drop_fillers=True, hotwords="a", language="de")) == []


# --- what comes back -------------------------------------------------------------------------------------------------


def transcript(body: dict[str, Any], model: str = "whisper-1", **options: Any) -> Any:
    return transcript_of(Answer(body, model, 2.0), changed(**options))


def test_an_answer_becomes_a_transcript() -> None:
    """A language's name becomes its code; what is not told is not known, rather than zero."""
    made = transcript(HELLO)
    assert (made.text, made.language, made.duration_s) == ("Hello, world. It's me.", "en", 2.0)
    assert (made.provider, made.model, made.device) == ("openai", "whisper-1", "upstream")
    first, second = made.segments
    assert (first.start, first.end, first.tokens, first.avg_logprob) == (0.0, 1.0, (1, 2), -0.2)
    assert math.isnan(first.no_speech_prob)
    assert (second.no_speech_prob, first.words) == (0.1, None)
    assert math.isnan(made.language_probability)


def test_words_keep_what_their_segment_writes_around_them() -> None:
    """OpenAI's have no punctuation, and subtitles are made of words."""
    made = transcript(HELLO, word_timestamps=True)
    assert [[word.text for word in segment.words] for segment in made.segments] == [
        [" Hello,", " world."],
        [" It's", " me."],
    ]
    assert made.segments[1].words[0].start == 1.0


@pytest.mark.parametrize(
    ("text", "words", "spelled"),
    [
        ("你好世界。", ["你好", "世界"], ["你好", "世界。"]),
        (' He said "no". Yes', ["He", "said", "no", "yes"], [" He", " said", ' "no".', " Yes"]),
        (" five", ["5"], [" 5"]),
        (" İstanbul a", ["istanbul", "a"], [" istanbul", " a"]),
    ],
)
def test_words_are_found_in_the_text(text: str, words: list[str], spelled: list[str]) -> None:
    """In scripts without spaces, within quotation marks; and where one is not to be found, all stand for themselves."""
    segment = TranscriptSegment(0, 0.0, 9.0, text, 0.0, 0.0, 0.0, 0.0)
    [placed] = with_words([segment], [(float(at), at + 0.5, word) for at, word in enumerate(words)])
    assert placed.words is not None
    assert [word.text for word in placed.words] == spelled


def test_segments_that_a_server_strips_are_still_apart() -> None:
    """Whisper spells the space before a word; in Chinese there is none."""
    stripped = [{"start": 0, "end": 1, "text": "One."}, {"start": 1, "end": 2, "text": "Two."}]
    assert transcript({"text": "One. Two.", "segments": stripped}).text == "One. Two."
    stripped = [{"start": 0, "end": 1, "text": "你好。"}, {"start": 1, "end": 2, "text": "世界。"}]
    assert transcript({"text": "你好。世界。", "segments": stripped}).text == "你好。世界。"


def test_a_text_without_times_is_one_segment_and_says_so() -> None:
    """As gpt-4o-transcribe answers."""
    made = transcript({"text": "Hello."}, "gpt-4o-transcribe", word_timestamps=True)
    assert [(one.start, one.end, one.text) for one in made.segments] == [(0.0, 2.0, "Hello.")]
    assert made.warnings == ("The upstream's model gpt-4o-transcribe gives a text without times.",)
    assert transcript({"text": ""}, "gpt-4o-transcribe").segments == ()
    assert transcript({**HELLO, "words": None}, word_timestamps=True).warnings == (
        "The upstream gave no times of words.",
    )


def test_filters_work_on_what_comes_back() -> None:
    """They are this server's own."""
    body = {"text": "Um, yes.", "language": "en", "segments": [{"start": 0, "end": 1, "text": " Um, yes."}]}
    assert "um" not in transcript(body, drop_fillers=True).text.lower()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": None},
        {"text": "a", "segments": 3},
        {"text": "a", "segments": [{"start": "x", "end": 1, "text": "a"}]},
        {"text": "a", "segments": [{"start": 0, "end": float("inf"), "text": "a"}]},
        {"text": "a", "segments": ["a"]},
    ],
)
def test_what_is_no_transcript_is_an_error(body: dict[str, Any]) -> None:
    """Not an empty text, which would look like silence."""
    with pytest.raises(UpstreamFailed):
        transcript(body)


# --- when it is asked again ------------------------------------------------------------------------------------------


def test_pauses_grow_and_differ() -> None:
    """So that a crowd that was refused together does not come back together."""
    assert [paused_s(attempt, lambda: 0.0) for attempt in (1, 2, 3, 9)] == [0.5, 1.0, 2.0, 8.0]
    assert paused_s(1, lambda: 1.0) == 0.375


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """RFC 9110, 10.2.3."""
    assert retry_after(header, 10.0) == seconds


# --- a server that answers -------------------------------------------------------------------------------------------


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """Two seconds of a quiet tone, in stereo at 44.1 kHz."""
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(
            b"".join(int(500 * math.sin(n / 10)).to_bytes(2, "little", signed=True) * 2 for n in range(88_200))
        )
    return path


class Slept:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


async def measured(source: Path, key: str, priority: int) -> float:
    return 2.0


def upstream(server: StandIn, folder: Path, **given: Any) -> Upstream:
    (work := folder / "upstream").mkdir(exist_ok=True)
    access = UpstreamAccess(
        server.base_url,
        "whisper-1",
        given.pop("timeout_s", 30.0),
        given.pop("max_bytes", 25_000_000),
        SECRET,
    )
    defaults: dict[str, Any] = {"work_dir": work, "max_duration_s": 60.0, "sleep": Slept()}
    return Upstream(access, FFmpeg.locate(""), given.pop("measure", measured), **defaults | given)


@pytest.fixture
def admission() -> AdmissionController:
    return make_admission(Metrics())


@pytest.fixture
def place(admission: AdmissionController) -> Iterator[Reservation]:
    with admission.reserve(Work.UPSTREAM) as place:
        yield place


async def run(
    one: Upstream, wav: Path, place: Reservation, options: TranscriptionOptions = OPTIONS, **given: Any
) -> Any:
    async with one:
        return await one.run(wav, options, place, **given)


async def test_a_recording_is_sent_as_what_whisper_hears(
    tmp_path: Path, wav: Path, place: Reservation, admission: AdmissionController
) -> None:
    """Its sound alone, in mono at 16 kHz, without loss; with the key, and to the address that was set."""
    with stand_in(told(HELLO)) as server:
        made = await run(upstream(server, tmp_path), wav, place, changed(word_timestamps=True))
    [sent] = server.sent
    assert sent.path == "/v1/audio/transcriptions"
    assert sent.headers["Authorization"] == f"Bearer {SECRET}"
    assert sent.values("timestamp_granularities[]") == ["segment", "word"]
    assert (sent.file[:4], sent.file_name) == (b"fLaC", "audio.flac")
    # STREAMINFO: 20 bits of the rate, 3 of the channels less one (RFC 9639, 8.2).
    rate_and_channels = int.from_bytes(sent.file[18:21], "big")
    assert (rate_and_channels >> 4, rate_and_channels >> 1 & 7) == (16_000, 0)
    assert made.duration_s == pytest.approx(2.0, abs=0.01)
    assert made.text == "Hello, world. It's me."
    assert {"decode", "upstream", "total"} <= set(made.timings_s)
    assert list((tmp_path / "upstream").iterdir()) == []
    assert "<AdmissionController" in repr(admission)
    assert len(admission.lanes[Work.TRANSCRIPTION].active) == 0


async def test_what_is_too_large_is_sent_as_opus(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """25 MB are 13 minutes without loss, and two hours of speech so."""
    with stand_in(told(HELLO)) as server:
        await run(upstream(server, tmp_path, max_bytes=2 * FLAC_BYTES_A_SECOND - 1), wav, place)
    assert (server.sent[0].file[:4], server.sent[0].file_name) == (b"OggS", "audio.ogg")
    assert len(server.sent[0].file) < 2 * FLAC_BYTES_A_SECOND


async def test_what_cannot_be_made_small_enough_is_refused(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """Before anything is sent."""
    with stand_in(told(HELLO)) as server, pytest.raises(AudioTooLong, match="the upstream takes"):
        await run(upstream(server, tmp_path, max_bytes=1000), wav, place)
    assert server.sent == []


async def test_a_header_that_lies_does_not_get_more_than_is_allowed(
    tmp_path: Path, wav: Path, place: Reservation
) -> None:
    """The operator pays by the minute."""
    with stand_in(told(HELLO)) as server, pytest.raises(AudioTooLong):
        await run(upstream(server, tmp_path, max_duration_s=0.5), wav, place)
    assert server.sent == []


async def test_a_translation_has_an_address_of_its_own(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """OpenAI's reference: /audio/translations."""
    with stand_in(told(HELLO)) as server:
        await run(upstream(server, tmp_path), wav, place, changed(task=Task.TRANSLATE))
    assert server.sent[0].path == "/v1/audio/translations"


async def test_who_is_busy_is_asked_again(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """When it says, or after a growing pause; the whole recording is sent once more."""
    slept = Slept()
    busy = told({"error": {"message": "Slow down."}}, 429, **{"Retry-After": "7"})
    with stand_in(busy, Reply(500), told(HELLO)) as server:
        made = await run(upstream(server, tmp_path, sleep=slept), wav, place)
    assert made.text.startswith("Hello")
    assert len({sent.file for sent in server.sent}) == 1
    assert slept.seconds[0] == 7.0
    assert 0.75 <= slept.seconds[1] <= 1.0


@pytest.mark.parametrize("wait_s", ["60", "100000"])
async def test_who_says_to_come_back_too_late_is_not_waited_for(
    tmp_path: Path, wav: Path, place: Reservation, wait_s: str
) -> None:
    """The caller learns it now, and when to come back: in two minutes at the latest."""
    slept = Slept()
    busy = told({"error": {"message": "Slow down."}}, 429, **{"Retry-After": wait_s})
    with stand_in(busy) as server, pytest.raises(UpstreamFailed, match="429: Slow down") as failed:
        await run(upstream(server, tmp_path, sleep=slept), wav, place)
    assert (slept.seconds, len(server.sent)) == ([], 1)
    assert failed.value.retry_after_s == min(120, int(wait_s))


async def test_it_is_not_asked_for_ever(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """Four times."""
    with stand_in(Reply(503)) as server, pytest.raises(UpstreamFailed, match="503"):
        await run(upstream(server, tmp_path), wav, place)
    assert len(server.sent) == 4


async def test_a_server_that_is_not_there_is_told(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """After as many attempts."""
    slept = Slept()
    with stand_in(Reply()) as server:
        pass
    with pytest.raises(UpstreamFailed, match="cannot be reached"):
        await run(upstream(server, tmp_path, sleep=slept), wav, place)
    assert len(slept.seconds) == 3


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (told({"error": {"message": f"Incorrect API key {SECRET}"}}, 401), "does not let this server in"),
        (told({"error": {"message": f"No such model, {SECRET}"}}, 400), r"400: No such model, \[hidden\]"),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), "302"),
        (Reply(200, b"<html>"), "no transcript"),
        (Reply(200, b"[]"), "no transcript"),
    ],
)
async def test_what_will_not_be_better_next_time_is_told_at_once(
    tmp_path: Path, wav: Path, place: Reservation, reply: Reply, says: str
) -> None:
    """Without the key, which the upstream's own words may hold; and no redirect is followed, which would get it."""
    with stand_in(reply) as server, pytest.raises(UpstreamFailed, match=says) as failed:
        await run(upstream(server, tmp_path), wav, place)
    assert len(server.sent) == 1
    assert SECRET not in failed.value.message


async def test_its_time_is_bounded(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """A server that takes the recording and says nothing."""
    with stand_in(Reply(hangs=True)) as server, pytest.raises(UpstreamTimeout):
        await run(upstream(server, tmp_path, timeout_s=0.3), wav, place)
    assert list((tmp_path / "upstream").iterdir()) == []


async def test_cancelling_hangs_up_and_leaves_nothing(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """As when the caller leaves."""
    with stand_in(Reply(hangs=True)) as server:
        async with upstream(server, tmp_path) as one:
            task = asyncio.create_task(one.run(wav, OPTIONS, place))
            await asyncio.to_thread(server.arrived.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert list((tmp_path / "upstream").iterdir()) == []


async def test_the_journal_hears_language_and_segments(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """Streams and jobs' events tell of them as of this server's own."""
    heard: list[Any] = []
    with stand_in(told(HELLO)) as server:
        await run(upstream(server, tmp_path), wav, place, journal=JobJournal(on_told=heard.append))
    assert [getattr(one, "code", None) or one.text for one in heard] == ["en", " Hello, world.", " It's me."]


async def test_the_same_samples_are_not_paid_for_twice(tmp_path: Path, wav: Path, place: Reservation) -> None:
    """reuse=true: the digest is that of what would be sent."""
    digests: list[str] = []
    earlier = transcript(HELLO)

    async def known(digest: str) -> Any:
        digests.append(digest)
        return earlier

    first = JobJournal()
    with stand_in(told(HELLO)) as server:
        async with upstream(server, tmp_path) as one:
            await one.run(wav, OPTIONS, place, first)
            with make_admission(Metrics()).reserve(Work.UPSTREAM) as another:
                made = await one.run(wav, OPTIONS, another, JobJournal(reuse=known))
    assert made.text == earlier.text
    assert len(server.sent) == 1
    assert [first.take()[1]["content_hash"]] == digests


def test_the_key_is_shown_nowhere() -> None:
    """Not in a repr, and the log's redaction knows it."""
    access = UpstreamAccess("https://host/v1", "whisper-1", 1.0, 1, SECRET)
    assert SECRET not in f"{access!r} {access} {dataclasses.replace(access, model='x')}"
    settings = Settings(_env_file=None, openai_base_url="https://host/v1", openai_api_key=SECRET)  # type: ignore[call-arg]
    assert SECRET not in repr(settings)
    assert SECRET in secrets_of(settings)


@pytest.mark.parametrize("given", [{"openai_base_url": "host/v1"}, {"upstream_when_full": True}])
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    """At the start, not at the first request."""
    with pytest.raises(ConfigurationError):
        Settings(_env_file=None, **given).check()  # type: ignore[call-arg]


# --- who does it -----------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in(told(HELLO)) as server:
        yield server


@dataclasses.dataclass
class Handing:
    """A server with an upstream, and room for as many recordings as its bounds say."""

    parts: Parts
    app: FastAPI
    upstream: StandIn


@pytest.fixture
def slots() -> int:
    return 1


@pytest.fixture
async def handing(tmp_path: Path, server: StandIn, slots: int) -> AsyncIterator[Handing]:
    kinds = dict.fromkeys(Work, 1) | {Work.TRANSCRIPTION: slots}
    parts = make_parts(tmp_path / "s" if (tmp_path / "s").mkdir() is None else tmp_path, slots=kinds, max_waiting=1)
    async with upstream(server, tmp_path, when_full=True) as one:
        parts.services = dataclasses.replace(parts.services, upstream=one)
        parts.runner._crew._upstream = one
        app = assemble()
        app.state.services = parts.services
        yield Handing(parts, app, server)


@pytest.fixture
async def caller(handing: Handing) -> AsyncIterator[httpx.AsyncClient]:
    from tests.fakes import AUTH

    transport = httpx.ASGITransport(handing.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=AUTH) as client:
        yield client


async def filled(handing: Handing, caller: httpx.AsyncClient, number: int = 2) -> list[asyncio.Task[httpx.Response]]:
    """The slot is taken, and so is the line."""
    handing.parts.transcriber.release.clear()
    tasks = [asyncio.create_task(caller.post("/transcribe", files={"file": b"busy"})) for _ in range(number)]
    lane = handing.parts.services.admission.lanes[Work.TRANSCRIPTION]
    while len(lane.active) + len(lane.line) < number:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return tasks


async def freed(handing: Handing, tasks: list[asyncio.Task[httpx.Response]]) -> None:
    handing.parts.transcriber.release.set()
    assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * len(tasks)


async def test_the_upstream_does_it_where_it_is_asked_for(
    handing: Handing, caller: httpx.AsyncClient, wav: Path
) -> None:
    """And the answer says so, in JSON and in a header."""
    answer = await caller.post("/transcribe", files={"file": wav.read_bytes()}, data={"provider": "openai"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["provider"], answer.json()["model"]) == ("openai", "whisper-1")
    assert answer.headers["X-Transcribed-By"] == "openai"
    assert answer.json()["language_probability"] is None
    assert handing.parts.transcriber.runs == []


@pytest.mark.parametrize("form", ["srt", "vtt", "vtt_words", "ass", "tsv", "verbose_json", "text", "docx"])
async def test_every_format_can_be_written(caller: httpx.AsyncClient, wav: Path, form: str) -> None:
    """Figures that are not known are no hindrance."""
    files = {"file": wav.read_bytes()}
    answer = await caller.post("/transcribe", files=files, params={"provider": "openai", "response_format": form})
    assert answer.status_code == 200, answer.text
    assert form == "docx" or "world" in answer.text


async def test_what_is_handed_on_holds_no_place_here(handing: Handing, caller: httpx.AsyncClient, wav: Path) -> None:
    """While the upstream is at work, the slot and the line here are others'."""
    handing.upstream.replies = [Reply(hangs=True)]
    query = {"provider": "openai"}
    task = asyncio.create_task(caller.post("/transcribe", files={"file": wav.read_bytes()}, params=query))
    await asyncio.to_thread(handing.upstream.arrived.wait)
    lanes = handing.parts.services.admission.lanes
    here, there = lanes[Work.TRANSCRIPTION], lanes[Work.UPSTREAM]
    assert (here.arriving, len(here.active), len(here.line), len(there.active)) == (0, 0, 0, 1)
    handing.upstream.closing.set()
    handing.upstream.replies = [told(HELLO)]
    assert (await task).json()["provider"] == "openai"
    assert len(there.active) == 0


async def test_a_full_server_still_hands_on(handing: Handing, caller: httpx.AsyncClient, wav: Path) -> None:
    """It takes no engine: neither slots nor the line here matter to it, wherever its parameters stand."""
    tasks = await filled(handing, caller)
    files = {"file": wav.read_bytes()}
    for where in ("params", "data"):
        answer = await caller.post("/transcribe", files=files, **{where: {"provider": "openai"}})  # type: ignore[arg-type]
        assert (answer.status_code, answer.headers["X-Transcribed-By"]) == (200, "openai"), answer.text
    refused = await caller.post("/transcribe", files=files)
    assert (refused.status_code, refused.json()["code"]) == (429, "QUEUE_FULL")
    refused = await caller.post("/transcribe", files=files, params={"provider": "local"})
    assert (refused.status_code, refused.json()["code"]) == (429, "QUEUE_FULL")
    await freed(handing, tasks)


async def test_auto_is_this_server_while_there_is_room(handing: Handing, caller: httpx.AsyncClient, wav: Path) -> None:
    """Its own work costs nothing."""
    answer = await caller.post("/transcribe", files={"file": wav.read_bytes()}, data={"provider": "auto"})
    assert (answer.status_code, answer.json()["provider"]) == (200, "local")
    assert handing.upstream.sent == []


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_auto_is_the_upstream_where_this_server_is_full(
    handing: Handing, caller: httpx.AsyncClient, wav: Path, mode: str
) -> None:
    """What would be refused is handed on; a job that nobody waits for is decided on when it is handed in."""
    tasks = await filled(handing, caller)
    query = {"provider": "auto", "mode": mode}
    answer = await caller.post("/transcribe", files={"file": wav.read_bytes()}, params=query)
    if mode == "sync":
        assert (answer.status_code, answer.json()["provider"]) == (200, "openai")
    else:
        assert (answer.json()["kind"], answer.json()["options"]["provider"]) == ("upstream", "openai")
    await freed(handing, tasks)


async def test_auto_stays_here_with_what_the_upstream_cannot_do(
    handing: Handing, caller: httpx.AsyncClient, wav: Path
) -> None:
    """The caller has asked for it, and is refused as before."""
    tasks = await filled(handing, caller)
    query = {"provider": "auto", "diarize": "true"}
    answer = await caller.post("/transcribe", files={"file": wav.read_bytes()}, params=query)
    assert (answer.status_code, answer.json()["code"]) == (429, "QUEUE_FULL")
    await freed(handing, tasks)


@pytest.mark.parametrize(
    "query",
    [{"diarize": "true"}, {"align": "true"}, {"model_size": "base"}, {"clip_timestamps": "0,1"}, {"vad": "none"}],
)
async def test_the_upstream_is_not_asked_for_what_it_cannot_do(
    caller: httpx.AsyncClient, query: dict[str, str]
) -> None:
    """The parameter is named."""
    answer = await caller.post("/transcribe", files={"file": b"x"}, params={"provider": "openai"} | query)
    assert (answer.status_code, answer.json()["errors"][0]["name"]) == (422, next(iter(query)))


async def test_without_an_upstream_nothing_is_handed_on(client: httpx.AsyncClient) -> None:
    """And nobody learns more of it than that."""
    for provider in ("openai", "auto"):
        answer = await client.post("/transcribe", files={"file": b"x"}, params={"provider": provider})
        assert (answer.status_code, answer.json()["code"]) == (422, "PROVIDER_NOT_ALLOWED")


async def test_auto_needs_the_operators_leave(handing: Handing, caller: httpx.AsyncClient) -> None:
    """Recordings that leave the house, and money that is spent, are not for callers to decide by the way."""
    assert handing.parts.services.upstream is not None
    handing.parts.services.upstream.when_full = False
    answer = await caller.post("/transcribe", files={"file": b"x"}, params={"provider": "auto"})
    assert (answer.status_code, answer.json()["code"]) == (422, "PROVIDER_NOT_ALLOWED")


async def test_a_job_is_handed_on_beside_this_servers_own(
    handing: Handing, caller: httpx.AsyncClient, wav: Path
) -> None:
    """A slot of its own: neither waits for the other. Its result is kept as any other's."""
    handing.parts.transcriber.release.clear()
    files = {"file": wav.read_bytes()}
    async with handing.parts.runner:
        own = (await caller.post("/transcribe", files=files, params={"mode": "async"})).json()["id"]
        await handing.parts.transcriber.started.wait()
        query = {"mode": "async", "provider": "openai", "response_format": "srt"}
        handed_on = (await caller.post("/transcribe", files=files, params=query)).json()["id"]
        with structlog.testing.capture_logs():
            while (await caller.get(f"/jobs/{handed_on}")).json()["state"] != "succeeded":  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert (await caller.get(f"/jobs/{own}")).json()["state"] == "running"
        result = await caller.get(f"/jobs/{handed_on}/result", params={"response_format": "json"})
        assert (result.json()["provider"], result.json()["text"]) == ("openai", "Hello, world. It's me.")
        assert "-->" in (await caller.get(f"/jobs/{handed_on}/result")).text
        handing.parts.transcriber.release.set()


async def test_a_batch_may_be_handed_on(handing: Handing, caller: httpx.AsyncClient) -> None:
    """By name alone: it can wait."""
    for provider, kind in (("openai", "upstream"), ("auto", "transcription")):
        body = {"urls": ["http://example.com/a.mp3"], "options": {"provider": provider}}
        answer = await caller.post("/jobs/batch", json=body)
        assert answer.status_code == 202, answer.text
        assert (await caller.get(f"/jobs/{answer.json()['jobs'][0]}")).json()["kind"] == kind


async def test_what_the_upstream_fails_at_is_a_problem_of_this_servers(
    handing: Handing, caller: httpx.AsyncClient, wav: Path
) -> None:
    """With a status that says whose fault it is."""
    handing.upstream.replies = [told({"error": {"message": "No."}}, 400)]
    answer = await caller.post("/transcribe", files={"file": wav.read_bytes()}, params={"provider": "openai"})
    assert (answer.status_code, answer.json()["code"]) == (502, "UPSTREAM_FAILED")
    assert json.dumps(answer.json()).count("400: No.") == 1
