"""A transcript as the caller asked for it: JSON, OpenAI's JSON, text, subtitles or a table. Pure."""

from __future__ import annotations

import math
from typing import Any

from transcription import subtitles
from transcription.core import ResponseFormat, Transcript, TranscriptSegment, Word
from transcription.languages import LANGUAGES

Json = dict[str, Any]

_MEDIA_TYPES = {
    ResponseFormat.JSON: "application/json",
    ResponseFormat.VERBOSE_JSON: "application/json",
    ResponseFormat.TEXT: "text/plain; charset=utf-8",
    ResponseFormat.SRT: "application/x-subrip; charset=utf-8",
    ResponseFormat.VTT: "text/vtt; charset=utf-8",
    ResponseFormat.TSV: "text/tab-separated-values; charset=utf-8",
}

_FRAMES_PER_SECOND = 100
"""Whisper's spectrogram has one frame each 10 ms; OpenAI's `seek` counts in them."""


def media_type(response_format: ResponseFormat) -> str:
    """The Content-Type of what `render` returns for *response_format*."""
    return _MEDIA_TYPES[response_format]


def render(transcript: Transcript, response_format: ResponseFormat, request_id: str) -> str | Json:
    """*transcript* as text, or as an object that is valid JSON: no NaN, no infinity.

    Times are seconds with three decimals, probabilities have four. Subtitles of a long recording take a second or two
    of CPU: call it in a thread.
    """
    match response_format:
        case ResponseFormat.TEXT:
            return transcript.text + "\n"
        case ResponseFormat.SRT:
            return subtitles.srt(_cues(transcript))
        case ResponseFormat.VTT:
            return subtitles.vtt(_cues(transcript))
        case ResponseFormat.TSV:
            return _tsv(transcript)
        case ResponseFormat.JSON:
            return _json(transcript, request_id)
        case ResponseFormat.VERBOSE_JSON:
            return _verbose_json(transcript, request_id)


def _cues(transcript: Transcript) -> list[subtitles.Cue]:
    return subtitles.cues(transcript.segments, duration_s=transcript.duration_s)


def _tsv(transcript: Transcript) -> str:
    """As openai-whisper writes it: times in whole milliseconds, one segment a line, under a header."""
    rows = ["start\tend\ttext"]
    for segment in transcript.segments:
        if text := " ".join(segment.text.split()):
            start_s, end_s = _time(segment.start) or 0.0, _time(segment.end) or 0.0
            rows.append(f"{round(start_s * 1000)}\t{round(end_s * 1000)}\t{text}")
    return "\n".join(rows) + "\n"


def _json(transcript: Transcript, request_id: str) -> Json:
    return {
        "text": transcript.text,
        "language": transcript.language,
        "language_probability": _probability(transcript.language_probability),
        "duration": _time(transcript.duration_s),
        "segments": [_segment(segment) for segment in transcript.segments],
        **_about_the_work(transcript, request_id),
    }


def _verbose_json(transcript: Transcript, request_id: str) -> Json:
    """OpenAI's `verbose_json` (API reference, "The transcription object"), then what else is known.

    A segment's `tokens` are left out: what is rendered here no longer has them.
    """
    answer: Json = {
        "task": transcript.task.value,
        "language": LANGUAGES[transcript.language] if transcript.language else None,
        "duration": _time(transcript.duration_s),
        "text": transcript.text,
        "segments": [_verbose_segment(segment) for segment in transcript.segments],
    }
    if any(segment.words is not None for segment in transcript.segments):
        answer["words"] = [_word(word) for segment in transcript.segments for word in segment.words or ()]
    return {
        **answer,
        "language_code": transcript.language,
        "language_probability": _probability(transcript.language_probability),
        **_about_the_work(transcript, request_id),
    }


def _about_the_work(transcript: Transcript, request_id: str) -> Json:
    return {
        "task": transcript.task.value,
        "model": transcript.model,
        "device": transcript.device,
        "compute_type": transcript.compute_type,
        "timings": {stage: _time(seconds) for stage, seconds in transcript.timings_s.items()},
        "real_time_factor": _time(transcript.real_time_factor),
        "request_id": request_id,
    }


def _segment(segment: TranscriptSegment) -> Json:
    answer: Json = {
        "id": segment.id,
        "start": _time(segment.start),
        "end": _time(segment.end),
        "text": segment.text.strip(),
        "avg_logprob": _probability(segment.avg_logprob),
        "no_speech_prob": _probability(segment.no_speech_prob),
    }
    if segment.words is not None:
        answer["words"] = [_word(word) for word in segment.words]
    return answer


def _verbose_segment(segment: TranscriptSegment) -> Json:
    start_s = _time(segment.start)
    return {
        "id": segment.id,
        "seek": round(start_s * _FRAMES_PER_SECOND) if start_s is not None else None,
        "start": start_s,
        "end": _time(segment.end),
        "text": segment.text.strip(),
        "temperature": _time(segment.temperature),
        "avg_logprob": _probability(segment.avg_logprob),
        "compression_ratio": _probability(segment.compression_ratio),
        "no_speech_prob": _probability(segment.no_speech_prob),
    }


def _word(word: Word) -> Json:
    return {
        "word": word.text.strip(),
        "start": _time(word.start),
        "end": _time(word.end),
        "probability": _probability(word.probability),
    }


def _time(seconds: float) -> float | None:
    return _rounded(seconds, 3)


def _probability(value: float) -> float | None:
    return _rounded(value, 4)


def _rounded(value: float, decimals: int) -> float | None:
    """JSON has no NaN and no infinity: null says that the number is not known, where 0 would be a claim.

    NOTE: float() because numpy's own floats pass as float here and are no JSON.
    """
    return round(float(value), decimals) if math.isfinite(value) else None
