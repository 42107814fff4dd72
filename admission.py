"""The gate before all work: who may come in, who waits for how long, who is refused, and what each holds of the memory.

`AdmissionController.reserve` is the door, passed before a body is read; `Reservation.granted` is the waiting line, left
when it is this request's turn and its memory is free. Everything a request holds goes back when its `with` block ends.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self

import structlog

from errors import DeadlineTooNear, KeyBusy, QueueFull, QueueTimeout, QuotaUsed, ServiceError, ShuttingDown
from limits import MemorySemaphore
from throughput import Throughput
from waiting import Line

log = structlog.get_logger(__name__)

MOST_RETRY_AFTER_S = 120
UNKNOWN_WAIT_S = 5.0
"""Told to whom is refused before any speed was measured."""

KEPT_SHARE = 4
"""One in so many slots, one at least where there are two, is kept for short recordings: a clip finds a place though all
others hold podcasts."""

PLACES_FOR_FREE_PLACE = 2
"""Where several keys share the line, one may hold so many places for each that is free. However much it sends, a third
of the line stays open to others. Source: dynamic queue thresholds (Choudhury and Hahne 1998)."""

DAY_S = 86_400


class Work(StrEnum):
    """What is admitted; each kind has slots and a line of its own, and all share the memory."""

    TRANSCRIPTION = "transcription"
    DOWNLOAD = "download"
    EXTRACTION = "extraction"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an operator sets. 0 means no bound, but for slots and *max_waiting*."""

    slots: Mapping[Work, int]
    """Pieces of work at once."""
    max_waiting: int = 100
    """Requests in each line. 0: what cannot start at once is refused."""
    max_wait_s: float = 0
    """Expected wait past which a newcomer is refused."""
    timeout_s: float = 0
    """Longest time in the line."""
    max_per_key: int = 0
    """Requests of one key, waiting or at work."""
    max_audio_s_a_day: float = 0
    """Audio that one key may have in a day (UTC)."""
    several_keys: bool = False
    """Whether keys share the line: none may fill it then."""


class Reservation:
    """One request's place: at the door, in the line, then at work. Use as a context manager.

    Invariant: what it holds (its place, its slot, its bytes) goes back exactly once: when it is not let in, or when the
    context ends.
    """

    def __init__(
        self,
        controller: AdmissionController,
        work: Work,
        key: str,
        priority: int,
        *,
        deadline: float | None,
        no_wait: bool,
        counted: bool,
    ) -> None:
        self.work = work
        self.key = key
        self.priority = priority
        self.deadline = deadline
        """By the controller's clock; None: it may take as long as it takes."""
        self.no_wait = no_wait
        self.counted = counted
        """Whether it counts among its key's requests; not, where it is a part of one."""
        self.amount = 0.0
        """Of work: seconds of audio, or 1 for a download or an extraction."""
        self.done = 0.0
        self.short = False
        self.wait_s = 0.0
        self.peak_bytes = 0
        """The most that the service held while this was at work."""
        self.turn: asyncio.Future[None] | None = None
        self.patience: asyncio.Timeout | None = None
        """How long it may wait yet, while it waits."""
        self.line_entered: float | None = None
        self._bytes: dict[str, int] = {}
        self._over = False
        self._controller = controller

    def __repr__(self) -> str:
        return f"<Reservation {self.work} amount={self.amount:g} holds={self._bytes}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self._over:
            self.advance(self.amount)
        self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        try:
            self._controller.leave(self)
        finally:
            self.give_back()

    @property
    def remaining(self) -> float:
        """Of the work, what is still to be done."""
        return max(0.0, self.amount - self.done)

    async def granted(self, costs: Mapping[str, int], *, amount: float = 1.0, short: bool = False) -> None:
        """Wait for a turn and for *costs*, bytes by device. *short*: it may have one of the slots kept for clips.

        Raises TooLarge, QueueFull, QueueTimeout, DeadlineTooNear, QuotaUsed, ShuttingDown.
        """
        self.amount, self.short = amount, short
        try:
            await self._controller.wait_for_turn(self, costs)
        except BaseException:
            # Now, not when the context ends: its caller may have a folder to remove before that.
            self._end()
            raise

    async def take(self, device: str, amount_bytes: int) -> None:
        await self._controller.memory[device].acquire(amount_bytes)
        self._bytes[device] = self._bytes.get(device, 0) + amount_bytes

    def give_back(self, device: str | None = None, amount_bytes: int | None = None) -> None:
        """Return some of the bytes early, such as a child's that has ended; without arguments, all of them."""
        for name in [device] if device else list(self._bytes):
            held = self._bytes.pop(name, 0)
            returned = held if amount_bytes is None else min(held, amount_bytes)
            if held > returned:
                self._bytes[name] = held - returned
            self._controller.memory[name].release(returned)

    def advance(self, done: float) -> None:
        """So much of the work is done: seconds of the recording heard."""
        self._controller.count(self, min(done, self.amount) - self.done)
        self.done = max(self.done, min(done, self.amount))


@dataclass(slots=True)
class Lane:
    """One kind of work: its slots and its line."""

    slots: int
    kept: int
    """Of these, for short recordings alone."""
    speed: Throughput
    line: Line[Reservation] = field(default_factory=Line)
    arriving: int = 0
    """Past the door, their bodies being read."""
    places: dict[str, int] = field(default_factory=dict)
    """At the door and in the line, by key."""
    active: dict[Reservation, None] = field(default_factory=dict)
    called: Reservation | None = None
    """Whose turn it is: it has a slot and waits for its memory; nobody else is called before it has that."""

    @property
    def free(self) -> int:
        return self.slots - len(self.active)

    @property
    def free_for_long(self) -> int:
        """Slots that a long recording may have. NOTE: not those that are free beyond the kept ones, which clips could
        hold without end."""
        long = sum(not reservation.short for reservation in self.active)
        return min(self.free, self.slots - self.kept - long)

    @property
    def waiting(self) -> int:
        return len(self.line) + (self.called is not None)


@dataclass(slots=True)
class _Key:
    """What one key has of the service."""

    reservations: int = 0
    requests: int = 0
    """Of these, those that count."""
    day: int = 0
    audio_s: float = 0.0
    """Granted on that day."""


class AdmissionController:
    """One gate for all work. Lives on one event loop; decides at once, and costs little however many wait."""

    def __init__(
        self,
        memory: Mapping[str, MemorySemaphore],
        bounds: Bounds,
        *,
        on_granted: Callable[[Work, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """*memory*: what work may hold of each device. *on_granted* is told what was let in, after how many seconds."""
        self.memory = memory
        self.bounds = bounds
        self._on_granted = on_granted
        self._clock = clock
        self._wall_clock = wall_clock
        self.lanes = {
            work: Lane(slots, kept_slots(slots) if work is Work.TRANSCRIPTION else 0, Throughput(clock))
            for work, slots in bounds.slots.items()
        }
        self._keys: dict[str, _Key] = {}
        self._closed = False
        self._told_pressed = False

    def __repr__(self) -> str:
        lanes = {str(work): f"{len(lane.active)}/{lane.slots}+{lane.waiting}" for work, lane in self.lanes.items()}
        return f"<AdmissionController {lanes}>"

    # --- the door --------------------------------------------------------------------------------------------------

    def reserve(
        self,
        work: Work,
        key: str = "",
        priority: int = 0,
        *,
        timeout_s: float | None = None,
        no_wait: bool = False,
        counted: bool = True,
    ) -> Reservation:
        """A place for one request, before its body is read; use it as a context manager.

        Raises ShuttingDown, KeyBusy, QuotaUsed, QueueFull, DeadlineTooNear: whoever is refused has cost nothing.
        """
        if self._closed:
            raise ShuttingDown
        no_wait = no_wait or not self.bounds.max_waiting
        lane, own = self.lanes[work], self._keys.setdefault(key, _Key())
        try:
            if counted:
                self._check_in_flight(own)
            if work is Work.TRANSCRIPTION:
                self._check_quota(key, 0.0)
            expected_s = self.expected_wait_s(work, key, priority)
            room = self._free_slots(lane) + self.bounds.max_waiting - lane.arriving - len(lane.line)
            full = no_wait or self._line_is_full(room, lane.places.get(key, 0), expected_s)
            if full and not self._could_start(lane):
                raise QueueFull(retry_after_s=retry_after_s(expected_s))
            if timeout_s is not None and (expected_s or 0.0) >= timeout_s:
                raise DeadlineTooNear(retry_after_s=retry_after_s(expected_s))
        except ServiceError:
            self._forget_if_idle(key)
            raise
        deadline = None if timeout_s is None else self._clock() + timeout_s
        made = Reservation(self, work, key, priority, deadline=deadline, no_wait=no_wait, counted=counted)
        lane.arriving += 1
        lane.places[key] = lane.places.get(key, 0) + 1
        own.reservations += 1
        own.requests += counted
        return made

    def _could_start(self, lane: Lane) -> bool:
        """Whether a newcomer, were it a clip, finds a slot. Its length is not known at the door.

        NOTE: slots that are free while nobody is being called are for clips, and those in the line are none.
        """
        return self._free_slots(lane) > lane.arriving + (len(lane.line) if lane.called else 0)

    def _line_is_full(self, room: int, own_places: int, expected_s: float | None) -> bool:
        """By count, of one key's share, or by time."""
        crowded = self.bounds.several_keys and own_places >= PLACES_FOR_FREE_PLACE * room
        return room <= 0 or crowded or 0 < self.bounds.max_wait_s < (expected_s or 0.0)

    def _free_slots(self, lane: Lane) -> int:
        """Slots that a newcomer could have at once: none while work waits for memory."""
        return 0 if any(memory.waiting for memory in self.memory.values()) else lane.free

    def _check_in_flight(self, own: _Key) -> None:
        if 0 < self.bounds.max_per_key <= own.requests:
            lane = self.lanes[Work.TRANSCRIPTION]
            one_s = lane.speed.seconds_for(sum(held.remaining for held in lane.active) / max(1, len(lane.active)))
            raise KeyBusy(retry_after_s=retry_after_s(one_s))

    def _check_quota(self, key: str, more_s: float) -> None:
        left_s = self.audio_left_s(key)
        if left_s is not None and (left_s <= 0 or more_s > left_s):
            raise QuotaUsed(retry_after_s=MOST_RETRY_AFTER_S)

    def _used_today_s(self, own: _Key) -> float:
        return own.audio_s if own.day == self._today() else 0.0

    def _today(self) -> int:
        return int(self._wall_clock() // DAY_S)

    # --- the line --------------------------------------------------------------------------------------------------

    def expected_wait_s(self, work: Work, key: str = "", priority: int = 0) -> float | None:
        """How long a newcomer would wait: 0 where a slot is free, if only for clips; None where no speed is known."""
        lane = self.lanes[work]
        if self._could_start(lane):
            return 0.0
        own = lane.places.get(key, 0) - lane.line.count_of(key)
        return self._backlog_s(lane, key, priority, arriving=lane.arriving, own_arriving=own)

    def _backlog_s(
        self, lane: Lane, key: str, priority: int, *, arriving: int = 0, own_arriving: int = 0
    ) -> float | None:
        """What is served before a newcomer, over the measured speed: what runs, the classes before its own, and of its
        own class all; or, since keys take turns, what its key waits for, times the keys, where that is less.
        """
        running = sum(held.remaining for held in lane.active)
        before = lane.line.amount_up_to(priority - 1)
        beside = lane.line.amount_up_to(priority) - before + arriving * lane.line.mean_amount
        own = lane.line.amount_of(key, priority) + (own_arriving + 1) * lane.line.mean_amount
        return lane.speed.seconds_for(running + before + min(beside, own * max(1, len(lane.places))))

    async def wait_for_turn(self, reservation: Reservation, costs: Mapping[str, int]) -> None:
        """What `Reservation.granted` does."""
        if self._closed:
            raise ShuttingDown
        assert reservation.turn is None, "a place is granted once"
        lane, key = self.lanes[reservation.work], reservation.key
        for device, amount in costs.items():
            self.memory[device].check(amount)
        if reservation.work is Work.TRANSCRIPTION:
            self._check_quota(key, reservation.amount)
        free = lane.free if reservation.short else lane.free_for_long
        fits = all(self.memory[device].fits(amount) for device, amount in costs.items())
        starts = lane.called is None and free > 0 and fits
        expected_s = 0.0 if starts else self._backlog_s(lane, key, reservation.priority)
        # A free slot is not for it after all, and it may have been let in for that.
        room, own_places = self.bounds.max_waiting - len(lane.line), lane.line.count_of(key)
        full = reservation.no_wait or (lane.free > 0 and self._line_is_full(room, own_places, expected_s))
        if full and not starts:
            raise QueueFull(retry_after_s=retry_after_s(expected_s))
        self._check_deadline(lane, reservation, expected_s or 0.0)
        begun = self._clock()
        lane.arriving -= 1
        reservation.line_entered = begun
        reservation.turn = asyncio.get_running_loop().create_future()
        lane.line.add(reservation)
        self._call_next(lane)
        try:
            async with asyncio.timeout(self._patience_s(reservation)) as reservation.patience:
                await reservation.turn
                for device in sorted(costs):
                    await reservation.take(device, costs[device])
        except TimeoutError:
            if self._closed:
                raise ShuttingDown from None
            expected_s = self._backlog_s(lane, key, reservation.priority)
            raise QueueTimeout(retry_after_s=retry_after_s(expected_s)) from None
        reservation.wait_s = self._clock() - begun
        lane.called = None
        lane.speed.at_work(True)
        self._give_up_place(lane, key)
        self._charge(reservation)
        if self._on_granted:
            self._on_granted(reservation.work, reservation.wait_s)
        self._call_next(lane)

    def _check_deadline(self, lane: Lane, reservation: Reservation, wait_s: float) -> None:
        """Refuse what cannot be done in time, though nothing else came in between."""
        if reservation.deadline is None:
            return
        work_s = lane.speed.seconds_for(reservation.amount) or 0.0
        if self._clock() + wait_s + work_s >= reservation.deadline:
            raise DeadlineTooNear(retry_after_s=retry_after_s(wait_s))

    def _patience_s(self, reservation: Reservation) -> float | None:
        """How long it may still wait."""
        limits_s = [self.bounds.timeout_s] if self.bounds.timeout_s else []
        if reservation.deadline is not None:
            limits_s.append(max(0.0, reservation.deadline - self._clock()))
        return min(limits_s, default=None)

    def _charge(self, reservation: Reservation) -> None:
        if reservation.work is Work.TRANSCRIPTION and self.bounds.max_audio_s_a_day:
            own = self._keys[reservation.key]
            own.audio_s = self._used_today_s(own) + reservation.amount
            own.day = self._today()

    def _call_next(self, lane: Lane) -> None:
        """Call the first in the line, where a slot is free that it may have and nobody called waits for memory."""
        while lane.called is None and lane.free > 0:
            first = lane.line.first(short_only=lane.free_for_long <= 0)
            if first is None:
                return
            assert first.turn is not None
            if first.turn.done() or (first.deadline is not None and first.deadline <= self._clock()):
                # It has hung up, or its patience ends in this moment: no turn of its key's.
                lane.line.remove(first)
                continue
            lane.called = lane.line.take(short_only=lane.free_for_long <= 0)
            lane.active[first] = None
            first.turn.set_result(None)

    # --- the way out -----------------------------------------------------------------------------------------------

    def leave(self, reservation: Reservation) -> None:
        """*reservation* is over, wherever it stood. NOTE: its bytes go back by its own hand."""
        lane, own = self.lanes[reservation.work], self._keys[reservation.key]
        own.reservations -= 1
        own.requests -= reservation.counted
        if reservation.turn is None:
            lane.arriving -= 1
        if reservation not in lane.active or lane.called is reservation:
            self._give_up_place(lane, reservation.key)
        lane.line.remove(reservation)
        if lane.called is reservation:
            lane.called = None
        lane.active.pop(reservation, None)
        lane.speed.at_work(len(lane.active) > (lane.called is not None))
        self._forget_if_idle(reservation.key)
        self._call_next(lane)

    def _give_up_place(self, lane: Lane, key: str) -> None:
        lane.places[key] -= 1
        if not lane.places[key]:
            del lane.places[key]

    def _forget_if_idle(self, key: str) -> None:
        own = self._keys[key]
        if not own.reservations and not self._used_today_s(own):
            del self._keys[key]

    def close(self) -> None:
        """Take nothing more, and send home who waits. What is at work goes on."""
        self._closed = True
        now = asyncio.get_running_loop().time()
        for lane in self.lanes.values():
            for waiting in [*lane.line, *([lane.called] if lane.called else [])]:
                if waiting.patience is not None and not waiting.patience.expired():
                    waiting.patience.reschedule(now)

    # --- what is seen ----------------------------------------------------------------------------------------------

    def count(self, reservation: Reservation, amount: float) -> None:
        """*amount* of the work was done."""
        self.lanes[reservation.work].speed.add(max(0.0, amount))

    def observe(self, free_bytes: Mapping[str, int], own_bytes: int) -> None:
        """What each device has free now, and what the service itself holds: told twice a second or so."""
        for lane in self.lanes.values():
            for reservation in lane.active:
                reservation.peak_bytes = max(reservation.peak_bytes, own_bytes)
        for device, free in free_bytes.items():
            if device in self.memory:
                self.memory[device].observe(free)
        if self.pressed != self._told_pressed:
            self._told_pressed = self.pressed
            if self.pressed:
                log.warning("work waits for memory that other processes hold", free_bytes=dict(free_bytes))
            else:
                log.info("memory is free again", free_bytes=dict(free_bytes))

    @property
    def pressed(self) -> bool:
        """Whether work waits because other processes have eaten the memory."""
        return any(memory.pressed for memory in self.memory.values())

    def oldest_wait_s(self, lane: Lane) -> float | None:
        """Since when the one who has waited longest is in the line; None where nobody waits."""
        entered = [one.line_entered for one in (lane.called, *lane.line) if one and one.line_entered is not None]
        return self._clock() - min(entered) if entered else None

    def requests_left(self, key: str) -> int | None:
        """How many more requests *key* may send now; None where there is no bound."""
        if not self.bounds.max_per_key:
            return None
        own = self._keys.get(key)
        return max(0, self.bounds.max_per_key - (own.requests if own else 0))

    def audio_left_s(self, key: str) -> float | None:
        """How much audio *key* may still ask for today; None where there is no bound."""
        if not self.bounds.max_audio_s_a_day:
            return None
        own, lane = self._keys.get(key), self.lanes[Work.TRANSCRIPTION]
        asked_s = lane.line.amount_of(key) + (lane.called.amount if lane.called and lane.called.key == key else 0.0)
        return max(0.0, self.bounds.max_audio_s_a_day - (self._used_today_s(own) if own else 0.0) - asked_s)

    def quota_resets_in_s(self) -> int:
        return DAY_S - int(self._wall_clock()) % DAY_S


def kept_slots(slots: int) -> int:
    """Of so many slots for transcriptions, those that only short recordings may have."""
    return max(1, slots // KEPT_SHARE) if slots > 1 else 0


def retry_after_s(expected_s: float | None) -> int:
    """Whole seconds for the Retry-After header, from 1 to MOST_RETRY_AFTER_S."""
    return max(1, math.ceil(min(MOST_RETRY_AFTER_S, UNKNOWN_WAIT_S if expected_s is None else expected_s)))
