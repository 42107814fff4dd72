"""A wall clock that can be set while a program runs: for child processes of tests, with this folder in PYTHONPATH.

The file that CLOCK_OFFSET_FILE names holds how many seconds it is fast, and may be replaced at any time. Whatever is
measured by `time.monotonic` goes on undisturbed, as it does where a machine's clock is set.
"""

from __future__ import annotations

import os
import time

_FILE = os.environ.get("CLOCK_OFFSET_FILE", "")
_true_time = time.time


def _offset_s() -> float:
    with open(_FILE, encoding="ascii") as file:
        return float(file.read())


if _FILE:
    time.time = lambda: _true_time() + _offset_s()
