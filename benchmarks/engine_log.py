"""What the server and its engines log, and what it tells of their work."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cores import available_cores

_OF_A_REQUEST = re.compile(r"^\[Request [^]]*\] ")


def events_in(log: str, name: str) -> list[dict[str, Any]]:
    """The JSON lines of a log whose event is *name*, whatever requests they are of. Other lines are passed over."""
    found = []
    for line in log.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and _OF_A_REQUEST.sub("", str(event.get("event"))) == name:
            found.append(event)
    return found


@dataclass(frozen=True, slots=True)
class Busy:
    """What the engines did during one run."""

    batches: int
    streams: int
    """Batches that can run at the same time: the streams of all engines, or the cores where those are fewer."""
    busy_s: float | None
    """Seconds that streams spent decoding, added up; None where the server does not log them."""
    wall_s: float

    @property
    def share(self) -> float | None:
        return None if self.busy_s is None else self.busy_s / (self.streams * self.wall_s)


def busy(batches: Sequence[Mapping[str, Any]], engines: int, wall_s: float, cores: int = 0) -> Busy:
    """Out of the "batch decoded" lines of one run. Every engine has as many streams as were seen in any.

    *cores*: 0, those that this process may use.
    """
    streams = min(engines * max(len({batch.get("stream") for batch in batches}), 1), cores or available_cores())
    told = bool(batches) and all("busy_s" in batch for batch in batches)
    return Busy(len(batches), streams, sum(batch["busy_s"] for batch in batches) if told else None, wall_s)
