"""The server: `uvicorn main:app`, or `python main.py` with HOST and PORT from the settings."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

import telemetry
from access.kept import kept_key
from api.application import assemble
from api.bounded_connection import Terms, protocol_on
from api.bounded_socket import socket_on
from api.connection_bounds import ConnectionBounds
from api.live import LAST_WORD_S, MAX_MESSAGE_BYTES
from api.services import Services
from errors import ConfigurationError, ServiceError
from settings import Settings
from wiring import key_file, own_version, read_settings, secrets_of, wired, write_for_its_user_alone


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Reads nothing before its lifespan starts; without *settings* the lifespan reads them then."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chosen = settings or read_settings()
        bind = uvicorn_bind(sys.argv, os.environ)
        if bind is not None:
            # uvicorn's command line decides where it listens, whatever HOST says.
            chosen = chosen.model_copy(update={"host": bind[0], "port": bind[1]})
        chosen.check()
        telemetry.configure(chosen.log_level, hidden=secrets_of(chosen))
        async with wired(chosen) as app.state.services:
            if bind is not None:
                print(greeting(chosen, bind[1]), flush=True)
                _hear_stop(app.state.services)
            # What is there now stays: looking through all of it again and again would stall the event loop.
            gc.collect()
            gc.freeze()
            yield

    return assemble(lifespan, own_version())


def greeting(settings: Settings, port: int) -> str:
    """What a person needs to make the first call: the address, the key, and a line to paste."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if settings.api_keys:
        key, told = "<one of API_KEYS>", "one of API_KEYS"
    else:
        key = kept_key(key_file(settings))
        told = f"{key}  (made here, kept in {key_file(settings)}; it opens nothing from other machines)"
    sample = sample_recording()
    if sample is not None:
        call = f'curl -X POST "{address}/transcribe" -H "X-API-Key: {key}" -F "file=@{sample}"'
    else:
        call = f'curl "{address}/models" -H "X-API-Key: {key}"'
    return f"\nStenogate    {address}   (docs: {address}/docs)\nAPI key      {told}\nTry it:\n  {call}\n"


def sample_recording() -> Path | None:
    """A real recording that is on this machine anyway: pyannote's sample call, where the full set is installed."""
    # NOTE: finds the package without importing it; importing it would bring torch into the server.
    spec = importlib.util.find_spec("pyannote") and importlib.util.find_spec("pyannote.audio")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (sample := Path(folder) / "sample" / "sample.wav").is_file():
            return sample
    return None


def uvicorn_bind(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Where `uvicorn main:app …` will listen; None when uvicorn was not started from its own command line.

    The application is told its address only by the first request, too late to refuse the start.
    """
    program = Path(argv[0]) if argv else Path()
    if "uvicorn" not in (program.stem, program.parent.name):
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default=environ.get("UVICORN_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(environ.get("UVICORN_PORT", "8000")))
    parser.add_argument("--uds", default=environ.get("UVICORN_UDS"))
    parser.add_argument("--fd", default=environ.get("UVICORN_FD"))
    known, _ = parser.parse_known_args(argv[1:])
    # Not a network address of its own; what arrives is checked request by request.
    return None if known.uds or known.fd else (known.host, known.port)


def _hear_stop(services: Services) -> None:
    """Stop taking work at the signal itself: uvicorn waits for every open answer before it ends the lifespan, and a
    stream of a job's events is open until its job is over."""
    loop = asyncio.get_running_loop()

    def close() -> None:
        services.admission.close()
        services.desk.close()
        if services.live:
            services.live.close()

    for number in (signal.SIGINT, signal.SIGTERM):
        theirs = signal.getsignal(number)

        def stop(*told: Any, theirs: Any = theirs) -> None:
            loop.call_soon_threadsafe(close)
            if callable(theirs):
                theirs(*told)

        signal.signal(number, stop)


class _Server(uvicorn.Server):
    """uvicorn, greeting once it listens: only then is the port known where 0 was asked for."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(greeting(self._settings, self.servers[0].sockets[0].getsockname()[1]), flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What waits is sent home at once; what is at work has its grace."""
        if services := getattr(self._app.state, "services", None):
            services.admission.close()
            services.desk.close()
            if services.live:
                # uvicorn closes the others' connections without a word.
                services.live.close()
                await services.live.closed(LAST_WORD_S)
        await super().shutdown(sockets)


UNREAD_S = 120.0
"""A caller that takes nothing of its answer for so long is cut off. A player that was paused asks again."""


def terms_of(settings: Settings, app: FastAPI) -> Terms:
    """What callers' connections are held to."""

    def count(error: ServiceError) -> None:
        if services := getattr(app.state, "services", None):
            services.metrics.answered(error)

    bounds = ConnectionBounds(settings.max_connections, settings.max_connections_per_address, settings.trusted_proxies)
    return Terms(bounds, settings.head_timeout_s, UNREAD_S, count)


def serve() -> None:
    """`python main.py`."""
    try:
        settings = read_settings()
        settings.check()
    except ConfigurationError as error:
        sys.exit(error.message)
    telemetry.configure(settings.log_level, hidden=secrets_of(settings))
    write_for_its_user_alone()
    app = create_app(settings)
    terms = terms_of(settings, app)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol_on(terms),
        ws=socket_on(terms),
        ws_max_size=MAX_MESSAGE_BYTES,
        # Sound does not get smaller.
        ws_per_message_deflate=False,
        # An answer to a ping waits behind the sound before it, and who speaks faster than is heard is held back. Live
        # sessions end by their own clock.
        ws_ping_interval=None,
        lifespan="on",
        log_config=None,
        server_header=False,
        forwarded_allow_ips=list(settings.trusted_proxies),
        # Load balancers keep a connection for 60 s; who closes first must be they, or a request meets a closed one.
        timeout_keep_alive=65,
        # What is left then is cancelled, so that it can clean up.
        timeout_graceful_shutdown=round(settings.shutdown_grace_s),
        # Request line and headers; a prompt and a link in the query are a few KiB.
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _Server(config, app, settings)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        server.run()
    if not server.started:
        sys.exit(3)


def __getattr__(name: str) -> Any:
    """`main.app`, made when uvicorn asks for it: importing this module makes nothing."""
    if name != "app":
        raise AttributeError(name)
    telemetry.configure()
    app = globals()["app"] = create_app()
    return app


if __name__ == "__main__":
    serve()
