"""What models take, by their dimensions alone: held against what is known of their files and of GPUs."""

from __future__ import annotations

import pytest

from transcription.footprint import footprint, parameters
from transcription.models import CATALOGUE, ModelSpec, spec

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
    assert footprint(model, "int8", device, beam_size=16).slot_bytes > footprint(model, "int8", device).slot_bytes
    weights = [footprint(model, kind, device).weights_bytes for kind in ("int8", "int16", "float32")]
    assert weights == sorted(set(weights))
    assert footprint(model, "float32", device).slot_bytes >= small.slot_bytes


def test_auto_is_what_the_engine_takes() -> None:
    """float16 on CUDA, int8 on the CPU."""
    model = spec("small")
    assert footprint(model, "auto", "cpu") == footprint(model, "int8", "cpu")
    assert footprint(model, "auto", "cuda") == footprint(model, "float16", "cuda")
