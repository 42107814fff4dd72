"""From the levels that were measured to what to do: how many at once, and which setting to put. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.concurrency_levels import Level

WORTH_IT = 0.05
"""More requests at once must bring this much more speed, or cost no latency."""
MEMORY_WARNING = 0.85
"""Of the total. Above it one longer recording, or another program, can bring the process to its end."""
MIB = 2**20

OTHER_PROBLEMS = {
    "KEY_BUSY": "One key may not have more requests in flight: send fewer at once with it.",
    "QUOTA_USED": "This key has had its audio for today.",
    "TIMEOUT": "Requests waited for their turn longer than the server lets them: send fewer at once.",
    "OUT_OF_MEMORY": "The engine's memory did not suffice: take a smaller MODEL_SIZE, or give the server more memory.",
    "GPU_OOM": "The GPU's memory did not suffice: take a smaller MODEL_SIZE.",
    "WORKER_CRASHED": "An engine died at its work, most often for want of memory: the server's log says why.",
    "NOT_READY": "The server had no engine that was ready: the server's log says why.",
}
"""What to do about answers that carry these codes."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Sentences for people, and settings for the server's environment or `.env`."""

    at_once: int | None
    """The sweet spot; None where the levels do not show one."""
    sentences: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    sentences: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def recommend(levels: Sequence[Level]) -> Advice:
    """What the levels, at least one, say together."""
    levels = sorted(levels, key=lambda level: level.at_once)
    best = sweet_spot(levels)
    told = [_speed(levels, best), _slots(levels), _memory(levels), _line(levels), _problems(levels)]
    settings = {name: value for part in told for name, value in part.settings.items()}
    compared = best is not None and len(levels) > 1
    return Advice(
        best.at_once if best and compared else None,
        tuple(sentence for part in told for sentence in part.sentences),
        settings,
    )


def sweet_spot(levels: Sequence[Level]) -> Level | None:
    """The level that none above it is worth leaving for: by 5 % more speed, or by no less speed at no more latency.

    Levels at which a request was not served, or memory ran short, do not count. *levels*: fewest at once first.
    """
    best: Level | None = None
    for level in levels:
        if not level.all_served or _short_of_memory(level):
            continue
        if best is None or level.speed >= (1 + WORTH_IT) * best.speed or _costs_nothing(level, best):
            best = level
    return best


def _costs_nothing(level: Level, below: Level) -> bool:
    return level.speed >= below.speed and level.p95_s <= below.p95_s


def _short_of_memory(level: Level) -> bool:
    fullest = level.usage.fullest
    return fullest is not None and fullest.share > MEMORY_WARNING


def _speed(levels: Sequence[Level], best: Level | None) -> _Part:
    if best is None:
        return _Part(["At no level were all requests served within safe memory, so that none can be recommended."])
    figures = f"{best.speed:.1f} audio-seconds per second, p95 {best.p95_s:.1f} s"
    if len(levels) == 1:
        return _Part(
            [
                f"{best.at_once} at once: {figures}.",
                "One level does not show whether more or fewer do better: --test-all compares.",
            ]
        )
    kept = "1 recording" if best.at_once == 1 else f"{best.at_once} recordings"
    sentences = [f"Keep {kept} in flight: {figures}."]
    above = [level for level in levels if level.at_once > best.at_once]
    if not above:
        sentences.append(f"That was the most that was tried: --concurrent {2 * best.at_once} shows whether more help.")
    elif above[0].all_served:
        sentences.append(
            f"{above[0].at_once} at once changed the speed by {above[0].speed / best.speed - 1:+.0%}, "
            f"and p95 to {above[0].p95_s:.1f} s."
        )
    slots = best.usage.slots
    if slots is not None and best.at_once > slots:
        # More in flight than are worked on keeps the line filled; the setting is right as it is.
        return _Part(sentences)
    return _Part(sentences, {"MAX_CONCURRENT_TRANSCRIPTIONS": str(best.at_once)})


def _slots(levels: Sequence[Level]) -> _Part:
    most, slots = levels[-1].at_once, levels[-1].usage.slots
    if slots is None or most <= slots:
        return _Part()
    return _Part(
        [
            f"The server works on {slots} at once; what is above that waited in its line. To measure more at work, "
            f"start it with MAX_CONCURRENT_TRANSCRIPTIONS={most}."
        ]
    )


def _memory(levels: Sequence[Level]) -> _Part:
    short = next((level for level in levels if _short_of_memory(level)), None)
    device = short.usage.fullest if short else None
    if short is None or device is None:
        return _Part()
    safe_mb = int(MEMORY_WARNING * device.total_bytes / MIB)
    sentences = [
        f"Memory warning: {device.share:.0%} of {device.total_bytes / 2**30:.1f} GiB ({device.name}) was in use with "
        f"{short.at_once} at once, above {MEMORY_WARNING:.0%}. Send fewer at once, take a smaller MODEL_SIZE, or give "
        "the server more memory."
    ]
    if device.name != "memory":
        return _Part(sentences)
    sentences.append(
        f"MEMORY_LIMIT_MB={safe_mb} makes the server plan with {MEMORY_WARNING:.0%} of it; take off what other "
        "programs on that machine need."
    )
    return _Part(sentences, {"MEMORY_LIMIT_MB": str(safe_mb)})


def _line(levels: Sequence[Level]) -> _Part:
    """The waiting line: was it full, and would a longer one help?"""
    refused = [level for level in levels if level.codes.get("QUEUE_FULL")]
    if not refused:
        return _Part()
    most, usage = refused[-1].at_once, refused[-1].usage
    times = sum(level.codes["QUEUE_FULL"] for level in refused)
    sentences = [
        f"429 came {_times(times)}, first with {refused[0].at_once} at once: the server's waiting line was full. Send "
        "fewer at once, or wait as Retry-After says (--patient)."
    ]
    if usage.max_waiting is not None and usage.max_waiting >= most:
        longest = "" if usage.max_wait_s is None else f" than {usage.max_wait_s:.0f} s"
        sentences.append(
            f"The line has room for {usage.max_waiting}; it refuses those who would wait longer{longest}. A longer "
            "line does not help, fewer at once or a smaller MODEL_SIZE does."
        )
        return _Part(sentences)
    off = " where FAIL_FAST is off" if usage.max_waiting == 0 else ""
    sentences.append(f"MAX_QUEUE_LENGTH={most} lets all of them wait{off}.")
    return _Part(sentences, {"MAX_QUEUE_LENGTH": str(most)})


def _problems(levels: Sequence[Level]) -> _Part:
    """Everything else that came in place of transcripts, the most frequent first."""
    codes = Counter[str]()
    for level in levels:
        codes.update(level.codes)
    codes.pop("QUEUE_FULL", None)
    default = "The server's log says why."
    return _Part(
        [f"{code} came {_times(count)}. {OTHER_PROBLEMS.get(code, default)}" for code, count in codes.most_common()]
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
