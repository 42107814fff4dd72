"""What engines were seen to take, by kind of device, compute type and model: kept on disk, it corrects the next plan.

The core is pure; `SeenMemory` owns the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from limits import Footprint

log = structlog.get_logger(__name__)

MUCH_WORK_S = 3600.0
"""At work for so long, a model has met what its callers bring: it may be planned smaller than predicted."""

HEADROOM = 1.1
"""Over the most that was seen: it is looked at once a second, and the largest moment may lie between two looks."""

LEAST_SHARE = 0.5
MOST_SHARE = 2.0
"""Of what was predicted, whatever was seen: pages that were swapped out are not seen, and a leak is no price."""

SAVED_EVERY_S = 60.0
"""Of work. A server that is killed forgets no more."""

VERSION = 1
"""Of the file, and of `transcription.footprint`, whose predictions its ratios are of: raise it when these change."""

Key = tuple[str, str, str]
"""Kind of device ("cpu"), compute type ("int8", never "auto"), model."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at an engine's process that has held no other model than this one."""

    device: str
    """Its kind: "cpu" or "cuda"."""
    compute_type: str
    model: str
    resident_bytes: int
    work_s: float = 0.0
    """For how long it has been at work since the last look."""
    load_bytes: int | None = None
    """What the process has grown by while it loaded the model: told once, before any work."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of one model on one kind of device."""

    load_bytes: int | None = None
    """What its last loading took."""
    peak_bytes: int = 0
    """The largest process."""
    ratio: float = 0.0
    """The most that the streams took, over what was predicted of them."""
    work_s: float = 0.0


UNSEEN = Seen()


def corrected(predicted: Footprint, seen: Seen) -> Footprint:
    """The price by what was seen: weights as they were loaded; what streams take more at once, less after much work."""
    weights_bytes = predicted.weights_bytes
    if seen.load_bytes is not None:
        weights_bytes = round(min(MOST_SHARE, max(LEAST_SHARE, seen.load_bytes / weights_bytes)) * weights_bytes)
    ratio = max(1.0, seen.ratio)
    if seen.work_s >= MUCH_WORK_S and seen.ratio * HEADROOM < 1:
        ratio = max(LEAST_SHARE, seen.ratio * HEADROOM)
    return replace(predicted, weights_bytes=weights_bytes, seen_ratio=min(MOST_SHARE, ratio))


def after(seen: Seen, sight: Sight, price: Footprint, streams: int, batch_size: int) -> Seen:
    """*seen* with one look more. *price*: what the plan was made with, for so many streams and segments in a batch."""
    load_bytes = seen.load_bytes if sight.load_bytes is None else sight.load_bytes
    idle_bytes = price.process_bytes + (price.weights_bytes if load_bytes is None else load_bytes)
    predicted_bytes = replace(price, seen_ratio=1.0).working_bytes(streams, batch_size)
    return Seen(
        load_bytes=load_bytes,
        peak_bytes=max(seen.peak_bytes, sight.resident_bytes),
        ratio=max(seen.ratio, (sight.resident_bytes - idle_bytes) / max(1, predicted_bytes)),
        work_s=seen.work_s + sight.work_s,
    )


class SeenMemory:
    """What was seen since this start and before it. Where the file cannot be read or written, it is seen anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[Key, Seen] = _read(path)
        self._unsaved_s = 0.0

    def __repr__(self) -> str:
        return f"<SeenMemory {self.known}>"

    def of(self, device: str, compute_type: str, model: str) -> Seen:
        return self.known.get((device, compute_type, model), UNSEEN)

    def note(self, sight: Sight, price: Footprint, streams: int, batch_size: int) -> None:
        """Take a look's result. See `after`."""
        if sight.device != "cpu":
            return  # what a process holds of a GPU is not in its resident memory
        key = (sight.device, sight.compute_type, sight.model)
        self.known[key] = after(self.of(*key), sight, price, streams, batch_size)
        self._unsaved_s += sight.work_s
        if sight.load_bytes is not None or self._unsaved_s >= SAVED_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write all of it, or leave the file as it is."""
        self._unsaved_s = 0.0
        content = {"version": VERSION, "seen": {"/".join(key): asdict(seen) for key, seen in self.known.items()}}
        beside = self._path.with_suffix(".part")
        try:
            beside.write_text(json.dumps(content, indent=1), "utf-8")
            os.replace(beside, self._path)
        except OSError as error:
            log.warning("what was seen of the memory could not be kept", path=str(self._path), reason=str(error))


def _read(path: Path) -> dict[Key, Seen]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["version"] != VERSION:
            return {}
        return {_key(name): _seen(data) for name, data in content["seen"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        log.warning("what was seen of the memory cannot be read: it is seen anew", path=str(path), reason=repr(error))
        return {}


def _key(name: str) -> Key:
    device, compute_type, model = name.split("/")
    return device, compute_type, model


def _seen(data: Mapping[str, Any]) -> Seen:
    """Raises ValueError, TypeError or KeyError for what `save` has not written."""
    load_bytes = data["load_bytes"]
    seen = Seen(
        None if load_bytes is None else int(load_bytes),
        int(data["peak_bytes"]),
        float(data["ratio"]),
        float(data["work_s"]),
    )
    if not all(math.isfinite(number) and number >= 0 for number in (seen.ratio, seen.work_s, seen.load_bytes or 0)):
        raise ValueError(f"no memory that was seen: {data}")
    return seen
