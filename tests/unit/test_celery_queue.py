"""Messages: what is in them, and that nobody waits for a broker that does not take them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.transport.memory import Channel

from errors import ConfigurationError
from jobs import celery_queue
from jobs.celery_queue import QUEUE, RUN, Publisher, celery_app
from jobs.model import Job
from jobs.tables import metadata
from tests.databases import Place, sqlite_in


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(sqlite_in(tmp_path))
    with place.database.writing() as connection:
        metadata.create_all(connection)
    yield place
    place.database.close()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """With kombu's broker in this process's memory, emptied for each test."""
    monkeypatch.setattr(celery_queue, "REDIS", frozenset({"memory"}))
    Channel.queues.clear()
    yield celery_app("memory://")
    Channel.queues.clear()


def messages(app: Any) -> list[dict[str, Any]]:
    """What lies at the broker, oldest first."""
    found = []
    with app.connection_for_read() as connection:
        line = connection.SimpleQueue(app.amqp.queues[QUEUE])
        while True:
            try:
                message = line.get_nowait()
            except line.Empty:
                return found
            found.append({"task": message.headers["task"], "body": message.payload, "headers": message.headers})
            message.ack()


def test_a_message_carries_a_jobs_id_and_nothing_else(app: Any, place: Place) -> None:
    """Whatever else it said would be old by the time that somebody reads it."""
    job = place.submit(key="secret-name", source={"file": "private.wav"})
    with Publisher(app) as publisher:
        publisher.publish([job])
    (message,) = messages(app)
    arguments, options, _ = message["body"]
    assert (message["task"], arguments, options) == (RUN, [job.id], {})
    assert "private" not in str(message)
    assert message["headers"]["eta"] is None


def test_all_that_was_published_is_sent_before_the_end(app: Any, place: Place) -> None:
    jobs = [place.submit() for _ in range(5)]
    with Publisher(app) as publisher:
        publisher.publish(jobs[:2])
        publisher.publish(jobs[2:])
    assert [message["body"][0][0] for message in messages(app)] == [job.id for job in jobs]
    assert (publisher.sent, publisher.lost) == (5, 0)


def test_a_broker_that_has_enough_is_told_nothing_more(app: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reaper tells it again of each waiting job, every minute: a backlog of a night would fill its memory."""
    monkeypatch.setattr(celery_queue, "MOST_WAITING", 3)
    jobs = [place.submit() for _ in range(5)]
    with Publisher(app) as publisher:
        publisher.publish(jobs)
    with Publisher(app) as another:
        another.publish(jobs)
    assert len(messages(app)) == 3
    assert (publisher.lost, another.lost) == (2, 5)


class Stuck(Publisher):
    """Its broker takes a connection and then says nothing."""

    def __init__(self, app: Any, most_unsent: int) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        super().__init__(app, most_unsent=most_unsent)

    def _send_over_new_connection(self, ids: Any) -> None:
        self.reached.set()
        self.release.wait()
        raise OSError


def test_publishing_neither_waits_for_a_stuck_broker_nor_remembers_without_end(app: Any, place: Place) -> None:
    """It is called on the event loop, by whoever hands in a job."""
    job = place.submit()
    publisher = Stuck(app, most_unsent=2)
    with publisher:
        publisher.publish([job])
        publisher.reached.wait()
        publisher.publish([job] * 5)
        assert publisher.lost == 3
        publisher.release.set()
    assert (publisher.sent, publisher.lost) == (0, 6)


class Told(Publisher):
    """Tells of each burst that it has done with."""

    def __init__(self, app: Any) -> None:
        self.bursts = queue.SimpleQueue[int]()
        super().__init__(app)

    def _send(self, ids: Any) -> None:
        super()._send(ids)
        self.bursts.put(len(ids))


def test_a_broker_that_fails_once_is_tried_again(app: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that sends must outlive whatever a client library raises."""
    real, failures = Channel._put, [ConnectionResetError()]

    def put(self: Any, *args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Channel, "_put", put)
    first, second = place.submit(), place.submit()
    with Told(app) as publisher:
        for job in (first, second):
            publisher.publish([job])
            publisher.bursts.get()
    assert (publisher.sent, publisher.lost) == (1, 1)
    assert [message["body"][0][0] for message in messages(app)] == [second.id]


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h", "sentinel://h", "amqp://h//", "amqps://h//"])
def test_workers_hold_one_message_and_own_to_it_when_the_job_is_taken(url: str) -> None:
    """A worker that hoards messages keeps others idle; one that owns to them at once loses them when it dies."""
    conf = celery_app(url).conf
    assert conf.task_acks_late
    assert conf.worker_prefetch_multiplier == 1
    assert conf.result_backend is None
    assert conf.broker_connection_max_retries is None
    assert (conf.task_serializer, conf.accept_content) == ("json", ["json"])


def test_redis_keeps_a_message_from_others_for_longer_than_any_job_lasts() -> None:
    assert celery_app("redis://h").conf.broker_transport_options["visibility_timeout"] >= 24 * 3600


def test_rabbitmq_says_that_it_has_a_message() -> None:
    assert celery_app("amqp://h").conf.broker_transport_options == {"confirm_publish": True}


@pytest.mark.parametrize("url", ["", "localhost:6379", "sqs://", "memory://", "http://h"])
def test_other_brokers_are_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(ConfigurationError, match="BROKER_URL must begin with"):
        celery_app(url)


def test_the_password_of_a_broker_is_not_shown() -> None:
    assert "hunter2" not in repr(Publisher(celery_app("redis://:hunter2@h/0")))


def test_nothing_is_published_of_nothing(app: Any) -> None:
    empty: list[Job] = []
    with Publisher(app) as publisher:
        publisher.publish(empty)
    assert messages(app) == []
