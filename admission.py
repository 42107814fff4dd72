"""The gate before all work: who may come in, who waits for how long, and who is refused.

`AdmissionController.reserve` is the door, passed before a body is read; `Reservation.granted` is the waiting line, left
when it is this request's turn and its memory is free. Everything a request holds goes back when its `with` block ends.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

import prices
from errors import DeadlineTooNear, KeyBusy, QueueFull, QueueTimeout, QuotaUsed, ShuttingDown, TooLarge
from key_limits import KeyLimits, Limits, crowds
from lanes import Lane, kept_slots
from limits import MemorySemaphore, SharedMemory
from reservation import OF_AUDIO, Reservation, Work
from throughput import Throughput

log = structlog.get_logger(__name__)

MOST_RETRY_AFTER_S = 120
UNKNOWN_WAIT_S = 5.0
"""Told to whom is refused before any speed was measured."""


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


class AdmissionController:
    """One gate for all work. Lives on one event loop; decides at once, and costs little however many wait."""

    def __init__(
        self,
        memory: Mapping[str, MemorySemaphore],
        bounds: Bounds,
        *,
        limits_of: Callable[[str], Limits | None] = lambda key: None,
        several_keys: Callable[[], bool] = lambda: False,
        on_granted: Callable[[Work, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """*memory*: what work may hold of each device. *limits_of*: a key's own limits; None where it has the usual
        ones. *several_keys*: whether keys share the line: none may fill it then. *on_granted* is told what was let in,
        after how many seconds."""
        self.memory = memory
        self.shared = SharedMemory(memory[prices.MEMORY])
        self.bounds = bounds
        self._several_keys = several_keys
        self._on_granted = on_granted
        self._clock = clock
        self.lanes = {
            work: Lane(slots, kept_slots(slots) if work is Work.TRANSCRIPTION else 0, Throughput(clock))
            for work in Work
            # A kind that this server does not do has a lane all the same, and nobody is let into it.
            for slots in [bounds.slots.get(work, 0)]
        }
        self.keys = KeyLimits(bounds.max_per_key, bounds.max_audio_s_a_day, wall_clock, limits_of)
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
        accepted: bool = False,
        charged: float = 0.0,
        on_granted: Callable[[], None] | None = None,
    ) -> Reservation:
        """A place for one request, before its body is read; use it as a context manager. *accepted*: a job whose caller
        was told that it will be done, which nothing refuses but a stop, and its key's day where more audio comes of it
        than was *charged* when it was handed in. *on_granted* hears when its turn has come.

        Raises ShuttingDown, KeyBusy, QuotaUsed, QueueFull, DeadlineTooNear: whoever is refused has cost nothing.
        """
        if self._closed:
            raise ShuttingDown
        if accepted:
            made = Reservation(self, work, key, priority, None, no_wait=False, counted=False, accepted=True)
            made.charged, made.on_granted = charged, on_granted
            self.lanes[work].arrive(made)
            return made
        if counted and self.keys.requests_left(key) == 0:
            raise KeyBusy(retry_after_s=retry_after_s(self.lanes[Work.TRANSCRIPTION].one_ends_in_s()))
        if work in OF_AUDIO:
            self._check_quota(key, 0.0)
        lane, expected_s = self.lanes[work], self.expected_wait_s(work, key, priority)
        no_wait = no_wait or not self.bounds.max_waiting
        room = self._free_slots(lane) + self.bounds.max_waiting - lane.arriving - len(lane.line)
        full = no_wait or self._line_is_full(room, lane.places.get(key, 0), expected_s)
        if full and not self._could_start(lane):
            raise QueueFull(retry_after_s=retry_after_s(expected_s))
        # Who speaks takes no turns: what one key holds, it may hold for hours.
        if work is Work.LIVE and self._several_keys() and lane.has_its_share(key):
            raise QueueFull(
                "Enough live sessions are this key's: the rest is for others.", retry_after_s=MOST_RETRY_AFTER_S
            )
        if timeout_s is not None and (expected_s or 0.0) >= timeout_s:
            raise DeadlineTooNear(retry_after_s=retry_after_s(expected_s))
        deadline = None if timeout_s is None else self._clock() + timeout_s
        made = Reservation(self, work, key, priority, deadline, no_wait, counted)
        lane.arrive(made)
        if counted:
            self.keys.begin(key)
        return made

    def check_open(self) -> None:
        """Raises ShuttingDown once nothing more is taken."""
        if self._closed:
            raise ShuttingDown

    def check_accepts(self, work: Work, key: str, amount: float = 0.0) -> None:
        """Whether a job of that key may be handed in, to be done later, so far as calls have left it audio: what jobs
        have had of that, the store knows. Raises ShuttingDown, QuotaUsed."""
        self.check_open()
        if work in OF_AUDIO:
            _check_left(self.audio_for_jobs_s(key), amount)

    def expected_wait_s(self, work: Work, key: str = "", priority: int = 0) -> float | None:
        """How long a newcomer would wait: 0 where a slot is free, if only for clips; None where no speed is known."""
        lane = self.lanes[work]
        return 0.0 if self._could_start(lane) else lane.backlog_s(key, priority, from_door=True)

    def _could_start(self, lane: Lane) -> bool:
        """Whether a newcomer, were it a clip, finds a slot. Its length is not known at the door.

        NOTE: slots that are free while nobody is being called are for clips, and those in the line are none.
        """
        return self._free_slots(lane) > lane.arriving + (len(lane.line) if lane.called else 0)

    def _free_slots(self, lane: Lane) -> int:
        """Slots that a newcomer could have at once: none while work waits for memory."""
        return 0 if any(memory.waiting for memory in self.memory.values()) else lane.free

    def _line_is_full(self, room: int, own_places: int, expected_s: float | None) -> bool:
        """By count, of one key's share, or by time."""
        crowded = self._several_keys() and crowds(own_places, room)
        return room <= 0 or crowded or 0 < self.bounds.max_wait_s < (expected_s or 0.0)

    def _check_quota(self, key: str, more_s: float) -> None:
        _check_left(self.audio_left_s(key), more_s)

    def _charge(self, reservation: Reservation, amount: float) -> None:
        """*amount* in all is granted: what of it has not been counted counts from now on."""
        if reservation.work in OF_AUDIO and amount > reservation.charged:
            more_s, reservation.charged = amount - reservation.charged, amount
            self.keys.charge(reservation.key, more_s, of_job=reservation.accepted)

    # --- the line --------------------------------------------------------------------------------------------------

    async def wait_for_turn(
        self, reservation: Reservation, costs: Mapping[str, int], shared: Mapping[str, int]
    ) -> None:
        """What `Reservation.granted` does."""
        if shared:
            self.memory[prices.MEMORY].check(costs.get(prices.MEMORY, 0) + sum(shared.values()))
        more = {prices.MEMORY: costs.get(prices.MEMORY, 0) + self.shared.missing_bytes(shared)} if shared else {}
        self._check_again(reservation, {**costs, **more})
        lane = self.lanes[reservation.work]
        reservation.line_entered = begun = self._clock()
        reservation.turn = asyncio.get_running_loop().create_future()
        lane.join(reservation)
        lane.call_next(begun)
        try:
            async with asyncio.timeout(self._patience_s(reservation)) as reservation.patience:
                await reservation.turn
                for device in sorted(costs):
                    await reservation.take(device, costs[device])
                for name, amount_bytes in shared.items():
                    await reservation.take_shared(name, amount_bytes)
        except TimeoutError:
            if self._closed:
                raise ShuttingDown from None
            expected_s = lane.backlog_s(reservation.key, reservation.priority)
            raise QueueTimeout(retry_after_s=retry_after_s(expected_s)) from None
        reservation.wait_s = self._clock() - begun
        reservation.at_work = True
        lane.let_in(reservation)
        self._charge(reservation, reservation.amount)
        if self._on_granted:
            self._on_granted(reservation.work, reservation.wait_s)
        if reservation.on_granted:
            reservation.on_granted()
        lane.call_next(self._clock())

    async def extend(self, reservation: Reservation, amount: float, costs: Mapping[str, int], *, short: bool) -> None:
        """What `Reservation.extend` does: whoever said too little has no more than whoever said the truth."""
        if reservation.work in OF_AUDIO and amount > reservation.charged:
            self._check_quota(reservation.key, amount - reservation.charged)
        if reservation.short and not short and self.lanes[reservation.work].free_for_long <= 0:
            raise TooLarge("It is longer than its header says, and the places for long recordings are taken.")
        for device, amount_bytes in costs.items():
            if not self.memory[device].fits(amount_bytes):
                raise TooLarge("It is longer than its header says, and there is no memory for more.")
            await reservation.take(device, amount_bytes)
        reservation.amount, reservation.short = amount, short
        self._charge(reservation, amount)

    def _check_again(self, reservation: Reservation, costs: Mapping[str, int]) -> None:
        """At the line, now that length and costs are known: the door may have let in what is to be refused."""
        if self._closed:
            raise ShuttingDown
        assert reservation.turn is None, "a place is granted once"
        lane, key = self.lanes[reservation.work], reservation.key
        for device, amount in costs.items():
            self.memory[device].check(amount)
        more_s = reservation.amount - reservation.charged
        if reservation.work in OF_AUDIO and (more_s > 0 or not reservation.accepted):
            self._check_quota(key, more_s)
        if reservation.accepted:
            return
        free = lane.free if reservation.short else lane.free_for_long
        fits = all(self.memory[device].fits(amount) for device, amount in costs.items())
        starts = lane.called is None and free > 0 and fits
        expected_s = 0.0 if starts else lane.backlog_s(key, reservation.priority)
        # A free slot is not for it after all, and it may have been let in for that.
        room, own_places = self.bounds.max_waiting - len(lane.line), lane.line.count_of(key)
        full = reservation.no_wait or (lane.free > 0 and self._line_is_full(room, own_places, expected_s))
        if full and not starts:
            raise QueueFull(retry_after_s=retry_after_s(expected_s))
        # It may be too late though nothing else came in between: now it is known how long the work takes.
        ends_in_s = (expected_s or 0.0) + (lane.speed.seconds_for(reservation.amount) or 0.0)
        if reservation.deadline is not None and self._clock() + ends_in_s >= reservation.deadline:
            raise DeadlineTooNear(retry_after_s=retry_after_s(expected_s or 0.0))

    def _patience_s(self, reservation: Reservation) -> float | None:
        """How long it may still wait."""
        limits_s = [self.bounds.timeout_s] if self.bounds.timeout_s and not reservation.accepted else []
        if reservation.deadline is not None:
            limits_s.append(max(0.0, reservation.deadline - self._clock()))
        return min(limits_s, default=None)

    # --- the way out -----------------------------------------------------------------------------------------------

    def leave(self, reservation: Reservation) -> None:
        """*reservation* is over, wherever it stood."""
        if reservation.counted:
            self.keys.end(reservation.key)
        lane = self.lanes[reservation.work]
        lane.leave(reservation)
        lane.call_next(self._clock())

    def close(self) -> None:
        """Take nothing more, and send home who waits. What is at work goes on."""
        self._closed = True
        now = asyncio.get_running_loop().time()
        for lane in self.lanes.values():
            for waiting in lane.all_waiting():
                if waiting.patience is not None and not waiting.patience.expired():
                    waiting.patience.reschedule(now)

    # --- what is seen ----------------------------------------------------------------------------------------------

    def count(self, reservation: Reservation, amount: float) -> None:
        """*amount* of the work was done."""
        self.lanes[reservation.work].speed.add(amount)

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
        entered = [one.line_entered for one in lane.all_waiting() if one.line_entered is not None]
        return self._clock() - min(entered) if entered else None

    def requests_left(self, key: str) -> int | None:
        """How many more requests *key* may send now; None where there is no bound."""
        return self.keys.requests_left(key)

    def audio_left_s(self, key: str) -> float | None:
        """How much audio *key* may still ask for today; None where there is no bound."""
        return self.keys.audio_left_s(key, self._asked_s(key))

    def audio_for_jobs_s(self, key: str) -> float | None:
        """How much audio all jobs may have that *key* hands in today; None where there is no bound."""
        return self.keys.audio_for_jobs_s(key, self._asked_s(key))

    def _asked_s(self, key: str) -> float:
        """Of audio, what calls of *key* wait for."""
        return sum(self.lanes[work].asked_by(key) for work in OF_AUDIO)

    def quota_resets_in_s(self) -> int:
        return self.keys.day_ends_in_s()


def _check_left(left_s: float | None, more_s: float) -> None:
    if left_s is not None and (left_s <= 0 or more_s > left_s):
        raise QuotaUsed(retry_after_s=MOST_RETRY_AFTER_S)


def retry_after_s(expected_s: float | None) -> int:
    """Whole seconds for the Retry-After header, from 1 to MOST_RETRY_AFTER_S."""
    return max(1, math.ceil(min(MOST_RETRY_AFTER_S, UNKNOWN_WAIT_S if expected_s is None else expected_s)))
