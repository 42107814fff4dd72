"""What an engine computes on, and what it loads (data only)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's weights lie, and the memory that it takes once loaded."""

    path: Path
    bytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """What an engine computes on, and with how much of it. The defaults are for a model alone on one core."""

    device: str = "auto"
    compute_type: str = "auto"
    streams: int = 1
    """Batches decoded at the same time, on weights held once."""
    express: bool = False
    """One stream more, for clips alone: they need not wait for a long file's batch to end."""
    threads: int = 1
    """Of one stream, on a CPU."""
    models_bytes: int = 2**63
    """Models are held side by side up to this size together."""
    bound_bytes: int | None = None
    """A process that takes more memory than this is replaced."""
