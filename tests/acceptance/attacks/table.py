"""What the rows of the table have in common: the server's keys and limits, and how its refusals look."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx

from tests.acceptance.server import Server

KEY = "attacked-key-0f7d1c55"
OTHER_KEY = "another-key-9b2e6a30"
"""Both of API_KEYS."""
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"only the receiver knows me, too!").decode()
MAX_UPLOAD_MB = 2
MAX_DURATION_S = 90


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    """A problem of just that *status* and *code*, which says nothing of the server's insides."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code), problem
    assert "Traceback" not in answer.text


def is_surprise(line: str) -> bool:
    """Whether a line of the log tells of a fault of ours. A link's server that is not there is none."""
    return "Traceback" in line and '"code": "DOWNLOAD_FAILED"' not in line


def uploads(server: Server) -> set[Path]:
    """Kept for jobs, until some time after these are over."""
    return set((server.data_dir / "uploads").iterdir())
