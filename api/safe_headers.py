"""The headers that keep a browser from doing more with an answer than its page was allowed to (pure)."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # An answer is data; the page at /docs says for itself what it may load.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

STRICT_TRANSPORT = "max-age=31536000"
"""A year, of this host alone: what else lies below its name is not ours to decide."""


def make_safe(headers: MutableHeaders, scheme: str) -> None:
    """Add to *headers* what they do not say themselves. *scheme*: by which the request came, or came to the proxy."""
    for name, value in ALWAYS.items():
        headers.setdefault(name, value)
    if "access-control-allow-origin" in headers:
        # Pages that may read it may also embed it.
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    if scheme == "https":
        headers.setdefault("Strict-Transport-Security", STRICT_TRANSPORT)
