"""Logs and the ids that tie their lines to a request. Used by the server and by the engine's process: no HTTP here."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINK = re.compile(r"://(?:[^\s/?#@'\"]*@)?(?P<place>[^\s?#'\"]*)(?P<query>\?[^\s'\"]*)?")
"""From after a scheme, which may be anything: looking for where it begins would take the square of a line's length."""
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_SECRET_NAMES = frozenset(
    {"api_key", "api_keys", "authorization", "cookie", "hf_token", "password", "proxy", "token", "x-api-key"}
)
_HIDDEN = "[hidden]"


def request_id(proposed: str | None) -> str:
    """The id of one request: the caller's own where it is sane, else 8 hex characters."""
    if proposed is not None and _SANE_ID.fullmatch(proposed):
        return proposed
    return secrets.token_hex(4)


@contextlib.contextmanager
def request_bound(name: str) -> Iterator[None]:
    """Put *name* on every line logged inside, tasks started there included."""
    with structlog.contextvars.bound_contextvars(request_id=name):
        yield


def current_request_id() -> str | None:
    """The id of the request that is being served, to be handed to another process."""
    return cast(str | None, structlog.contextvars.get_contextvars().get("request_id"))


def configure(
    level: str = "info", stream: TextIO | None = None, hidden: Iterable[str] = (), process: str = "server"
) -> None:
    """Send every log of this process through one pipeline: structlog's own and the standard library's.

    *process* tells this process's lines from another's in the same stream. *hidden* are strings that must never be
    logged (keys, tokens), wherever they stand. JSON lines, or coloured text where *stream* (default: stderr) is a
    terminal. May be called again: the last call counts.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()

    def name_the_process(_: object, __: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    shared: list[Processor] = [
        name_the_process,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
    ]
    # NOTE: the plain formatter; structlog's default shows the local variables of each frame, keys among them.
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            Redaction(hidden),
            name_the_request,
            *last,
        ],
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Loggers are made at import; caching them would freeze the pipeline before this function has run.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    _adopt_loggers()


def _adopt_loggers() -> None:
    """Take the loggers that libraries have set up for themselves into the one pipeline."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    errors = logging.getLogger("uvicorn.error")
    if shows_no_websocket not in errors.filters:
        errors.addFilter(shows_no_websocket)
    # uvicorn's access lines show query strings; the middleware writes its own. Without a handler uvicorn writes none.
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    for name in ("httpx", "httpcore", "huggingface_hub", "urllib3", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def shows_no_websocket(record: logging.LogRecord) -> bool:
    """Whether *record*, of uvicorn's errors, shows neither a WebSocket's query string nor, for debugging, its headers
    and messages, where keys and what was said stand."""
    return record.levelno > logging.DEBUG and not str(record.msg).startswith('%s - "WebSocket ')


def name_the_request(_: object, __: str, event: EventDict) -> EventDict:
    """Lead the line with `[Request a1b2c3d4] ` while a request is bound: what people search for in a terminal."""
    if name := event.get("request_id"):
        event["event"] = f"[Request {name}] {event.get('event', '')}"
    return event


class Redaction:
    """Takes secrets out of a line: known values, fields of telling names, and what links carry besides the place."""

    def __init__(self, hidden: Iterable[str] = ()) -> None:
        # Short strings would blank out innocent words.
        self._hidden = tuple(sorted((value for value in hidden if len(value) >= 6), key=len, reverse=True))

    def __call__(self, _: object, __: str, event: EventDict) -> EventDict:
        for name, value in event.items():
            if name.lower() in _SECRET_NAMES:
                event[name] = _HIDDEN
            else:
                event[name] = self._clean(value)
        # One line stays one line: a newline in a file's name must not look like a line of its own.
        event["event"] = str(event.get("event", "")).translate(_CONTROL)
        return event

    def _clean(self, value: object) -> object:
        if isinstance(value, str):
            for secret in self._hidden:
                value = value.replace(secret, _HIDDEN)
            return _LINK.sub(_place_only, value) if "://" in value else value
        if isinstance(value, dict):
            return {k: _HIDDEN if str(k).lower() in _SECRET_NAMES else self._clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(part) for part in value]
        return value if isinstance(value, int | float | bool | None) else self._clean(str(value))


def _place_only(link: re.Match[str]) -> str:
    return "://" + link["place"] + ("?…" if link["query"] else "")
