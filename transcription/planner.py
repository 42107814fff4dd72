"""Which segments are decoded next, together. Pure: no clock, no I/O; the scheduler does what it says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from transcription.core import Segment, TranscriptionOptions

LENGTH_CLASSES_S = (9.0, 14.0, 19.0)
"""Segments of like length share a batch: it is encoded over the window of its longest (`whisper.window_frames`)."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A segment that waits for its batch. *attempts* counts the engines that died with it."""

    request: int
    segment: Segment
    options: TranscriptionOptions
    name: str | None = None
    """The request's id, as it stands in the logs."""
    attempts: int = 0

    def shares_batch_with(self, other: Pending) -> bool:
        """A segment that a dying engine held is tried alone: should it be the cause, no other segment dies with it."""
        return (
            self.options == other.options
            and self.attempts == other.attempts == 0
            and length_class(self.segment) == length_class(other.segment)
        )


def length_class(segment: Segment) -> int:
    return sum(segment.duration_s > limit for limit in LENGTH_CLASSES_S)


class BatchPlanner:
    """Holds what waits and fills each batch from all requests in turn.

    Invariant: what was added is given out once, or dropped because its request was cancelled. The head of a batch is
    the oldest segment of the request whose turn it is, so no request waits for more batches than there are requests.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._waiting: dict[int, deque[Pending]] = {}
        """By request, in the order of their turns; empty ones are left out."""

    def __len__(self) -> int:
        return sum(len(line) for line in self._waiting.values())

    def __repr__(self) -> str:
        return f"<BatchPlanner { ({request: len(line) for request, line in self._waiting.items()}) }>"

    def add(self, pending: Pending) -> None:
        self._waiting.setdefault(pending.request, deque()).append(pending)

    def put_back(self, batch: Iterable[Pending]) -> None:
        """Segments whose engine died come first in their requests' lines, one attempt older."""
        for pending in reversed(list(batch)):
            self._waiting.setdefault(pending.request, deque()).appendleft(
                replace(pending, attempts=pending.attempts + 1)
            )

    def cancel(self, request: int) -> None:
        """Forget what *request* waits for; what is being decoded already is not known here any more."""
        self._waiting.pop(request, None)

    def next_batch(self) -> list[Pending]:
        """Up to *batch_size* segments that may share a batch; empty when nothing waits."""
        batch: list[Pending] = []
        for request in list(self._waiting):
            batch += self._take(request, batch, 1)
        for request in list(self._waiting):
            batch += self._take(request, batch, self._batch_size)
        return batch

    def _take(self, request: int, batch: list[Pending], most: int) -> list[Pending]:
        """Take the first segments of *request* that may share *batch*; it goes to the end of the turns if any was."""
        line, room = self._waiting[request], min(most, self._batch_size - len(batch))
        taken: list[Pending] = []
        passed_over: list[Pending] = []
        while line and len(taken) < room and not (taken and taken[0].attempts):
            pending = line.popleft()
            head = (batch or taken or [pending])[0]
            fits = pending is head or pending.shares_batch_with(head)
            (taken if fits else passed_over).append(pending)
        line.extendleft(reversed(passed_over))
        if taken:
            del self._waiting[request]
            if line:
                self._waiting[request] = line
        return taken
