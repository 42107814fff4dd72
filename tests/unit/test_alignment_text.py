"""From a text to its words' times, on made emissions: what the model must be asked, and what its answer means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcription.alignment_text import (
    WILDCARD,
    AlignedWord,
    Spelling,
    Way,
    blank_column,
    spelled,
    timed,
    ways,
)

LETTERS = {"-": 0, "|": 1} | {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz'", 2)}


def columns(text: str) -> tuple[int, ...]:
    return tuple(LETTERS[character] for character in text)


def cell_by_cell(emission: np.ndarray, text: list[int], blank: int) -> Way | None:
    """The same dynamic programme, one cell after another, as its description reads."""
    frames = len(emission)
    best = emission[:, [column for column in range(emission.shape[1]) if column != blank]].max(axis=1)
    heard = np.stack([best if column == WILDCARD else emission[:, column] for column in text], axis=1)
    trellis = np.full((frames + 1, len(text) + 1), -np.inf, np.float32)
    trellis[0, 0] = 0
    trellis[1:, 0] = np.cumsum(emission[:, blank], dtype=np.float64)
    for frame in range(frames):
        for character in range(len(text)):
            stay = trellis[frame, character + 1] + emission[frame, blank]
            enter = trellis[frame, character] + heard[frame, character]
            trellis[frame + 1, character + 1] = max(stay, enter)
    character = len(text)
    end = int(trellis[:, character].argmax())
    path: list[tuple[int, int, float]] = []
    for frame in range(end, 0, -1):
        stay = trellis[frame - 1, character] + emission[frame - 1, blank]
        enter = trellis[frame - 1, character - 1] + heard[frame - 1, character - 1]
        sound = heard[frame - 1, character - 1] if enter > stay else emission[frame - 1, blank]
        path.append((character - 1, frame - 1, float(np.exp(sound))))
        character -= enter > stay
        if character == 0:
            break
    if character or not path:
        return None
    starts = [min(frame for one, frame, _ in path if one == place) for place in range(len(text))]
    scores = [float(np.mean([sound for one, _, sound in path if one == place])) for place in range(len(text))]
    return Way(tuple(starts), end, tuple(scores))


@st.composite
def segments(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """An emission of few columns, and a text that may be too long for it."""
    frames, width = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = chance.normal(0, 3, (frames, width)).astype(np.float32)
    emission = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    text = draw(st.lists(st.integers(WILDCARD, width - 1), min_size=1, max_size=12))
    return emission, text


@given(st.lists(segments(), min_size=1, max_size=4), st.integers(0, 1))
def test_many_at_once_find_the_way_of_each_alone(batch: list[tuple[np.ndarray, list[int]]], blank: int) -> None:
    """What fills the shorter ones up, in frames and characters, must not reach them."""
    found = ways([emission for emission, _ in batch], [text for _, text in batch], blank)
    for (emission, text), way in zip(batch, found, strict=True):
        wanted = cell_by_cell(emission, text, blank)
        assert (way is None) == (wanted is None)
        if way and wanted:
            assert (way.starts, way.end) == (wanted.starts, wanted.end)
            assert way.scores == pytest.approx(wanted.scores, abs=1e-6)


def test_more_characters_than_frames_have_no_way() -> None:
    """A hallucinated sentence in half a second of sound is left as it was."""
    emission = np.log(np.full((3, 4), 0.25, np.float32))
    assert ways([emission], [[1, 2, 3, 1]], 0) == [None]
    assert ways([emission], [[1, 2, 3]], 0) != [None]
    assert ways([], [], 0) == []


def test_a_text_is_spelled_as_the_model_knows_it() -> None:
    """Lower case, a bar for the space, wildcards for what it has never seen; no space at the ends."""
    spelling = spelled((" Hi,", " 7", " a"), LETTERS, "en")
    assert spelling == Spelling(
        columns=(*columns("hi"), WILDCARD, 1, WILDCARD, 1, *columns("a")),
        words=(0, 0, 0, None, 1, None, 2),
        known=frozenset({0, 2}),
    )


def test_words_may_have_no_space_between_them() -> None:
    """Whisper parts " well" and "-known"; each has its own characters."""
    spelling = spelled((" well", "-known"), LETTERS, "en")
    assert spelling is not None
    assert spelling.words == (0, 0, 0, 0, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("words", [(), ("  ",), (" 1984",), (" 你好",), (" -",), (" ...", " 7")])
def test_what_the_model_knows_nothing_of_is_not_aligned(words: tuple[str, ...]) -> None:
    """Wildcards alone would be laid anywhere; a hyphen is torchaudio's sign for the blank."""
    assert spelled(words, LETTERS, "en") is None


def test_languages_without_spaces_have_no_bar() -> None:
    """Their models may have one all the same, which no sound was ever matched with."""
    dictionary = {"<pad>": 0, "|": 1, "今": 2, "日": 3}
    spelling = spelled(("今日", " 今"), dictionary, "ja")
    assert spelling == Spelling((2, 3, 2), (0, 0, 1), frozenset({0, 1}))


def test_a_model_without_a_bar_reads_words_as_one() -> None:
    """A missing column is no wildcard: the space is not said."""
    dictionary = {"<pad>": 0, "a": 1}
    assert spelled((" a", " a"), dictionary, "en") == Spelling((1, 1), (0, 1), frozenset({0, 1}))


def test_the_blank_is_named_or_first() -> None:
    """transformers' vocabularies have it anywhere, torchaudio's first."""
    assert blank_column({"a": 0, "<pad>": 5}) == 5
    assert blank_column({"a": 0, "[pad]": 3}) == 3
    assert blank_column(LETTERS) == 0


def test_words_are_timed_by_their_first_and_last_character() -> None:
    """A character lasts until the next begins, the space between two words included."""
    spelling = spelled((" ab", " c"), LETTERS, "en")
    assert spelling is not None
    way = Way(starts=(1, 3, 4, 6), end=9, scores=(0.5, 0.7, 0.1, 0.9))
    first, second = timed(2, spelling, way, frames=10, duration_s=1.0)
    assert (first.start, first.end, first.score) == pytest.approx((0.1, 0.4, 0.6))
    assert (second.start, second.end, second.score) == pytest.approx((0.6, 0.9, 0.9))


def test_a_word_that_is_not_known_lies_between_its_neighbours() -> None:
    """Its score would be that of any sound. One without characters takes what its neighbours leave."""
    spelling = spelled((" a", " 7", "", " b", " "), LETTERS, "en")
    assert spelling is not None
    way = Way(starts=(1, 2, 3, 5, 7), end=9, scores=(0.5,) * 5)
    aligned = timed(5, spelling, way, frames=10, duration_s=10.0)
    assert aligned == [
        AlignedWord(1.0, 2.0, 0.5),
        AlignedWord(3.0, 5.0, None),
        AlignedWord(5.0, 7.0, None),
        AlignedWord(7.0, 9.0, 0.5),
        AlignedWord(9.0, 9.0, None),
    ]


@given(segments(), st.lists(st.sampled_from(["", " ", " a", " bc", "'d", " 7", "7", " ."]), min_size=1, max_size=6))
def test_times_are_ordered_and_inside(segment: tuple[np.ndarray, list[int]], words: list[str]) -> None:
    """Subtitles and speakers are cut by them, whatever the model thinks of the sound."""
    emission, _ = segment
    dictionary = {"-": 0, "|": 1, "a": 1, "b": 1, "c": 0, "d": 1}
    if spelling := spelled(words, dictionary, "en"):
        [way] = ways([emission], [spelling.columns], 0)
        if way:
            aligned = timed(len(words), spelling, way, len(emission), 2.0)
            edges = [edge for word in aligned for edge in (word.start, word.end)]
            assert len(aligned) == len(words)
            assert edges == sorted(edges)
            assert edges[0] >= 0
            assert edges[-1] <= 2.0
