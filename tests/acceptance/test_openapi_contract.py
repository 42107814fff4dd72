"""The OpenAPI document against the server that sends it: Schemathesis makes requests of it and checks the answers.

CONTRACT_EXAMPLES=300 pytest tests/acceptance/test_openapi_contract.py looks further than the suite has time for.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import Case, CheckContext, GenerationMode, HookContext, Response, engine
from schemathesis.core.parameters import ParameterLocation
from schemathesis.engine import events
from schemathesis.generation.meta import TestPhase

from ffmpeg import FFmpeg
from tests.acceptance.server import KEY, Server, running

EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "0"))
"""Requests drawn for each operation; 0: as many as the suite has time for."""

PLANNED = {"TIMEOUT", "DEADLINE_TOO_NEAR", "DOWNLOAD_FAILED"}
"""Errors of 500 and above that these requests may meet: some have no patience, and links lead to nobody."""

NOBODY = "recordings.invalid"
"""A name that is never resolved (RFC 6761)."""

TAKES_RECORDINGS = ["/transcribe", "/subtitle", "/extract-audio", "/v1/audio/transcriptions"]
WORK = [*TAKES_RECORDINGS, "/download", "/v1/audio/translations", "/jobs/batch"]
"""Their parameters are many, may stand in the query and in the body, and must agree: no schema can say how."""

HARMLESS = {"response_format", "word_timestamps", "beam_size", "temperature", "initial_prompt", "hotwords", "prompt"}
HARMLESS |= {"filter_fillers", "filter_profanity", "mode", "reuse"}
"""Parameters that go with any recording, whatever their values, and with each other."""

CONFIG = {
    "headers": {"X-API-Key": KEY},
    "request-timeout": 30,
    "max-stream-events": 50,
    "continue-on-failure": True,
    "generation": {
        "deterministic": True,
        "database": "none",
        "no-shrink": not EXAMPLES,
        "max-examples": EXAMPLES or 4,
        # A second, wrong key spoils a request. That each key is looked at, ignored_auth tries by itself.
        "with-security-parameters": False,
    },
    "phases": {"stateful": {"max-steps": 6, "generation": {"mode": "positive", "max-examples": EXAMPLES or 16}}},
    "checks": {
        # Which of them are planned, `fails_as_planned` says; that they are documented, status_code_conformance.
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 502, 503]},
    },
    "operations": [
        {
            # A random body is no recording, and a random string names no model. `takes_recordings` is in its place.
            "include-path": WORK,
            "include-method": "POST",
            "checks": {"positive_data_acceptance": {"enabled": False}},
        },
        {
            # DELETE cancels a job, and leaves it there to be looked at and tried again.
            "include-path-regex": "^/(jobs|transcribe)",
            "checks": {"use_after_free": {"enabled": False}},
        },
    ],
}


@schemathesis.check
def fails_as_planned(context: CheckContext, response: Response, case: Case) -> None:
    if response.status_code >= 500:
        answer = response.json()
        assert answer.get("error", answer)["code"] in PLANNED


@schemathesis.check
def takes_recordings(context: CheckContext, response: Response, case: Case) -> None:
    if is_usable(case):
        assert response.status_code in (200, 202), response.text


def is_usable(case: Case) -> bool:
    """Whether *case* brings a recording and nothing that could contradict itself: `made_usable` has seen to that."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return False
    form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    return case.method == "POST" and case.path in TAKES_RECORDINGS and (form or is_stateful(case))


def is_stateful(case: Case) -> bool:
    return case.meta is not None and case.meta.phase.name is TestPhase.STATEFUL


def is_about_headers(case: Case) -> bool:
    """Whether *case* is to show what the server does with its headers."""
    about = None if case.meta is None else getattr(case.meta.phase.data, "parameter_location", None)
    return about is ParameterLocation.HEADER


@pytest.fixture(scope="module")
def contract_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that fetches nothing from anybody, with room for guesses: ignored_auth sends many wrong keys."""
    limits = {
        "LINK_HOSTS_ALLOWED": NOBODY,
        "MAX_UPLOAD_MB": "1",
        "MAX_DURATION_S": "30",
        "MAX_FAILURES_PER_MINUTE": "0",
    }
    with running(tmp_path_factory.mktemp("contract"), API_KEYS=KEY, **limits) as server:
        yield server


@functools.cache
def recording() -> bytes:
    """A video of a fifth of a second, in which nobody speaks."""
    sources = ["-f", "lavfi", "-i", "color=size=16x16:rate=5", "-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono"]
    made = ["-t", "0.2", "-pix_fmt", "yuv420p", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4", "pipe:1"]
    run = [FFmpeg.locate("").path, "-v", "error", *sources, *made]
    return subprocess.run(run, check=True, capture_output=True).stdout


@schemathesis.hook("before_call")
def made_usable(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Give *case* a recording and nothing that contradicts it, where it may have one; else patience, to be heard."""
    headers = {name: value for name, value in case.headers.items() if name in ("Prefer", "X-Priority")}
    if is_usable(case):
        case.query, case.headers = {}, type(case.headers)(headers)
        body = case.body if isinstance(case.body, dict) else {}
        given = {name: value for name, value in body.items() if name in HARMLESS}
        if case.path.startswith("/v1"):
            given = {"model": "whisper-1", "temperature": given.get("temperature", 0)}
        elif is_stateful(case):
            # Files are to be left by one way, jobs by the others.
            given["mode"] = "sync" if case.path == "/extract-audio" else "async"
        case.media_type, case.body = "multipart/form-data", given | {"file": recording()}
        # NOTE: else a changed body with a file in it would count as one that is to be refused.
        case._record_starting_state()
    elif case.path == "/jobs/batch" and is_stateful(case):
        case.body = {"urls": [f"http://{NOBODY}/1.mp3", f"http://{NOBODY}/2.mp3"]}
        case._record_starting_state()
    elif case.path.endswith("/events"):
        # A guessed token goes before a good key.
        case.query = {name: value for name, value in case.query.items() if name != "token"}
        case._record_starting_state()
    elif case.headers.get("X-Request-Timeout", "").startswith(("0", "1e-", "5e-")) and not is_about_headers(case):
        # Who has no patience learns nothing else.
        case.headers["X-Request-Timeout"] = "60"
        case._record_starting_state()


@pytest.fixture(scope="module")
def document(contract_server: Server) -> Any:
    """The document as the server sends it, with what requests are made with."""
    config = schemathesis.Config.from_dict(CONFIG)
    schema = schemathesis.openapi.from_url(f"{contract_server.address}/openapi.json", config=config)
    # Where a file is wanted, half are one.
    schemathesis.openapi.format("binary", strategies.just(recording()) | strategies.binary(max_size=64))
    seen: Counter[tuple[str, bool]] = Counter()

    @schema.hook("filter_case")
    def some_of_many(context: HookContext, case: Case) -> bool:
        """Boundaries of all parameters of all ways to send them are thousands: of the long rows, one in 25, and four
        recordings."""
        if EXAMPLES or case.path not in WORK or case.meta is None or case.meta.phase.name is not TestPhase.COVERAGE:
            return True
        seen[case.path, is_usable(case)] += 1
        number = seen[case.path, is_usable(case)]
        return number <= 4 if is_usable(case) else number * 2_654_435_761 // 65_536 % 25 == 0

    return schema


def faults(document: Any, *phases: str) -> tuple[list[str], Counter[tuple[str, int]]]:
    """What Schemathesis finds wrong in these *phases*, and how often each operation answered with which status."""
    document.config.phases.update(phases=list(phases))
    found: dict[str, None] = {}
    answered: Counter[tuple[str, int]] = Counter()
    for event in engine.from_schema(document).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            found[f"{event}"] = None
        if isinstance(event, events.ScenarioFinished):
            for id, interaction in event.recorder.interactions.items():
                if interaction.response is not None and id in event.recorder.cases:
                    case = event.recorder.cases[id].value
                    answered[case.operation.label, interaction.response.status_code] += 1
            for check in (check for checks in event.recorder.checks.values() for check in checks):
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    found[f"{failure.operation}: {check.name}: {failure}\n{check.failure_info.code_sample[:2000]}"] = (
                        None
                    )
    return list(found), answered


def test_the_server_does_what_its_document_says(document: Any) -> None:
    """Clients are generated from the document: what it leaves out or gets wrong breaks them."""
    found, answered = faults(document, "examples", "coverage", "fuzzing")
    assert not found, "\n\n".join(found)
    assert {operation for operation, _ in answered} == {one.ok().label for one in document.get_all_operations()}
    # Had no recording been taken, most of what the document promises had not been looked at.
    assert all(answered[f"POST {path}", 200] for path in TAKES_RECORDINGS)


def test_what_answers_name_can_be_asked_for(document: Any) -> None:
    """The links of the document lead from a job, a batch or a file to all that can be done with it."""
    found, answered = faults(document, "stateful")
    assert not found, "\n\n".join(found)
    # Which of them are drawn, earlier answers have a say in.
    assert answered["GET /jobs/{id}", 200] + answered["GET /transcribe/{id}/status", 200]
    assert answered["GET /files/{id}", 200] + answered["DELETE /files/{id}", 204]
    assert answered["GET /jobs/batch/{batch_id}", 200] + answered["DELETE /jobs/batch/{batch_id}", 200]
