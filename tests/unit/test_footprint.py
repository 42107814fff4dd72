"""What models take, by their dimensions alone: held against what is known of their files and of GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcription.core import SAMPLE_RATE, Segment, TranscriptionOptions
from transcription.footprint import CPU_BATCH_S, footprint, longest_s, parameters, window_s
from transcription.models import CATALOGUE, ModelSpec, spec
from transcription.planner import BatchPlanner, Pending
from transcription.whisper import SHORTEST_WINDOW_FRAMES, SHORTEST_WINDOW_FRAMES_OF_TINY, TINY_WIDTH, window_frames

MIB = 2**20


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_dimensions_account_for_the_file(model: ModelSpec) -> None:
    """Two bytes a parameter on disk; a layer too many or too few would be off by more than a hundredth."""
    assert 2 * sum(parameters(model)) == pytest.approx(model.weights_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("compute_type", "batch_size", "published_mib"),
    [("float16", 1, 4525), ("float16", 8, 6090), ("int8", 1, 2926), ("int8", 8, 4500)],
)
def test_large_v2_on_a_gpu_is_near_what_was_published(compute_type: str, batch_size: int, published_mib: int) -> None:
    """faster-whisper's README, on an RTX 3070 Ti: within a fifth, and hardly under."""
    predicted_mib = footprint(spec("large-v2"), compute_type, "cuda").total_bytes(1, batch_size) / MIB
    assert 0.95 < predicted_mib / published_mib < 1.2


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_wider_beams_and_floats_never_take_less(device: str) -> None:
    """What a setting makes larger must be priced larger."""
    model = spec("base")
    small = footprint(model, "int8", device)
    wide = footprint(model, "int8", device, beam_size=16)
    assert wide.working_bytes(2, 4) > small.working_bytes(2, 4)
    weights = [footprint(model, kind, device).weights_bytes for kind in ("int8", "int16", "float32")]
    assert weights == sorted(set(weights))
    assert footprint(model, "float32", device).working_bytes(1, 1) >= small.working_bytes(1, 1)


def test_auto_is_what_the_engine_takes() -> None:
    """float16 on CUDA, int8 on the CPU."""
    model = spec("small")
    assert footprint(model, "auto", "cpu") == footprint(model, "int8", "cpu")
    assert footprint(model, "auto", "cuda") == footprint(model, "float16", "cuda")


@pytest.mark.parametrize(
    ("model", "streams", "batch_size", "seen_mib"),
    [("tiny.en", 1, 1, 274), ("tiny.en", 3, 4, 526), ("base", 1, 1, 422), ("base", 3, 4, 797)],
)
def test_engines_were_seen_to_take_what_is_predicted(model: str, streams: int, batch_size: int, seen_mib: int) -> None:
    """Figures of `scripts/calibrate`: a quarter off at most, and a tenth too low."""
    predicted_mib = footprint(spec(model), "int8", "cpu").total_bytes(streams, batch_size) / MIB
    assert 0.9 <= predicted_mib / seen_mib <= 1.25


@pytest.mark.parametrize("model", ["tiny", "base"])
@pytest.mark.parametrize("duration_s", [0.5, 8.0, 9.5, 12.9, 13.5, 21.9, 28.0, 30.0])
def test_windows_are_those_of_the_engine(model: str, duration_s: float) -> None:
    """The prices know them in seconds, and cannot import what loads the engine's libraries."""
    tiny = spec(model).dimensions.width == TINY_WIDTH
    frames = window_frames(duration_s, SHORTEST_WINDOW_FRAMES_OF_TINY if tiny else SHORTEST_WINDOW_FRAMES)
    assert frames - 50 < 100 * window_s(spec(model), duration_s) <= frames


@given(st.lists(st.floats(0.5, 30.0), min_size=1, max_size=30), st.integers(1, 12))
def test_no_batch_holds_a_longer_segment_than_was_priced(durations_s: list[float], batch_size: int) -> None:
    """A batch is as wide as its longest segment, so that is what its price depends on."""
    planner = BatchPlanner(batch_size, CPU_BATCH_S)
    for index, duration_s in enumerate(durations_s):
        segment = Segment(Path("heard.pcm"), 0, int(duration_s * SAMPLE_RATE), index)
        planner.add(Pending(0, segment, TranscriptionOptions("base", "en")))
    while batch := planner.next_batch():
        assert max(pending.segment.duration_s for pending in batch) <= longest_s(len(batch)) + 1e-6


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_larger_batches_never_take_less(model: ModelSpec) -> None:
    """Plans try one size after another."""
    cost = footprint(model, "int8", "cpu")
    taken = [cost.working_bytes(2, size) for size in range(1, 65)]
    assert taken == sorted(taken)
    assert taken[-1] > taken[3]
