"""What a caller may want left out of a text: hesitations, and swear words beyond their first letter. Pure.

The lists are short on purpose: the commonest words of a language that mean nothing else. A word that is also a name or
an innocent word ("dick", "cock", German "um") is not on them, and what is not on them stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from transcription.core import TranscriptSegment

_FILLERS = {
    "en": r"u+m+|u+h+m*|e+r+m+|er|h+m+|m{3,}",
    "de": r"[äö]+h+m*|e+h+m+|h+m+|m{3,}",
    "fr": r"e+u+h+m*|h+e+u+|h+u*m+|m{3,}",
    "es": r"e+h+m*|e+m{2,}|e{3,}|h+m+|m{3,}",
    "it": r"e+h+m+|u+h+m+|m+h+|h+m+|m{3,}",
    "pt": r"é{2,}|e+h+m+|h+u*m{2,}|m{3,}",
    "nl": r"[eu]+h+m*|h+m+|m{3,}",
}
"""Whole words, however long they are drawn out. "Er" is English for a pause, and German for "he"; "mm" is a length."""

_PROFANITY = {
    "en": (
        r"(?:mother)?fuck(?:s|ed|er|ers|in|ing|face|wit|wits)?|(?:bull|horse)?shit(?:s|ty|tier|ting|head|heads)?"
        r"|(?:ass|arse)holes?|bitch(?:es|y|ing)?|cunts?|bastards?|wank(?:er|ers|ing)|twats?|whores?|sluts?"
        r"|dickheads?|nigg(?:er|ers|a|as)|faggots?"
    ),
    "de": (
        r"fick(?:en|e|st|t|er)?|gefickt|verfickt(?:e|er|es|en|em)?|schei(?:ß|ss)(?:e|en|er|egal|kerl|dreck)?"
        r"|beschissen(?:e|er|es|en|em)?|arschl(?:och|öcher|öchern|ochs)|wichs(?:er|ern|en)|fotzen?|huren?(?:sohn|söhne)?"
        r"|schlampen?|missgeburt(?:en)?"
    ),
    "fr": (
        r"merdes?|merdiques?|putains?|putes?|salopes?|salauds?|connards?|connasses?|encul(?:é|és|ée|ées|er)"
        r"|niqu(?:e|er|é)"
    ),
    "es": (
        r"mierdas?|put(?:a|as|o|os)|hijoputas?|joder|jodid(?:o|a|os|as)|coño|cabr(?:ón|ones|ona)|gilipollas"
        r"|pendej(?:o|a|os|as)|ching(?:ar|ada|ado)|culeros?|maric(?:ón|ones)"
    ),
}
"""Whole words with their usual endings."""

_FILLER = {language: re.compile(f"(?:{words})", re.IGNORECASE) for language, words in _FILLERS.items()}
_SWEAR_WORD = {
    language: re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) for language, words in _PROFANITY.items()
}

_OPENING, _CLOSING = "\"'“‘«‹([{¿¡„", "\"'”’»›)]}"
_COMMAS = ",;"
_SENTENCE_ENDS = ".?!…"
_TRAIL = re.compile(r"(?:\.{2,}|…|[-–—])+$")
"""A voice that dies away: no full stop."""


def filtered(
    transcript_segments: Sequence[TranscriptSegment],
    *,
    fillers: bool,
    profanity: bool,
    language: str | None,
    translated: bool = False,
) -> tuple[TranscriptSegment, ...]:
    """*transcript_segments* without *fillers*, with *profanity* masked as `f***`, text and words alike.

    *language* is Whisper's code of what is spoken, where a segment has none of its own; *translated*: the text is
    English all the same. In a language that has no list, nothing is changed. A segment of hesitations alone vanishes,
    and those after it are numbered anew. Where a segment's text is changed, its tokens and their probabilities go:
    they spell what the caller did not want.
    """
    kept: list[TranscriptSegment] = []
    before = _Sentence()
    for segment in transcript_segments:
        code = "en" if translated else segment.language or language or ""
        changed = segment
        if fillers and code in _FILLER:
            changed = _without_fillers(changed, _FILLER[code], before)
        if profanity and code in _SWEAR_WORD:
            changed = _masked(changed, _SWEAR_WORD[code])
        if changed is not segment:
            if not changed.text.strip():
                continue
            changed = replace(changed, tokens=(), logprobs=None if segment.logprobs is None else ())
        kept.append(changed)
    if len(kept) < len(transcript_segments):
        kept = [replace(segment, id=number) for number, segment in enumerate(kept, start=transcript_segments[0].id)]
    return tuple(kept)


# --- swear words -----------------------------------------------------------------------------------------------------


def _masked(segment: TranscriptSegment, swear_word: re.Pattern[str]) -> TranscriptSegment:
    """Each letter but the first becomes an asterisk: nothing moves, so that text and words stay in step."""
    text = _asterisks(segment.text, swear_word)
    words = segment.words or ()
    # All words at once: Whisper may have cut one in two.
    spoken = _asterisks("".join(word.text for word in words), swear_word)
    ends = accumulate(len(word.text) for word in words)
    masked = tuple(
        replace(word, text=spoken[end - len(word.text) : end]) for word, end in zip(words, ends, strict=True)
    )
    if text == segment.text and masked == words:
        return segment
    return replace(segment, text=text, words=None if segment.words is None else masked)


def _asterisks(text: str, swear_word: re.Pattern[str]) -> str:
    return swear_word.sub(lambda found: found[0][0] + "*" * (len(found[0]) - 1), text)


# --- hesitations -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sentence:
    """How far the text before a segment has come."""

    is_over: bool = True
    wants_capital: bool = False
    """The next word begins a sentence in place of a hesitation, which had the capital."""


def _without_fillers(segment: TranscriptSegment, filler: re.Pattern[str], before: _Sentence) -> TranscriptSegment:
    """*segment* without its hesitations; itself where it has none. *before* is brought to its end."""
    tokens = re.findall(r"\s*\S+", segment.text)
    # The same rule for words and for text: both are parts with the space before them, and differ in that at most.
    spoken = _kept([word.text for word in segment.words or ()], filler, replace(before))
    kept = _kept(tokens, filler, before)
    if kept == tokens:
        return segment
    words = [replace(word, text=text) for word, text in zip(segment.words or (), spoken, strict=True) if text]
    return replace(segment, text="".join(kept), words=None if segment.words is None else tuple(words))


def _kept(tokens: Sequence[str], filler: re.Pattern[str], before: _Sentence) -> list[str]:
    """*tokens*, each with the space before it, those of hesitations empty; marks and capitals put right around these.

    A hesitation takes its commas along, the one before it, too ("I was, um, going": "I was going"); its full stop goes
    to the word before ("I think, um." : "I think."); the capital with which it began a sentence goes to the word after.
    """
    kept = list(tokens)
    last: list[int] = []
    for group in _written_words(tokens):
        written = "".join(tokens[at] for at in group)
        if not written.strip():
            continue
        mark = _filler_mark(written, filler)
        if mark is None:
            if before.wants_capital:
                _capitalise(kept, group)
            last, before.is_over, before.wants_capital = group, _ends_sentence(written), False
            continue
        for at in group:
            kept[at] = ""
        if before.is_over:
            before.wants_capital = before.wants_capital or written.strip().lstrip(_OPENING)[0].isupper()
        elif mark and last:
            _end_with(kept, last, mark if mark == "." else "")
            before.is_over = mark == "."
    return kept


def _written_words(tokens: Sequence[str]) -> list[list[int]]:
    """Places of tokens that belong together, since no space stands between them: " uh" and "-huh" are one word."""
    groups: list[list[int]] = []
    for at, token in enumerate(tokens):
        if groups and not token[:1].isspace():
            groups[-1].append(at)
        else:
            groups.append([at])
    return groups


def _filler_mark(written: str, filler: re.Pattern[str]) -> str | None:
    """What a hesitation ends with: a comma, a full stop or nothing. None: *written* is no hesitation.

    A question or an exclamation ("Hm?") says something, and capitals ("ER") are somebody's name.
    """
    bare = _TRAIL.sub("", written.strip().strip(_OPENING + _CLOSING))
    mark = bare[-1:] if bare.endswith((*_COMMAS, ".")) else ""
    word = bare.removesuffix(mark)
    return mark if filler.fullmatch(word) and not word[1:].isupper() else None


def _ends_sentence(written: str) -> bool:
    return written.rstrip().rstrip(_CLOSING).endswith(tuple(_SENTENCE_ENDS))


def _capitalise(kept: list[str], group: Sequence[int]) -> None:
    """Give the word at *group* a capital, behind its opening marks."""
    for at in group:
        if bare := kept[at].lstrip().lstrip(_OPENING):
            kept[at] = kept[at][: len(kept[at]) - len(bare)] + bare[0].upper() + bare[1:]
            return


def _end_with(kept: list[str], group: Sequence[int], mark: str) -> None:
    """Put *mark* in place of the commas at the end of the word at *group*."""
    for at in reversed(group):
        kept[at] = kept[at].rstrip(_COMMAS)
        if kept[at]:
            kept[at] += mark
            return
