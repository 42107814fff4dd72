"""OpenAI's interface: what is asked, how it is answered, and errors in its shape."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from api.openai_answers import diarized_segments, letters, written
from api.openai_errors import content, headers, status_of
from api.openai_parameters import (
    ALIASES,
    SpeechFormat,
    TranscriptionParameters,
    TranslationParameters,
    speech_options,
)
from api.openai_stream import DeltaTeller
from api.parameters import MAX_LANGUAGE_CHARS, parse
from api.problems import InvalidParameters, in_openais_shape
from api.uploads import MAX_PARTS, JsonObject
from errors import (
    DeadlineTooNear,
    EmptyMedia,
    EngineFailed,
    IdempotencyConflict,
    ModelUnavailable,
    NotReady,
    QueueFull,
    QuotaUsed,
    ServiceError,
    StorageFull,
    UnknownModel,
    UnsupportedLanguage,
    UnsupportedMedia,
    WorkerCrashed,
)
from tests.fakes import AUTH, KEY, Caller, Parts
from transcription.core import (
    Priority,
    Task,
    Token,
    Transcript,
    TranscriptionOptions,
    TranscriptSegment,
    VoiceActivity,
    Word,
)
from transcription.protocol import Language

TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
FILE = {"file": ("a.wav", b"hello")}


def asked(*pairs: tuple[str, Any], model: str = "base") -> TranscriptionParameters:
    return parse(TranscriptionParameters, [("model", model), *pairs])


def options(*pairs: tuple[str, Any], model: str = "base", default: str = "base") -> TranscriptionOptions:
    return speech_options(asked(*pairs, model=model), default_model=default, default_beam_size=5)


def refused(*pairs: tuple[str, Any], model: str = "base") -> list[str]:
    """The parameters that are refused."""
    with pytest.raises(InvalidParameters) as raised:
        options(*pairs, model=model)
    return [name for name, _ in raised.value.faults]


def segment(
    text: str,
    start: float = 0.0,
    *,
    number: int = 0,
    speaker: str | None = None,
    words: Iterable[tuple[str, str]] | None = None,
    logprobs: bool = False,
) -> TranscriptSegment:
    """*words*: (text, speaker), a second each."""
    timed = [Word(start + n, start + n + 1, said, 0.9, None, by) for n, (said, by) in enumerate(words or ())]
    return TranscriptSegment(
        *(number, start, start + (len(timed) or 2), text, -0.25, 0.01, 1.1, 0.0),
        words=None if words is None else tuple(timed),
        speaker=speaker,
        tokens=(1, 2),
        logprobs=(Token(text, tuple(text.encode()), -0.5),) if logprobs else None,
    )


def transcript(*segments: TranscriptSegment, task: Task = Task.TRANSCRIBE, language: str | None = "de") -> Transcript:
    return Transcript(segments, language, 0.9, 11.2, task, "base", "cpu", "int8")


# --- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs",
    [
        [("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")],
        [("timestamp_granularities", "word"), ("timestamp_granularities", "segment")],
        [("timestamp_granularities[0]", "word"), ("timestamp_granularities[1]", "segment")],
        [("timestamp_granularities", ["word", "segment"])],
    ],
)
def test_lists_come_in_every_spelling(pairs: list[tuple[str, Any]]) -> None:
    """SDKs send brackets, people forget them, and JSON has lists of its own."""
    assert asked(*pairs).timestamp_granularities == ["word", "segment"]


@pytest.mark.parametrize(
    "pairs",
    [
        [("chunking_strategy[type]", "server_vad"), ("chunking_strategy[threshold]", "0.4")],
        [("chunking_strategy", '{"type": "server_vad", "threshold": 0.4}')],
        [("chunking_strategy", JsonObject([("type", "server_vad"), ("threshold", 0.4)]))],
    ],
)
def test_a_chunking_strategy_comes_in_every_spelling(pairs: list[tuple[str, Any]]) -> None:
    """SDKs spread an object over fields; others send it as JSON."""
    strategy = asked(*pairs).chunking_strategy
    assert strategy is not None
    assert strategy.threshold == 0.4


@pytest.mark.parametrize(
    "value", ["none", "[]", "{", '{"type": "client_vad"}', '{"type": "server_vad", "threshold": 2}', "5"]
)
def test_a_wrong_chunking_strategy_is_refused(value: str) -> None:
    """It does nothing here, but who sends nonsense should learn of it."""
    assert {name.partition(".")[0] for name in refused(("chunking_strategy", value))} == {"chunking_strategy"}


@pytest.mark.parametrize("value", [[1], [[1, 2]], [["type", "server_vad"]], [], JsonObject([("\ud800", 1)])])
def test_json_that_is_no_chunking_strategy_is_refused(value: Any) -> None:
    """Only an object has parts: a list is none, though it may be of pairs."""
    names = refused(("chunking_strategy", value))
    assert {name.partition(".")[0] for name in names} == {"chunking_strategy"}
    "".join(names).encode()  # can be told


def test_a_strategy_of_very_many_parts_is_refused_as_one() -> None:
    """Not part by part."""
    parts = JsonObject((f"part{n}", n) for n in range(MAX_PARTS + 1))
    assert refused(("chunking_strategy", parts)) == ["chunking_strategy"]


@pytest.mark.parametrize("name", sorted(TranscriptionParameters.lists))
def test_a_very_long_list_is_refused_as_one(name: str) -> None:
    """Not entry by entry: a form has no room for as many, and JSON should not bring them."""
    assert refused((name, [1] * (MAX_PARTS + 1))) == [name]


def test_a_language_is_a_short_word() -> None:
    """Accents in a row cost time that grows with the square of their number."""
    accents = "\u0301\u0316" * MAX_LANGUAGE_CHARS
    assert refused(("language", accents)) == ["language"]
    assert refused(("languages", [accents])) == ["languages.0"]


def test_auto_is_a_chunking_strategy() -> None:
    """What OpenAI's own examples send."""
    assert options(("chunking_strategy", "auto")).vad is VoiceActivity.SILERO


@pytest.mark.parametrize("name", ["colour", "mode", "callback_url", "word_timestamps", "model[]", "chunking[type]"])
def test_an_unrecognized_argument_is_refused(name: str) -> None:
    """As OpenAI does it; this server's own parameters belong to /transcribe."""
    assert refused((name, "async")) == [name]


def test_a_translation_takes_what_openais_takes() -> None:
    """No language, no stream: its reference has neither."""
    for name in ("language", "stream", "timestamp_granularities[]", "include[]"):
        with pytest.raises(InvalidParameters, match="unrecognized request argument"):
            parse(TranslationParameters, [("model", "base"), (name, "en")])
    with pytest.raises(InvalidParameters, match="response_format"):
        parse(TranslationParameters, [("model", "base"), ("response_format", "diarized_json")])


@pytest.mark.parametrize("name", [*ALIASES, "gpt-4o-mini-transcribe-2025-12-15", "Whisper-1"])
def test_openais_models_are_the_default_model(name: str) -> None:
    """Programs have those names built in."""
    assert options(model=name, default="small").model == "small"


def test_own_models_go_by_any_of_their_names() -> None:
    """As in /transcribe."""
    assert options(model="large", default="base").model == "large-v3"
    with pytest.raises(UnknownModel):
        options(model="whisper-2")


def test_a_model_must_be_named() -> None:
    """OpenAI's `model` is required, and a default would hide a typo in the name."""
    with pytest.raises(InvalidParameters, match="you must name a model"):
        speech_options(parse(TranscriptionParameters, []), default_model="base", default_beam_size=5)


def test_what_is_asked_reaches_the_work() -> None:
    """Each parameter that means something here."""
    done = options(
        ("language", "German"),
        ("prompt", "Grüße"),
        ("keywords[]", "Stenogate"),
        ("keywords[]", "Müller"),
        ("temperature", "0.4"),
        ("include[]", "logprobs"),
    )
    assert (done.language, done.initial_prompt, done.hotwords) == ("de", "Grüße", "Stenogate, Müller")
    assert (done.temperature, done.logprobs, done.task) == (0.4, True, Task.TRANSCRIBE)
    assert not options().logprobs
    assert options(("response_format", "verbose_json"), ("timestamp_granularities[]", "word")).word_timestamps
    assert not options(("response_format", "verbose_json")).word_timestamps


def test_of_a_long_prompt_the_end_counts() -> None:
    """Programs send the whole text so far, as OpenAI's guide says."""
    assert options(("prompt", "a" * 5000 + "end")).initial_prompt == "a" * 997 + "end"


def test_one_possible_language_is_the_language() -> None:
    """Of several, none can be left out of what is detected: that is said."""
    assert options(("languages[]", "en")).language == "en"
    assert options(("languages[]", "en"), ("language", "English")).language == "en"
    assert refused(("languages[]", "en"), ("languages[]", "de")) == ["languages"]
    assert refused(("languages[]", "en"), ("language", "de")) == ["languages"]
    with pytest.raises(UnsupportedLanguage):
        options(("languages[]", "klingon"))


@pytest.mark.parametrize(
    ("model", "response_format", "diarizes"),
    [
        ("base", "diarized_json", True),
        ("gpt-4o-transcribe-diarize", "diarized_json", True),
        ("gpt-4o-transcribe-diarize", "srt", True),
        ("gpt-4o-transcribe-diarize", "json", False),
        ("gpt-4o-transcribe", "srt", False),
    ],
)
def test_speakers_are_told_apart_where_the_answer_shows_them(model: str, response_format: str, diarizes: bool) -> None:
    """It takes as long as transcribing: not where nobody would see it."""
    assert options(("response_format", response_format), model=model).diarize is diarizes


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        ([("known_speaker_names[]", "Ann")], ["known_speaker_names"]),
        ([("known_speaker_references[]", "data:audio/wav;base64,AA==")], ["known_speaker_references"]),
        ([("timestamp_granularities[]", "word")], ["timestamp_granularities"]),
        ([("include[]", "logprobs"), ("response_format", "text")], ["include"]),
        ([("include[]", "usage")], ["include.0"]),
        ([("stream", "true"), ("response_format", "srt")], ["stream"]),
        ([("stream", "true"), ("response_format", "verbose_json")], ["stream"]),
        ([("keywords[]", "x" * 600), ("keywords[]", "y" * 600)], ["keywords"]),
        ([("temperature", "1.5")], ["temperature"]),
        ([("temperature", "nan")], ["temperature"]),
        ([("response_format", "yaml")], ["response_format"]),
        ([("stream", "perhaps")], ["stream"]),
        ([("language", "en"), ("language", "de")], ["language"]),
    ],
)
def test_what_cannot_be_done_is_refused(pairs: list[tuple[str, str]], names: list[str]) -> None:
    """Silence would look as if it had been done."""
    assert refused(*pairs) == names


@pytest.mark.parametrize("model", ["base.en", "turbo", "distil-large-v3"])
def test_a_model_that_cannot_translate_is_refused(model: str) -> None:
    """Its text would not be English, or nonsense."""
    wanted = parse(TranslationParameters, [("model", model)])
    with pytest.raises(InvalidParameters, match="cannot translate") as raised:
        speech_options(wanted, default_model="base", default_beam_size=5)
    assert in_openais_shape(raised.value)["error"]["param"] == "model"
    named_by_default = parse(TranslationParameters, [("model", "whisper-1")])
    with pytest.raises(InvalidParameters, match="cannot translate"):
        speech_options(named_by_default, default_model=model, default_beam_size=5)


# --- how it is answered ----------------------------------------------------------------------------------------------


def answer(told: Transcript, *pairs: tuple[str, Any], model: str = "base") -> Any:
    return written(told, asked(*pairs, model=model))


def test_json_is_the_text_and_what_it_cost() -> None:
    """A second that has begun counts."""
    usage = {"type": "duration", "seconds": 12}
    assert answer(transcript(segment(" Hallo"))) == {"text": "Hallo", "usage": usage}
    assert answer(transcript(segment(" Hallo")), model="gpt-transcribe")["languages"] == [{"code": "de"}]
    assert answer(transcript(language=None), model="gpt-transcribe")["languages"] == []


def test_log_probabilities_are_the_tokens_of_all_segments() -> None:
    """In bytes, too: a token may be half a letter."""
    told = transcript(segment(" Hé", logprobs=True), segment(" du", 2.0, logprobs=True))
    assert answer(told, ("include[]", "logprobs"))["logprobs"] == [
        {"token": " Hé", "logprob": -0.5, "bytes": [32, 72, 195, 169]},
        {"token": " du", "logprob": -0.5, "bytes": [32, 100, 117]},
    ]
    assert "logprobs" not in answer(told)


def test_verbose_json_has_openais_fields_and_no_others() -> None:
    """Strict clients refuse what they do not know."""
    told = answer(transcript(segment(" Hallo", 1.5)), ("response_format", "verbose_json"))
    assert told == {
        "task": "transcribe",
        "language": "german",
        "duration": 11.2,
        "text": "Hallo",
        "segments": [
            {
                "id": 0,
                "seek": 150,
                "start": 1.5,
                "end": 3.5,
                "text": " Hallo",
                "tokens": [1, 2],
                "temperature": 0.0,
                "avg_logprob": -0.25,
                "compression_ratio": 1.1,
                "no_speech_prob": 0.01,
            }
        ],
        "usage": {"type": "duration", "seconds": 12},
    }


@pytest.mark.parametrize(
    ("granularities", "keys"),
    [
        ([], {"segments"}),
        (["word"], {"words"}),
        (["segment"], {"segments"}),
        (["word", "segment"], {"words", "segments"}),
    ],
)
def test_verbose_json_has_the_granularities_that_are_asked_for(granularities: list[str], keys: set[str]) -> None:
    """Segments unless words alone are wanted."""
    told = transcript(segment(" Hallo Welt", words=[(" Hallo", ""), (" Welt", "")]))
    pairs = [("timestamp_granularities[]", one) for one in granularities]
    shown = answer(told, ("response_format", "verbose_json"), *pairs)
    assert set(shown) & {"words", "segments"} == keys
    if "words" in keys:
        assert shown["words"][1] == {"word": "Welt", "start": 1.0, "end": 2.0}


def test_where_nobody_speaks_the_language_is_still_a_string() -> None:
    """Typed clients would fail on null."""
    assert answer(transcript(language=None), ("response_format", "verbose_json"))["language"] == "unknown"


def test_a_number_that_is_not_known_is_valid_json() -> None:
    """NaN is no JSON."""
    odd = TranscriptSegment(0, 0.0, 1.0, " x", math.nan, math.nan, 1.0, 0.0)
    told = answer(transcript(odd), ("response_format", "verbose_json"))
    assert json.loads(json.dumps(told, allow_nan=False))["segments"][0]["avg_logprob"] is None


def test_a_translations_language_is_english() -> None:
    """Of the text, not of the recording, as OpenAI has it; and it tells of no usage."""
    told = transcript(segment(" Hello"), task=Task.TRANSLATE)
    verbose = written(told, parse(TranslationParameters, [("response_format", "verbose_json")]))
    assert isinstance(verbose, dict)
    assert (verbose["task"], verbose["language"]) == ("translate", "english")
    assert "usage" not in verbose
    assert written(told, parse(TranslationParameters, [])) == {"text": "Hello"}


def test_text_has_no_names_in_it() -> None:
    """OpenAI's text is the text, whatever model was named."""
    told = transcript(segment(" Hi.", speaker="SPEAKER_00"), segment(" Yes?", 2.0, speaker="SPEAKER_01"))
    assert answer(told, ("response_format", "text")) == "Hi. Yes?\n"


def test_subtitles_are_this_servers_own() -> None:
    """Cut to be read, not by segment."""
    told = transcript(segment(" Hallo Welt", words=[(" Hallo", ""), (" Welt", "")]))
    assert answer(told, ("response_format", "srt")).startswith("1\n00:00:00,000 --> 00:00:0")
    assert answer(told, ("response_format", "vtt")).startswith("WEBVTT\n")


def test_speakers_are_letters_in_the_order_in_which_they_speak() -> None:
    """A segment in which two speak is cut where the second begins; who is not known is said so."""
    told = transcript(
        segment(" Hi. Yes?", words=[(" Hi.", "SPEAKER_03"), (" Yes?", "SPEAKER_01")], speaker="SPEAKER_03"),
        segment(" Me.", 5.0, speaker="SPEAKER_03"),
        segment(" Hm.", 8.0),
    )
    shown = answer(told, ("response_format", "diarized_json"))
    assert {key: shown[key] for key in ("task", "duration", "text")} == {
        "task": "transcribe",
        "duration": 11.2,
        "text": "Hi. Yes? Me. Hm.",
    }
    assert [(one["id"], one["speaker"], one["text"], one["start"], one["end"]) for one in shown["segments"]] == [
        ("seg_000", "A", " Hi.", 0.0, 1.0),
        ("seg_001", "B", " Yes?", 1.0, 2.0),
        ("seg_002", "A", " Me.", 5.0, 7.0),
        ("seg_003", "unknown", " Hm.", 8.0, 10.0),
    ]
    assert {one["type"] for one in shown["segments"]} == {"transcript.text.segment"}


def test_there_are_letters_for_any_number_of_speakers() -> None:
    """A conference has more than 26."""
    assert [letters(n) for n in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


# --- streaming -------------------------------------------------------------------------------------------------------


def events(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Their data; events have no names."""
    found = []
    for line in lines:
        assert line.startswith("data: ")
        assert line.endswith("\n\n")
        found.append(json.loads(line.removeprefix("data: ")))
    return found


async def streamed(
    told: Transcript, heard: Iterable[TranscriptSegment], *pairs: tuple[str, Any]
) -> list[dict[str, Any]]:
    teller = DeltaTeller(asked(("stream", "true"), *pairs))
    lines = [*teller.heard(Language("de", 0.9))]
    for one in heard:
        lines += teller.heard(one)
    return events([*lines, *await teller.over(told)])


@given(st.lists(st.text(alphabet=" \n\u3000aäб中", max_size=6), max_size=6), st.integers(0, 6))
def test_deltas_together_are_the_text(texts: list[str], told: int) -> None:
    """Whatever the spaces, and however much was told on the way: what was done before is not told."""
    segments = [segment(text, 2.0 * n, number=n) for n, text in enumerate(texts)]
    whole = transcript(*segments)
    shown = asyncio.run(streamed(whole, segments[:told]))
    assert "".join(one["delta"] for one in shown[:-1]) == whole.text
    assert {one["type"] for one in shown[:-1]} <= {"transcript.text.delta"}
    assert all(one["delta"] for one in shown[:-1])
    assert shown[-1] == {
        "type": "transcript.text.done",
        "text": whole.text,
        "usage": {"type": "duration", "seconds": 12},
    }


async def test_each_segment_is_told_when_it_is_heard() -> None:
    """A stream that comes in one piece is none."""
    segments = [segment(" One."), segment(" Two.", 2.0)]
    shown = await streamed(transcript(*segments), segments)
    assert [one.get("delta") for one in shown] == ["One.", " Two.", None]


@pytest.mark.parametrize("told", [0, 2])
async def test_log_probabilities_are_streamed(told: int) -> None:
    """Of each piece, and of the whole; also where all was done before."""
    segments = [segment(" One.", logprobs=True), segment(" Two.", 2.0, logprobs=True)]
    shown = await streamed(transcript(*segments), segments[:told], ("include[]", "logprobs"))
    tokens = [one["token"] for event in shown[:-1] for one in event["logprobs"]]
    assert tokens == [" One.", " Two."] == [one["token"] for one in shown[-1]["logprobs"]]


async def test_speakers_are_streamed_once_they_are_known() -> None:
    """Voices are told apart when all is heard."""
    told = transcript(segment(" Hi.", speaker="SPEAKER_01"), segment(" Yes?", 2.0, speaker="SPEAKER_00"))
    shown = await streamed(told, told.segments, ("response_format", "diarized_json"))
    kinds = [one["type"].rpartition(".")[2] for one in shown]
    assert kinds == ["delta", "delta", "segment", "segment", "done"]
    assert shown[2:4] == diarized_segments(told)


def test_an_error_in_a_stream_has_openais_shape() -> None:
    """SDKs raise what has an `error` in its data."""
    (event,) = events(DeltaTeller(asked(("stream", "true"))).failed(WorkerCrashed()))
    assert event["type"] == "error"
    assert event["error"]["code"] == "WORKER_CRASHED"


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "kind", "param"),
    [
        (InvalidParameters([("temperature", "is odd")]), 400, "invalid_request_error", "temperature"),
        (InvalidParameters([("include.0", "is odd")]), 400, "invalid_request_error", "include"),
        (InvalidParameters([("keywords[]", "is odd")]), 400, "invalid_request_error", "keywords"),
        (UnknownModel(), 404, "invalid_request_error", "model"),
        (ModelUnavailable(), 404, "invalid_request_error", "model"),
        (UnsupportedLanguage(), 400, "invalid_request_error", "language"),
        (UnsupportedMedia(), 400, "invalid_request_error", "file"),
        (EmptyMedia(), 400, "invalid_request_error", "file"),
        (QueueFull(), 429, "rate_limit_error", None),
        (QuotaUsed(), 429, "insufficient_quota", None),
        (IdempotencyConflict(), 409, "invalid_request_error", None),
        (NotReady(), 503, "server_error", None),
        (StorageFull(), 507, "server_error", None),
        (ServiceError(), 500, "server_error", None),
    ],
)
def test_errors_in_openais_shape(error: ServiceError, status: int, kind: str, param: str | None) -> None:
    """SDKs choose their exception by the status; this server's own code says the rest."""
    assert status_of(error) == status
    assert in_openais_shape(error) == {
        "error": {"message": error.message, "type": kind, "param": param, "code": error.code}
    }
    assert set(content(error)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (QueueFull(retry_after_s=40), {"Retry-After": "40"}),
        (DeadlineTooNear(retry_after_s=7), {"Retry-After": "7"}),
        (NotReady(), {"Retry-After": "5"}),
        (QuotaUsed(retry_after_s=120), {"X-Should-Retry": "false"}),
        (EngineFailed(), {"X-Should-Retry": "false"}),
        (WorkerCrashed(), {"X-Should-Retry": "false"}),
        (IdempotencyConflict(), {"X-Should-Retry": "false"}),
        (UnknownModel(), {}),
    ],
)
def test_sdks_are_told_whether_to_try_again(error: ServiceError, told: dict[str, str]) -> None:
    """They try twice by themselves: in vain, and at the engine's cost, where the same would happen again."""
    assert headers(error) == told


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "NOT_FOUND"),
        ("GET", TRANSCRIPTIONS, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/models/whisper-2", 404, "UNKNOWN_MODEL"),
        ("GET", "/v1/models/large-v3", 404, "MODEL_UNAVAILABLE"),
    ],
)
async def test_every_error_under_v1_has_that_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """The router's errors, too."""
    told = await client.request(method, path)
    assert (told.status_code, told.headers["content-type"]) == (status, "application/json")
    assert told.json()["error"]["code"] == code
    assert told.headers["x-request-id"]


async def test_elsewhere_errors_stay_problems(client: httpx.AsyncClient) -> None:
    """RFC 9457 is this server's own shape."""
    for path in ("/nothing", "/v1", "/v12/models"):
        told = await client.get(path)
        assert told.headers["content-type"] == "application/problem+json"
        assert told.json()["code"] == "NOT_FOUND"


async def test_a_server_under_a_path_knows_its_own_v1(app: FastAPI) -> None:
    """Behind a proxy that adds a prefix, the path has it, too."""
    caller = Caller("/speech/v1/nothing", method="GET", headers=AUTH)
    caller.scope["root_path"] = "/speech"
    await caller.call(app)
    assert json.loads(caller.body)["error"]["code"] == "NOT_FOUND"


async def test_without_a_key_the_answer_is_401_in_that_shape(app: FastAPI) -> None:
    """SDKs raise AuthenticationError."""
    caller = await Caller("/v1/models", method="GET").call(app)
    assert caller.status == 401
    assert json.loads(caller.body)["error"]["code"] == "UNAUTHORIZED"
    assert "Bearer" in caller.headers["www-authenticate"]


async def test_an_unexpected_exception_has_that_shape(client: httpx.AsyncClient, parts: Parts) -> None:
    """The last net answers in the caller's words, and tells nothing of the inside."""
    parts.transcriber.error = RuntimeError("secret")
    told = await client.post(TRANSCRIPTIONS, files=FILE, data={"model": "base"})
    assert told.status_code == 500
    assert told.json()["error"]["type"] == "server_error"
    assert "secret" not in told.text


@pytest.mark.parametrize(
    ("sent", "param", "code"),
    [
        ({"data": {"model": "base"}}, "file", "NO_AUDIO"),
        ({"files": {"file": ("a.wav", b"")}, "data": {"model": "base"}}, "file", "EMPTY_FILE"),
        ({"files": FILE}, "model", "INVALID_REQUEST"),
        ({"files": FILE, "data": {"model": "base", "colour": "red"}}, "colour", "INVALID_REQUEST"),
        ({"files": FILE, "data": {"model": "base"}, "headers": {"X-Priority": "now"}}, "X-Priority", "INVALID_REQUEST"),
        ({"files": FILE, "data": {"model": "base"}, "params": {"mode": "async"}}, "mode", "INVALID_REQUEST"),
    ],
)
async def test_a_refused_request_says_which_parameter(
    client: httpx.AsyncClient, parts: Parts, sent: dict[str, Any], param: str, code: str
) -> None:
    """400 and `param`, as OpenAI has it; nothing is left behind and nothing was begun."""
    told = await client.post(TRANSCRIPTIONS, **sent)
    assert told.status_code == 400
    assert (told.json()["error"]["param"], told.json()["error"]["code"]) == (param, code)
    assert parts.transcriber.runs == []
    assert list(parts.work_folder.rglob("*")) == []


async def test_a_voice_sample_is_refused_for_what_it_is(client: httpx.AsyncClient) -> None:
    """It is longer than a field may be, which is not why it is of no use."""
    sample = "data:audio/wav;base64," + "A" * 100_000
    told = await client.post(TRANSCRIPTIONS, files=FILE, data={"model": "base", "known_speaker_references[]": sample})
    assert told.status_code == 400
    assert "recognizes nobody" in told.json()["error"]["message"]
    assert told.json()["error"]["param"] == "known_speaker_references"


async def test_a_full_line_is_told_with_its_time(client: httpx.AsyncClient, parts: Parts) -> None:
    """SDKs wait so long and come back."""
    parts.transcriber.error = QueueFull(retry_after_s=33)
    told = await client.post(TRANSCRIPTIONS, files=FILE, data={"model": "base"})
    assert (told.status_code, told.headers["retry-after"]) == (429, "33")


@pytest.mark.parametrize(
    ("error", "tries"), [(QueueFull(retry_after_s=1), 2), (NotReady(retry_after_s=1), 2), (QuotaUsed(), 1)]
)
async def test_the_sdk_comes_back_when_it_is_told(app: FastAPI, parts: Parts, error: ServiceError, tries: int) -> None:
    """With its own patience: `max_retries`. Where nothing would have changed by then, it gives up at once."""
    seen: list[httpx.Response] = []

    async def note(response: httpx.Response) -> None:
        seen.append(response)
        parts.transcriber.error = None

    parts.transcriber.error = error
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport, event_hooks={"response": [note]}) as http,
        openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key=KEY, http_client=http, max_retries=2) as sdk,
    ):
        if tries == 1:
            with pytest.raises(openai.RateLimitError, match=error.message):
                await sdk.audio.transcriptions.create(file=("a.wav", b"hello"), model="base")
        else:
            told = await sdk.audio.transcriptions.create(file=("a.wav", b"hello"), model="base")
            assert told.text == "hello"
    assert [response.status_code for response in seen] == [error.status, 200][:tries]


async def test_the_sdk_raises_what_ends_a_stream(app: FastAPI, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first event there is no status left to tell it with."""
    run = parts.transcriber.run

    async def run_and_die(*given: Any) -> Transcript:
        await run(*given)
        raise WorkerCrashed

    sdk = openai.AsyncOpenAI(
        base_url="http://127.0.0.1/v1",
        api_key=KEY,
        http_client=httpx.AsyncClient(transport=httpx.ASGITransport(app)),
        max_retries=0,
    )
    monkeypatch.setattr(parts.transcriber, "run", run_and_die)
    async with sdk:
        stream = await sdk.audio.transcriptions.create(file=("a.wav", b"hello"), model="base", stream=True)
        assert (await anext(stream)).type == "transcript.text.delta"
        with pytest.raises(openai.APIError) as raised:
            await anext(stream)
    assert raised.value.code == "WORKER_CRASHED"


# --- over HTTP -------------------------------------------------------------------------------------------------------


async def test_a_recording_is_transcribed(client: httpx.AsyncClient, parts: Parts) -> None:
    """The main thing; whose it is and how urgent goes along."""
    told = await client.post(TRANSCRIPTIONS, files=FILE, data={"model": "whisper-1"}, headers={"X-Priority": "batch"})
    assert told.json() == {"text": "hello", "usage": {"type": "duration", "seconds": 1}}
    assert parts.transcriber.places[0].priority is Priority.BATCH
    assert parts.transcriber.runs[0][1].model == "base"
    assert list(parts.work_folder.rglob("*")) == []


async def test_a_recording_is_translated(client: httpx.AsyncClient, parts: Parts) -> None:
    """Into English."""
    told = await client.post(TRANSLATIONS, files=FILE, data={"model": "base"})
    assert told.json() == {"text": "hello"}
    assert parts.transcriber.runs[0][1].task is Task.TRANSLATE


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt"])
async def test_what_is_no_json_is_plain_text(client: httpx.AsyncClient, response_format: str) -> None:
    """As OpenAI answers."""
    data = {"model": "base", "response_format": response_format}
    told = await client.post(TRANSCRIPTIONS, files=FILE, data=data)
    assert told.headers["content-type"] == "text/plain; charset=utf-8"
    assert "hello" in told.text


async def test_events_are_streamed(client: httpx.AsyncClient) -> None:
    """Without names and without an end mark: the connection's end is the end, as with OpenAI."""
    told = await client.post(TRANSCRIPTIONS, files=FILE, data={"model": "base", "stream": "true"})
    assert told.headers["content-type"].startswith("text/event-stream")
    shown = events(f"{block}\n\n" for block in told.text.split("\n\n") if block)
    assert [one["type"] for one in shown] == ["transcript.text.delta", "transcript.text.done"]
    assert shown[0]["delta"] == shown[1]["text"] == "hello"


async def test_the_same_request_twice_is_done_once(client: httpx.AsyncClient, parts: Parts) -> None:
    """An Idempotency-Key works here as elsewhere; another request under it is 409."""
    sent: dict[str, Any] = {"files": FILE, "headers": {"Idempotency-Key": "one"}}
    first, second = [await client.post(TRANSCRIPTIONS, data={"model": "base"}, **sent) for _ in range(2)]
    assert first.json() == second.json()
    assert len(parts.transcriber.runs) == 1
    other = await client.post(TRANSCRIPTIONS, data={"model": "base", "prompt": "x"}, **sent)
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")


async def test_models_are_those_that_can_be_used_and_their_aliases(client: httpx.AsyncClient) -> None:
    """A program that picks from the list must not be refused for it."""
    told = (await client.get("/v1/models")).json()
    assert told["object"] == "list"
    names = [model["id"] for model in told["data"]]
    assert "large-v3" not in names
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in told["data"])
    if "base" in names:
        assert set(ALIASES) < set(names)
        one = (await client.get("/v1/models/whisper-1")).json()
        assert one == next(model for model in told["data"] if model["id"] == "whisper-1")


def test_the_document_names_the_fields_as_they_are_sent(app: FastAPI) -> None:
    """Generated clients send what it says."""
    forms = {
        path: app.openapi()["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        for path in (TRANSCRIPTIONS, TRANSLATIONS)
    }
    assert set(forms[TRANSLATIONS]["properties"]) == {"file", "model", "prompt", "response_format", "temperature"}
    assert {"timestamp_granularities[]", "include[]", "stream", "chunking_strategy"} < set(
        forms[TRANSCRIPTIONS]["properties"]
    )
    assert not {"mode", "callback_url"} & set(forms[TRANSCRIPTIONS]["properties"])
    assert all(form["required"] == ["file", "model"] for form in forms.values())


def test_formats_are_openais() -> None:
    """Neither more nor less."""
    assert [one.value for one in SpeechFormat] == ["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]
