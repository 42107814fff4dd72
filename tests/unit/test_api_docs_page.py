"""The page at /docs: complete without any other machine, and fit to be filled in."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from fastapi import FastAPI

BASE = "http://127.0.0.1"


async def addresses(client: httpx.AsyncClient) -> set[str]:
    """Everything that the page loads, as a browser would ask for it."""
    page = (await client.get("/docs")).text
    named = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']*)["']""", page)
    return {urljoin(f"{BASE}/docs", address) for address in named}


async def test_all_that_the_page_loads_comes_from_this_server(client: httpx.AsyncClient) -> None:
    """The server may stand where there is no network."""
    kinds = set()
    for address in await addresses(client):
        assert address.startswith(f"{BASE}/")
        answer = await client.get(address)
        assert answer.status_code == 200, address
        assert answer.content
        kinds.add(answer.headers["content-type"].partition(";")[0])
    assert kinds == {"text/javascript", "text/css", "image/png", "application/json"}


async def test_the_page_names_no_other_host(client: httpx.AsyncClient) -> None:
    """Neither a content network nor the makers of Swagger UI or FastAPI need to know who reads it."""
    page = (await client.get("/docs")).text
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page) == []
    assert '"validatorUrl": null' in page


async def test_the_browser_is_told_to_load_from_nowhere_else(client: httpx.AsyncClient) -> None:
    """What is pasted into the page, the key among it, must not leave it, whatever a later version does."""
    answer = await client.get("/docs")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.S)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"


async def test_the_page_works_behind_a_prefix(client: httpx.AsyncClient) -> None:
    """A proxy that serves it as /speech/docs strips the prefix: an absolute address would miss it."""
    page = (await client.get("/docs")).text
    named = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']*)["']""", page)
    assert len(named) == 4
    assert {urlsplit(urljoin("http://host/speech/docs", address)).path.split("/")[1] for address in named} == {"speech"}


@pytest.mark.parametrize("path", ["/redoc", "/docs/__init__.py", "/docs/..%2Fmain.py", "/docs/oauth2-redirect"])
async def test_nothing_else_is_served_beside_the_page(client: httpx.AsyncClient, path: str) -> None:
    """The files lie in a package among its code; ReDoc would be loaded from elsewhere."""
    assert (await client.get(path)).status_code == 404


def bodies(app: FastAPI) -> list[tuple[str, dict[str, Any]]]:
    return [
        (kind, content)
        for path in ("/transcribe", "/download", "/extract-audio")
        for kind, content in app.openapi()["paths"][path]["post"]["requestBody"]["content"].items()
    ]


def test_the_forms_fields_start_empty(app: FastAPI) -> None:
    """The page sends what it has filled in: url=string beside the chosen file was refused."""
    forms = [content["schema"]["properties"] for kind, content in bodies(app) if "form" in kind]
    assert len(forms) == 5
    for form in forms:
        assert {name: field["examples"] for name, field in form.items() if name != "file"} == {
            name: [""] for name in form if name != "file"
        }


def test_the_querys_fields_start_empty(app: FastAPI) -> None:
    """A default in the query contradicts another choice in the form."""
    for path in ("/transcribe", "/download", "/extract-audio"):
        for parameter in app.openapi()["paths"][path]["post"]["parameters"]:
            assert not {"default", "example"} & set(parameter["schema"]), parameter["name"]


async def test_a_form_without_a_chosen_file_is_one_without_a_file(client: httpx.AsyncClient) -> None:
    """The page sends file as an empty text then."""
    fields = {"url": "http://example.com/a.mp3", "file": "", "language": "", "beam_size": ""}
    answer = await client.post("/transcribe", files={name: (None, value) for name, value in fields.items()})
    assert answer.status_code == 200
    assert answer.json()["text"].strip() == "http://example.com/a.mp3"


@pytest.mark.parametrize("path", ["/transcribe", "/download", "/extract-audio"])
async def test_the_example_in_json_is_understood(app: FastAPI, client: httpx.AsyncClient, path: str) -> None:
    """It is what the page sends at once; at most the file of the example is not there."""
    content = app.openapi()["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    answer = await client.post(path, json=content["example"])
    assert answer.status_code == 200 or answer.json()["code"] == "FILE_NOT_FOUND"
