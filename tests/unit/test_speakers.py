"""Blocks linked to a whole recording, and turns told to words."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcription.core import SAMPLE_RATE, Token, TranscriptSegment, Word
from transcription.speakers import BLOCK_S, Block, Turn, block_limits, blocks, linked, told

HOUR = 3_600 * SAMPLE_RATE
ALICE, BOB, CAROL = (1.0, 0.1, 0.0), (0.0, 1.0, 0.1), (0.1, 0.0, 1.0)


def like(voice: tuple[float, ...], by: float = 0.05) -> tuple[float, ...]:
    """The same voice as it sounds elsewhere: a little different, and louder."""
    return tuple(3 * (part + by) for part in voice)


def block(*spoken: tuple[float, float, int], voices: tuple[tuple[float, ...], ...]) -> Block:
    return Block(tuple(Turn(*turn) for turn in spoken), voices)


def who(found: list[Turn]) -> list[int]:
    return [turn.speaker for turn in found]


def free(*parts: Block, num: int | None = None, least: int | None = None, most: int | None = None) -> list[int]:
    return who(linked(parts, num=num, least=least, most=most))


@given(st.integers(0, 30 * HOUR))
def test_blocks_cover_a_recording_and_none_is_long_or_tiny(samples: int) -> None:
    """What is left over is no block of its own: in a few seconds no voice can be known."""
    found = blocks(samples)
    assert [first for first, _ in found] == [sum(length for _, length in found[:at]) for at in range(len(found))]
    assert sum(length for _, length in found) == samples
    assert all(0 < length <= BLOCK_S * SAMPLE_RATE for _, length in found)
    if len(found) > 1:
        assert abs(found[-1][1] - found[-2][1]) <= 1
        assert min(length for _, length in found) >= BLOCK_S * SAMPLE_RATE / 2 - 1


def test_only_one_block_is_told_how_many_speakers_there_are() -> None:
    """In one of several blocks there may be fewer speakers than in the whole recording, but not more."""
    assert block_limits(3, None, None, blocks=1) == (3, None, None)
    assert block_limits(None, 2, 4, blocks=1) == (None, 2, 4)
    assert block_limits(3, None, None, blocks=2) == (None, None, 3)
    assert block_limits(None, 2, 4, blocks=12) == (None, None, 4)
    assert block_limits(None, 2, None, blocks=12) == (None, None, None)


def test_one_block_is_left_as_the_pipeline_has_it() -> None:
    """Its speakers have been told apart with all that is known, also where their voices are alike."""
    turns = ((3.0, 4.0, 0), (1.0, 2.0, 1), (1.5, 3.5, 0))
    found = linked([block(*turns, voices=(ALICE, like(ALICE)))], num=None, least=None, most=1)
    assert found == [Turn(1.0, 2.0, 0), Turn(1.5, 3.5, 1), Turn(3.0, 4.0, 1)]


def test_a_voice_is_found_again_in_another_block() -> None:
    """Whatever number it has there, and however loud it is."""
    first = block((0, 5, 0), (5, 9, 1), voices=(ALICE, BOB))
    second = block((600, 605, 0), (605, 610, 1), (610, 611, 2), voices=(like(BOB), CAROL, like(ALICE)))
    assert free(first, second) == [0, 1, 1, 2, 0]


def test_two_speakers_of_one_block_stay_two() -> None:
    """The pipeline has told them apart; a third voice that is like both must not make them one."""
    between = tuple(map(float, np.add(ALICE, like(ALICE, 0.2))))
    first = block((0, 5, 0), (5, 9, 1), voices=(ALICE, like(ALICE, 0.2)))
    second = block((600, 605, 0), voices=(between,))
    found = free(first, second)
    assert found[:2] == [0, 1]
    assert found[2] in (0, 1)


def test_there_are_as_many_speakers_as_the_caller_says() -> None:
    """More than the voices tell, and fewer: down to joining two of one block where nothing else is left."""
    first = block((0, 5, 0), (5, 9, 1), voices=(ALICE, BOB))
    second = block((600, 605, 0), (605, 609, 1), voices=(like(ALICE), like(BOB)))
    third = block((1200, 1205, 0), (1205, 1209, 1), voices=(CAROL, like(BOB)))
    assert free(first, second, third) == [0, 1, 0, 1, 2, 1]
    assert len(set(free(first, second, third, num=4))) == 4
    assert len(set(free(first, second, third, least=5))) == 5
    assert len(set(free(first, second, third, num=2))) == 2
    assert len(set(free(first, second, third, most=2))) == 2
    assert free(first, second, third, num=1) == [0] * 6
    assert free(first, second, third, most=3) == free(first, second, third)
    assert len(set(free(first, second, third, num=9))) == 6, "there are no more than the blocks have"


def test_who_speaks_long_is_not_moved_by_who_speaks_short() -> None:
    """A group's voice is weighted by time: a second of a bad line must not draw it away from the rest."""
    good, bad, other = (
        block((600 * number, 600 * number + length, 0), voices=((np.cos(angle), np.sin(angle)),))
        for number, (length, angle) in enumerate([(300, 0.0), (1, 0.6), (300, -0.65)])
    )
    assert who(linked([good, bad, other], num=None, least=None, most=None, within=0.7)) == [0, 0, 0]
    as_long = block((600, 900, 0), voices=bad.embeddings)
    assert who(linked([good, as_long, other], num=None, least=None, most=None, within=0.7)) == [0, 0, 1]


def test_a_voice_that_is_not_known_is_the_nearest_speakers() -> None:
    """Too short to be heard well, it would else be somebody new in each block."""
    first = block((0, 5, 0), (5, 5.5, 1), (20, 30, 2), voices=(ALICE, (), BOB))
    second = block((600, 605, 0), (606, 606.2, 1), voices=(like(BOB), ()))
    assert free(first, second) == [0, 0, 1, 1, 1]
    assert free(block((0, 1, 0), voices=((),)), block((600, 601, 0), voices=((float("nan"),),))) == [0, 0]


def test_silent_blocks_link_to_nothing() -> None:
    """Silence gives no turns, not an error."""
    assert linked([], num=None, least=None, most=None) == []
    assert linked([Block((), ()), Block((), ())], num=2, least=None, most=None) == []
    assert free(Block((), ()), block((600, 601, 0), voices=(ALICE,))) == [0]


def many(voices: int) -> list[Block]:
    """Blocks of four speakers each, of forty in all."""
    speakers = np.random.default_rng(1).normal(size=(40, 192))
    return [
        block(
            *((600.0 * number + at, 600.0 * number + at + 1, at) for at in range(4)),
            voices=tuple(tuple(map(float, speakers[(4 * number + at) % 40])) for at in range(4)),
        )
        for number in range(voices // 4)
    ]


def test_links_memory_grows_with_the_voices_not_their_square() -> None:
    """A day of talks has a thousand voices: all distances between them would be eight million bytes."""

    def peak_bytes(voices: int) -> int:
        given_blocks = many(voices)
        tracemalloc.start()
        found = linked(given_blocks, num=None, least=None, most=None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(set(who(found))) == 40
        return peak

    assert peak_bytes(800) / peak_bytes(200) < 5


def said(*words: tuple[str, float, float], **more: object) -> TranscriptSegment:
    spoken = tuple(Word(start, end, text, 0.9) for text, start, end in words)
    return segment("".join(text for text, _, _ in words), words[0][1], words[-1][2], words=spoken, **more)


def segment(text: str, start: float, end: float, **more: object) -> TranscriptSegment:
    return TranscriptSegment(7, start, end, text, -0.2, 0.01, 1.1, 0.0, **more)  # type: ignore[arg-type]


def test_a_segment_is_cut_where_another_begins_to_speak() -> None:
    """Each part is one speaker's, with its own words; the whole begins and ends where it did."""
    whole = segment(
        " Are you there? Yes, I am.",
        0.5,
        4.0,
        words=said(
            (" Are", 1.0, 1.2), (" you", 1.2, 1.4), (" there?", 1.4, 2.0), (" Yes,", 2.1, 2.5), (" I", 2.6, 3.7)
        ).words,
        language="en",
    )
    first, second = told([whole], [Turn(0.9, 2.05, 5), Turn(2.05, 4.0, 2)])
    assert (first.id, first.start, first.end, first.text, first.speaker) == (
        0,
        0.5,
        2.0,
        " Are you there?",
        "SPEAKER_00",
    )
    assert (second.id, second.start, second.end, second.text, second.speaker) == (1, 2.1, 4.0, " Yes, I", "SPEAKER_01")
    assert [word.speaker for word in first.words or ()] == ["SPEAKER_00"] * 3
    assert [word.text for word in second.words or ()] == [" Yes,", " I"]
    assert (second.avg_logprob, second.language) == (-0.2, "en")


def test_what_is_not_told_by_word_stays_with_the_first_part() -> None:
    """Tokens twice would be counted twice."""
    tokens = {"tokens": (1, 2, 3), "logprobs": (Token(" a", (32, 97), -0.1),)}
    first, second = told([said((" a", 0, 1), (" b", 1, 2), **tokens)], [Turn(0, 1, 0), Turn(1, 2, 1)])
    assert (first.tokens, len(first.logprobs or ())) == ((1, 2, 3), 1)
    assert (second.tokens, second.logprobs) == ((), ())
    first, second = told([said((" a", 0, 1), (" b", 1, 2))], [Turn(0, 1, 0), Turn(1, 2, 1)])
    assert second.logprobs is None


def test_speakers_are_named_as_they_appear_in_the_transcript() -> None:
    """Who only coughs before the first word is not the first speaker."""
    turns = [Turn(0, 1, 0), Turn(2, 3, 1), Turn(4, 5, 0)]
    found = told([said((" a", 2, 3)), said((" b", 4, 5)), segment(" c", 2.0, 2.5)], turns)
    assert [part.speaker for part in found] == ["SPEAKER_00", "SPEAKER_01", "SPEAKER_00"]
    assert [part.id for part in found] == [0, 1, 2]


def speakers_by_word(turns: list[Turn], *words: tuple[str, float, float]) -> list[str | None]:
    return [word.speaker for part in told([said(*words)], turns) for word in part.words or ()]


def test_one_word_with_no_clear_turn_of_its_own_is_no_change_of_speaker() -> None:
    """Word times are a tenth of a second off; a turn that touches a word in the middle of a sentence says little."""
    words = ((" I", 0.0, 1.0), (" really", 1.0, 2.0), (" do", 2.0, 3.0))
    assert len(set(speakers_by_word([Turn(0, 3, 0), Turn(0.9, 2.1, 1)], *words))) == 1
    assert len(set(speakers_by_word([Turn(0, 1.2, 0), Turn(1.35, 1.8, 1), Turn(1.95, 3, 0)], *words))) == 1
    assert speakers_by_word([Turn(0, 1, 0), Turn(1.1, 1.9, 1), Turn(2, 3, 0)], *words) == [
        "SPEAKER_00",
        "SPEAKER_01",
        "SPEAKER_00",
    ]


def test_while_two_speak_the_one_who_was_speaking_goes_on() -> None:
    """Most overlaps are the end of one turn beside the beginning of the next."""
    words = ((" one", 0.0, 1.0), (" two", 1.0, 2.0), (" three", 2.0, 3.0))
    assert speakers_by_word([Turn(0, 2, 0), Turn(1, 3, 1)], *words) == ["SPEAKER_00", "SPEAKER_00", "SPEAKER_01"]


def test_a_word_in_no_turn_is_the_nearest_speakers() -> None:
    """A short word is easily missed; one far from everybody is nobody's, unless its segment has a speaker."""
    turns = [Turn(0, 1, 0), Turn(3, 4, 1)]
    assert speakers_by_word(turns, (" a", 0.0, 1.0), (" b", 2.6, 2.7), (" c", 3.0, 4.0)) == [
        "SPEAKER_00",
        "SPEAKER_01",
        "SPEAKER_01",
    ]
    assert speakers_by_word(turns, (" far", 7.0, 7.5)) == [None]
    assert speakers_by_word(turns, (" near", 5.0, 5.5), (" far", 7.0, 7.5)) == ["SPEAKER_00"] * 2
    assert speakers_by_word([], (" far", 7.0, 7.5)) == [None]
    assert speakers_by_word([Turn(0.5, 1.5, 0)], (" at once", 1.0, 1.0)) == ["SPEAKER_00"]


def test_segments_without_words_are_whose_who_speaks_most() -> None:
    """They cannot be cut: nobody knows where."""
    turns = [Turn(0, 1, 0), Turn(1, 3, 1), Turn(3, 3.5, 0)]
    found = told([segment(" a", 0.0, 4.0), segment(" b", 4.5, 4.8), segment(" c", 90.0, 91.0)], turns)
    assert [part.speaker for part in found] == ["SPEAKER_00", "SPEAKER_01", None]
    assert [part.text for part in found] == [" a", " b", " c"]


TIMES = st.floats(0, 60).map(lambda second: round(second, 2))


@given(
    st.lists(st.tuples(TIMES, st.floats(0, 9), st.integers(0, 3)), max_size=12),
    st.lists(st.lists(st.floats(0, 3), min_size=1, max_size=8), max_size=6),
)
def test_no_word_is_lost_or_moved(turns: list[tuple[float, float, int]], lengths: list[list[float]]) -> None:
    """Whatever the turns are: the same words in the same order, each part of one speaker, in order of time."""
    at, segments = 0.0, []
    for one in lengths:
        words = []
        for length in one:
            words.append((f" w{at:.3f}", at, at + length))
            at += length
        segments.append(said(*words))
    found = told(segments, [Turn(start, start + length, speaker) for start, length, speaker in turns])
    assert [word.text for part in found for word in part.words or ()] == [
        word.text for one in segments for word in one.words or ()
    ]
    assert "".join(part.text for part in found) == "".join(one.text for one in segments)
    assert all({word.speaker for word in part.words or ()} == {part.speaker} for part in found)
    assert all(one.end <= other.start + 1e-9 for one, other in itertools.pairwise(found))
    assert [part.id for part in found] == list(range(len(found)))
    assert len({part.speaker for part in found} - {None}) <= 4


@pytest.mark.parametrize("count", [1, 400])
def test_long_turns_do_not_hide_short_ones(count: int) -> None:
    """A turn is found by time also where an earlier one reaches far past it."""
    turns = [Turn(0, 1_000, 0), *(Turn(at, at + 0.5, 1) for at in range(1, 2 * count, 2))]
    last = 2 * count - 1
    found = told([segment(" a", last, last + 0.5), segment(" b", 999, 1_000)], turns)
    assert found[1].speaker is not None
    assert found[0].speaker == "SPEAKER_00"
