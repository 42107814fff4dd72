"""The documentation tells of everything that is there, and of nothing that is not."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

import errors
from main import create_app
from settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]

NOT_OURS = {
    "HF_HOME",
    "SPEAKER_00",
    "CHANNEL_00",
    "CHANNEL_01",
    "AWS_ENDPOINT_URL",
    "RAILWAY_RUN_UID",
    "RAILWAY_RAM_MB",
    "FORWARDED_ALLOW_IPS",
    "SPEECH_DIR",
}
"""Variables that the documents name and that belong to a platform or to the tests."""

FREE = {"/health", "/ready"}
"""Answer without a key."""

KEY_HEADERS = ("X-API-Key: ", "Authorization: Bearer ")


def rows(document: str, header: str) -> list[list[str]]:
    """The cells of the table whose first column is called *header*."""
    _, _, table = document.partition(f"\n| {header} |")
    lines = table.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def all_errors(parent: type[errors.ServiceError] = errors.ServiceError) -> Iterator[type[errors.ServiceError]]:
    yield parent
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from all_errors(child)


@cache
def openapi() -> dict[str, Any]:
    return create_app(Settings(_env_file=None)).openapi()  # type: ignore[call-arg]


@dataclass
class Curl:
    """One curl command of the documentation, taken apart."""

    line: str
    method: str = "GET"
    url: str = ""
    parameters: set[str] = field(default_factory=set)
    headers: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


def curl(line: str) -> Curl:
    """Understands the options that the documentation uses; another one is an error, so that nothing goes unread."""
    command = Curl(line)
    words = iter(shlex.split(line, comments=True)[1:])
    for word in words:
        if word in ("-H", "--header"):
            command.headers.append(next(words))
        elif word in ("-N", "--no-buffer"):
            continue
        elif word in ("-F", "--form", "-d", "--data-urlencode"):
            sent = next(words)
            command.parameters |= set(json.loads(sent)) if sent.startswith("{") else {sent.split("=")[0]}
            command.method = "POST" if command.method == "GET" else command.method
        elif word in ("-X", "--request"):
            command.method = next(words)
        elif word in ("-o", "--output"):
            next(words)
        else:
            assert not word.startswith("-"), f"unknown option {word} in {line}"
            command.url = word
    command.parameters |= {name for name, _ in parse_qsl(urlsplit(command.url).query)}
    return command


def curl_examples() -> list[Curl]:
    blocks = [block for path in DOCUMENTS for block in re.findall(r"```sh\n(.*?)```", path.read_text("utf-8"), re.S)]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [curl(line) for line in lines if line.startswith("curl ")]


def operation(document: dict[str, Any], example: Curl) -> dict[str, Any] | None:
    """What OpenAPI says of the call, or None."""
    # A path that is written out goes before one with a name in it.
    for template, methods in sorted(document["paths"].items(), key=lambda path: "{" in path[0]):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), example.path):
            found: dict[str, Any] | None = methods.get(example.method.lower())
            return found
    return None


def taken(described: dict[str, Any]) -> set[str]:
    """The names of all parameters of an operation, in the query or the body."""
    names = {parameter["name"] for parameter in described.get("parameters", []) if parameter["in"] != "header"}
    for content in described.get("requestBody", {}).get("content", {}).values():
        names |= set(content["schema"].get("properties", {}))
    return names


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    """A knob that nobody can find is not a knob, and a wrong default is worse than none."""
    told = {cells[0].strip("`"): cells[2].strip("`") for cells in rows(README.read_text("utf-8"), "setting")}
    assert set(told) == {name.upper() for name in Settings.model_fields}
    for name, described in Settings.model_fields.items():
        default = ",".join(described.default) if isinstance(described.default, tuple) else described.default
        if isinstance(default, bool):
            expected = str(default).lower()
        elif isinstance(default, float):
            expected = f"{default:.0f}"
        else:
            expected = str(default) if default not in (None, (), "") else ""
        if expected:
            assert told[name.upper()] == expected, name
        else:
            # Folders that follow from DATA_DIR say so.
            assert told[name.upper()] in ("none", f"DATA_DIR/{name.partition('_')[0]}", "DATA_DIR/models"), name


def test_the_example_file_holds_every_setting_and_no_other() -> None:
    """It is copied to .env: a name that does not exist would be ignored without a word."""
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    names = [match[1] for line in lines if (match := re.match(r"#? ?([A-Z][A-Z_]+)=", line))]
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_names_a_setting_that_does_not_exist(path: Path) -> None:
    """Settings are renamed; what still tells of the old name sends people into the dark."""
    text = path.read_text("utf-8")
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", text))
    named |= set(re.findall(r"(?:-e|export) ([A-Z][A-Z0-9_]+)=", text))
    known = {name.upper() for name in Settings.model_fields} | {error.code for error in all_errors()} | NOT_OURS
    assert named <= known | _constants()


def _constants() -> set[str]:
    """Module constants that design documents may quote."""
    sources = [
        path.read_text("utf-8")
        for folder in (".", "transcription", "downloads", "jobs", "api")
        for path in (ROOT / folder).glob("*.py")
    ]
    return {name for source in sources for name in re.findall(r"^([A-Z][A-Z0-9_]+)(?:: [^=]+)? = ", source, re.M)}


def test_every_endpoint_stands_in_the_readme() -> None:
    """The table is where people look first; OpenAPI knows what there is."""
    told = {
        call for cells in rows(README.read_text("utf-8"), "call") for call in re.findall(r"`([A-Z]+ [^`]+)`", cells[0])
    }
    there = {f"{method.upper()} {path}" for path, methods in openapi()["paths"].items() for method in methods}
    assert told == there | {"GET /docs", "GET /openapi.json", "WS /transcribe/live"}


def test_every_parameter_of_transcribe_stands_in_the_readme() -> None:
    """Held against OpenAPI, which is made from the code."""
    told = {cells[0].strip("`") for cells in rows(README.read_text("utf-8"), "parameter")}
    there = taken(openapi()["paths"]["/transcribe"]["post"])
    assert told == there - {"file", "audio_file", "url"}


def test_every_error_code_stands_in_the_readme_with_its_status() -> None:
    """Programs are written against these codes."""
    told = {cells[0].strip("`"): int(cells[1]) for cells in rows(README.read_text("utf-8"), "code")}
    assert told == {error.code: error.status for error in all_errors()}


def test_error_codes_are_each_one_errors_own() -> None:
    """Two errors under one code could not be told apart."""
    codes = [error.code for error in all_errors()]
    assert len(codes) == len(set(codes))
    assert all(inspect.getdoc(error) for error in all_errors())


@pytest.mark.parametrize("example", curl_examples(), ids=lambda example: example.line[:60])
def test_every_curl_example_calls_what_exists(example: Curl) -> None:
    """An example is what gets pasted: its path, method, parameters and key must be right."""
    described = operation(openapi(), example)
    assert described is not None, f"no {example.method} {example.path}"
    assert example.parameters <= taken(described)
    assert example.path in FREE or any(header.startswith(KEY_HEADERS) for header in example.headers)


def test_a_wrong_example_would_be_seen() -> None:
    """The reader of examples above must itself be able to say no."""
    wrong = curl('curl -H "X-API-Key: k" -F file=@a.mp3 -F colour=red http://127.0.0.1:8000/transcribe')
    described = operation(openapi(), wrong)
    assert described is not None
    assert wrong.parameters - taken(described) == {"colour"}
    assert operation(openapi(), curl("curl -X DELETE http://127.0.0.1:8000/transcribe")) is None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """Files are moved; the links to them stay behind."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text("utf-8"))
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


def test_the_first_screen_holds_the_commands_the_calls_and_the_answer() -> None:
    """Who opens the page must not scroll to learn how to start."""
    screen = "\n".join(README.read_text("utf-8").splitlines()[:42])
    for needed in ("scripts/serve", "scripts/test", "/transcribe", "/download", "/extract-audio", '"text"'):
        assert needed in screen, needed
