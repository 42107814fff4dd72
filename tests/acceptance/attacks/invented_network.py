"""The real server in a network of a few names: no test may ask, or wait for, a real resolver or a host outside.

`python -m tests.acceptance.attacks.invented_network` is `python main.py` with another `socket.getaddrinfo`, and with no
way to the one public address that it knows.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from typing import Any

NOWHERE = "2000::1"
"""A public address that nobody has."""
INSIDE = "127.0.0.1"

ANSWERS = {
    "private.example.com": [[INSIDE]],
    "mapped.example.com": [["::ffff:127.0.0.1"]],
    "mixed.example.com": [[NOWHERE, INSIDE]],
    "changing.example.com": [[NOWHERE], [INSIDE]],
    "changing-hook.example.com": [[NOWHERE], [INSIDE]],
}
"""The addresses behind each name: the first look-up's, the second one's … and from the start again."""


def serve() -> None:
    look_up, connect = socket.getaddrinfo, asyncio.open_connection
    turns = {name: itertools.cycle(answers) for name, answers in ANSWERS.items()}

    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> list[Any]:
        found = next(turns[host]) if host in turns else [host]
        numeric = flags | socket.AI_NUMERICHOST
        return [entry for one in found for entry in look_up(one, port, family, type, proto, numeric)]

    async def open_connection(host: str, port: int, **options: Any) -> Any:
        if host == NOWHERE:
            raise OSError(errno.ENETUNREACH, "no way there")
        return await connect(host, port, **options)

    socket.getaddrinfo = getaddrinfo
    asyncio.open_connection = open_connection

    import main

    main.serve()


if __name__ == "__main__":
    serve()
