"""What one key may have of the service: requests in flight, and audio in a day. Pure, with an injected clock."""

from __future__ import annotations

from collections.abc import Callable

DAY_S = 86_400


class KeyLimits:
    """What each key has, and how much more it may have. A bound of 0 is none. Days are UTC's."""

    def __init__(self, max_requests: int, max_audio_s_a_day: float, wall_clock: Callable[[], float]) -> None:
        self._max_requests = max_requests
        self._max_audio_s_a_day = max_audio_s_a_day
        self._wall_clock = wall_clock
        self.in_flight: dict[str, int] = {}
        """Requests by key, at the door, in the line or at work. Keys that have none are not there."""
        self._audio_s: dict[str, float] = {}
        """Granted on that day, by key."""
        self._day = 0

    def begin(self, key: str) -> None:
        """A request of *key* has come."""
        self.in_flight[key] = self.in_flight.get(key, 0) + 1

    def end(self, key: str) -> None:
        self.in_flight[key] -= 1
        if not self.in_flight[key]:
            del self.in_flight[key]

    def requests_left(self, key: str) -> int | None:
        """How many more requests *key* may send now; None where there is no bound."""
        return max(0, self._max_requests - self.in_flight.get(key, 0)) if self._max_requests else None

    def charge(self, key: str, audio_s: float) -> None:
        """So much audio was granted."""
        if self._max_audio_s_a_day:
            today = self.audio_today_s()
            today[key] = today.get(key, 0.0) + audio_s

    def audio_left_s(self, key: str, asked_s: float) -> float | None:
        """How much more audio *key* may ask for today, with *asked_s* asked for and not granted; None: no bound."""
        if not self._max_audio_s_a_day:
            return None
        return max(0.0, self._max_audio_s_a_day - self.audio_today_s().get(key, 0.0) - asked_s)

    def audio_today_s(self) -> dict[str, float]:
        """Granted today, by key; what was granted before is forgotten."""
        today = int(self._wall_clock() // DAY_S)
        if today != self._day:
            self._day = today
            self._audio_s.clear()
        return self._audio_s

    def day_ends_in_s(self) -> int:
        return DAY_S - int(self._wall_clock()) % DAY_S
