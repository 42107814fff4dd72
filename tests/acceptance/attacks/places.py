"""Where the links of the table lead, and how they are handed in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

import httpx
import psutil

from tests.acceptance.attacks.canary import Canary
from tests.acceptance.server import Server
from tests.media_server import MediaServer


@dataclass(frozen=True)
class Places:
    """What rows name: {canary} and {web} are host:port, the others ports."""

    canary: str
    web: str
    port: int
    web_port: int
    own_port: int
    proxy_port: int

    @classmethod
    def of(cls, server: Server, canary: Canary, web: MediaServer) -> Self:
        listening = psutil.Process(server.process.pid).net_connections("tcp")
        ports = {one.laddr.port for one in listening if one.status == psutil.CONN_LISTEN} - {server.port}
        assert len(ports) == 1, "the egress proxy alone listens beside the server"
        return cls(f"127.0.0.1:{canary.port}", web.authority, canary.port, web.port, server.port, ports.pop())

    def filled(self, text: str) -> str:
        for name, value in vars(self).items():
            text = text.replace("{" + name + "}", str(value))
        return text


def as_json(client: httpx.Client, path: str, fields: Any, **headers: str) -> httpx.Response:
    """Any text at all can be sent so, half a surrogate pair included."""
    return client.post(path, content=json.dumps(fields), headers={"Content-Type": "application/json"} | headers)
