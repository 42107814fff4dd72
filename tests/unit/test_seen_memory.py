"""What engines were seen to take: how it corrects prices, and that it outlives the server and a broken file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limits import Footprint
from transcription.seen_memory import (
    MUCH_WORK_S,
    SAVED_EVERY_S,
    UNSEEN,
    VERSION,
    Seen,
    SeenMemory,
    Sight,
    after,
    corrected,
)

MB = 2**20
PRICE = Footprint(weights_bytes=200 * MB, process_bytes=100 * MB, batch_bytes=(100 * MB, 150 * MB))


def sight(resident_mb: int, work_s: float = 1.0, load_mb: int | None = None, device: str = "cpu") -> Sight:
    return Sight(device, "int8", "base", resident_mb * MB, work_s, None if load_mb is None else load_mb * MB)


def looked(*sights: Sight) -> Seen:
    """What is known after these looks at two streams of batches of two, which are predicted to take 300 MB."""
    seen = UNSEEN
    for one in sights:
        seen = after(seen, one, PRICE, 2, 2)
    return seen


# --- what is known ---------------------------------------------------------------------------------------------------


def test_the_most_that_streams_took_is_kept_over_what_was_predicted() -> None:
    """600 MB are 300 beside the process and the weights: as predicted."""
    seen = looked(sight(450), sight(600), sight(500))
    assert seen.ratio == 1.0
    assert seen.peak_bytes == 600 * MB


def test_weights_that_were_weighed_do_not_count_as_the_streams() -> None:
    """They lie there whatever is decoded."""
    seen = looked(sight(350, 0.0, load_mb=250), sight(650))
    assert seen.load_bytes == 250 * MB
    assert seen.ratio == 1.0


def test_the_last_loading_counts() -> None:
    """Another version of the libraries may take less."""
    assert looked(sight(350, 0.0, load_mb=250), sight(340, 0.0, load_mb=240)).load_bytes == 240 * MB


def test_only_work_adds_to_the_time_at_work() -> None:
    """An idle night shows nothing of what callers bring."""
    assert looked(sight(400), sight(300, 0.0), sight(400)).work_s == 2.0


def test_what_was_seen_is_held_against_the_prediction_and_not_against_its_correction() -> None:
    """Else a price that was halved would double the ratio at the next start, and be raised again."""
    halved = corrected(PRICE, Seen(ratio=0.4, work_s=MUCH_WORK_S))
    assert halved.seen_ratio == 0.5
    assert after(UNSEEN, sight(450), halved, 2, 2).ratio == 0.5


# --- what it changes -------------------------------------------------------------------------------------------------


def test_nothing_seen_changes_nothing() -> None:
    """The first start."""
    assert corrected(PRICE, UNSEEN) == PRICE


def test_more_than_predicted_raises_the_streams_price_at_once() -> None:
    """The next one may not be survived."""
    assert corrected(PRICE, Seen(ratio=1.3)).working_bytes(2, 2) == 390 * MB


@pytest.mark.parametrize(
    ("ratio", "work_s", "expected"),
    [
        (0.7, MUCH_WORK_S - 1, 1.0),
        (0.7, MUCH_WORK_S, 0.77),
        (0.95, MUCH_WORK_S, 1.0),
        (0.1, MUCH_WORK_S, 0.5),
        (7.0, 1.0, 2.0),
    ],
)
def test_less_than_predicted_lowers_it_after_much_work_only(ratio: float, work_s: float, expected: float) -> None:
    """With a tenth of headroom, and never below half: nobody may have asked for word times yet."""
    assert corrected(PRICE, Seen(ratio=ratio, work_s=work_s)).seen_ratio == pytest.approx(expected)


@pytest.mark.parametrize(("load_mb", "expected_mb"), [(250, 250), (150, 150), (10, 100), (900, 400)])
def test_weights_are_priced_as_they_were_loaded_within_reason(load_mb: int, expected_mb: int) -> None:
    """What was swapped out is not seen, and is there all the same."""
    assert corrected(PRICE, Seen(load_bytes=load_mb * MB)).weights_bytes == expected_mb * MB


# --- the file --------------------------------------------------------------------------------------------------------


def test_what_was_seen_outlives_the_server(tmp_path: Path) -> None:
    """The next start plans with it."""
    path = tmp_path / "seen-memory.json"
    first = SeenMemory(path)
    first.note(sight(350, 0.0, load_mb=250), PRICE, 2, 2)
    first.note(sight(600), PRICE, 2, 2)
    first.save()
    assert SeenMemory(path).known == first.known == {("cpu", "int8", "base"): first.of("cpu", "int8", "base")}


def test_a_killed_server_forgets_a_minute_of_work_at_most(tmp_path: Path) -> None:
    """It is not written each second either."""
    path = tmp_path / "seen-memory.json"
    ledger = SeenMemory(path)
    ledger.note(sight(350, 0.0, load_mb=250), PRICE, 2, 2)
    assert SeenMemory(path).of("cpu", "int8", "base").load_bytes == 250 * MB
    ledger.note(sight(600, SAVED_EVERY_S - 1), PRICE, 2, 2)
    assert SeenMemory(path).of("cpu", "int8", "base").work_s == 0
    ledger.note(sight(600), PRICE, 2, 2)
    assert SeenMemory(path).of("cpu", "int8", "base").work_s == SAVED_EVERY_S


def test_what_a_process_on_a_gpu_holds_of_main_memory_is_no_price(tmp_path: Path) -> None:
    """Plans for a GPU are made of the GPU's memory."""
    ledger = SeenMemory(tmp_path / "seen-memory.json")
    ledger.note(sight(3000, device="cuda"), PRICE, 2, 2)
    assert ledger.known == {}


GOOD = {"load_bytes": None, "peak_bytes": 1, "ratio": 0.5, "work_s": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00\x00",
        json.dumps({"version": VERSION}),
        json.dumps({"version": VERSION, "seen": {"base": GOOD}}),
        json.dumps({"version": VERSION, "seen": {"cpu/int8/base": {}}}),
        json.dumps({"version": VERSION, "seen": {"cpu/int8/base": GOOD | {"ratio": "much"}}}),
        json.dumps({"version": VERSION, "seen": {"cpu/int8/base": GOOD | {"ratio": float("nan")}}}),
        json.dumps({"version": VERSION, "seen": {"cpu/int8/base": GOOD | {"peak_bytes": float("inf")}}}),
        json.dumps({"version": VERSION, "seen": {"cpu/int8/base": GOOD | {"load_bytes": -5}}}),
        json.dumps({"version": VERSION + 1, "seen": {"cpu/int8/base": GOOD}}),
    ],
)
def test_a_file_that_is_broken_or_of_another_version_is_begun_anew(content: str, tmp_path: Path) -> None:
    """A full disk or a hand's edit must not keep a server from starting."""
    path = tmp_path / "seen-memory.json"
    path.write_text(content, "utf-8")
    ledger = SeenMemory(path)
    assert ledger.known == {}
    ledger.note(sight(350, 0.0, load_mb=250), PRICE, 2, 2)
    assert SeenMemory(path).known == ledger.known


def test_a_folder_that_cannot_be_written_costs_the_memory_of_it_only(tmp_path: Path) -> None:
    """The heartbeat goes on."""
    ledger = SeenMemory(tmp_path / "nowhere" / "seen-memory.json")
    ledger.note(sight(350, 0.0, load_mb=250), PRICE, 2, 2)
    assert ledger.of("cpu", "int8", "base").load_bytes == 250 * MB


def test_a_server_that_dies_while_it_writes_leaves_the_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there stays until the new one is complete."""
    path = tmp_path / "seen-memory.json"
    ledger = SeenMemory(path)
    ledger.note(sight(350, 0.0, load_mb=250), PRICE, 2, 2)
    before = path.read_text("utf-8")

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        ledger.note(sight(360, 0.0, load_mb=260), PRICE, 2, 2)
    assert path.read_text("utf-8") == before
