"""Tells workers on other machines that there is work, through a Celery broker: Redis or RabbitMQ.

A message carries a job's id and nothing else. The truth is the job's row and its lease: a message may come twice, late
or never. Needs the extra `fleet`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import structlog
from celery import Celery  # type: ignore[import-untyped]

from errors import ConfigurationError
from jobs.model import Job

QUEUE = "stenogate"
RUN = "jobs.run"
"""The one task: its argument is a job's id."""

REDIS = frozenset({"redis", "rediss", "sentinel"})
RABBITMQ = frozenset({"amqp", "amqps", "pyamqp"})

VISIBILITY_S = 24 * 3600
"""Redis gives a message to somebody else when nobody has acknowledged it for so long: longer than any job."""
ANSWER_S = 5.0
"""A broker that does not answer for so long is away: messages are lost then, and sent again by the reaper."""
MOST_WAITING = 1_000
"""Messages that wait at the broker: one more tells nobody anything new, and the reaper sends one a job each minute."""
MOST_UNSENT = 10_000
"""Ids that wait in this process for the broker; each takes some 100 bytes."""

log = structlog.get_logger(__name__)


def celery_app(broker_url: str, queue_name: str = QUEUE) -> Celery:
    """The application of those who send messages and of those who take them. Connects to nothing yet.

    Raises ConfigurationError for a broker of another kind.
    """
    scheme = urlsplit(broker_url).scheme
    if scheme in REDIS:
        transport: dict[str, Any] = {"visibility_timeout": VISIBILITY_S, "socket_keepalive": True}
        transport["socket_connect_timeout"] = ANSWER_S
    elif scheme in RABBITMQ:
        # The broker says of each message that it has it.
        transport = {"confirm_publish": True}
    else:
        raise ConfigurationError("BROKER_URL must begin with redis://, rediss://, amqp:// or amqps://.")
    app = Celery("stenogate", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_default_queue=queue_name,
        task_serializer="json",
        accept_content=["json"],
        # What a job has come to stands in its row.
        result_backend=None,
        task_ignore_result=True,
        # A worker that dies before it has looked at a message leaves it to the others, and hoards none.
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_transport_options=transport,
        broker_connection_timeout=ANSWER_S,
        # A worker polls the store as well: it need not end because the broker is away, however long.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_publish_retry=False,
        worker_redirect_stdouts=False,
    )
    return app


class Publisher:
    """Sends messages from a thread of its own. A context manager; what is left at its end is sent, as far as it goes.

    `publish` neither waits nor raises: what the broker does not take is lost, and the reaper sends it again.
    """

    def __init__(self, app: Celery, *, most_unsent: int = MOST_UNSENT) -> None:
        self._app = app
        self._unsent: queue.Queue[str | None] = queue.Queue(most_unsent)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="publisher", daemon=True)
        self._away = False
        self.sent = 0
        """Messages that the broker has taken."""
        self.lost = 0
        """Messages that it has not: it was away, or had enough of them."""

    def __repr__(self) -> str:
        return f"<Publisher unsent={self._unsent.qsize()} sent={self.sent} lost={self.lost}>"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        try:
            self._unsent.put_nowait(None)
        except queue.Full:
            log.debug("the publisher is behind; it sees that it is to end after this burst")
        self._thread.join(2 * ANSWER_S)

    def publish(self, jobs: Sequence[Job]) -> None:
        """Tell workers of *jobs*, soon."""
        for job in jobs:
            try:
                self._unsent.put_nowait(job.id)
            except queue.Full:
                self.lost += 1

    def _send_all(self) -> None:
        while not (self._ending.is_set() and self._unsent.empty()):
            burst = [self._unsent.get()]
            while not self._unsent.empty():
                burst.append(self._unsent.get_nowait())
            ids = [job_id for job_id in burst if job_id is not None]
            if ids:
                self._send(ids)

    def _send(self, ids: Sequence[str]) -> None:
        before = self.sent
        try:
            self._send_over_new_connection(ids)
        except Exception as error:
            # NOTE: whatever a broker's client raises, the next burst may be taken, and the jobs themselves are safe.
            if not self._away:
                log.warning("the broker is away; workers find jobs by themselves", error=type(error).__name__)
            self._away = True
        else:
            if self._away:
                log.info("the broker is back")
            self._away = False
        self.lost += len(ids) - (self.sent - before)

    def _send_over_new_connection(self, ids: Sequence[str]) -> None:
        """One burst. A connection that was kept might have been dropped by the other side in the meantime."""
        with self._app.connection_for_write(transport_options=self._patience()) as connection:
            # NOTE: `default_channel` would try to connect for ever.
            connection.connect()
            channel = connection.channel()
            line = self._app.amqp.queues[self._app.conf.task_default_queue](channel)
            line.declare()
            waiting = line.queue_declare().message_count
            producer = self._app.amqp.Producer(channel, auto_declare=False)
            for job_id in ids[: max(0, MOST_WAITING - waiting)]:
                self._app.send_task(RUN, (job_id,), producer=producer, retry=False, ignore_result=True)
                self.sent += 1

    def _patience(self) -> dict[str, Any]:
        options = dict(self._app.conf.broker_transport_options)
        if "visibility_timeout" in options:
            # Not for workers: theirs wait for messages as long as none comes.
            return options | {"socket_timeout": ANSWER_S}
        return options | {"read_timeout": ANSWER_S, "write_timeout": ANSWER_S}
