"""From a machine to its engines."""

from __future__ import annotations

import math

import pytest

from errors import ConfigurationError
from memory import MemoryReading
from transcription.footprint import footprint
from transcription.models import spec
from transcription.seen_memory import Seen
from transcription.sizing import Sizing, Wish, devices, sized

GIB = 2**30


def ram(gib: float) -> MemoryReading:
    return MemoryReading(int(gib * GIB), 0, "host")


def on(gib: float, cores: int, model: str = "base", cuda: tuple[int, ...] = (), wish: Wish | None = None) -> Sizing:
    gpus = [MemoryReading(gib * GIB, 0, "nvml") for gib in cuda]
    return sized(spec(model), wish or Wish(), ram(gib), gpus, cores)


def test_a_laptop_gets_one_engine_with_its_cores() -> None:
    """Weights once, a stream a core, batches that end soon."""
    sizing = on(24, 2)
    [engine] = sizing.placements
    assert (engine.device, engine.streams, engine.threads, sizing.batch_size) == ("cpu", 2, 1, 4)
    assert math.isfinite(sizing.batch_s)


def test_every_gpu_gets_an_engine() -> None:
    """One stream each; batches are not bounded in audio there."""
    sizing = on(64, 16, "large-v3", cuda=(24, 24))
    assert [engine.device for engine in sizing.placements] == ["cuda:0", "cuda:1"]
    assert {engine.streams for engine in sizing.placements} == {1}
    assert sizing.batch_s == math.inf


def test_replicas_share_cores_and_memory() -> None:
    """Two engines are given half of each."""
    one, two = on(24, 4), on(24, 4, wish=Wish(replicas=2))
    assert len(two.placements) == 2
    assert sum(engine.streams * engine.threads for engine in two.placements) == 4
    [alone] = one.placements
    assert alone.bound_bytes is not None
    assert two.placements[0].bound_bytes == alone.bound_bytes // 2


def test_larger_models_come_in_smaller_batches() -> None:
    """The plan is made for the first model; a larger one that is asked for later takes more a segment."""
    sizing = on(6, 2, "tiny.en", wish=Wish(batch_size=8))
    assert sizing.batch_size == 8
    assert sizing.smaller_batches["cpu", "large-v3"] < 8
    assert ("cpu", "tiny.en") not in sizing.smaller_batches


def test_the_bound_leaves_room_for_what_was_planned() -> None:
    """In a small container too: an engine that is replaced after every batch would never get anywhere."""
    sizing = on(0.5, 1, "base")
    [engine] = sizing.placements
    assert engine.bound_bytes is not None
    assert engine.bound_bytes > footprint(spec("base"), "auto", "cpu").total_bytes(engine.streams, sizing.batch_size)


def test_models_lie_side_by_side_in_what_the_first_one_leaves() -> None:
    """Much memory: many models. Little: one after the other."""
    base = on(24, 2).weights_bytes("base")
    assert on(24, 2).placements[0].models_bytes > 10 * base
    assert on(0.5, 1).placements[0].models_bytes < 2 * base


def test_what_was_seen_changes_the_next_plan() -> None:
    """Of the model that was seen, on the device on which it was; of nothing else."""
    little, key = on(0.8, 2), ("cpu", "int8", "base")
    costly = {key: Seen(ratio=1.8)}
    more = sized(spec("base"), Wish(), ram(0.8), [], 2, costly)
    assert more.slots < little.slots or more.placements[0].streams < little.placements[0].streams
    assert more.cost("base").total_bytes(2, 4) > little.cost("base").total_bytes(2, 4)
    assert more.cost("tiny") == little.cost("tiny")
    floats = sized(spec("base"), Wish(compute_type="float32"), ram(0.8), [], 2, costly)
    assert floats.cost("base").seen_ratio == 1.0


def test_what_was_seen_on_a_cpu_is_no_price_of_a_gpu() -> None:
    """Nor the other way round."""
    seen = {(kind, "float16", "base"): Seen(load_bytes=1, ratio=2.0) for kind in ("cpu", "cuda")}
    sizing = sized(spec("base"), Wish(), ram(64), [MemoryReading(24 * GIB, 0, "nvml")], 16, seen)
    assert sizing.cost("base") == footprint(spec("base"), "auto", "cuda")


def test_the_busiest_process_counts_the_stream_for_clips_and_the_models_own_batch() -> None:
    """What is seen of it is held against just that."""
    sizing = on(6, 2, "tiny.en", wish=Wish(batch_size=8))
    assert sizing.busiest("tiny.en") == (3, 8)
    assert sizing.busiest("large") == (3, sizing.smaller_batches["cpu", "large-v3"])
    assert sizing.most_bytes("tiny.en") == sizing.engine_bytes
    assert sizing.key("large") == ("cpu", "int8", "large-v3")


def test_wider_beams_are_priced() -> None:
    """BEAM_SIZE is what most requests have."""
    assert on(24, 2, wish=Wish(beam_size=16)).engine_bytes > on(24, 2).engine_bytes


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [
        (["auto"], 0, ["cpu"]),
        (["auto"], 2, ["cuda:0", "cuda:1"]),
        (["cpu"], 2, ["cpu"]),
        (["cuda"], 2, ["cuda:0"]),
        (["cuda:1", "cuda:0"], 2, ["cuda:1", "cuda:0"]),
    ],
)
def test_devices_by_name(wanted: list[str], gpus: int, expected: list[str]) -> None:
    """Nobody should have to count GPUs."""
    assert devices(wanted, gpus) == expected


@pytest.mark.parametrize("wanted", [["gpu"], ["cuda:x"], ["auto", "cpu"], []])
def test_devices_that_are_none_are_refused(wanted: list[str]) -> None:
    """At the start, with a sentence, not by an engine that never comes up."""
    with pytest.raises(ConfigurationError, match="DEVICES"):
        devices(wanted, 0)


def test_a_gpu_that_does_not_tell_its_memory_is_used_all_the_same() -> None:
    """Its batches are halved where they do not fit."""
    [engine] = on(16, 8, cuda=(), wish=Wish(devices=("cuda:0",))).placements
    assert engine.device == "cuda:0"
