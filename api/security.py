"""Who may ask: the X-API-Key header, and the made key's promise that only this machine can use it."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.security import APIKeyHeader

from api.keys import is_loopback
from api.services import Services, services
from errors import NotReady, Unauthorized

_documented = APIKeyHeader(
    name="X-API-Key",
    scheme_name="X-API-Key",
    auto_error=False,
    description="One of this server's keys: it prints its own at the start, or they are in API_KEYS.",
)


def refuse_strange_bind(request: Request) -> None:
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


async def require_key(request: Request, _: str | None = Depends(_documented)) -> None:
    """Raises Unauthorized. Runs before any of the body is read. Who asks is known to `key_name` from then on."""
    refuse_strange_bind(request)
    sent = [value for name, value in request.scope["headers"] if name == b"x-api-key"]
    name = services(request).keys.admit(sent)
    if name is None:
        raise Unauthorized
    request.state.key_name = name


def stream_token(parts: Services, job_id: str) -> str:
    """What opens that job's events and nothing else: a browser's EventSource cannot send the key in a header."""
    return hmac.new(parts.link_secret, job_id.encode(), "sha256").hexdigest()[:32]


async def require_key_or_token(
    request: Request,
    id: str,
    token: Annotated[str | None, Query(description="In place of the key, as the job's `events_url` has it.")] = None,
    _: str | None = Depends(_documented),
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
