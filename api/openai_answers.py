"""Transcripts in the words of OpenAI's answers. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from api.event_stream import rounded
from api.openai_parameters import TELLS_LANGUAGES, SpeechFormat, SpeechParameters, TranscriptionParameters
from transcription import formats
from transcription.core import Task, Token, Transcript, TranscriptSegment, Word
from transcription.languages import LANGUAGES
from transcription.subtitle_units import has_words

Json = dict[str, Any]

UNKNOWN = "unknown"
"""The language where nobody speaks, a speaker who is not known: callers' programs expect a string."""

SEGMENT = "transcript.text.segment"

_FRAMES_PER_SECOND = 100


def written(transcript: Transcript, asked: SpeechParameters) -> Json | str:
    """The answer that is not streamed. Subtitles of a long recording take a second of CPU: call it in a thread."""
    match asked.response_format:
        case SpeechFormat.JSON:
            return _json(transcript, asked)
        case SpeechFormat.VERBOSE_JSON:
            return _verbose_json(transcript, asked)
        case SpeechFormat.DIARIZED_JSON:
            return _diarized_json(transcript)
        case SpeechFormat.TEXT:
            return transcript.text + "\n"
        case SpeechFormat.SRT | SpeechFormat.VTT:
            return str(formats.render(transcript, asked.response_format.own, request_id=""))


def _json(transcript: Transcript, asked: SpeechParameters) -> Json:
    if not isinstance(asked, TranscriptionParameters):
        return {"text": transcript.text}
    return {"text": transcript.text, **about(transcript, asked)}


def about(transcript: Transcript, asked: TranscriptionParameters) -> Json:
    """What goes with the text, streamed or not: `languages` and `logprobs` where they are asked for, `usage`."""
    told: Json = {}
    if asked.alias == TELLS_LANGUAGES:
        told["languages"] = [{"code": transcript.language}] if transcript.language else []
    if asked.logprobs:
        told["logprobs"] = logprobs(transcript.segments)
    return told | {"usage": usage(transcript)}


def usage(transcript: Transcript) -> Json:
    """Whole seconds of audio, the last one begun counting as one."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration_s)}


def logprobs(segments: Iterable[TranscriptSegment]) -> list[Json]:
    return [_logprob(token) for segment in segments for token in segment.logprobs or ()]


def _logprob(token: Token) -> Json:
    return {"token": token.text, "logprob": rounded(token.logprob, 6), "bytes": list(token.bytes)}


def _verbose_json(transcript: Transcript, asked: SpeechParameters) -> Json:
    translated = transcript.task is Task.TRANSLATE
    answer: Json = {
        "task": transcript.task.value,
        # A translation's language is that of its text.
        "language": LANGUAGES["en"] if translated else LANGUAGES.get(transcript.language or "", UNKNOWN),
        "duration": rounded(transcript.duration_s, 3),
        "text": transcript.text,
    }
    wants = asked if isinstance(asked, TranscriptionParameters) else None
    if wants is None or wants.segments:
        answer["segments"] = [_segment(segment) for segment in transcript.segments]
    if wants is not None:
        if wants.words:
            answer["words"] = [_word(word) for segment in transcript.segments for word in segment.words or ()]
        answer["usage"] = usage(transcript)
    return answer


def _segment(segment: TranscriptSegment) -> Json:
    """The text keeps the space before it, as OpenAI's does."""
    start_s = rounded(segment.start, 3)
    return {
        "id": segment.id,
        "seek": None if start_s is None else round(start_s * _FRAMES_PER_SECOND),
        "start": start_s,
        "end": rounded(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": rounded(segment.temperature, 3),
        "avg_logprob": rounded(segment.avg_logprob, 4),
        "compression_ratio": rounded(segment.compression_ratio, 4),
        "no_speech_prob": rounded(segment.no_speech_prob, 4),
    }


def _word(word: Word) -> Json:
    return {"word": word.text.strip(), "start": rounded(word.start, 3), "end": rounded(word.end, 3)}


def _diarized_json(transcript: Transcript) -> Json:
    return {
        "task": transcript.task.value,
        "duration": rounded(transcript.duration_s, 3),
        "text": transcript.text,
        "segments": diarized_segments(transcript),
        "usage": usage(transcript),
    }


def diarized_segments(transcript: Transcript) -> list[Json]:
    """Stretches of one speaker each, who are called A, B, C … in the order in which they first speak."""
    names: dict[str, str] = {}
    told = []
    for number, one in enumerate(_spoken(transcript.segments)):
        name = UNKNOWN if one.speaker is None else names.setdefault(one.speaker, letters(len(names)))
        told.append(
            {
                "type": SEGMENT,
                "id": f"seg_{number:03d}",
                "start": rounded(one.start, 3),
                "end": rounded(one.end, 3),
                "text": one.text,
                "speaker": name,
            }
        )
    return told


def letters(number: int) -> str:
    """A, B … Z, AA, AB …"""
    more, last = divmod(number, 26)
    return (letters(more - 1) if more else "") + chr(ord("A") + last)


@dataclass(frozen=True, slots=True)
class _Spoken:
    """Times are seconds from the start of the recording."""

    start: float
    end: float
    speaker: str | None
    text: str


def _spoken(segments: Iterable[TranscriptSegment]) -> Iterator[_Spoken]:
    """Each segment, cut where its words tell of another speaker."""
    for segment in segments:
        if not has_words(segment):
            yield _Spoken(segment.start, segment.end, segment.speaker, segment.text)
            continue
        by_speaker = itertools.groupby(segment.words or (), key=lambda word: word.speaker or segment.speaker)
        parts = [(speaker, list(words)) for speaker, words in by_speaker]
        if len(parts) == 1:
            yield _Spoken(segment.start, segment.end, parts[0][0], segment.text)
            continue
        for speaker, words in parts:
            yield _Spoken(words[0].start, words[-1].end, speaker, "".join(word.text for word in words))
