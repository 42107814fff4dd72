"""What the OpenAPI document says beyond FastAPI's: headers, links, and bodies that the endpoints read themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from api.application import assemble
from api.document import LINKS
from errors import InvalidRequest
from jobs.vocabulary import read_words

WORK = ("/transcribe", "/download", "/extract-audio", "/subtitle")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return assemble().openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def test_links_lead_to_operations_that_take_what_they_give(document: dict[str, Any]) -> None:
    """Whoever follows a link must not have to guess."""
    known = {operation["operationId"]: operation for _, operation in operations(document)}
    assert set(LINKS) <= set(known)
    for source, by_status in LINKS.items():
        for status, links in by_status.items():
            assert set(known[source]["responses"][status]["links"]) == {target for target, _ in links}
            for target, parameters in links:
                in_path = {one["name"] for one in known[target].get("parameters", ()) if one["in"] == "path"}
                assert set(parameters) == in_path, (source, target)


@pytest.mark.parametrize("path", WORK)
def test_work_can_answer_with_a_job(document: dict[str, Any], path: str) -> None:
    """mode=async is a parameter of each: a client made from the document must know the answer."""
    accepted = document["paths"][path]["post"]["responses"]["202"]
    assert accepted["content"]["application/json"]["schema"]["$ref"].endswith("/JobDescription")
    assert {"Location", "Preference-Applied", "X-Request-ID"} <= set(accepted["headers"])


@pytest.mark.parametrize("path", WORK[1:])
def test_a_stored_file_is_described(document: dict[str, Any], path: str) -> None:
    """Its id is what the next request needs."""
    answer = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    described = document["components"]["schemas"][answer["$ref"].rpartition("/")[2]]
    assert "id" in described["required"]


def test_a_jobs_result_can_be_every_error_that_its_work_can_end_with(document: dict[str, Any]) -> None:
    """A failed job answers with its own error, such as 502 where the link's server was away."""
    result = document["paths"]["/jobs/{id}/result"]["get"]["responses"]
    # A body that comes too slowly never becomes a job.
    assert set(document["paths"]["/transcribe"]["post"]["responses"]) - set(result) <= {"202", "408"}
    assert set(document["paths"]["/download"]["post"]["responses"]) - set(result) <= {"202", "408"}


def test_a_jobs_result_can_be_a_file(document: dict[str, Any]) -> None:
    """Downloads and extractions are jobs, too."""
    schema = document["paths"]["/jobs/{id}/result"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert {"DownloadedFile", "ExtractedFile", "SubtitledFile"} <= {
        one["$ref"].rpartition("/")[2] for one in schema["anyOf"]
    }


def test_events_are_described_one_by_one(document: dict[str, Any]) -> None:
    """Of a schema beside itemSchema, readers would think that it describes the stream."""
    streams = [
        answer["content"]["text/event-stream"]
        for _, operation in operations(document)
        for answer in operation["responses"].values()
        if "text/event-stream" in answer.get("content", {})
    ]
    assert len(streams) == 3
    assert all("itemSchema" in stream and "schema" not in stream for stream in streams)


def test_every_answer_brings_its_request_id(document: dict[str, Any]) -> None:
    """It is what callers name when they ask for help."""
    for path, operation in operations(document):
        for status, answer in operation["responses"].items():
            assert "X-Request-ID" in answer["headers"], (path, status)
        if "401" in operation["responses"]:
            assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


def test_whoever_needs_a_key_is_told_what_can_be_amiss_with_it(document: dict[str, Any]) -> None:
    """Too many guesses, a scope that is missing, a store of keys that is away: under /v1 as everywhere."""
    for path, operation in operations(document):
        if "401" in operation["responses"]:
            assert {"403", "429", "503"} <= set(operation["responses"]), path


def test_no_parameter_outside_of_a_body_can_be_null(document: dict[str, Any]) -> None:
    """A header that says null says the word null, and is refused."""
    for path, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert "null" not in str(parameter["schema"]), (path, parameter["name"])


def test_subtitles_have_the_bounds_of_transcripts(document: dict[str, Any]) -> None:
    """They are checked as those are: the document must not promise more."""
    bounds = ("minimum", "maximum", "maxLength")
    taken = {
        path: {one["name"]: one["schema"] for one in document["paths"][path]["post"]["parameters"]}
        for path in ("/transcribe", "/subtitle")
    }
    for name, schema in taken["/subtitle"].items():
        if name in taken["/transcribe"]:
            there = taken["/transcribe"][name]
            assert [schema.get(bound) for bound in bounds] == [there.get(bound) for bound in bounds], name


def test_bodies_take_no_other_fields(document: dict[str, Any]) -> None:
    """A parameter that is misspelled is refused: generated clients should not let it pass."""
    for path in ("/transcribe", "/download", "/extract-audio", "/subtitle", "/jobs/batch", "/v1/audio/transcriptions"):
        for kind, content in document["paths"][path]["post"]["requestBody"]["content"].items():
            if content["schema"]["type"] == "object":
                assert content["schema"]["additionalProperties"] is False, (path, kind)


@pytest.mark.parametrize(
    "text",
    ["Stenogate", "# names\nGrünwald\n", "\n\n a\tb", "", "\n", " \t", "# names\n", "\x00", "a\x07", "a\n\x1b"],
)
def test_a_vocabularys_pattern_says_what_is_taken(document: dict[str, Any], text: str) -> None:
    """A line that says something, and no control characters."""
    schema = document["paths"]["/vocabulary"]["put"]["requestBody"]["content"]["text/plain"]["schema"]
    try:
        taken = bool(read_words(text.encode()))
    except InvalidRequest:
        taken = False
    assert bool(re.search(schema["pattern"], text)) == taken
