"""Who may ask what: the key in a header, its scopes, and the made key's promise that only this machine can use it."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection

from access.addresses import is_loopback
from access.keys import Key, Scope
from api.problems import PasswordWanted
from api.services import Services, services
from errors import NotReady, ScopeMissing, Unauthorized

_documented = APIKeyHeader(
    name="X-API-Key",
    scheme_name="X-API-Key",
    auto_error=False,
    description="One of this server's keys: it prints its own at the start, or they are in API_KEYS, or "
    "scripts/keys has made them.",
)
_documented_bearer = HTTPBearer(
    scheme_name="Bearer", auto_error=False, description="The same key as `Authorization: Bearer …`."
)


def _comes_from_outside(request: HTTPConnection) -> bool:
    """Whether other machines can reach the socket that took the connection, which cannot lie."""
    server = request.scope.get("server")
    return not (server and is_loopback(str(server[0])))


def refuse_strange_bind(request: HTTPConnection) -> None:
    """Refuse what comes in from outside while there is only the made key. Raises NotReady.

    The start is refused in that case, but `uvicorn main:app --host 0.0.0.0` can bind past the settings.
    """
    if services(request).keys.loopback_only and _comes_from_outside(request):
        raise NotReady(
            "This server can be reached from other machines, but has no key for them. Make one (scripts/keys make), "
            "set API_KEYS to one or more long random strings, or listen on 127.0.0.1."
        )


async def opened(request: HTTPConnection, sent: list[bytes], scope: Scope | None = None) -> Key:
    """The key among *sent*, if it opens this server and has *scope*.

    Raises Unauthorized, TooManyFailures, ScopeMissing, NotReady, StoreUnavailable.
    """
    refuse_strange_bind(request)
    key = await services(request).keys.admit(sent, request.client.host if request.client else "")
    if key.made_here and _comes_from_outside(request):
        raise Unauthorized
    if scope is not None:
        _check(key, scope)
    return key


def _check(key: Key, scope: Scope) -> None:
    if scope not in key.scopes:
        raise ScopeMissing(f"This key does not open that: it needs the scope {scope}.")


def needs(scope: Scope | None) -> Callable[..., Awaitable[None]]:
    """What an endpoint depends on that is open to keys with *scope*; None: to every key."""

    async def require(
        request: Request, _: str | None = Depends(_documented), __: object = Depends(_documented_bearer)
    ) -> None:
        """Runs before any of the body is read. Raises what `opened` raises."""
        await _admit(request, scope)

    return require


require_key = needs(None)
may_transcribe = needs(Scope.TRANSCRIBE)
may_download = needs(Scope.DOWNLOAD)


def guarded(room: str) -> Callable[..., Awaitable[None]]:
    """What *room*, a name that ADMIN_ONLY may hold, depends on: the scope admin where it does, else any key."""

    async def require(
        request: Request, _: str | None = Depends(_documented), __: object = Depends(_documented_bearer)
    ) -> None:
        await _admit(request, Scope.ADMIN if room in services(request).admin_only else None)

    return require


async def guard_docs(request: Request) -> None:
    """The docs are open to everybody, unless ADMIN_ONLY holds them. A browser sends the key as a password."""
    if "docs" in services(request).admin_only:
        try:
            await _admit(request, Scope.ADMIN, sent_keys(request) or _passwords(request))
        except (Unauthorized, ScopeMissing) as error:
            # A key that does not open this is no reason to keep it: the browser asks for another.
            raise PasswordWanted from error


async def _admit(request: Request, scope: Scope | None, sent: list[bytes] | None = None) -> None:
    """Who asks is known to `key_name` and `check_scope` from then on."""
    key = await opened(request, sent_keys(request) if sent is None else sent, scope)
    request.state.key = key
    request.state.key_name = key.owner


def check_scope(request: Request, scope: Scope) -> None:
    """For what only the body tells: raises ScopeMissing where the request's key does not have *scope*."""
    _check(request.state.key, scope)


def sent_keys(request: HTTPConnection) -> list[bytes]:
    """What was sent as a key, in either header. The same key in both is one key."""
    headers = request.scope["headers"]
    own = [value for name, value in headers if name == b"x-api-key"]
    # Another scheme is a proxy's business.
    bearer = [match[1] for name, value in headers if name == b"authorization" and (match := _BEARER.match(value))]
    return own if own == bearer else own + bearer


_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +(.*)", re.DOTALL)
_BASIC = re.compile(rb"[Bb][Aa][Ss][Ii][Cc] +(.*)", re.DOTALL)


def _passwords(request: HTTPConnection) -> list[bytes]:
    """The password of what a browser sends after it has asked its user; the user's name says nothing."""
    found = [_BASIC.match(value) for name, value in request.scope["headers"] if name == b"authorization"]
    try:
        return [base64.b64decode(match[1], validate=True).partition(b":")[2] for match in found if match]
    except ValueError:
        return []


def stream_token(parts: Services, job_id: str) -> str:
    """What opens that job's events and nothing else: a browser's EventSource cannot send the key in a header."""
    return hmac.new(parts.link_secret, job_id.encode(), "sha256").hexdigest()[:32]


async def require_key_or_token(
    request: Request,
    id: str,
    token: Annotated[str | None, Query(description="In place of the key, as the job's `events_url` has it.")] = None,
    _: str | None = Depends(_documented),
    __: object = Depends(_documented_bearer),
) -> None:
    """As `require_key`, but for the token of the job *id*. Raises what `opened` raises."""
    if token is None:
        await _admit(request, None)
        return
    refuse_strange_bind(request)
    if not hmac.compare_digest(token.encode(), stream_token(services(request), id).encode()):
        raise Unauthorized
    request.state.key = None
    request.state.key_name = None


def key_name(request: Request) -> str:
    """Whose key a request came with, by a name that tells nothing of it."""
    return str(request.state.key_name)
