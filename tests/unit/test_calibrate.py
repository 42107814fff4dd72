"""scripts/calibrate: what it drives engines with, what it holds against what, and where it writes."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from benchmarks.calibrate import (
    BEGIN,
    END,
    PAGE,
    Calibration,
    Line,
    Shape,
    decode_all,
    decode_beside,
    pieces,
    shapes,
    worst_batches,
    written,
)
from transcription.core import SAMPLE_RATE, Segment, SegmentRequest, TranscriptionOptions
from transcription.footprint import CPU_BATCH_S, footprint, longest_s
from transcription.models import spec
from transcription.planner import length_class

MIB = 2**20
OPTIONS = TranscriptionOptions("base", "en")
HEARD = Segment(Path("heard.pcm"), 0, 600 * SAMPLE_RATE, 0)


def line(predicted_mib: int, *seen_mib: int) -> Line:
    return Line("base", "2 × 4+", predicted_mib * MIB, tuple(mib * MIB for mib in seen_mib))


@pytest.mark.parametrize(
    ("predicted_mib", "seen_mib", "verdict"),
    [
        (100, (10, 100, 50), ""),
        (90, (100,), ""),
        (89, (100,), "too low"),
        (125, (100,), ""),
        (126, (100,), "too high"),
    ],
)
def test_a_price_is_held_against_the_largest_peak(predicted_mib: int, seen_mib: tuple[int, ...], verdict: str) -> None:
    """A quarter off at most, a tenth too low at most."""
    assert line(predicted_mib, *seen_mib).verdict == verdict


def test_the_table_names_what_is_off() -> None:
    """Who reads it must not reckon."""
    ffmpeg = Line("", "ffmpeg", 44 * MIB, (42 * MIB,) * 3)
    table = Calibration([line(9, 9)], [line(80, 70, 100, 100), line(100, 80, 90, 100)], ffmpeg)
    rows = [row for row in table.markdown("scripts/calibrate").splitlines() if row.startswith("| base")]
    assert [row.split("|")[-2].strip() for row in rows] == ["1.00", "0.80 too low", "1.00"]


def test_batches_are_as_wide_as_the_planner_makes_them() -> None:
    """Full windows alone; in each larger batch one piece nearly as long as any can be, and all of one class."""
    batches = list(worst_batches(HEARD, OPTIONS, 4))
    lengths_s = [[request.segment.duration_s for request in batch] for batch in batches]
    assert {len(batch) for batch in batches} == {1, 2, 3, 4}
    assert lengths_s[0] == [30.0]
    for batch, lengths in zip(batches, lengths_s, strict=True):
        assert len(batch) == 1 or sum(lengths) <= CPU_BATCH_S
        assert len({length_class(request.segment) for request in batch}) == 1
    for count in (2, 3, 4):
        widest = max(max(lengths) for lengths in lengths_s if len(lengths) == count)
        assert longest_s(count) - 0.2 < widest <= longest_s(count)


def test_pieces_end_with_the_recording() -> None:
    """What lies past its end cannot be read."""
    short = Segment(Path("heard.pcm"), 0, 10 * SAMPLE_RATE, 0)
    cut = list(pieces(short, [4.0, 5.0, 4.0]))
    assert [(piece.start_s, piece.duration_s, piece.index) for piece in cut] == [(0.0, 4.0, 0), (4.0, 5.0, 1)]


def test_the_least_and_the_plans_own_shape_are_measured() -> None:
    """Once each, where they are the same."""
    first, *others = shapes(footprint(spec("tiny.en"), "int8", "cpu"))
    assert first == Shape("1 × 1", 1, 1, 1)
    assert len(others) <= 1


class FakeEngine:
    """Notes how many batches it had at the same time."""

    def __init__(self) -> None:
        self.at_once: list[int] = []
        self.heard: list[SegmentRequest] = []
        self._now = 0

    async def transcribe(self, batch: list[SegmentRequest]) -> None:
        self._now += 1
        self.at_once.append(self._now)
        self.heard += batch
        await asyncio.sleep(0)
        self._now -= 1


async def test_all_streams_are_at_work_at_the_same_time() -> None:
    """Streams that are measured one after another take as much as one."""
    engine = FakeEngine()
    await decode_all(engine, worst_batches(HEARD, OPTIONS, 2), 3)
    assert max(engine.at_once) == 3
    assert len(engine.heard) == len([request for batch in worst_batches(HEARD, OPTIONS, 2) for request in batch])


async def test_segments_are_done_again_while_the_others_have_batches() -> None:
    """One at a time; with them the others end."""
    engine = FakeEngine()
    hot = TranscriptionOptions("base", "en", temperature=0.2)
    await decode_beside(engine, list(worst_batches(HEARD, hot, 1))[:4], worst_batches(HEARD, OPTIONS, 4), 3)
    assert max(engine.at_once) == 3
    again = [request for request in engine.heard if request.options.temperature]
    assert len(again) == 4
    assert len(engine.heard) < 60


async def test_a_lone_stream_does_them_again_alone() -> None:
    """There is none beside it."""
    engine = FakeEngine()
    hot = TranscriptionOptions("base", "en", temperature=0.2)
    await decode_beside(engine, list(worst_batches(HEARD, hot, 1))[:4], worst_batches(HEARD, OPTIONS, 1), 1)
    assert (max(engine.at_once), len(engine.heard)) == (1, 4)


def test_the_page_keeps_all_but_the_table() -> None:
    """What people wrote around it stays."""
    page = f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n"
    assert written(page, "new") == f"before\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    with pytest.raises(ValueError, match="has no"):
        written("a page without a place", "new")


def test_the_documented_predictions_are_those_that_are_made() -> None:
    """A footprint that is corrected must be calibrated again: scripts/calibrate --write."""
    text = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("| ")]
    work = [row for row in rows if re.match(r"\d+ × \d+", row[1])]
    assert {"tiny.en", "base"} <= {row[0] for row in work}
    for model, shape, predicted, *_, ratio in work:
        streams, size, express = re.match(r"(\d+) × (\d+)(\+?)$", shape).groups()
        cost = footprint(spec(model), "int8", "cpu")
        assert round(cost.total_bytes(int(streams) + len(express), int(size)) / MIB) == int(predicted)
        assert re.fullmatch(r"[\d.]+", ratio), "the documented run was off"
