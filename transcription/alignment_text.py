"""Forced alignment but for its acoustic model: a text as the model spells it, the way through it, times. Pure.

The dynamic programme is WhisperX's (`whisperx.alignment`, 3.8), which is not the usual one of CTC: to stay at a
character costs the blank, never the character again, and the way ends in the frame where the last character's score is
best. What WhisperX does one cell after another is done here for all characters of several segments at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transcription.core import Segment

WITHOUT_SPACES = frozenset({"ja", "zh"})
"""Languages whose models know no mark between words (WhisperX's list)."""

BETWEEN_WORDS = "|"
"""What alignment models write for a space."""

WILDCARD = -1
"""Column of a character that the model does not know: as likely in each frame as the likeliest that it knows."""

Emission = npt.NDArray[np.float32]
"""Log probabilities of one segment, shape (frames, columns of the model's dictionary)."""


@dataclass(frozen=True, slots=True)
class AlignmentRequest:
    """A segment, and the words that are said in it, as Whisper spells them: each keeps the space before it."""

    segment: Segment
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AlignedWord:
    """Seconds from the start of the segment; *score* (0 to 1) says how well its sound fits it.

    None: the model knows none of its characters. Its times are then those that the words around it leave.
    """

    start: float
    end: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Spelling:
    """A text in the columns of a model, one a character, and which word each is of (None: of none, a space)."""

    columns: tuple[int, ...]
    words: tuple[int | None, ...]
    known: frozenset[int]
    """The words of which the model knows a character."""


@dataclass(frozen=True, slots=True)
class Way:
    """Where each character begins, in frames, and where the last one ends; each ends where the next begins.

    *scores*: mean probability of each over its frames.
    """

    starts: tuple[int, ...]
    end: int
    scores: tuple[float, ...]


def blank_column(dictionary: Mapping[str, int]) -> int:
    """The column that stands for no character."""
    return next((dictionary[name] for name in ("<pad>", "[pad]") if name in dictionary), 0)


def spelled(words: Sequence[str], dictionary: Mapping[str, int], language: str) -> Spelling | None:
    """The text of *words* as the model spells it; None where it knows no character of it.

    Characters that it does not know (digits, punctuation, another script) are kept as wildcards. Spaces at the ends
    are left out, and those within where the model has no column for them.
    """
    spaces = language not in WITHOUT_SPACES
    characters = [(place, character) for place, word in enumerate(words) for character in word]
    told = [number for number, (_, character) in enumerate(characters) if not character.isspace()]
    columns: list[int] = []
    places: list[int | None] = []
    for place, character in characters[told[0] : told[-1] + 1] if told else []:
        is_space = character == " "
        column = dictionary.get(BETWEEN_WORDS if is_space and spaces else character.lower())
        if column is not None or character not in (" ", BETWEEN_WORDS):
            columns.append(WILDCARD if column is None else column)
            places.append(None if is_space else place)
    # NOTE: torchaudio's English models write "-" for the blank, so a hyphen of the text is in the dictionary.
    unknown = (WILDCARD, blank_column(dictionary))
    known = frozenset(
        place for column, place in zip(columns, places, strict=True) if place is not None and column not in unknown
    )
    return Spelling(tuple(columns), tuple(places), known) if known else None


def ways(emissions: Sequence[Emission], texts: Sequence[Sequence[int]], blank: int) -> list[Way | None]:
    """The best way through each segment's text, given in columns; None where it has more characters than frames.

    One step a frame, for all characters of all segments: those of like length belong together.
    """
    frames = max((len(emission) for emission in emissions), default=0)
    longest = max((len(text) for text in texts), default=0)
    shape = (len(texts), frames)
    staying = np.zeros(shape, np.float32)
    entering = np.zeros((*shape, longest), np.float32)
    for row, (emission, text) in enumerate(zip(emissions, texts, strict=True)):
        staying[row, : len(emission)] = emission[:, blank]
        entering[row, : len(emission), : len(text)] = emission_of(text, emission, blank)
    # Before the text, only the blank was heard. NOTE: added up in double precision, as torch.cumsum does.
    before = np.zeros((len(texts), frames + 1), np.float32)
    before[:, 1:] = np.cumsum(staying, axis=1, dtype=np.float64)
    score = np.full((len(texts), longest), -np.inf, np.float32)
    entered = np.empty((frames, len(texts), longest), np.bool_)
    last = np.full((frames + 1, len(texts)), -np.inf, np.float32)
    ends = np.array([len(text) - 1 for text in texts])
    rows = np.arange(len(texts))
    for frame in range(frames):
        stay = score + staying[:, frame, None]
        enter = entering[:, frame]
        enter[:, 0] += before[:, frame]
        enter[:, 1:] += score[:, :-1]
        np.greater(enter, stay, out=entered[frame])
        score = np.maximum(stay, enter)
        last[frame + 1] = score[rows, ends]
    return [
        _way_back(entered[:, row], emission, text, int(last[: len(emission) + 1, row].argmax()), blank)
        for row, (emission, text) in enumerate(zip(emissions, texts, strict=True))
    ]


def emission_of(text: Sequence[int], emission: Emission, blank: int) -> Emission:
    """Log probabilities of the text's characters, shape (frames, characters)."""
    columns = np.asarray(text)
    chosen: Emission = emission[:, columns]
    if (wild := columns == WILDCARD).any():
        chosen[:, wild] = np.delete(emission, blank, axis=1).max(axis=1, keepdims=True)
    return chosen


def _way_back(
    entered: npt.NDArray[np.bool_], emission: Emission, text: Sequence[int], end: int, blank: int
) -> Way | None:
    """From the last character's last frame to the frame in which the first one was entered."""
    starts: list[int] = []
    frame, character = end, len(text) - 1
    while character >= 0:
        frame -= 1
        if frame < 0:
            return None
        if entered[frame, character]:
            starts.append(frame)
            character -= 1
    starts.reverse()
    # In the frame where a character is entered it is heard; in those after it, the blank.
    heard = np.exp(emission_of(text, emission, blank)[starts, range(len(text))].astype(np.float64))
    silent = np.concatenate([[0.0], np.cumsum(np.exp(emission[:, blank].astype(np.float64)))])
    lasts = np.array([*starts[1:], end])
    firsts = np.array(starts)
    scores = (heard + silent[lasts] - silent[firsts + 1]) / (lasts - firsts)
    return Way(tuple(starts), end, tuple(scores.tolist()))


def timed(words: int, spelling: Spelling, way: Way, frames: int, duration_s: float) -> list[AlignedWord]:
    """The times of each of so many words, from the way through their characters.

    A word of wildcards alone has the times that its neighbours leave it; one without characters lies between them.
    """
    seconds = duration_s / frames
    found: dict[int, list[int]] = {}
    for character, word in enumerate(spelling.words):
        if word is not None:
            found.setdefault(word, []).append(character)
    ends = (*way.starts[1:], way.end)
    aligned: list[AlignedWord] = []
    floor = 0.0
    for word in range(words):
        if characters := found.get(word):
            start = max(floor, way.starts[characters[0]] * seconds)
            floor = min(duration_s, max(start, ends[characters[-1]] * seconds))
            score = sum(way.scores[character] for character in characters) / len(characters)
            aligned.append(AlignedWord(start, floor, score if word in spelling.known else None))
        else:
            after = next((found[later][0] for later in range(word + 1, words) if later in found), None)
            end = floor if after is None else max(floor, way.starts[after] * seconds)
            aligned.append(AlignedWord(floor if word else end, end, None))
            floor = end
    return aligned
