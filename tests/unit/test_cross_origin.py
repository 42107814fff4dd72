"""Browsers' pages of other origins: shut out, until the operator names them."""

from __future__ import annotations

import dataclasses

import pytest
from fastapi import FastAPI

from api.cross_origin import METHODS, READ, SENT, may_open
from tests.fakes import AUTH, Caller, Parts

PAGE = "https://app.example"


@pytest.fixture
def opened(parts: Parts, app: FastAPI) -> FastAPI:
    """Open to the pages of one origin."""
    app.state.services = dataclasses.replace(parts.services, cors_origins=(PAGE,))
    return app


def asked_beforehand(origin: str, method: str = "POST", headers: str = "x-api-key") -> Caller:
    sent = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return Caller("/transcribe", method="OPTIONS", headers=sent)


async def test_without_a_setting_no_page_is_let_in(app: FastAPI) -> None:
    """A key that leaked into one page must not open the server to all of them."""
    before = await asked_beforehand(PAGE).call(app)
    after = await Caller("/files", method="GET", headers=AUTH | {"Origin": PAGE}).call(app)
    assert before.status == 405
    for caller in (before, after):
        assert not [name for name in caller.headers if name.startswith("access-control")]
        assert caller.headers["cross-origin-resource-policy"] == "same-origin"


async def test_a_named_origins_page_may_call_and_read(opened: FastAPI) -> None:
    """It is told so beforehand, and in the answer; both have an id."""
    before = await asked_beforehand(PAGE, headers=",".join(SENT).lower()).call(opened)
    assert before.status == 200
    assert before.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in before.headers
    after = await Caller("/files", method="GET", headers=AUTH | {"Origin": PAGE}).call(opened)
    assert after.headers["access-control-allow-origin"] == PAGE
    assert "Retry-After" in after.headers["access-control-expose-headers"]
    assert after.headers["cross-origin-resource-policy"] == "cross-origin"
    assert before.headers["x-request-id"]
    assert after.headers["x-request-id"]


async def test_another_origins_page_may_not(opened: FastAPI) -> None:
    """Only the named one."""
    for origin in ("https://evil.example", "http://app.example", "https://app.example:8443", "null"):
        before = await asked_beforehand(origin).call(opened)
        after = await Caller("/files", method="GET", headers=AUTH | {"Origin": origin}).call(opened)
        assert before.status == 400
        assert "access-control-allow-origin" not in before.headers | after.headers
        assert after.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_page_can_read_what_went_wrong(opened: FastAPI, parts: Parts, fails: bool) -> None:
    """Also where nobody expected it: else a browser says that the network failed."""
    if fails:
        parts.transcriber.error = ZeroDivisionError()
    headers = AUTH | {"Origin": PAGE, "Content-Type": "audio/wav" if fails else "text/x", "Content-Length": "5"}
    caller = await Caller("/transcribe", [b"hello"], headers=headers).call(opened)
    assert caller.status == (500 if fails else 422)
    assert caller.headers["access-control-allow-origin"] == PAGE


def test_what_the_api_takes_can_be_sent(app: FastAPI) -> None:
    """Held against OpenAPI, so that a new header or method is not forgotten."""
    operations = [(name, one) for path in app.openapi()["paths"].values() for name, one in path.items()]
    taken = {
        parameter["name"].lower()
        for _, operation in operations
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header"
    }
    assert taken <= {name.lower() for name in SENT}
    assert {name.upper() for name, _ in operations} <= set(METHODS)
    assert len(set(READ)) == len(READ)


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "may"),
    [
        (None, "here:8000", (), True),
        ("http://here:8000", "here:8000", (), True),
        ("https://here", "HERE", (), True),
        ("https://here", "here:443", (), True),
        ("http://here", "here:80", (), True),
        ("http://here", "here:443", (), False),
        ("http://here:8001", "here:8000", (), False),
        ("https://evil.example", "here", (), False),
        ("https://here.evil.example", "here", (), False),
        ("null", "here", (), False),
        ("null", "", (), False),
        ("", "", (), False),
        ("https://evil.example", None, (), False),
        ("http://[", "here", (), False),
        ("http://[", "[", (), False),
        (PAGE, "here", (PAGE,), True),
        ("https://evil.example", "here", (PAGE,), False),
        ("https://evil.example", "here", ("*",), True),
    ],
)
def test_who_may_open_a_websocket(origin: str | None, host: str | None, allowed: tuple[str, ...], may: bool) -> None:
    """Browsers open these to anywhere, and tell only from where."""
    assert may_open(origin, host, allowed) == may
