"""Downloads tell the log how far they are, not too often."""

from __future__ import annotations

import structlog

from downloads.ytdlp import Progress
from jobs.crew import logged_progress


def test_progress_is_logged_at_each_step_once() -> None:
    """yt-dlp reports many times a second; the log should stay readable."""
    tell = logged_progress(every_bytes=100)
    with structlog.testing.capture_logs() as told:
        for done in (10, 60, 110, 120, 199, 350, 360):
            tell(Progress(done, 400))
    assert [line["bytes"] for line in told] == [110, 350]
    assert told[0]["of_bytes"] == 400
