"""Real brokers for tests: a Redis or a RabbitMQ of one's own on a free port of the loopback, stopped by its own id."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import pytest

START_S = 60.0


def free_port() -> int:
    """One on which nobody listens: somebody might before it is used, which no test has met yet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Redis:
    """A redis-server that keeps what it holds in *folder*, and can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed.")
        self._program = program
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Returns when it answers."""
        options = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder)]
        options += ["--appendonly", "yes", "--appendfsync", "no", "--save", ""]
        with (self._folder / "redis.log").open("a") as log:
            self._process = subprocess.Popen([self._program, *options], stdout=log, stderr=log)
        _wait_for(self._process, lambda: answers(self.url))

    def stop(self) -> None:
        """Returns when it has ended."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    server = Redis(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def rabbitmq_server(folder: Path) -> Iterator[str]:
    """The URL of a RabbitMQ that lives while this does."""
    # Debian's program in the PATH would become another user; the one behind it runs as whoever runs the tests.
    program = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    if not program.is_file():
        pytest.skip("rabbitmq-server is not installed.")
    port = free_port()
    (folder / "plugins").write_text("[].")
    environment = os.environ | {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        # Erlang's own register of nodes stays when the last node has gone: ours is not the machine's.
        "ERL_EPMD_PORT": str(free_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with (folder / "rabbitmq.log").open("w") as log:
        process = subprocess.Popen([program], env=environment, cwd=folder, stdout=log, stderr=log)
    url = f"amqp://guest:guest@127.0.0.1:{port}//"
    try:
        _wait_for(process, lambda: answers(url))
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        subprocess.run(["epmd", "-kill"], env=environment, check=False, capture_output=True)


def answers(url: str) -> bool:
    """Whether there is a broker that lets us in."""
    try:
        with kombu.Connection(url, connect_timeout=2) as connection:
            connection.connect()
    except (OSError, *kombu.Connection(url).connection_errors):
        return False
    return True


def waiting_at(url: str, queue: str) -> int:
    """Messages in *queue*: those that nobody has taken."""
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        return int(channel.queue_declare(queue=queue, durable=True, auto_delete=False).message_count)


def _wait_for(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not happened():
        assert time.monotonic() < deadline, "the broker does not come up"
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the broker ended with {process.wait(0.05)}")
