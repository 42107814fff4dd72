"""The same parts as the server's without HTTP: does jobs, beside a server or on other machines.

    celery -A worker worker --pool threads --concurrency 1

One thread of Celery's is enough: it hears that there is work. Which job is next, and how many at once, the runner
decides, by the store's fair turns and the room that this machine's engines have.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import structlog
from celery import Celery, signals  # type: ignore[import-untyped]

import telemetry
from errors import ConfigurationError, JobNotFound, ServiceError, StoreUnavailable
from jobs.celery_queue import RUN, celery_app
from jobs.model import State

if TYPE_CHECKING:
    from api.services import Services

LOOK_S = 0.5
"""How often a job is looked at of which a message told."""
HOLD_S = 60.0
"""A message is held no longer while its job waits: RabbitMQ cuts off whoever holds one for half an hour."""

log = structlog.get_logger("worker")


class Worker:
    """A server's parts, on an event loop in a thread of its own. Other threads tell it of jobs, and end it."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[Services]]) -> None:
        self._make = make
        self._thread = threading.Thread(target=self._live, name="worker")
        self._ready = concurrent.futures.Future[None]()
        self._over = concurrent.futures.Future[None]()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Returns when all parts are there and jobs are looked for. Raises what making them raises."""
        self._thread.start()
        self._ready.result()

    def hear(self, job_id: str) -> None:
        """There is work: that job. Returns when it does not wait any more, here or elsewhere, or after HOLD_S.

        A worker without room thus keeps its message, and the next one goes to a worker that has some.
        """
        if self._stopping.is_set():
            return
        taken = asyncio.run_coroutine_threadsafe(self._taken(job_id), self._loop)
        # A loop that ends meanwhile never answers.
        concurrent.futures.wait([taken, self._over], return_when=concurrent.futures.FIRST_COMPLETED)
        if taken.done() and not taken.cancelled():
            taken.result()

    def stop(self) -> None:
        """Take no more work up; what runs has its grace, then it is given back. Returns at once."""
        if self._ready.done() and self._ready.exception() is None and not self._stopping.is_set():
            self._stopping.set()
            self._loop.call_soon_threadsafe(self._stopped.set)

    def join(self) -> None:
        """Returns when all parts are closed."""
        self.stop()
        self._thread.join()

    def _live(self) -> None:
        try:
            asyncio.run(self._parts_used())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
        finally:
            self._over.set_result(None)

    async def _parts_used(self) -> None:
        async with self._make() as parts:
            self._loop, self._stopped, self._desk = asyncio.get_running_loop(), asyncio.Event(), parts.desk
            self._ready.set_result(None)
            await self._stopped.wait()
            parts.admission.close()
            parts.desk.close()

    async def _taken(self, job_id: str) -> None:
        self._desk.tell(())
        for _ in range(round(HOLD_S / LOOK_S)):
            try:
                if (await asyncio.to_thread(self._desk.store.get, job_id)).state is not State.QUEUED:
                    return
            except JobNotFound:
                return
            except StoreUnavailable as error:
                log.warning("a message's job cannot be looked at", job=job_id, code=error.code)
            if self._stopping.is_set():
                return
            await asyncio.sleep(LOOK_S)


def serve(app: Celery, worker: Worker) -> None:
    """Have *worker* live and end with the worker of *app*, and hear its messages."""
    app.task(worker.hear, name=RUN)

    def start(**_: object) -> None:
        try:
            worker.start()
        except Exception as error:
            # NOTE: Celery would log what a signal's receiver raises, and go on without it.
            log.error("the worker cannot start", exc_info=error)
            sys.exit(error.message if isinstance(error, ServiceError) else "The worker cannot start; see its log.")

    signals.worker_init.connect(start, weak=False)
    # At the first SIGTERM: Celery stops listening, and waits until its thread has let go of its message.
    signals.worker_shutting_down.connect(lambda **_: worker.stop(), weak=False)
    signals.worker_shutdown.connect(lambda **_: worker.join(), weak=False)


def made_app() -> Celery:
    """The application of `celery -A worker`, by the settings. Exits with a sentence where they are wrong."""
    # Here, as they bring everything that a server is made of.
    from wiring import read_settings, secrets_of, wired, write_for_its_user_alone

    try:
        settings = read_settings()
        broker_url = settings.broker_url.get_secret_value()
        if not broker_url:
            raise ConfigurationError("BROKER_URL is not set: a worker hears of jobs through Redis or RabbitMQ.")
        app = celery_app(broker_url)
    except ConfigurationError as error:
        sys.exit(error.message)

    def log_here(**_: object) -> None:
        telemetry.configure(settings.log_level, hidden=secrets_of(settings), process="worker")

    # Celery leaves the logs alone where somebody listens here.
    signals.setup_logging.connect(log_here, weak=False)
    write_for_its_user_alone()
    serve(app, Worker(lambda: wired(settings, listens=False)))
    return app


def __getattr__(name: str) -> Any:
    """`worker.app`, made when Celery asks for it: importing this module makes nothing."""
    if name != "app":
        raise AttributeError(name)
    app = globals()["app"] = made_app()
    return app
