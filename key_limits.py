"""What one key may have of the service: requests in flight, and audio in a day. Pure, with an injected clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DAY_S = 86_400

PLACES_FOR_FREE_PLACE = 2
"""Where several keys share a line, one may hold so many places for each that is free. However much it sends, a third
of the line stays open to others. Source: dynamic queue thresholds (Choudhury and Hahne 1998)."""


def crowds(own_places: int, room: int) -> bool:
    """Whether a key that holds so many places of a line, with *room* for so many more, has had its share of it."""
    return own_places >= PLACES_FOR_FREE_PLACE * room


def share_of(places: int) -> int:
    """Of so many places that are held for long, what one of several keys may hold: two thirds, and one at least."""
    return max(1, places * PLACES_FOR_FREE_PLACE // (PLACES_FOR_FREE_PLACE + 1))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may have. 0: no bound; None: the server's own."""

    max_requests: int | None = None
    """Waiting or at work, at once."""
    max_audio_s_a_day: float | None = None


class KeyLimits:
    """What each key has, and how much more it may have. A bound of 0 is none. Days are UTC's."""

    def __init__(
        self,
        max_requests: int,
        max_audio_s_a_day: float,
        wall_clock: Callable[[], float],
        limits_of: Callable[[str], Limits | None] = lambda key: None,
    ) -> None:
        """*limits_of*: a key's own; None where it has those that are given here."""
        self._max_requests = max_requests
        self._max_audio_s_a_day = max_audio_s_a_day
        self._wall_clock = wall_clock
        self._limits_of = limits_of
        self.in_flight: dict[str, int] = {}
        """Requests by key, at the door, in the line or at work. Keys that have none are not there."""
        self._audio_s: dict[str, float] = {}
        """Granted to calls on that day, by key."""
        self._jobs_s: dict[str, float] = {}
        """Of jobs: accepted on that day, or found when they began. Apart: the store counts those of all servers."""
        self._day = 0

    def max_requests(self, key: str) -> int:
        own = self._limits_of(key)
        return self._max_requests if own is None or own.max_requests is None else own.max_requests

    def max_audio_s_a_day(self, key: str) -> float:
        own = self._limits_of(key)
        return self._max_audio_s_a_day if own is None or own.max_audio_s_a_day is None else own.max_audio_s_a_day

    def begin(self, key: str) -> None:
        """A request of *key* has come."""
        self.in_flight[key] = self.in_flight.get(key, 0) + 1

    def end(self, key: str) -> None:
        self.in_flight[key] -= 1
        if not self.in_flight[key]:
            del self.in_flight[key]

    def requests_left(self, key: str) -> int | None:
        """How many more requests *key* may send now; None where there is no bound."""
        most = self.max_requests(key)
        return max(0, most - self.in_flight.get(key, 0)) if most else None

    def charge(self, key: str, audio_s: float, *, of_job: bool = False) -> None:
        """So much audio was granted, or accepted in a job; below 0: given back."""
        if self.max_audio_s_a_day(key):
            calls_s = self.audio_today_s()
            today = self._jobs_s if of_job else calls_s
            today[key] = max(0.0, today.get(key, 0.0) + audio_s)

    def audio_left_s(self, key: str, asked_s: float) -> float | None:
        """How much more audio *key* may ask for today, with *asked_s* asked for and not granted; None: no bound."""
        left_s = self.audio_for_jobs_s(key, asked_s)
        return None if left_s is None else max(0.0, left_s - self._jobs_s.get(key, 0.0))

    def audio_for_jobs_s(self, key: str, asked_s: float) -> float | None:
        """As `audio_left_s`, were there no jobs: what all of today's may come to."""
        most_s = self.max_audio_s_a_day(key)
        return max(0.0, most_s - self.audio_today_s().get(key, 0.0) - asked_s) if most_s else None

    def audio_today_s(self) -> dict[str, float]:
        """Granted to calls today, by key; what was granted before is forgotten."""
        today = int(self._wall_clock() // DAY_S)
        if today != self._day:
            self._day = today
            self._audio_s.clear()
            self._jobs_s.clear()
        return self._audio_s

    def day_ends_in_s(self) -> int:
        return DAY_S - int(self._wall_clock()) % DAY_S
