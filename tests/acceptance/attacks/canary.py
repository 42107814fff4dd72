"""A listener that nothing may ever reach: it stands for all that lies behind the server."""

from __future__ import annotations

import contextlib
import socket


class Canary:
    """Listens on loopback, on one port for both families where the machine has both. Answers nobody."""

    def __init__(self) -> None:
        self._listeners = [socket.create_server(("127.0.0.1", 0))]
        self.port = int(self._listeners[0].getsockname()[1])
        if socket.has_ipv6:
            with contextlib.suppress(OSError):  # no such address here, or the port is another's
                self._listeners.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))

    def heard(self) -> list[bytes]:
        """What each connection since the last call has brought. None is missed: the kernel keeps them in line."""
        return [brought for listener in self._listeners for brought in _taken(listener)]

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


def _taken(listener: socket.socket) -> list[bytes]:
    listener.setblocking(False)
    brought = []
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return brought
        with connection:
            connection.setblocking(False)
            try:
                brought.append(connection.recv(65536))
            except OSError:
                brought.append(b"")
