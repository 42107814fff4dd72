"""A transcript as the caller asked for it: JSON, OpenAI's JSON, text, subtitles, a table or a document."""

from __future__ import annotations

import math
from typing import Any

from transcription import subtitles
from transcription.core import ResponseFormat, Task, Transcript, TranscriptSegment, Word
from transcription.languages import LANGUAGES
from transcription.paragraphs import has_speakers, one_a_segment, turns
from transcription.styled_subtitles import ass

Json = dict[str, Any]

_MEDIA_TYPES = {
    ResponseFormat.JSON: "application/json",
    ResponseFormat.VERBOSE_JSON: "application/json",
    ResponseFormat.TEXT: "text/plain; charset=utf-8",
    ResponseFormat.SRT: "application/x-subrip; charset=utf-8",
    ResponseFormat.VTT: "text/vtt; charset=utf-8",
    ResponseFormat.VTT_WORDS: "text/vtt; charset=utf-8",
    ResponseFormat.ASS: "text/x-ssa; charset=utf-8",
    ResponseFormat.TSV: "text/tab-separated-values; charset=utf-8",
    ResponseFormat.DOCX: "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
}
_EXTENSIONS = {
    ResponseFormat.VERBOSE_JSON: "json",
    ResponseFormat.TEXT: "txt",
    ResponseFormat.VTT_WORDS: "vtt",
}

_PARAGRAPH_S = 60.0
"""In a document, a longer turn goes on in another paragraph, so that there is a time to find it by."""

_FRAMES_PER_SECOND = 100
"""Whisper's spectrogram has one frame each 10 ms; OpenAI's `seek` counts in them."""


def media_type(response_format: ResponseFormat) -> str:
    """The Content-Type of what `render` returns for *response_format*."""
    return _MEDIA_TYPES[response_format]


def extension(response_format: ResponseFormat) -> str:
    """What the name of a file with that content ends with, without the dot."""
    return _EXTENSIONS.get(response_format, response_format.value)


def render(
    transcript: Transcript, response_format: ResponseFormat, request_id: str, *, title: str | None = None
) -> str | bytes | Json:
    """*transcript* as text, as a file's bytes, or as an object that is valid JSON: no NaN, no infinity.

    Times are seconds with three decimals, probabilities have four. *title* stands over a document. Subtitles and
    documents of a long recording take a second or two of CPU: call it in a thread.
    """
    match response_format:
        case ResponseFormat.TEXT:
            return _text(transcript)
        case ResponseFormat.SRT:
            return subtitles.srt(_cues(transcript, labelled=True))
        case ResponseFormat.VTT:
            return subtitles.vtt(_cues(transcript))
        case ResponseFormat.VTT_WORDS:
            return subtitles.vtt(_cues(transcript), karaoke=True)
        case ResponseFormat.ASS:
            return ass(_cues(transcript, labelled=True))
        case ResponseFormat.TSV:
            return _tsv(transcript)
        case ResponseFormat.DOCX:
            return _docx(transcript, title)
        case ResponseFormat.JSON:
            return _json(transcript, request_id)
        case ResponseFormat.VERBOSE_JSON:
            return _verbose_json(transcript, request_id)


def _cues(transcript: Transcript, *, labelled: bool = False) -> list[subtitles.Cue]:
    return subtitles.cues(transcript.segments, duration_s=transcript.duration_s, labelled=labelled)


def _text(transcript: Transcript) -> str:
    """All in one line, or, where it is known who speaks, a paragraph a turn."""
    if not has_speakers(transcript.segments):
        return transcript.text + "\n"
    told = [f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text for turn in turns(transcript.segments)]
    return "\n\n".join(told) + "\n"


def _docx(transcript: Transcript, title: str | None) -> bytes:
    # NOTE: here, since a server that writes no documents does without the 20 MB that the library takes.
    from transcription.documents import docx

    known = has_speakers(transcript.segments)
    paragraphs = turns(transcript.segments, longest_s=_PARAGRAPH_S) if known else one_a_segment(transcript.segments)
    return docx(paragraphs, title=title, language="en" if transcript.task is Task.TRANSLATE else transcript.language)


def _tsv(transcript: Transcript) -> str:
    """As openai-whisper writes it: times in whole milliseconds, one segment a line, under a header.

    Where it is known who speaks, a last column says so: programs that take columns by their number go on working.
    """
    known = has_speakers(transcript.segments)
    rows = ["start\tend\ttext" + ("\tspeaker" if known else "")]
    for segment in transcript.segments:
        if text := " ".join(segment.text.split()):
            start_s, end_s = _time(segment.start) or 0.0, _time(segment.end) or 0.0
            speaker = f"\t{segment.speaker or ''}" if known else ""
            rows.append(f"{round(start_s * 1000)}\t{round(end_s * 1000)}\t{text}{speaker}")
    return "\n".join(rows) + "\n"


def _json(transcript: Transcript, request_id: str) -> Json:
    return {
        "text": transcript.text,
        "language": transcript.language,
        "language_probability": _probability(transcript.language_probability),
        "duration": _time(transcript.duration_s),
        "segments": [segment_json(segment) for segment in transcript.segments],
        **_about_the_work(transcript, request_id),
    }


def _verbose_json(transcript: Transcript, request_id: str) -> Json:
    """OpenAI's `verbose_json` (API reference, "The transcription object"), then what else is known."""
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
    warnings: Json = {"warnings": list(transcript.warnings)} if transcript.warnings else {}
    return {
        "task": transcript.task.value,
        "model": transcript.model,
        "device": transcript.device,
        "compute_type": transcript.compute_type,
        "timings": {stage: _time(seconds) for stage, seconds in transcript.timings_s.items()},
        "real_time_factor": _time(transcript.real_time_factor),
        "provider": transcript.provider,
        **warnings,
        "request_id": request_id,
    }


def segment_json(segment: TranscriptSegment) -> Json:
    answer: Json = {
        "id": segment.id,
        "start": _time(segment.start),
        "end": _time(segment.end),
        "text": segment.text.strip(),
        "avg_logprob": _probability(segment.avg_logprob),
        "no_speech_prob": _probability(segment.no_speech_prob),
        **_what_else_is_known(segment),
    }
    if segment.words is not None:
        answer["words"] = [_word(word) for word in segment.words]
    return answer


def _what_else_is_known(segment: TranscriptSegment) -> Json:
    """What only some requests ask for: the keys of the others are absent."""
    known = {"speaker": segment.speaker, "language": segment.language, "aligned": segment.aligned}
    return {name: value for name, value in known.items() if value is not None}


def _verbose_segment(segment: TranscriptSegment) -> Json:
    start_s = _time(segment.start)
    return {
        "id": segment.id,
        "seek": round(start_s * _FRAMES_PER_SECOND) if start_s is not None else None,
        "start": start_s,
        "end": _time(segment.end),
        "text": segment.text.strip(),
        "tokens": list(segment.tokens),
        "temperature": _time(segment.temperature),
        "avg_logprob": _probability(segment.avg_logprob),
        "compression_ratio": _probability(segment.compression_ratio),
        "no_speech_prob": _probability(segment.no_speech_prob),
        **_what_else_is_known(segment),
    }


def _word(word: Word) -> Json:
    answer: Json = {
        "word": word.text.strip(),
        "start": _time(word.start),
        "end": _time(word.end),
        "probability": _probability(word.probability),
    }
    if word.score is not None:
        answer["score"] = _probability(word.score)
    if word.speaker is not None:
        answer["speaker"] = word.speaker
    return answer


def _time(seconds: float) -> float | None:
    return _rounded(seconds, 3)


def _probability(value: float) -> float | None:
    return _rounded(value, 4)


def _rounded(value: float, decimals: int) -> float | None:
    """JSON has no NaN and no infinity: null says that the number is not known, where 0 would be a claim.

    NOTE: float() because numpy's own floats pass as float here and are no JSON.
    """
    return round(float(value), decimals) if math.isfinite(value) else None
