"""What is to be done about an engine's process: the verdicts, at their borders."""

from __future__ import annotations

import pytest

from transcription.vitals import (
    BEAT_S,
    OVERGROWN_AT_ONCE,
    SILENT_AFTER_S,
    STUCK_AFTER_S,
    Verdict,
    verdict,
)

BOUND_BYTES = 1_000
AT_ONCE_BYTES = int(BOUND_BYTES * OVERGROWN_AT_ONCE)
SOON_S, LATER_S = 0.001, 1_000.0


@pytest.mark.parametrize(
    ("unheard_s", "rss_bytes", "bound_bytes", "found"),
    [
        (0.0, 1, None, Verdict.WELL),
        (SILENT_AFTER_S, 1, None, Verdict.WELL),
        (SILENT_AFTER_S + SOON_S, 1, None, Verdict.SILENT),
        (STUCK_AFTER_S, 1, None, Verdict.SILENT),
        (STUCK_AFTER_S + SOON_S, 1, None, Verdict.STUCK),
        (0.0, 2**60, None, Verdict.WELL),
        (0.0, BOUND_BYTES, BOUND_BYTES, Verdict.WELL),
        (0.0, BOUND_BYTES + 1, BOUND_BYTES, Verdict.FULL),
        (0.0, AT_ONCE_BYTES, BOUND_BYTES, Verdict.FULL),
        (0.0, AT_ONCE_BYTES + 1, BOUND_BYTES, Verdict.OVERGROWN),
        (0.0, 1, 0, Verdict.OVERGROWN),
    ],
)
def test_a_process_is_judged_by_its_silence_and_its_size(
    unheard_s: float, rss_bytes: int, bound_bytes: int | None, found: Verdict
) -> None:
    """At a border it still passes; without a bound no size is too large; a bound of nothing is a bound."""
    assert verdict(unheard_s, rss_bytes, bound_bytes) is found


@pytest.mark.parametrize(
    ("unheard_s", "rss_bytes", "found"),
    [
        (LATER_S, AT_ONCE_BYTES + 1, Verdict.STUCK),
        (SILENT_AFTER_S + SOON_S, AT_ONCE_BYTES + 1, Verdict.OVERGROWN),
        (SILENT_AFTER_S + SOON_S, BOUND_BYTES + 1, Verdict.SILENT),
    ],
)
def test_of_two_ills_the_one_that_cannot_wait_counts(unheard_s: float, rss_bytes: int, found: Verdict) -> None:
    """A process that eats memory is ended though it is silent; one that is a little too large may come to itself."""
    assert verdict(unheard_s, rss_bytes, BOUND_BYTES) is found


def test_a_stopped_process_takes_no_work_within_five_seconds() -> None:
    """Asked a beat after it stopped at the latest, and judged at every beat from then on."""
    beats = 0
    while verdict(beats * BEAT_S + SOON_S, 1, None) is Verdict.WELL:
        beats += 1
    assert BEAT_S + beats * BEAT_S <= 5.0
