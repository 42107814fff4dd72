"""Which segments are decoded next, together. Pure: no clock, no I/O; the scheduler does what it says.

Turns are taken in audio-seconds on two levels, among callers and among the requests of one caller, as deficit round
robin does: who has been served least comes next (docs/decisions/0004-turns.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from transcription.core import (
    NOBODY,
    Caller,
    Segment,
    SegmentRequest,
    Task,
    TranscriptionOptions,
    VoiceActivity,
)
from turns import Classes, Turns

LENGTH_CLASSES_S = (8.0, 13.0, 18.0)
"""Segments of like length share a batch: it is encoded over the window of its longest (`whisper.window_frames`)."""

CLIP_SEGMENTS = 2
"""A request of which no more segments are known is a clip, or a file at its beginning."""

MODEL_STAYS_BATCHES = 16
"""Where two models do not fit into an engine together, so many batches of the one that is there are decoded before the
other's turn makes them change places: loading takes as long as two or three batches."""

Kind = tuple[TranscriptionOptions, int, tuple[int, int] | None]
"""What the segments of one batch have in common."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A segment that waits for its batch. *attempts* counts the engines that died with it."""

    request: int
    segment: Segment
    options: TranscriptionOptions
    caller: Caller = NOBODY
    name: str | None = None
    """The request's id, as it stands in the logs."""
    attempts: int = 0
    detects: tuple[Segment, ...] = ()
    """Where not empty, no text is wanted: the language of these, of which *segment* is the first."""

    @property
    def asked(self) -> SegmentRequest:
        return SegmentRequest(self.segment, self.options)

    @property
    def kind(self) -> Kind:
        """Language and task may differ in a batch: each segment has a prompt of its own.

        A segment that a dying engine held is of a kind of its own: should it be the cause, no other dies with it. So is
        what detects a language: it is no transcription.
        """
        alone = self.attempts or self.detects
        options = replace(self.options, language=None, task=Task.TRANSCRIBE, vad=VoiceActivity.SILERO)
        return options, length_class(self.segment), (self.request, self.segment.index) if alone else None


def length_class(segment: Segment) -> int:
    return sum(segment.duration_s > limit for limit in LENGTH_CLASSES_S)


@dataclass(slots=True)
class _Line:
    """What one request waits for, by kind; each in the order of the recording."""

    caller: Caller
    by_kind: dict[Kind, deque[Pending]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.by_kind.values()))

    def oldest(self) -> Pending:
        return min((line[0] for line in self.by_kind.values()), key=lambda pending: pending.segment.index)

    def take(self, kind: Kind) -> Pending:
        pending = self.by_kind[kind].popleft()
        if not self.by_kind[kind]:
            del self.by_kind[kind]
        return pending


class BatchPlanner:
    """Holds what waits and fills each batch from all requests in turn.

    Invariant: what was added is given out once, or dropped because its request was cancelled. The head of a batch is
    the oldest segment of the request whose turn it is, but for MODEL_STAYS_BATCHES where its model must be loaded in
    another's place; so no request waits for ever, whatever the others ask for.
    """

    def __init__(
        self,
        batch_size: int,
        batch_s: float = float("inf"),
        smaller: Mapping[tuple[str, str], int] | None = None,
        together: Callable[[str, str, str], bool] = lambda device, one, other: True,
    ) -> None:
        """At most *batch_size* segments a batch, and no more than *batch_s* seconds of audio, but for a lone segment.

        On a CPU a batch takes as long as its audio, and a short clip that comes in waits for it to end. *smaller*:
        batch sizes by device and model, where the memory is known to be too small for *batch_size*. *together*: whether
        two models fit into the memory of an engine on that device at the same time.
        """
        self._batch_size = batch_size
        self._batch_s = batch_s
        self._smaller = dict(smaller or {})
        self._together = together
        self._models: dict[str, str] = {}
        """By device, the model that has it, with all that fit in beside it."""
        self._stayed: dict[str, int] = {}
        """By device, batches for which it stayed though another's turn had come."""
        self._lines: dict[int, _Line] = {}
        self._callers: Classes[Caller] = Classes()
        """Those with something waiting."""
        self._requests: dict[Caller, Turns[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __repr__(self) -> str:
        return f"<BatchPlanner { ({request: len(line) for request, line in self._lines.items()}) }>"

    def add(self, pending: Pending) -> None:
        self._line(pending).append(pending)

    def put_back(self, batch: Iterable[Pending]) -> None:
        """What was given out and not decoded comes first in its request's line again."""
        for pending in reversed(list(batch)):
            self._line(pending).appendleft(pending)

    def _line(self, pending: Pending) -> deque[Pending]:
        """Where *pending* belongs; its request and its caller wait from now on."""
        caller = pending.caller
        self._callers.join(caller.priority, caller)
        self._requests.setdefault(caller, Turns()).join(pending.request)
        return self._lines.setdefault(pending.request, _Line(caller)).by_kind.setdefault(pending.kind, deque())

    def limit(self, device: str, model: str, batch_size: int) -> None:
        """From now on no more than *batch_size* of *model*'s segments share a batch on *device*: more did not fit."""
        self._smaller[device, model] = min(batch_size, self._smaller.get((device, model), batch_size))

    def batch_size(self, device: str, model: str) -> int:
        """How many of *model*'s segments may share a batch on *device*."""
        return min(self._batch_size, self._smaller.get((device, model), self._batch_size))

    def cancel(self, request: int) -> None:
        """Forget what *request* waits for; what is being decoded already is not known here any more."""
        if line := self._lines.pop(request, None):
            self._leave(request, line.caller)

    def next_batch(self, device: str = "", *, clips_only: bool = False) -> list[Pending]:
        """Up to a batch of segments that may share one, for an engine on *device*; empty when none waits."""
        order = [request for request in self._order() if self._is_clip(request) or not clips_only]
        if not order:
            return []
        order = self._without_change(order, device)
        clip = self._is_clip(order[0])
        head = self._take(order[0], self._lines[order[0]].oldest().kind)
        self._callers.next_round()
        batch, room_s = [head], self._batch_s - head.segment.duration_s
        kind = head.kind
        size = self.batch_size(device, head.options.model)
        while len(batch) < size:
            # NOTE: asked anew for each segment: who was just served goes back in the order.
            request = next((one for one in self._order() if self._may_join(one, kind, clip)), None)
            if request is None or self._lines[request].by_kind[kind][0].segment.duration_s > room_s:
                break
            batch.append(self._take(request, kind))
            room_s -= batch[-1].segment.duration_s
        return batch

    def _without_change(self, order: list[int], device: str) -> list[int]:
        """Those of *order* whose model is there, for a while; then all of them, and the first one's model comes in."""
        models = {request: self._lines[request].oldest().options.model for request in order}
        first = models[order[0]]
        there = self._models.setdefault(device, first)
        if first == there or self._together(device, there, first):
            return order
        staying = [one for one in order if models[one] == there or self._together(device, there, models[one])]
        stayed = self._stayed.get(device, 0) + 1
        if staying and stayed < MODEL_STAYS_BATCHES:
            self._stayed[device] = stayed
            return staying
        self._models[device], self._stayed[device] = first, 0
        return order

    def _may_join(self, request: int, kind: Kind, clip: bool) -> bool:
        """Whether *request* has a segment of that kind, and is a clip itself where the batch's head is one.

        A clip's answer waits for the whole batch; a long file's does not, and has other batches to go into.
        """
        return kind in self._lines[request].by_kind and (self._is_clip(request) or not clip)

    def _is_clip(self, request: int) -> bool:
        line = self._lines[request]
        return line.oldest().segment.index + len(line) <= CLIP_SEGMENTS

    def _order(self) -> list[int]:
        """Requests with something waiting, whose turn it is first: by class, by caller, by request."""
        return [request for _, callers in self._callers for caller in callers for request in self._requests[caller]]

    def _take(self, request: int, kind: Kind) -> Pending:
        line = self._lines[request]
        pending = line.take(kind)
        seconds = pending.segment.duration_s
        self._callers.of(line.caller.priority).charge(line.caller, seconds)
        self._requests[line.caller].charge(request, seconds)
        if not line:
            del self._lines[request]
            self._leave(request, line.caller)
        return pending

    def _leave(self, request: int, caller: Caller) -> None:
        """*request* waits for nothing any more; nor, perhaps, does its caller."""
        requests = self._requests[caller]
        requests.leave(request)
        if not requests:
            del self._requests[caller]
            self._callers.leave(caller.priority, caller)
