"""The page at /docs: Swagger UI, served from this machine alone, and the document that it shows."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from api.security import guard_docs
from errors import NotFound

_PACKAGE = distribution("fastapi-swagger")
"""Only its files are used. Looked up, not imported: its code would put the page elsewhere, and without a policy."""

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}

_PARAMETERS = {
    # Swagger UI shows the description of what it sends to this validator, on a machine of its makers.
    "validatorUrl": None,
    "tryItOutEnabled": True,
    "displayRequestDuration": True,
    "defaultModelsExpandDepth": 0,
    "showExtensions": False,
}

_STYLE = "<style>.swagger-ui label.parameter__empty_value_toggle { display: none }</style>"
"""A switch at every field of a form; here it changes nothing, an empty field counts as not given."""


OPENAPI_URL = "/openapi.json"


def router(title: str, document: Callable[[], dict[str, Any]]) -> APIRouter:
    """/docs and what it is made of, the OpenAPI *document* among it."""
    page, policy = _page(title, OPENAPI_URL)
    room = APIRouter(include_in_schema=False, dependencies=[Depends(guard_docs)])

    @room.get(OPENAPI_URL)
    async def describe() -> JSONResponse:
        return JSONResponse(document())

    @room.get("/docs")
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    @room.get("/docs/{name}")
    async def asset(name: str) -> FileResponse:
        if name not in _ASSETS:
            raise NotFound
        # The address holds the version: what a browser has kept is never out of date.
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return FileResponse(_path(name), media_type=_ASSETS[name], headers=headers)

    return room


def _path(name: str) -> Path:
    return Path(str(_PACKAGE.locate_file(f"fastapi_swagger/resources/{name}")))


def _page(title: str, openapi_url: str) -> tuple[str, str]:
    """The page, and the policy under which a browser may show it.

    The addresses in it are relative, so that it also works where a proxy puts the server under a prefix.
    """
    script, style, icon = (f"docs/{name}?v={_PACKAGE.version}" for name in _ASSETS)
    response = get_swagger_ui_html(
        openapi_url=openapi_url.lstrip("/"),
        title=title,
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
        swagger_ui_parameters=_PARAMETERS,
    )
    page = bytes(response.body).decode().replace("</head>", f"{_STYLE}</head>")
    return page, _policy(page.rpartition("<script>")[2].partition("</script>")[0])


def _policy(inline_script: str) -> str:
    """Nothing but this server's own, and of scripts in the page itself only *inline_script*."""
    digest = b64encode(hashlib.sha256(inline_script.encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'sha256-{digest}'",
            # Style attributes are all over Swagger UI; its pictures lie in its style sheet.
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "connect-src 'self'",
            # Sound that was fetched with "Execute" is played from memory.
            "media-src blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
