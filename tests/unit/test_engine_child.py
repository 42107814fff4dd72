"""The engine's side of a call, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from telemetry import current_request_id
from transcription.engine_child import Models, answer


class ModelsThatNote:
    """Holds no model; notes on whose behalf one was asked for."""

    names = ("tiny.en",)

    def __init__(self) -> None:
        self.asked_for: list[str | None] = []

    def get(self, name: str, path: Path) -> None:
        self.asked_for.append(current_request_id())


@pytest.mark.parametrize(
    ("call", "bound"), [({"request_id": "a1b2c3d4"}, "a1b2c3d4"), ({"request_id": None}, None), ({}, None)]
)
def test_only_a_requests_work_bears_a_requests_id(call: dict[str, Any], bound: str | None) -> None:
    """Models are loaded at the start too: a made-up id on those lines would look like some caller's."""
    models = ModelsThatNote()
    answer({"op": "load", "model": "tiny.en", "path": "/nowhere", **call}, cast(Models, models))
    assert models.asked_for == [bound]
    assert current_request_id() is None
