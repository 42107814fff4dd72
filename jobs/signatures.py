"""How a webhook's receiver knows who sends it, and that nothing was changed: Standard Webhooks' signature. Pure."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import secrets

from access.keys import is_stored
from errors import ConfigurationError

_PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)
"""Source: the Standard Webhooks specification, as is all of the signature."""


def new_secret() -> str:
    """A secret to sign with."""
    return _secret(secrets.token_bytes(32))


def secret_of(owner: str, secret: str) -> str:
    """What signs the webhooks of *owner*'s jobs. Keys of the settings are the operator's: theirs is the server's own
    *secret*. Every other owner has one that follows from it, and with which nobody else's webhook can be made."""
    if not is_stored(owner):
        return secret
    return _secret(hmac.digest(signing_key(secret), f"webhooks of {owner}".encode(), "sha256"))


def signing_key(secret: str) -> bytes:
    """The key in *secret*. Raises ConfigurationError, which does not show it."""
    with contextlib.suppress(binascii.Error, ValueError):
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        if secret.startswith(_PREFIX) and len(key) in _SECRET_BYTES:
            return key
    raise ConfigurationError(
        f"WEBHOOK_SECRET is not {_PREFIX} and 24 to 64 bytes in base64. "
        f"This makes one: echo {_PREFIX}$(openssl rand -base64 32)"
    )


def signed(key: bytes, delivery_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers by which the receiver knows who sends, and that nothing was changed."""
    digest = hmac.digest(key, f"{delivery_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode('ascii')}",
    }


def _secret(key: bytes) -> str:
    return _PREFIX + base64.b64encode(key).decode("ascii")
