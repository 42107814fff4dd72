"""Parameters: one meaning wherever they stand, clear words where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog.testing

from api.application import assemble
from api.parameters import MOST_SUGGESTIONS
from api.problems import MAX_LOGGED_CHARS, MAX_NAME_CHARS, MOST_FAULTS
from api.uploads import MAX_PARTS
from downloads.media import MAX_REFERENCE_CHARS
from tests.fakes import AUTH, Caller, Parts, make_parts
from transcription.core import Task, VoiceActivity

WAV = {"Content-Type": "audio/wav"}


async def ask(client: httpx.AsyncClient, **query: Any) -> httpx.Response:
    return await client.post("/transcribe", params=query, content=b"hello", headers=WAV)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_size", "0"),
        ("beam_size", "17"),
        ("beam_size", "many"),
        ("beam_size", "2.5"),
        ("temperature", "-0.1"),
        ("temperature", "1.1"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("response_format", "pdf"),
        ("provider", "elsewhere"),
        ("task", "summarize"),
        ("vad", "webrtc"),
        ("word_timestamps", "maybe"),
        ("initial_prompt", "x" * 1001),
    ],
)
async def test_a_wrong_value_is_named(client: httpx.AsyncClient, parts: Parts, name: str, value: str) -> None:
    """The caller learns which parameter it was, and no work is done."""
    answer = await ask(client, **{name: value})
    assert answer.status_code == 422
    assert answer.json()["code"] == "INVALID_REQUEST"
    assert answer.json()["errors"][0]["name"] == name
    assert name in answer.json()["detail"]
    assert parts.transcriber.runs == []


async def test_all_wrong_values_are_named_at_once(client: httpx.AsyncClient) -> None:
    """Mending one error a request is tedious."""
    answer = await ask(client, beam_size="0", task="x")
    assert {error["name"] for error in answer.json()["errors"]} == {"beam_size", "task"}


@pytest.mark.parametrize(("wrong", "right"), [("model", "model_size"), ("languge", "language"), ("words", "")])
async def test_an_unknown_name_is_refused_with_the_nearest_known_one(
    client: httpx.AsyncClient, wrong: str, right: str
) -> None:
    """A misspelt parameter that is ignored costs a whole transcription."""
    answer = await ask(client, **{wrong: "x"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["name"] == wrong
    assert right in answer.json()["detail"]


async def test_unknown_names_are_told_up_to_a_bound(client: httpx.AsyncClient) -> None:
    """Each costs a look for the nearest and a line of the answer: who sends many is told of the first."""
    names = [f"languge{n}" for n in range(MAX_PARTS)]
    answer = await client.post("/transcribe", json=dict.fromkeys(names, 1))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "INVALID_REQUEST")
    assert [one["name"] for one in problem["errors"]] == names[:MOST_FAULTS]
    assert ["did you mean" in one["detail"] for one in problem["errors"]].count(True) == MOST_SUGGESTIONS
    assert problem["detail"].endswith(f"; and {MAX_PARTS - MOST_FAULTS} more.")


async def test_a_long_refusal_is_logged_by_its_beginning(client: httpx.AsyncClient) -> None:
    """Else whoever asks wrongly fills the disk, a hundred times faster than it is asked."""
    with structlog.testing.capture_logs() as lines:
        answer = await client.post("/transcribe", json={f"{n:060}": 1 for n in range(MOST_FAULTS)})
    detail = answer.json()["detail"]
    assert len(detail) > MAX_LOGGED_CHARS
    assert detail[:MAX_LOGGED_CHARS] in [line["event"] for line in lines]


@pytest.mark.parametrize("place", ["params", "json"])
async def test_more_names_than_a_form_has_room_for_are_refused_unread(client: httpx.AsyncClient, place: str) -> None:
    """Wherever they stand, forms being bounded as they are read."""
    answer = await client.post("/transcribe", **{place: {f"name{n}": "1" for n in range(MAX_PARTS + 1)}})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")
    assert answer.json()["detail"] == f"More than {MAX_PARTS} parameters were sent."


async def test_a_long_name_is_told_by_its_beginning(client: httpx.AsyncClient) -> None:
    """Not sent back whole, twice, and logged."""
    answer = await client.post("/transcribe", json={"x" * 100_000: 1})
    assert answer.json()["errors"][0]["name"] == "x" * (MAX_NAME_CHARS - 1) + "…"
    assert len(answer.content) < 5_000


@pytest.mark.parametrize("path", ["/transcribe", "/subtitle", "/download", "/v1/audio/transcriptions", "/jobs/batch"])
async def test_a_name_that_is_no_text_is_refused_as_any_other(client: httpx.AsyncClient, path: str) -> None:
    """JSON can write half of a character, which no answer can hold."""
    answer = await client.post(path, content=rb'{"\ud800": 1}', headers={"Content-Type": "application/json"})
    assert answer.status_code == (400 if path.startswith("/v1") else 422)
    assert r"\ud800" in answer.json().get("detail", answer.json().get("error", {}).get("message"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/transcribe", "audio_file"),
        ("/extract-audio", "video_file"),
        ("/subtitle", "video_file"),
        ("/transcribe", "language"),
        ("/subtitle", "language"),
    ],
)
async def test_what_is_looked_up_is_bounded(client: httpx.AsyncClient, path: str, name: str) -> None:
    """A path by its parts and a language by its accents take time that grows with the square of their number."""
    answer = await client.post(path, json={name: "a" * (MAX_REFERENCE_CHARS + 1)})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")
    assert [one["name"] for one in answer.json()["errors"]] == [name]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"model_size": "gigantic"}, "UNKNOWN_MODEL"),
        ({"language": "klingon"}, "UNSUPPORTED_LANGUAGE"),
        ({"model_size": "tiny.en", "language": "fr"}, "UNSUPPORTED_LANGUAGE"),
        ({"model_size": "tiny.en", "task": "translate"}, "INVALID_REQUEST"),
        ({"audio_file": "a", "url": "http://x"}, "AMBIGUOUS_AUDIO"),
    ],
)
async def test_what_the_query_says_wrong_is_refused_before_the_body_is_read(
    app: Any, query: dict[str, str], code: str
) -> None:
    """Nobody should upload two gigabytes to learn of a typing error."""
    headers = AUTH | WAV | {"Content-Length": str(10 * 2**20)}
    taken: list[int] = []
    caller = Caller("/transcribe", [b"x" * 2**20] * 10, headers=headers, query=str(httpx.QueryParams(query)))

    async def send(message: dict[str, Any]) -> None:
        taken.append(caller.taken)
        caller.messages.append(message)

    await app(caller.scope, caller.receive, send)
    assert json.loads(caller.body)["code"] == code
    assert taken[0] == 0


async def test_a_form_may_still_name_the_model_that_the_query_needs(client: httpx.AsyncClient, tmp_path: Path) -> None:
    """The query alone must not be judged against the default model."""
    app = assemble()
    (folder := tmp_path / "english").mkdir()
    parts = make_parts(folder, default_model="tiny.en")
    app.state.services = parts.services
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", headers=AUTH
    ) as client:
        answer = await client.post(
            "/transcribe", params={"language": "fr"}, data={"model_size": "base"}, files={"file": ("a.wav", b"x")}
        )
        assert answer.status_code == 200
        refused = await client.post("/transcribe", params={"language": "fr"}, files={"file": ("a.wav", b"x")})
    assert refused.json()["code"] == "UNSUPPORTED_LANGUAGE"
    assert parts.transcriber.runs[0][1].language == "fr"


async def test_query_and_form_mean_the_same(client: httpx.AsyncClient, parts: Parts) -> None:
    """The issue of where to write a parameter should never come up."""
    wanted = {"model_size": "base", "language": "German", "word_timestamps": "yes", "beam_size": "2", "vad": "none"}
    wanted |= {"task": "translate", "temperature": "0.5", "initial_prompt": "Hallo", "provider": "local"}
    await ask(client, **wanted)
    await client.post("/transcribe", data=wanted, files={"file": ("a.wav", b"hello")})
    (_, by_query), (_, by_form) = parts.transcriber.runs
    assert by_query == by_form
    assert by_query.language == "de"
    assert by_query.word_timestamps is True
    assert by_query.beam_size == 2
    assert by_query.task is Task.TRANSLATE
    assert by_query.vad is VoiceActivity.NONE
    assert by_query.temperature == 0.5
    assert by_query.initial_prompt == "Hallo"


async def test_a_contradiction_between_query_and_form_is_refused(client: httpx.AsyncClient) -> None:
    """Neither place is the truer one."""
    send = {"data": {"beam_size": "2"}, "files": {"file": ("a.wav", b"x")}}
    assert (await client.post("/transcribe?beam_size=2", **send)).status_code == 200
    refused = await client.post("/transcribe?beam_size=3", **send)
    assert refused.status_code == 422
    assert "more than once" in refused.json()["detail"]


async def test_an_empty_value_is_not_given(client: httpx.AsyncClient, parts: Parts) -> None:
    """Forms send every field, filled in or not."""
    answer = await client.post(
        "/transcribe",
        data={"language": "", "model_size": "", "url": "", "audio_file": "", "beam_size": ""},
        files={"file": ("a.wav", b"x")},
    )
    assert answer.status_code == 200
    options = parts.transcriber.runs[0][1]
    assert (options.language, options.model, options.beam_size) == (None, "base", 5)


async def test_an_english_model_is_told_the_language(client: httpx.AsyncClient, parts: Parts) -> None:
    """It cannot detect one."""
    for query in ({"model_size": "tiny.en"}, {"model_size": "tiny.en", "language": "English"}):
        await ask(client, **query)
    assert [options.language for _, options in parts.transcriber.runs] == ["en", "en"]


@pytest.mark.parametrize("written", ["true", "1", "yes", "True"])
async def test_each_way_to_say_yes(client: httpx.AsyncClient, parts: Parts, written: str) -> None:
    """Languages spell booleans differently."""
    await ask(client, word_timestamps=written)
    assert parts.transcriber.runs[0][1].word_timestamps is True


@pytest.mark.parametrize("written", ["false", "0", "no", "False"])
async def test_each_way_to_say_no(client: httpx.AsyncClient, parts: Parts, written: str) -> None:
    """Languages spell booleans differently."""
    await ask(client, word_timestamps=written)
    assert parts.transcriber.runs[0][1].word_timestamps is False


async def test_a_model_without_translations_refuses_them(client: httpx.AsyncClient) -> None:
    """turbo would answer in the spoken language, and the caller would not know why."""
    answer = await ask(client, model_size="turbo", task="translate")
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")


async def test_an_alias_means_its_model(client: httpx.AsyncClient, parts: Parts) -> None:
    """Clients of other servers send "large"."""
    await ask(client, model_size="large")
    assert parts.transcriber.runs[0][1].model == "large-v3"
