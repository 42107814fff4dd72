"""One kind of work at the gate: its slots, its line, who is called next, how long a newcomer would wait."""

from __future__ import annotations

from dataclasses import dataclass, field

from key_limits import share_of
from reservation import Reservation
from throughput import Throughput
from waiting import Line

KEPT_SHARE = 4
"""One in so many slots, one at least where there are two, is kept for short recordings: a clip finds a place though all
others hold podcasts."""


def kept_slots(slots: int) -> int:
    """Of so many slots for transcriptions, those that only short recordings may have."""
    return max(1, slots // KEPT_SHARE) if slots > 1 else 0


@dataclass(slots=True)
class Lane:
    """Slots and a line. A reservation arrives, joins the line, is called to a slot, is let in when it has its memory,
    and leaves, wherever it stands. NOTE: after `join`, `let_in` and `leave` the next one is to be called."""

    slots: int
    kept: int
    """Of these, for short recordings alone."""
    speed: Throughput
    line: Line[Reservation] = field(default_factory=Line)
    arriving: int = 0
    """Past the door, their bodies being read."""
    places: dict[str, int] = field(default_factory=dict)
    """At the door and in the line, by key."""
    jobs: dict[Reservation, None] = field(default_factory=dict)
    """Of those in the line or called, the jobs that were accepted before. A process has one of a kind there."""
    active: dict[Reservation, None] = field(default_factory=dict)
    """Those that have a slot."""
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

    def all_waiting(self) -> list[Reservation]:
        """In the line, or called."""
        return [*self.line, *([self.called] if self.called else [])]

    # --- the way through --------------------------------------------------------------------------------------------

    def arrive(self, reservation: Reservation) -> None:
        self.arriving += 1
        self.places[reservation.key] = self.places.get(reservation.key, 0) + 1

    def join(self, reservation: Reservation) -> None:
        self.arriving -= 1
        self.line.add(reservation)
        if reservation.accepted:
            self.jobs[reservation] = None

    def call_next(self, now: float) -> None:
        """Call the first in the line, where a slot is free that it may have and nobody called waits for memory."""
        while self.called is None and self.free > 0:
            short_only = self.free_for_long <= 0
            first = self.line.first(short_only=short_only)
            if first is None:
                return
            assert first.turn is not None
            if first.turn.done() or (first.deadline is not None and first.deadline <= now):
                # It has hung up, or its patience ends in this moment: no turn of its key's.
                self.line.remove(first)
                continue
            self.called = self.line.take(short_only=short_only)
            self.active[first] = None
            first.turn.set_result(None)

    def let_in(self, reservation: Reservation) -> None:
        self.called = None
        self.jobs.pop(reservation, None)
        self.speed.at_work(True)
        self._give_up_place(reservation.key)

    def leave(self, reservation: Reservation) -> None:
        if reservation.turn is None:
            self.arriving -= 1
        if reservation not in self.active or self.called is reservation:
            self._give_up_place(reservation.key)
        self.line.remove(reservation)
        self.jobs.pop(reservation, None)
        if self.called is reservation:
            self.called = None
        self.active.pop(reservation, None)
        self.speed.at_work(len(self.active) > (self.called is not None))

    def _give_up_place(self, key: str) -> None:
        self.places[key] -= 1
        if not self.places[key]:
            del self.places[key]

    # --- amounts and times -------------------------------------------------------------------------------------------

    def asked_by(self, key: str) -> float:
        """Of work that *key* waits for; without its jobs', which counts from when they were accepted."""
        called = self.called.amount if self.called and self.called.key == key else 0.0
        of_jobs = sum(job.amount for job in self.jobs if job.key == key)
        return max(0.0, self.line.amount_of(key) + called - of_jobs)

    def has_its_share(self, key: str) -> bool:
        """Whether *key* holds as many slots, or is about to, as one of several keys may."""
        own = sum(one.key == key for one in self.active) + self.places.get(key, 0)
        return own >= share_of(self.slots)

    def backlog_s(self, key: str, priority: int, *, from_door: bool = False) -> float | None:
        """How long it takes until a newcomer to the line (*from_door*: to the door) is served, at the measured speed;
        None where none is known.

        Before it come what runs, the classes before its own, and of its own class all; or, since keys take turns, what
        its key waits for, times the keys, where that is less.
        """
        arriving = self.arriving if from_door else 0
        own_arriving = self.places.get(key, 0) - self.line.count_of(key) if from_door else 0
        before = self.line.amount_up_to(priority - 1)
        beside = self.line.amount_up_to(priority) - before + arriving * self.line.mean_amount
        own = self.line.amount_of(key, priority) + (own_arriving + 1) * self.line.mean_amount
        return self.speed.seconds_for(self._running + before + min(beside, own * max(1, len(self.places))))

    def one_ends_in_s(self) -> float | None:
        """How long the work of a slot takes yet, on average; None where no speed is known."""
        return self.speed.seconds_for(self._running / max(1, len(self.active)))

    @property
    def _running(self) -> float:
        """Of the work in the slots, what is still to be done."""
        return sum(held.remaining for held in self.active)
