"""The classic rule gives what was published for it, and where its figures disagree, the reading that was chosen."""

from __future__ import annotations

import pytest

import classic

DESKTOP_8_GB = [
    ("tiny", (10, 12), (6, 8)),
    ("small", (5, 6), (3, 4)),
    ("medium", (2, 3), (2, 2)),
    ("turbo", (2, 2), (1, 2)),
    ("large-v2", (1, 1), (1, 1)),
]
"""Published: at most, recommended."""

CONTAINERS = [
    ("tiny", 2, (2, 3)),
    ("tiny", 4, (4, 6)),
    ("medium", 2, (1, 1)),
    ("turbo", 2, (1, 1)),
    ("turbo", 4, (1, 1)),
]
"""Published, by the container's GB. Without medium in 4 GB, where formula and table disagree."""


def size(model: str) -> int:
    found = classic.size_mb(model)
    assert found is not None
    return found


@pytest.mark.parametrize("mb_per_gb", [1000, 1024])
@pytest.mark.parametrize(("model", "at_most", "recommended"), DESKTOP_8_GB)
def test_a_desktop_of_8_gb_gets_what_was_published(
    model: str, at_most: tuple[int, int], recommended: tuple[int, int], mb_per_gb: int
) -> None:
    """The source does not say what its GB are; the result must not hang on it."""
    engines = classic.on_desktop(8 * mb_per_gb, size(model))
    assert at_most[0] <= engines.at_most <= at_most[1]
    assert recommended[0] <= engines.recommended <= recommended[1]


@pytest.mark.parametrize("mb_per_gb", [1000, 1024])
@pytest.mark.parametrize(("model", "memory_gb", "published"), CONTAINERS)
def test_a_container_gets_what_was_published(
    model: str, memory_gb: int, published: tuple[int, int], mb_per_gb: int
) -> None:
    """tiny in 4 GB is at the low end, because the cap comes before the memory: 7 would fit."""
    assert published[0] <= classic.in_container(memory_gb * mb_per_gb, size(model)) <= published[1]


def test_medium_in_4_gb_is_the_formulas_one_and_not_the_tables_two() -> None:
    """The figures disagree here. Two copies and the reserve are 4.5 GB, so the formula is taken; 4.5 GB hold two."""
    assert classic.in_container(4096, size("medium")) == 1
    assert classic.in_container(4500, size("medium")) == 2


@pytest.mark.parametrize("memory_mb", [0, 499, 512, 1024, 2048, 2500, 4096, 4499, 4500, 8192, 8500, 16384, 65536])
def test_mediums_container_formula_is_the_published_one(memory_mb: int) -> None:
    """`max(1, (memory_mb - 500) // 2000)`, at most 4, word for word."""
    assert classic.in_container(memory_mb, size("medium")) == min(4, max(1, (memory_mb - 500) // 2000))


@pytest.mark.parametrize(
    ("model", "size_mb"), [("tiny", 500), ("small", 1000), ("medium", 2000), ("turbo", 2500), ("large-v2", 3500)]
)
def test_sizes_are_the_published_ones(model: str, size_mb: int) -> None:
    """In MB, so that nothing is rounded but the result."""
    assert size(model) == size_mb


def test_models_that_were_not_published_stand_where_they_belong() -> None:
    """base is larger than tiny and smaller than small; the large ones are of one shape; English alone is no smaller."""
    assert size("tiny") < size("base") < size("small")
    assert size("large-v1") == size("large-v2") == size("large-v3")
    assert size("tiny.en") == size("tiny")
    assert classic.size_mb("distil-large-v3") is None


def test_the_cap_holds_in_containers_only() -> None:
    """On a desktop the published ten to twelve engines with tiny could not be, were it capped at 4 there."""
    assert classic.in_container(65536, size("tiny")) == 4
    assert classic.on_desktop(65536, size("tiny")).at_most > 100


def test_too_small_a_desktop_gets_none_and_too_small_a_container_one() -> None:
    """The container's formula says 1 whatever the memory: it was written for containers that hold the model."""
    assert classic.on_desktop(1024, size("tiny")) == classic.Engines(0, 0)
    assert classic.on_desktop(2000, size("tiny")) == classic.Engines(0, 0)
    assert classic.in_container(512, size("large-v2")) == 1
