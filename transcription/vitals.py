"""What is to be done about an engine's process, judged by when it was last heard and how large it is. Pure."""

from __future__ import annotations

from enum import Enum

BEAT_S = 1.0
"""The process is asked for a sign of life so often."""

SILENT_AFTER_S = 3.0
"""Unheard for so long, it takes no new work and the service is not ready: within 5 s of its death, beats included."""

STUCK_AFTER_S = 10.0
"""Unheard for so long, it is killed. A machine that swaps or sleeps may keep it silent for some seconds."""

OVERGROWN_AT_ONCE = 1.25
"""Past its bound it is replaced between batches; this many times its bound, in the middle of one."""


class Verdict(Enum):
    WELL = "well"
    SILENT = "silent"
    """Wait, but give it nothing new."""
    STUCK = "stuck"
    """Kill it."""
    FULL = "full"
    """Past its memory bound: replace it once it has answered what it was asked."""
    OVERGROWN = "overgrown"
    """Far past its memory bound: kill it before the system kills something else."""


def verdict(unheard_s: float, rss_bytes: int, bound_bytes: int | None) -> Verdict:
    """*bound_bytes*: the memory that it may take; None where there is no bound."""
    if unheard_s > STUCK_AFTER_S:
        return Verdict.STUCK
    if bound_bytes is not None and rss_bytes > bound_bytes * OVERGROWN_AT_ONCE:
        return Verdict.OVERGROWN
    if unheard_s > SILENT_AFTER_S:
        return Verdict.SILENT
    if bound_bytes is not None and rss_bytes > bound_bytes:
        return Verdict.FULL
    return Verdict.WELL
