"""Who may ask: the X-API-Key header, and the made key's promise that only this machine can use it."""

from __future__ import annotations

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader

from api.keys import is_loopback
from api.services import services
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


def key_name(request: Request) -> str:
    """Which key a request came with, by a name that tells nothing of it."""
    return str(request.state.key_name)
