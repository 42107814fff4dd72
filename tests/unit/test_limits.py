"""What machines get, from half a gigabyte to a GPU of 140, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limits import Footprint, Plan, plan, reserve_bytes
from memory import MemoryReading
from transcription.footprint import footprint
from transcription.models import spec

MB, GB = 2**20, 2**30


def machine(total_bytes: int, used_bytes: int = 0) -> MemoryReading:
    return MemoryReading(total_bytes, used_bytes, "host")


def shape(plan: Plan) -> tuple[int, int, int, int]:
    return plan.replicas, plan.streams, plan.threads, plan.batch_size


@pytest.mark.parametrize(
    ("memory_bytes", "cores", "model", "expected", "limited_by"),
    [
        (512 * MB, 2, "tiny", (1, 1, 2, 1), "memory"),
        (640 * MB, 2, "base", (1, 1, 2, 1), "memory"),
        (1 * GB, 2, "base", (1, 2, 1, 4), "cores"),
        (2 * GB, 2, "small", (1, 2, 1, 4), "cores"),
        (4 * GB, 2, "medium", (1, 1, 2, 1), "memory"),
        (8 * GB, 8, "small", (1, 4, 2, 4), "cores"),
        (24 * GB, 2, "tiny.en", (1, 2, 1, 4), "cores"),
        (64 * GB, 32, "medium", (1, 4, 8, 4), "cores"),
        (8 * GB, 4, "large-v3", (1, 2, 2, 1), "memory"),
        (8 * GB, 6, "turbo", (1, 4, 1, 4), "cores"),
    ],
)
def test_a_cpu_gets_one_replica_and_as_many_streams_as_fit(
    memory_bytes: int, cores: int, model: str, expected: tuple[int, ...], limited_by: str
) -> None:
    """One copy of the weights; streams before batches; all cores divided among the streams."""
    made = plan(machine(memory_bytes), cores, "cpu", footprint(spec(model), "int8", "cpu"))
    assert shape(made) == expected
    assert made.limited_by == limited_by


def test_half_a_gigabyte_holds_tiny() -> None:
    """One of each is not just the least there is: the smallest container runs the smallest model."""
    price = footprint(spec("tiny"), "int8", "cpu")
    assert price.total_bytes(1, 1) <= plan(machine(512 * MB, 110 * MB), 1, "cpu", price).replica_bytes


@pytest.mark.parametrize(
    ("memory_bytes", "batch_size", "limited_by"),
    [(4 * GB, 1, "memory"), (8 * GB, 11, "memory"), (24 * GB, 16, "cores"), (140 * GB, 16, "cores")],
)
def test_a_gpu_gets_one_stream_and_a_batch_as_large_as_fits(
    memory_bytes: int, batch_size: int, limited_by: str
) -> None:
    """A GPU is filled by a batch, not by streams beside each other."""
    made = plan(machine(memory_bytes), 16, "cuda:0", footprint(spec("large-v3"), "float16", "cuda:0"))
    assert shape(made) == (1, 1, 1, batch_size)
    assert (made.device, made.limited_by) == ("cuda:0", limited_by)


def test_what_does_not_fit_at_all_gets_one_of_each_and_can_be_told() -> None:
    """Whoever refuses compares the share with the least that the model takes."""
    price = footprint(spec("large-v3"), "int8", "cpu")
    made = plan(machine(2 * GB), 4, "cpu", price)
    assert shape(made) == (1, 1, 4, 1)
    assert made.limited_by == "memory"
    assert made.replica_bytes < price.total_bytes(1, 1)


PRICE = Footprint(weights_bytes=200 * MB, process_bytes=100 * MB, batch_bytes=(150 * MB, 200 * MB))


def test_settings_are_taken_where_they_fit() -> None:
    """More streams than cores, if somebody wants it so."""
    made = plan(machine(24 * GB), 2, "cpu", PRICE, replicas=2, streams=3, batch_size=8)
    assert shape(made) == (2, 3, 1, 8)
    assert made.limited_by == "setting"
    assert made.replica_bytes == 11 * GB


def test_cores_are_divided_among_replicas_too() -> None:
    """Two replicas on four cores: two each, whether by streams or by threads."""
    assert shape(plan(machine(24 * GB), 4, "cpu", PRICE, replicas=2)) == (2, 2, 1, 4)
    assert shape(plan(machine(24 * GB), 4, "cpu", PRICE, replicas=2, streams=1)) == (2, 1, 2, 4)
    assert shape(plan(machine(24 * GB), 8, "cpu", PRICE, streams=1)) == (1, 1, 8, 4)


@pytest.mark.parametrize(
    ("budget_bytes", "expected"),
    [
        (450 * MB, (1, 1, 1)),
        (899 * MB, (1, 1, 1)),
        (900 * MB, (2, 1, 1)),
        (1199 * MB, (2, 1, 1)),
        (1200 * MB, (2, 2, 1)),
        (1400 * MB, (2, 2, 2)),
        (1600 * MB, (2, 2, 3)),
        (9000 * MB, (2, 2, 3)),
    ],
)
def test_memory_lowers_settings_the_batch_first_and_replicas_last(budget_bytes: int, expected: tuple[int, ...]) -> None:
    """A setting is no reason to die of."""
    reading = machine(16 * GB, 16 * GB - budget_bytes)
    made = plan(reading, 4, "cpu", PRICE, replicas=2, streams=2, batch_size=3)
    assert (made.replicas, made.streams, made.batch_size) == expected
    assert made.limited_by == ("memory" if expected != (2, 2, 3) else "setting")


def test_what_others_use_is_not_given_out() -> None:
    """A desktop's browser is there before the server."""
    idle, busy = machine(16 * GB, 1 * GB), machine(16 * GB, 15 * GB)
    assert plan(idle, 2, "cpu", PRICE).replica_bytes == 14 * GB
    assert plan(busy, 2, "cpu", PRICE).replica_bytes == 1 * GB


def test_a_model_that_takes_more_to_load_than_to_run_must_fit_while_it_loads() -> None:
    """Large models are read in float16 before they are turned to int8."""
    heavy = replace(PRICE, loading_bytes=600 * MB)
    assert heavy.total_bytes(1, 1) == 700 * MB
    assert heavy.total_bytes(2, 4) == 900 * MB


def test_batches_that_are_not_listed_grow_as_the_last_listed_ones() -> None:
    """Somebody may set sixty-four segments."""
    assert [PRICE.working_bytes(1, size) // MB for size in (1, 2, 3, 10)] == [150, 200, 250, 600]
    one = replace(PRICE, batch_bytes=(150 * MB,))
    assert [one.working_bytes(1, size) // MB for size in (1, 2)] == [150, 300]


def test_one_stream_may_do_a_segment_again_while_the_others_have_full_batches() -> None:
    """The states of a segment that is tried five times at once may take more than a batch."""
    costly = replace(PRICE, retry_bytes=400 * MB)
    assert costly.working_bytes(3, 1) == (150 + 150 + 400) * MB
    assert costly.working_bytes(3, 10) == 3 * 600 * MB


def test_what_was_seen_scales_what_streams_take_and_nothing_else() -> None:
    """Weights are measured by themselves."""
    seen = replace(PRICE, seen_ratio=0.5)
    assert seen.total_bytes(2, 1) == PRICE.total_bytes(2, 1) - 150 * MB


@pytest.mark.parametrize(
    ("total_bytes", "reserve"), [(512 * MB, 160 * MB), (1 * GB, 256 * MB), (8 * GB, 2 * GB), (64 * GB, 2 * GB)]
)
def test_the_server_keeps_a_quarter_within_bounds(total_bytes: int, reserve: int) -> None:
    """Half a gigabyte must still hold tiny; a large machine's server takes no more than a middling one's."""
    assert reserve_bytes(total_bytes, "cpu") == reserve


# --- what holds for all ----------------------------------------------------------------------------------------------

sizes = st.integers(0, 4_000).map(lambda size: size * MB)
memories = st.builds(
    lambda total, used: machine(total, int(total * used)),
    st.integers(0, 200_000).map(lambda size: size * MB),
    st.floats(0, 1),
)
growing = st.lists(sizes, min_size=1, max_size=9).map(lambda some: tuple(accumulate(some)))
footprints = st.builds(Footprint, sizes, sizes, growing, sizes, sizes, st.floats(0.5, 2))
knobs = st.fixed_dictionaries(
    {"replicas": st.integers(0, 4), "streams": st.integers(0, 9), "batch_size": st.integers(0, 20)}
)
cores_of_machines = st.integers(1, 200)
devices = st.sampled_from(["cpu", "cuda", "cuda:1"])


@given(memories, st.integers(0, 100_000), cores_of_machines, devices, footprints, knobs)
@example(machine(0), 900, 4, "cpu", PRICE, {"replicas": 0, "streams": 0, "batch_size": 0})
def test_more_memory_never_means_less_work_at_once(
    reading: MemoryReading, more_mb: int, cores: int, device: str, model: Footprint, knobs: dict[str, int]
) -> None:
    """Whoever buys a larger machine gets at least what the smaller one had."""
    larger = machine(reading.total_bytes + more_mb * MB, reading.used_bytes)
    before = plan(reading, cores, device, model, **knobs)
    after = plan(larger, cores, device, model, **knobs)
    assert after.streams * after.batch_size >= before.streams * before.batch_size
    assert after.replicas >= before.replicas


@given(memories, cores_of_machines, devices, footprints, knobs)
def test_a_plan_fits_or_is_the_least_there_is(
    reading: MemoryReading, cores: int, device: str, model: Footprint, knobs: dict[str, int]
) -> None:
    """All replicas at their most, together, beside what is used already."""
    made = plan(reading, cores, device, model, **knobs)
    together_bytes = made.replicas * model.total_bytes(made.streams, made.batch_size)
    if (made.replicas, made.streams, made.batch_size) == (1, 1, 1):
        assert together_bytes <= made.replica_bytes or made.limited_by == "memory"
    else:
        assert together_bytes <= made.replicas * made.replica_bytes <= reading.free_bytes


@given(memories, cores_of_machines, devices, footprints, knobs)
def test_threads_are_no_more_than_cores_unless_more_streams_were_asked_for(
    reading: MemoryReading, cores: int, device: str, model: Footprint, knobs: dict[str, int]
) -> None:
    """Threads beyond the cores take each other's turns."""
    made = plan(reading, cores, device, model, **knobs)
    assert made.threads >= 1
    assert made.threads * made.streams * made.replicas <= max(
        cores, max(1, knobs["streams"]) * max(1, knobs["replicas"])
    )


@given(memories, cores_of_machines, devices, footprints, knobs)
def test_nothing_exceeds_what_was_set(
    reading: MemoryReading, cores: int, device: str, model: Footprint, knobs: dict[str, int]
) -> None:
    """Settings are upper bounds."""
    made = plan(reading, cores, device, model, **knobs)
    for name, value in knobs.items():
        assert 1 <= getattr(made, name) <= (value or 16)
