"""What an OpenAI-compatible server answers, as a transcript of ours. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from errors import UnsupportedLanguage, UpstreamFailed
from transcription.core import Task, Transcript, TranscriptionOptions, TranscriptSegment, Word
from transcription.languages import language_code
from transcription.text_filters import filtered

DEVICE = "upstream"
UNKNOWN = math.nan
"""JSON's null: zero would be a claim."""

_AFTER_S = 0.05
"""A word may begin so long after the end of its segment, by rounding."""

_UNTIMED = "gpt-4o"
"""OpenAI's models of that name give a text and no times (API reference, "Create transcription", response_format)."""


def gives_times(model: str) -> bool:
    return not model.startswith(_UNTIMED)


def fields(options: TranscriptionOptions, model: str) -> list[tuple[str, str]]:
    """The form that asks for what *options* say, without the recording."""
    form = [("model", model), ("response_format", "verbose_json" if gives_times(model) else "json")]
    if options.temperature:
        form.append(("temperature", f"{options.temperature:g}"))
    # Names and words that are likely to be said: Whisper knows them from its prompt, too.
    if prompt := " ".join(text for text in (options.hotwords, options.initial_prompt) if text):
        form.append(("prompt", prompt))
    if options.task is Task.TRANSCRIBE:
        if options.language is not None:
            form.append(("language", options.language))
        if gives_times(model):
            wanted = ("segment", "word") if options.word_timestamps else ("segment",)
            form += [("timestamp_granularities[]", one) for one in wanted]
    return form


def undoable(options: TranscriptionOptions) -> list[tuple[str, str]]:
    """What of *options* such a server cannot do: names of parameters, each with a sentence."""
    asked = {
        "align": options.align,
        "diarize": options.diarize,
        "channels": options.channels.value != "mix",
        "clip_timestamps": bool(options.clips),
        "multilingual": options.multilingual,
        "vad": options.vad.value != "silero",
    }
    return [
        (name, "cannot be done by the upstream: leave it out, or provider=local")
        for name, given in asked.items()
        if given
    ]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and of what."""

    told: Mapping[str, Any]
    model: str
    duration_s: float
    """Of what was sent, as it was measured here."""


def transcript_of(answer: Answer, options: TranscriptionOptions) -> Transcript:
    """Raises UpstreamFailed where the answer is none."""
    told, warnings = answer.told, []
    try:
        segments = _segments(told, answer, options)
        language = _language(told.get("language"), options)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UpstreamFailed("The upstream's answer is no transcript.") from error
    if not gives_times(answer.model):
        warnings.append(f"The upstream's model {answer.model} gives a text without times.")
    elif options.word_timestamps and segments and all(segment.words is None for segment in segments):
        warnings.append("The upstream gave no times of words.")
    if options.drop_fillers or options.mask_profanity:
        segments = filtered(
            segments,
            fillers=options.drop_fillers,
            profanity=options.mask_profanity,
            language=language,
            translated=options.task is Task.TRANSLATE,
        )
    return Transcript(
        segments=tuple(replace(segment, id=number) for number, segment in enumerate(segments)),
        language=language,
        language_probability=1.0 if options.language else UNKNOWN,
        duration_s=answer.duration_s,
        task=options.task,
        model=answer.model,
        device=DEVICE,
        compute_type="unknown",
        warnings=tuple(warnings),
        provider="openai",
    )


def _language(name: object, options: TranscriptionOptions) -> str | None:
    """OpenAI tells English's name in verbose_json, other servers its code."""
    try:
        return language_code(name) if isinstance(name, str) and name else options.language
    except UnsupportedLanguage:
        return options.language


def _segments(told: Mapping[str, Any], answer: Answer, options: TranscriptionOptions) -> tuple[TranscriptSegment, ...]:
    text = told["text"]
    if not isinstance(text, str):
        raise TypeError
    if (given := told.get("segments")) is None:
        given = [{"start": 0.0, "end": answer.duration_s, "text": text}] if text.strip() else []
    segments = [_segment(number, one) for number, one in enumerate(given)]
    spoken = [segment for segment in segments if segment.text.strip()]
    words = told.get("words")
    if words is None or not options.word_timestamps:
        return tuple(spoken)
    return tuple(with_words(spoken, [(float(one["start"]), float(one["end"]), str(one["word"])) for one in words]))


def _segment(number: int, told: Mapping[str, Any]) -> TranscriptSegment:
    def known(name: str) -> float:
        value = told.get(name)
        return UNKNOWN if value is None else float(value)

    start, end = float(told["start"]), float(told["end"])
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError
    text = str(told["text"])
    return TranscriptSegment(
        id=number,
        start=start,
        end=max(start, end),
        # As Whisper spells it: servers that strip a segment's text put a space between two all the same.
        text=text if not number or text[:1].isspace() or not _spaced(text) else f" {text}",
        avg_logprob=known("avg_logprob"),
        no_speech_prob=known("no_speech_prob"),
        compression_ratio=known("compression_ratio"),
        temperature=known("temperature"),
        tokens=tuple(int(token) for token in told.get("tokens") or ()),
    )


def _spaced(text: str) -> bool:
    """Whether words of its script are told apart by spaces: not where it begins in Chinese, Japanese, Thai …"""
    first = ord(text[:1] or " ")
    return not any(low <= first <= high for low, high in _UNSPACED)


_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0xABFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF))
"""Thai and Lao; Burmese; Khmer; Chinese and Japanese with their punctuation."""

TimedWord = tuple[float, float, str]
"""Start, end, text: without spaces, and mostly without punctuation."""


def with_words(segments: Sequence[TranscriptSegment], words: Sequence[TimedWord]) -> list[TranscriptSegment]:
    """*segments*, each with its words: those that begin before its end and belong to no segment before it.

    Words keep the spaces and the punctuation that their segment's text has around them.
    """
    result, taken = [], 0
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        first = taken
        while taken < len(words) and (last or words[taken][0] < segment.end - _AFTER_S):
            taken += 1
        result.append(replace(segment, words=_placed(segment.text, words[first:taken])))
    return result


def _placed(text: str, words: Sequence[TimedWord]) -> tuple[Word, ...]:
    spelled = _spelled(text, [word for _, _, word in words])
    return tuple(
        Word(start, max(start, end), shown, UNKNOWN) for (start, end, _), shown in zip(words, spelled, strict=True)
    )


def _spelled(text: str, words: Sequence[str]) -> list[str]:
    """*words* as *text* spells them, so that together they are *text*; where one is not in it, each after a space."""
    plain, bounds, end = text.casefold(), [0], 0
    if len(plain) != len(text):
        return [f" {word.strip()}" for word in words]
    for number, word in enumerate(words):
        start = plain.find(word.strip().casefold(), end)
        if start < 0 or not word.strip():
            return [f" {word.strip()}" for word in words]
        if number:
            gap = text[end:start]
            space = next((at for at, char in enumerate(gap) if char.isspace()), len(gap))
            bounds.append(end + space)
        end = start + len(word.strip())
    bounds.append(len(text))
    return [text[bounds[at] : bounds[at + 1]] for at in range(len(words))]
