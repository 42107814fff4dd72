"""One request as its caller sees it: sent, refused perhaps, sent again when the server said to. Pure but for *send*."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

REFUSALS = (429, 503)
"""Come back later: the waiting line is full, or the server cannot take work now."""
UNSAID_WAIT_S = 5.0
"""Before the next sending, where a refusal names no time."""
LONGEST_WAIT_S = 600.0
"""Who is told to come back later than that is not served in this run: a day's quota is used up, say."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one sending."""

    status: int
    """0: nothing came."""
    code: str = ""
    """The problem's own word for it, or the name of what broke on the way; "" with a transcript."""
    audio_s: float = 0.0
    """What was transcribed."""
    retry_after_s: float | None = None

    @property
    def is_refusal(self) -> bool:
        return self.status in REFUSALS


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: every reply to it, and the seconds from its first sending to its last reply, waits included."""

    seconds: float
    replies: tuple[Reply, ...]

    @property
    def last(self) -> Reply:
        return self.replies[-1]

    @property
    def succeeded(self) -> bool:
        return self.last.status == 200


def ask(
    send: Callable[[], Reply],
    patience: int = 0,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Asked:
    """Send, and after a refusal wait as long as the server says and send again, *patience* times at most."""
    started = clock()
    replies = [send()]
    while replies[-1].is_refusal and len(replies) <= patience:
        wait_s = replies[-1].retry_after_s
        wait_s = UNSAID_WAIT_S if wait_s is None else wait_s
        if wait_s > LONGEST_WAIT_S:
            break
        sleep(wait_s)
        replies.append(send())
    return Asked(clock() - started, tuple(replies))


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a Retry-After header asks for; it holds seconds or a date (RFC 9110). None: it says nothing."""
    text = (header or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    # NOTE: a date that ends in -0000 is UTC too, but comes without a time zone.
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max((until - (now or datetime.now(UTC))).total_seconds(), 0.0)
