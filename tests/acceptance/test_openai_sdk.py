"""OpenAI's own SDK against the real server: every parameter, every kind of error, and what docs/openai.md says."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
)

from tests.acceptance.server import KEY, ROOT, Server, running
from tests.speech import sample_call

DOCUMENT = (ROOT / "docs" / "openai.md").read_text("utf-8")
FROM_S, LENGTH_S = 6, 8
"""Of the telephone call: enough to be understood by the smallest model."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few seconds of a real call."""
    path = tmp_path_factory.mktemp("recording") / "recording.wav"
    with wave.open(str(sample_call())) as call, wave.open(str(path), "wb") as part:
        part.setparams(call.getparams())
        call.setpos(FROM_S * call.getframerate())
        part.writeframes(call.readframes(LENGTH_S * call.getframerate()))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all of these, which need limits that a test can reach."""
    with running(tmp_path_factory.mktemp("openai"), API_KEYS=KEY, MAX_UPLOAD_MB="1", MAX_DURATION_S="60") as server:
        yield server


@pytest.fixture
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def said(server: Server, recording: Path) -> str:
    """What is heard in the recording."""
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY) as sdk:
        text = sdk.audio.transcriptions.create(file=recording, model="tiny.en").text
    assert len(text.split()) > 5
    return text


def rows(header: str) -> list[list[str]]:
    """The cells of the document's table whose first column is called *header*."""
    _, _, table = DOCUMENT.partition(f"\n| {header} |")
    lines = table.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


# --- what is asked ---------------------------------------------------------------------------------------------------


def as_json(told: Transcription, said: str) -> None:
    assert told.text == said
    assert told.usage is not None
    assert told.usage.to_dict() == {"type": "duration", "seconds": LENGTH_S}
    assert told.logprobs is None


def as_text(told: str, said: str) -> None:
    assert told == said + "\n"


def as_srt(told: str, said: str) -> None:
    assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n", told)


def as_vtt(told: str, said: str) -> None:
    assert told.startswith("WEBVTT\n\n00:00")


def with_segments(told: TranscriptionVerbose, said: str) -> None:
    assert (told.text, told.language, told.duration, told.words) == (said, "english", LENGTH_S, None)
    assert told.segments
    assert "".join(one.text for one in told.segments).strip() == said
    assert all(one.tokens and one.avg_logprob < 0 and one.start < one.end for one in told.segments)
    assert told.model_extra == {"task": "transcribe"}
    assert all(not one.model_extra for one in told.segments)


def with_words(told: TranscriptionVerbose, said: str) -> None:
    assert told.segments is None
    assert told.words
    assert [one.word for one in told.words] == said.split()
    assert all(a.start <= a.end <= b.end for a, b in itertools.pairwise(told.words))


def with_both(told: TranscriptionVerbose, said: str) -> None:
    assert told.segments
    assert told.words


def with_logprobs(told: Transcription, said: str) -> None:
    assert told.logprobs
    assert bytes(int(one) for token in told.logprobs for one in token.bytes or ()).decode().strip() == said
    assert all(token.logprob is not None and token.logprob <= 0 for token in told.logprobs)


def anything(told: Transcription, said: str) -> None:
    assert told.text


CASES: list[tuple[dict[str, Any], Callable[[Any, str], None]]] = [
    ({"model": "tiny.en"}, as_json),
    ({"model": "whisper-1"}, as_json),
    ({"model": "gpt-4o-mini-transcribe-2025-12-15"}, as_json),
    ({"model": "gpt-4o-transcribe-diarize"}, as_json),
    ({"response_format": "json"}, as_json),
    ({"response_format": "text"}, as_text),
    ({"response_format": "srt"}, as_srt),
    ({"response_format": "vtt"}, as_vtt),
    ({"response_format": "verbose_json"}, with_segments),
    ({"response_format": "verbose_json", "timestamp_granularities": ["segment"]}, with_segments),
    ({"response_format": "verbose_json", "timestamp_granularities": ["word"]}, with_words),
    ({"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}, with_both),
    ({"include": ["logprobs"]}, with_logprobs),
    ({"language": "en"}, as_json),
    ({"languages": ["en"]}, as_json),
    ({"temperature": 0}, as_json),
    ({"temperature": 0.2}, anything),
    ({"prompt": "A telephone call."}, anything),
    ({"keywords": ["Diane", "telephone"]}, anything),
    ({"chunking_strategy": "auto"}, as_json),
    ({"chunking_strategy": {"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 300}}, as_json),
    ({"stream": False}, as_json),
]
REFUSED = {"known_speaker_names", "known_speaker_references"}
STREAMED = {"stream"}


@pytest.mark.parametrize(("given", "check"), CASES, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_each_parameter(
    sdk: openai.OpenAI, recording: Path, said: str, given: dict[str, Any], check: Callable[[Any, str], None]
) -> None:
    """As the SDK sends it, and as the SDK understands the answer."""
    check(sdk.audio.transcriptions.create(file=recording, **({"model": "tiny.en"} | given)), said)


def test_no_parameter_is_left_out() -> None:
    """Neither here nor in the document: a new SDK may know more."""
    signature = inspect.signature(openai.resources.audio.Transcriptions.create).parameters
    known = {name for name in signature if name not in ("self", "timeout") and not name.startswith("extra_")}
    assert {name for given, _ in CASES for name in given} | REFUSED | STREAMED | {"file"} == known
    assert {cells[0].strip("`") for cells in rows("parameter")} == known


# --- streaming -------------------------------------------------------------------------------------------------------


def test_a_stream(sdk: openai.OpenAI, recording: Path, said: str) -> None:
    """Deltas that together are the text, then the whole."""
    stream = sdk.audio.transcriptions.create(file=recording, model="whisper-1", stream=True, include=["logprobs"])
    *told, done = list(stream)
    deltas = [event for event in told if isinstance(event, TranscriptionTextDeltaEvent)]
    assert deltas == told
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(event.delta for event in deltas) == done.text == said
    tokens = [token.token for event in deltas for token in event.logprobs or ()]
    assert tokens == [token.token for token in done.logprobs or ()] != []
    assert done.usage is not None
    assert done.usage.to_dict() == {"type": "duration", "seconds": LENGTH_S}


async def test_the_asynchronous_sdk(server: Server, recording: Path, said: str) -> None:
    """With a stream, and without."""
    async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0) as sdk:
        whole = await sdk.audio.transcriptions.create(file=recording, model="tiny.en")
        stream = await sdk.audio.transcriptions.create(
            file=recording, model="tiny.en", stream=True, response_format="text"
        )
        events = [event async for event in stream]
    assert whole.text == said
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == said


def test_a_streams_bytes(server: Server, recording: Path) -> None:
    """Data alone: no names, and nothing after `transcript.text.done`, which is the end."""
    told = by_hand(server, recording, [("model", "tiny.en"), ("stream", "true")])
    assert told.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in told.text.splitlines() if line and not line.startswith(":")]
    assert all(line.startswith("data: {") for line in lines)
    assert json.loads(lines[-1].removeprefix("data: "))["type"] == "transcript.text.done"


# --- translations, models, and others who send -----------------------------------------------------------------------


@pytest.mark.parametrize("response_format", ["json", "verbose_json", "srt"])
def test_a_translation(sdk: openai.OpenAI, recording: Path, response_format: Any) -> None:
    """Into English, by a model that can."""
    told: Any = sdk.audio.translations.create(file=recording, model="base", response_format=response_format)
    assert len(str(told if isinstance(told, str) else told.text).split()) > 5
    if response_format == "verbose_json":
        assert (told.language, told.duration) == ("english", LENGTH_S)
        assert told.segments


def test_models(sdk: openai.OpenAI) -> None:
    """Each that is listed can be asked for, by its name or another."""
    listed = {model.id: model for model in sdk.models.list()}
    assert {"tiny.en", "base", "whisper-1", "gpt-4o-transcribe"} <= set(listed)
    assert all(sdk.models.retrieve(name) == model for name, model in listed.items())
    assert listed["base"].owned_by == "Systran"


BOUNDARY = "------------------------d74496d66958873e"


def by_hand(server: Server, recording: Path, fields: list[tuple[str, str]]) -> httpx.Response:
    """A form as curl writes it, byte by byte."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="recording.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    )
    body = b"".join([head.encode(), recording.read_bytes(), b"\r\n", *parts, f"--{BOUNDARY}--\r\n".encode()])
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{server.address}/v1/audio/transcriptions", content=body, headers=kind, timeout=60)


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
def test_a_form_by_hand(server: Server, recording: Path, said: str, name: str) -> None:
    """Repeated fields, with their brackets or without."""
    fields = [("model", "whisper-1"), ("response_format", "verbose_json"), (name, "word"), (name, "segment")]
    told = by_hand(server, recording, fields).json()
    assert told["text"] == said
    assert set(told) == {"task", "language", "duration", "text", "segments", "words", "usage"}
    assert set(told["words"][0]) == {"word", "start", "end"}


def test_a_strategy_as_json(server: Server, recording: Path, said: str) -> None:
    """curl cannot spread an object over fields."""
    told = by_hand(server, recording, [("model", "tiny.en"), ("chunking_strategy", '{"type":"server_vad"}')])
    assert told.json()["text"] == said


# --- errors ----------------------------------------------------------------------------------------------------------


def silence(path: Path, seconds: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(b"\x80" * 8000 * seconds)
    return path


Case = tuple[dict[str, Any], type[openai.APIStatusError], int, str, str | None]

ERRORS: dict[str, Case] = {
    "no key, or a wrong one": ({"api_key": "wrong"}, openai.AuthenticationError, 401, "UNAUTHORIZED", None),
    "a model that there is not": ({"model": "whisper-2"}, openai.NotFoundError, 404, "UNKNOWN_MODEL", "model"),
    "a model whose weights are not here": (
        *({"model": "large-v3"}, openai.NotFoundError, 404),
        *("MODEL_UNAVAILABLE", "model"),
    ),
    "a parameter that there is not": (
        *({"extra_body": {"colour": "red"}}, openai.BadRequestError, 400),
        *("INVALID_REQUEST", "colour"),
    ),
    "a value out of range": ({"temperature": 2}, openai.BadRequestError, 400, "INVALID_REQUEST", "temperature"),
    "an unknown language": ({"language": "xx"}, openai.BadRequestError, 400, "UNSUPPORTED_LANGUAGE", "language"),
    "a language that the model does not know": (
        *({"language": "de"}, openai.BadRequestError, 400),
        *("UNSUPPORTED_LANGUAGE", "language"),
    ),
    "several possible languages": (
        *({"languages": ["en", "de"]}, openai.BadRequestError, 400),
        *("INVALID_REQUEST", "languages"),
    ),
    "parameters that do not go together": (
        *({"timestamp_granularities": ["word"]}, openai.BadRequestError, 400),
        *("INVALID_REQUEST", "timestamp_granularities"),
    ),
    "known speakers": (
        {"known_speaker_names": ["Ann"], "known_speaker_references": ["data:audio/wav;base64," + "A" * 90_000]},
        *(openai.BadRequestError, 400, "INVALID_REQUEST", "known_speaker_references"),
    ),
    "an empty file": ({"file": ("a.wav", b"")}, openai.BadRequestError, 400, "EMPTY_FILE", "file"),
    "a file that is no audio": (
        *({"file": ("a.wav", b"no audio " * 99)}, openai.BadRequestError, 400),
        *("UNSUPPORTED_MEDIA", "file"),
    ),
    "a body above `MAX_UPLOAD_MB`": (
        *({"file": ("a.wav", b"\0" * 2**21)}, openai.APIStatusError, 413),
        *("UPLOAD_TOO_LARGE", "file"),
    ),
    "a recording above `MAX_DURATION_S`": (
        *({"file": silence}, openai.APIStatusError, 413),
        *("AUDIO_TOO_LONG", "file"),
    ),
    "an `Idempotency-Key` used before, for something else": (
        *({"extra_headers": {"Idempotency-Key": "used"}, "prompt": "x"}, openai.ConflictError, 409),
        *("IDEMPOTENCY_CONFLICT", None),
    ),
    "an `X-Request-Timeout` that is over": (
        *({"extra_headers": {"X-Request-Timeout": "0.001"}}, openai.InternalServerError, 503),
        *("TIMEOUT", None),
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_each_error(server: Server, recording: Path, tmp_path: Path, said: str, what: str) -> None:
    """The exception that the SDK raises, with this server's code and the parameter's name."""
    given, kind, status, code, param = ERRORS[what]
    asked = {"file": recording, "model": "tiny.en", **given}
    if asked["file"] is silence:
        asked["file"] = silence(tmp_path / "long.wav", 70)
    key = asked.pop("api_key", KEY)
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0) as sdk:
        if code == "IDEMPOTENCY_CONFLICT":
            sdk.audio.transcriptions.create(**{name: one for name, one in asked.items() if name != "prompt"})
        with pytest.raises(openai.APIStatusError) as raised:
            sdk.audio.transcriptions.create(**asked)
    error = raised.value
    assert (type(error), error.status_code, error.code, error.param) == (kind, status, code, param), error
    assert error.request_id == error.response.headers["x-request-id"]
    assert error.type == ("invalid_request_error" if status < 429 else "server_error")
    assert ("retry-after" in error.response.headers) == (status == 503)


def test_the_document_tells_of_these_errors() -> None:
    """Its table is this one."""
    told = [(cells[0], cells[1], cells[2].strip("`"), cells[3].strip("`")) for cells in rows("what is wrong")]
    mine = [(what, str(status), code, kind.__name__) for what, (_, kind, status, code, _) in ERRORS.items()]
    assert told[: len(mine)] == mine


def test_a_model_that_cannot_translate(sdk: openai.OpenAI, recording: Path) -> None:
    """The smallest knows English only."""
    with pytest.raises(openai.BadRequestError, match="cannot translate") as raised:
        sdk.audio.translations.create(file=recording, model="whisper-1")
    assert raised.value.param == "model"


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", DOCUMENT, re.S), ids=("whole", "streamed"))
def test_the_documents_examples_run(
    server: Server,
    recording: Path,
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are what gets pasted. `recording.wav` lies beside them, and the server elsewhere."""
    (tmp_path / "recording.wav").write_bytes(recording.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STENOGATE_KEY", KEY)
    assert "http://127.0.0.1:8000/v1" in example
    exec(example.replace("http://127.0.0.1:8000", server.address), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
