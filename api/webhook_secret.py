"""GET /webhook-secret: with what the webhooks of the key's jobs are signed."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from api.problems import responses
from api.security import key_name, require_key
from api.services import services
from errors import NotReady, Unauthorized

router = APIRouter(tags=["jobs"], dependencies=[Depends(require_key)])


class WebhookSecret(BaseModel):
    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], description="As Standard Webhooks has it.")


@router.get("/webhook-secret", summary="What signs this key's webhooks", responses=responses(Unauthorized, NotReady))
async def webhook_secret(request: Request) -> WebhookSecret:
    """Receivers verify with it. Keys of one name share it; whoever has another name has another one."""
    return WebhookSecret(secret=services(request).webhooks.secret_of(key_name(request)))
