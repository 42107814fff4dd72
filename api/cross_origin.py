"""Pages of other origins in a browser: which may call, what they may send and read. None, but for the settings'."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("GET", "POST", "PUT", "DELETE")

SENT = (
    *("X-API-Key", "Authorization", "Content-Type", "Idempotency-Key", "Prefer", "X-Priority", "X-No-Wait"),
    *("X-Request-Timeout", "X-Request-ID", "Last-Event-ID", "Range", "If-Range"),
)
"""Headers that a page may send. NOTE: Last-Event-ID is an EventSource's own; a page that reads with fetch must ask."""

READ = (
    *(
        "X-Request-ID",
        "Retry-After",
        "RateLimit",
        "RateLimit-Policy",
        "Location",
        "Preference-Applied",
        "WWW-Authenticate",
    ),
    *("Content-Disposition", "Content-Range", "Accept-Ranges", "ETag", "X-Transcribed-By", "X-Should-Retry"),
)
"""Headers of an answer that a page may read, beyond those that it always may."""

MAX_AGE_S = 600
"""So long a browser need not ask again."""

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class CrossOrigin:
    """Starlette's rules for other origins, for those that the settings name; without any it is not there.

    Keys travel in headers, never as cookies: a page brings its own, and credentials are not allowed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = allowed_origins(scope) if scope["type"] == "http" else ()
        app = self._app if not origins else _opened(self._app, origins)
        await app(scope, receive, send)


def _opened(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=METHODS, allow_headers=SENT, expose_headers=READ, max_age=MAX_AGE_S
    )


def allowed_origins(scope: Scope) -> tuple[str, ...]:
    # A server that is starting or has stopped has no services.
    parts = getattr(scope["app"].state, "services", None)
    return parts.cors_origins if parts else ()


def may_open(origin: str | None, host: str | None, allowed: Sequence[str]) -> bool:
    """Whether a WebSocket may be opened from *origin* (pure): browsers ask nobody else about these.

    Programs that are no browser send no origin. A page of this server has the origin that the *host* header names.
    """
    if origin is None or "*" in allowed or origin in allowed:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = DEFAULT_PORTS.get(parts.scheme, "")
    own = (host or "").lower().removesuffix(default)
    return bool(own) and parts.netloc.lower().removesuffix(default) == own
