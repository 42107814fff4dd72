"""A transcript's text in paragraphs: what one speaker says in a row, or a segment where nobody is known. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from transcription.core import TranscriptSegment
from transcription.subtitle_units import has_words


@dataclass(frozen=True, slots=True)
class Paragraph:
    """*start* in seconds from the start of the recording; *text* has no space around it."""

    start: float
    speaker: str | None
    text: str


def has_speakers(segments: Iterable[TranscriptSegment]) -> bool:
    """Whether it is known of any word who says it."""
    return any(
        segment.speaker is not None or any(word.speaker is not None for word in segment.words or ())
        for segment in segments
    )


def turns(segments: Iterable[TranscriptSegment], *, longest_s: float | None = None) -> list[Paragraph]:
    """A paragraph a turn; the next segment begins another where a turn has lasted longer than *longest_s*."""
    found: list[Paragraph] = []
    texts: list[str] = []
    for piece in _pieces(segments):
        same = bool(found) and piece.speaker == found[-1].speaker
        if same and (longest_s is None or piece.start - found[-1].start <= longest_s):
            texts.append(piece.text)
            continue
        if found:
            found[-1] = replace(found[-1], text="".join(texts).strip())
        found.append(piece)
        texts = [piece.text]
    if found:
        found[-1] = replace(found[-1], text="".join(texts).strip())
    return found


def one_a_segment(segments: Iterable[TranscriptSegment]) -> list[Paragraph]:
    return [replace(piece, text=piece.text.strip()) for segment in segments for piece in _pieces([segment])]


def _pieces(segments: Iterable[TranscriptSegment]) -> Iterator[Paragraph]:
    """Stretches of one speaker each, with their spaces as they came. Where words tell of several, they are taken."""
    for segment in segments:
        if not has_words(segment) or not any(
            word.speaker not in (None, segment.speaker) for word in segment.words or ()
        ):
            if segment.text.strip():
                yield Paragraph(segment.start, segment.speaker, segment.text)
            continue
        piece: Paragraph | None = None
        for word in segment.words or ():
            speaker = word.speaker or segment.speaker
            if piece is not None and piece.speaker == speaker:
                piece = replace(piece, text=piece.text + word.text)
                continue
            if piece is not None:
                yield piece
            piece = Paragraph(word.start, speaker, word.text)
        if piece is not None:
            yield piece
