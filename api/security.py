"""Who may ask: the X-API-Key header or a bearer token, and the made key's promise that only this machine can use it."""

from __future__ import annotations

import hmac
import re
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection

from api.keys import is_loopback
from api.services import Services, services
from errors import NotReady, Unauthorized

_documented = APIKeyHeader(
    name="X-API-Key",
    scheme_name="X-API-Key",
    auto_error=False,
    description="One of this server's keys: it prints its own at the start, or they are in API_KEYS.",
)
_documented_bearer = HTTPBearer(
    scheme_name="Bearer", auto_error=False, description="The same key as `Authorization: Bearer …`."
)


def refuse_strange_bind(request: HTTPConnection) -> None:
    """Refuse what comes in from outside while there is only the made key. Raises NotReady.

    `settings.check()` refuses such a start, but `uvicorn main:app --host 0.0.0.0` binds past the settings. The socket
    that took the connection cannot lie.
    """
    keys = services(request).keys
    server = request.scope.get("server")
    if keys.loopback_only and not (server and is_loopback(str(server[0]))):
        raise NotReady(
            "This server can be reached from other machines, but no API key is set. Set API_KEYS to one or more long "
            "random strings, or listen on 127.0.0.1."
        )


async def require_key(
    request: Request, _: str | None = Depends(_documented), __: object = Depends(_documented_bearer)
) -> None:
    """Raises Unauthorized. Runs before any of the body is read. Who asks is known to `key_name` from then on."""
    refuse_strange_bind(request)
    name = services(request).keys.admit(sent_keys(request))
    if name is None:
        raise Unauthorized
    request.state.key_name = name


def sent_keys(request: HTTPConnection) -> list[bytes]:
    """What was sent as a key, in either header. The same key in both is one key."""
    headers = request.scope["headers"]
    own = [value for name, value in headers if name == b"x-api-key"]
    # Another scheme is a proxy's business.
    bearer = [match[1] for name, value in headers if name == b"authorization" and (match := _BEARER.match(value))]
    return own if own == bearer else own + bearer


_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +(.*)", re.DOTALL)


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
    """As `require_key`, but for the token of the job *id*. Raises Unauthorized."""
    if token is None:
        await require_key(request)
        return
    refuse_strange_bind(request)
    if not hmac.compare_digest(token.encode(), stream_token(services(request), id).encode()):
        raise Unauthorized
    request.state.key_name = None


def key_name(request: Request) -> str:
    """Which key a request came with, by a name that tells nothing of it."""
    return str(request.state.key_name)
