"""What the server and its engine process say to each other: one JSON object a line, over the child's stdin and stdout.

Calls carry an `id` and get exactly one answer with that `id`, in the order in which they are done; the child speaks
first, once, to say what it is. Segments travel as (path, first sample, samples): their samples stay on disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transcription.core import (
    Channels,
    Segment,
    SegmentRequest,
    Task,
    Token,
    TranscriptionOptions,
    TranscriptSegment,
    VoiceActivity,
    Word,
)

MAX_LINE_BYTES = 16 * 1024 * 1024
"""No line is longer: a batch's words take some hundred kilobytes."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The child's first line: what it computes on, "auto" resolved."""

    device: str
    compute_type: str


@dataclass(frozen=True, slots=True)
class Language:
    """Whisper's code of the language that was heard, and how sure it is (0 to 1)."""

    code: str
    probability: float


def line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), default=str).encode() + b"\n"


def segment_from(data: dict[str, Any]) -> Segment:
    return Segment(Path(data["path"]), data["first_sample"], data["samples"], data["index"])


def request_from(data: dict[str, Any]) -> SegmentRequest:
    return SegmentRequest(segment_from(data["segment"]), options_from(data["options"]))


def options_from(data: dict[str, Any]) -> TranscriptionOptions:
    told = {"task": Task(data["task"]), "vad": VoiceActivity(data["vad"]), "channels": Channels(data["channels"])}
    return TranscriptionOptions(**data | told | {"clips": tuple(map(tuple, data["clips"]))})


def result_from(data: dict[str, Any]) -> TranscriptSegment:
    words, logprobs = data["words"], data["logprobs"]
    told = {
        "words": None if words is None else tuple(Word(**word) for word in words),
        "tokens": tuple(data["tokens"]),
        "logprobs": None
        if logprobs is None
        else tuple(Token(token["text"], tuple(token["bytes"]), token["logprob"]) for token in logprobs),
    }
    return TranscriptSegment(**data | told)


def plain(value: Segment | SegmentRequest | TranscriptSegment | Language | Hello) -> dict[str, Any]:
    return asdict(value)
