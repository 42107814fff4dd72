"""The classic sizing rule, kept beside the plan: how many engines, each with its own copy of the weights. Pure.

    engines = (memory - reserve) / size of the model, rounded down

It was published as formulas and as tables, which disagree in places. They are read like this
(docs/decisions/0006-classic-rule.md has every figure):

- One formula, rounded down, gives "at most" on a desktop. It agrees with all five models of the table for 8 GB.
- "Recommended" has no formula. Two thirds of "at most", rounded down, at least one, gives all five figures.
- The cap of 4 holds in containers only: on a desktop the table says 10 to 12 for tiny.
- The container's formula was published for medium, and in whole MB. It is used with the other models' sizes, too.
- For medium in 4 GB the container's formula says 1 and the table says 2. The formula is taken: two copies of 2 GB and
  the reserve are 4.5 GB.

Memory is the total, not what is free: the reserve stands for all that others use. MB are a platform's: 2048 for 2 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

DESKTOP_RESERVE_MB = 2000
CONTAINER_RESERVE_MB = 500

MOST_IN_CONTAINER = 4
"""For the CPU's sake, the source says: the rule itself does not look at cores."""

SIZES_MB = {
    "tiny": 500,
    "base": 700,
    "small": 1000,
    "medium": 2000,
    "turbo": 2500,
    "large-v1": 3500,
    "large-v2": 3500,
    "large-v3": 3500,
}
"""Of one engine with the model. NOTE: published are tiny, small, medium, turbo and large-v2. base lies between its
neighbours (their geometric mean, rounded); the other large ones have large-v2's shape."""


@dataclass(frozen=True, slots=True)
class Engines:
    """How many engines a desktop may run, and how many it had better run."""

    at_most: int
    recommended: int


def size_mb(model: str) -> int | None:
    """Of the model of that name, English alone or not; None where the rule has no figure (the distilled ones)."""
    return SIZES_MB.get(model.removesuffix(".en"))


def on_desktop(memory_mb: int, size_mb: int) -> Engines:
    """On a machine with *memory_mb* in all, other programs' included; 0 where none fits."""
    at_most = max(0, memory_mb - DESKTOP_RESERVE_MB) // size_mb
    return Engines(at_most, min(at_most, max(1, at_most * 2 // 3)))


def in_container(memory_mb: int, size_mb: int) -> int:
    """In a container of *memory_mb*. NOTE: never 0, even where the model does not fit; that is how it was published."""
    return min(MOST_IN_CONTAINER, max(1, (memory_mb - CONTAINER_RESERVE_MB) // size_mb))
