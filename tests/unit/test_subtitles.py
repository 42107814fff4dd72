"""Subtitles: where cues end, how lines break, and that nothing is lost whatever the word times are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcription.core import TranscriptSegment, Word
from transcription.subtitles import Cue, TimedPart, cues, srt, vtt

ENGLISH = (
    " I am writing to Mr. J. Smith, who paid 3.50 dollars (or so) for it — why? \"Nobody knows,\" he said… "
    "It's well-known that e-mail isn't free! See www.example.org/a/very/long/address/that/goes/on/and/on/for/ever. "
    "Pneumonoultramicroscopicsilicovolcanoconiosis is a word; so is floccinaucinihilipilification. No. Yes. O.K."
)  # fmt: skip
WORDS = [" " + word for word in ENGLISH.split()] + ["-known", "'s", ".", "?", " ¿Qué", " год,", " 안녕하세요", " สวัสดี"]
WIDE = [
    "测试",
    "完成",
    "后",
    "，",
    "。",
    "「",
    "」",
    "カスタム",
    "スピーチ",
    "を",
    "っ",
    "ー",
    "Microsoft",
    "の",
    "？",
    " ",
    "👩\u200d👩\u200d👧",
]
RAGGED = ["", " ", "\n", "\u2028", " a\tb", " é" * 3, " e\u0301\u0301", "x" * 200, "长" * 90, " -->", " <b>&", "\x00"]


def said(*words: tuple[float, float, str], text: str | None = None) -> TranscriptSegment:
    """A segment of words given as (start, end, text)."""
    return TranscriptSegment(
        id=0,
        start=words[0][0] if words else 0.0,
        end=words[-1][1] if words else 0.0,
        text="".join(word[2] for word in words) if text is None else text,
        avg_logprob=-0.2,
        no_speech_prob=0.01,
        compression_ratio=1.2,
        temperature=0.0,
        words=tuple(Word(start, end, word, 0.9) for start, end, word in words),
    )


def spoken(
    text: str, start: float = 0.0, word_s: float = 0.3, pauses: dict[int, float] | None = None
) -> TranscriptSegment:
    """*text* at an even pace; *pauses* are seconds of silence after the word of that number."""
    words = []
    for number, word in enumerate(text.split()):
        words.append((start, start + word_s, " " + word))
        start += word_s + (pauses or {}).get(number, 0.0)
    return said(*words)


def wordless(text: str, start: float, end: float) -> TranscriptSegment:
    return TranscriptSegment(0, start, end, text, -0.2, 0.01, 1.2, 0.0)


def texts(shown: Sequence[Cue]) -> list[str]:
    return [" ".join(cue.lines) for cue in shown]


def columns(line: str) -> int:
    return sum(
        0
        if unicodedata.category(char) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in line
    )


def letters(text: str) -> str:
    return "".join(char for char in text if not char.isspace() and unicodedata.category(char) != "Cc")


# --- what holds for every transcript ---------------------------------------------------------------------------------

any_time = st.one_of(st.floats(0, 60), st.floats(0, 60).map(lambda s: round(s, 2)), st.sampled_from([0.0, 5.0, 30.0]))
any_word = st.tuples(any_time, any_time, st.sampled_from(WORDS + WIDE + RAGGED))


@st.composite
def even_words(draw: st.DrawFn) -> list[tuple[float, float, str]]:
    """Words as the aligner gives them: one after the other, some with silence between, some without any length."""
    start, words = draw(st.floats(0, 5)), []
    for text in draw(st.lists(st.sampled_from(WORDS + WIDE), max_size=60)):
        end = start + draw(st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.5, 1.5, 9.0]))
        words.append((start, end, text))
        start = end + draw(st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.4, 0.8, 3.0]))
    return words


ragged_segments = st.lists(st.lists(any_word, max_size=30).map(lambda words: said(*words)), max_size=4)
even_segments = even_words().map(lambda words: [said(*words[at : at + 20]) for at in range(0, len(words), 20)])
wordless_segments = st.lists(
    st.builds(
        lambda text, start, span: wordless("".join(text), start, start + span),
        st.lists(st.sampled_from(WORDS + WIDE + RAGGED), max_size=30),
        st.floats(0, 60),
        st.floats(0, 30),
    ),
    max_size=4,
)
any_segments = st.one_of(ragged_segments, even_segments, wordless_segments)


@settings(deadline=None)
@given(any_segments)
def test_no_cue_is_wider_higher_or_longer_than_can_be_read(segments: list[TranscriptSegment]) -> None:
    """Two lines of 42 columns and seven seconds are what viewers can take in; players cut off what is wider."""
    for cue in cues(segments):
        assert 1 <= len(cue.lines) <= 2
        assert all(line.strip() == line and line and columns(line) <= 42 for line in cue.lines)
        assert cue.end - cue.start <= 7.0 + 1e-9


@settings(deadline=None)
@given(any_segments, st.integers(10, 60), st.integers(1, 4), st.floats(1, 10))
def test_other_limits_hold_likewise(
    segments: list[TranscriptSegment], width: int, lines: int, longest_s: float
) -> None:
    """The limits are parameters: none may be written down a second time."""
    for cue in cues(segments, max_line_chars=width, max_lines=lines, max_duration_s=longest_s):
        assert len(cue.lines) <= lines
        assert all(columns(line) <= width for line in cue.lines)
        assert cue.end - cue.start <= longest_s + 0.001


@settings(deadline=None)
@given(any_segments)
def test_cues_follow_one_another_and_each_is_seen(segments: list[TranscriptSegment]) -> None:
    """Overlapping cues are drawn over each other, and a cue without length is never drawn."""
    shown = cues(segments)
    assert all(0 <= cue.start < cue.end for cue in shown)
    assert all(before.end <= after.start for before, after in pairwise(shown))


@settings(deadline=None)
@given(any_segments)
def test_every_word_appears_once_and_in_order(segments: list[TranscriptSegment]) -> None:
    """Layout may move words between lines, and do nothing else to them."""
    expected = "".join(
        "".join(word.text for word in segment.words)
        if any(word.text.strip() for word in segment.words or ()) and segment.words
        else segment.text
        for segment in segments
    )
    assert letters("".join("".join(cue.lines) for cue in cues(segments))) == letters(expected)


@settings(deadline=None)
@given(even_segments, st.sampled_from([0.0, 0.5, 10.0]))
def test_cues_stay_with_the_words_and_inside_the_recording(segments: list[TranscriptSegment], tail_s: float) -> None:
    """A cue lingers a second at most after its last word, and never past the end of the video."""
    words = [word for segment in segments for word in segment.words or () if word.text.strip()]
    shown = cues(segments, duration_s=words[-1].end + tail_s) if words and words[-1].end > words[0].start + 1 else []
    for cue in shown:
        assert cue.start >= words[0].start - 0.001
        assert cue.end <= words[-1].end + min(tail_s, 1.0) + 0.001


@settings(deadline=None)
@given(any_segments)
def test_srt_and_vtt_hold_the_same_cues(segments: list[TranscriptSegment]) -> None:
    """Whatever the text, a reader of either format must find as many cues as were written."""
    shown = cues(segments)
    assert srt(shown).count("-->") == vtt(shown).count("-->") == len(shown)
    for written in (srt(shown), vtt(shown).removeprefix("WEBVTT\n\n")):
        blocks = written.rstrip("\n").split("\n\n") if shown else []
        assert len(blocks) == len(shown)
        assert "\r" not in written


any_speaker = st.sampled_from([None, "SPEAKER_00", "SPEAKER_01"])


@st.composite
def spoken_segments(draw: st.DrawFn) -> list[TranscriptSegment]:
    """Any segments, their words or the whole of them said by somebody, or by nobody known."""
    return [
        replace(
            segment,
            speaker=draw(any_speaker),
            words=None
            if segment.words is None
            else tuple(replace(word, speaker=draw(any_speaker)) for word in segment.words),
        )
        for segment in draw(any_segments)
    ]


@settings(deadline=None)
@given(spoken_segments())
def test_no_cue_has_words_of_two_speakers(segments: list[TranscriptSegment]) -> None:
    """Whose words are whose is told by the cue alone."""
    said: dict[str | None, str] = {}
    for segment in segments:
        for word in segment.words if any(word.text.strip() for word in segment.words or ()) else ():  # type: ignore[union-attr]
            said[word.speaker or segment.speaker] = said.get(word.speaker or segment.speaker, "") + letters(word.text)
        if not any(word.text.strip() for word in segment.words or ()):
            said[segment.speaker] = said.get(segment.speaker, "") + letters(segment.text)
    shown: dict[str | None, str] = {}
    for cue in cues(segments):
        shown[cue.speaker] = shown.get(cue.speaker, "") + letters("".join(cue.lines))
    assert shown == {speaker: text for speaker, text in said.items() if text}


@settings(deadline=None)
@given(spoken_segments())
def test_labels_keep_to_the_limits_and_stand_where_the_speaker_changes(segments: list[TranscriptSegment]) -> None:
    """A label is text on the screen like any other."""
    shown = cues(segments, labelled=True)
    before = None
    for cue in shown:
        assert len(cue.lines) <= 2
        assert all(columns(line) <= 42 for line in cue.lines)
        assert cue.lines[0].startswith(f"{cue.speaker}:") == (cue.speaker not in (None, before))
        before = cue.speaker
    assert not [cue for cue in shown if re.fullmatch(r"SPEAKER_\d+:", "".join(cue.lines))]
    plain = [cue.lines for cue in cues([replace(one, speaker=None) for one in segments])]
    assert letters(re.sub(r"SPEAKER_\d\d:", "", "".join("".join(cue.lines) for cue in shown))) == letters(
        "".join("".join(lines) for lines in plain)
    )


@settings(deadline=None)
@given(spoken_segments())
def test_the_parts_of_a_cue_are_its_lines(segments: list[TranscriptSegment]) -> None:
    """They are the same text, with times."""
    for cue in cues(segments):
        if cue.parts:
            assert tuple("".join(part.text for part in line) for line in cue.parts) == cue.lines


@settings(deadline=None)
@given(spoken_segments())
def test_the_times_in_a_cue_rise_and_lie_inside_it(segments: list[TranscriptSegment]) -> None:
    """The standard's rule; browsers drop a cue's other times where it is broken."""
    for block in vtt(cues(segments), karaoke=True).split("\n\n")[1:]:
        times = [
            int(hours) * 3_600_000 + int(minutes) * 60_000 + int(seconds) * 1000 + int(thousandths)
            for hours, minutes, seconds, thousandths in re.findall(r"(\d\d):(\d\d):(\d\d)\.(\d\d\d)", block)
        ]
        start, end, *inside = times
        assert all(before < after for before, after in pairwise([start, *inside, end]))


@settings(deadline=None)
@given(spoken_segments())
def test_karaoke_changes_no_text(segments: list[TranscriptSegment]) -> None:
    """Without its times, it is the plain subtitle."""
    shown = cues(segments)
    assert re.sub(r"<\d\d:\d\d:\d\d\.\d\d\d>", "", vtt(shown, karaoke=True)) == vtt(shown)


# --- where cues end --------------------------------------------------------------------------------------------------


def test_a_cue_ends_where_the_sentence_ends() -> None:
    """A reader takes in a sentence at a time."""
    text = "The quick brown fox jumps over the lazy dog. It then went home and slept until the morning came."
    assert texts(cues([spoken(text)])) == [text[:44], text[45:]]


def test_short_sentences_share_a_cue() -> None:
    """One word that flashes by for a third of a second cannot be read."""
    assert texts(cues([spoken("Yes. I know. Go on.")])) == ["Yes. I know. Go on."]


@pytest.mark.parametrize("name", ["Mr. Smith", "Dr. Jones", "J. R. R. Tolkien", "the U.S. Army", "No. 5 Regiment"])
def test_an_abbreviation_ends_no_sentence(name: str) -> None:
    """ "Mr." on one cue and "Smith" on the next reads as two thoughts."""
    shown = texts(
        cues([spoken(f"Yesterday evening quite late we all went to see {name} at the old house by the river.")])
    )
    assert any(name in text for text in shown)


def test_a_small_no_that_ends_a_sentence_ends_it() -> None:
    """ "No." is short for number before a number alone."""
    text = (
        "You ask me whether that is what I want, and I say no. Nobody who has seen the place would want to live there."
    )
    assert texts(cues([spoken(text)]))[0] == text[:53]


def test_decimal_numbers_and_ellipses_end_no_sentence() -> None:
    """3.14 is one number, and "well… yes" one thought."""
    assert (
        texts(cues([spoken("They measured it time and again. It was about 3. 5 metres on the inside.")]))[-1][:2]
        == "It"
    )
    text = "We thought about it for quite some time… and then we went away after all."
    assert texts(cues([spoken(text)])) == [text]


def test_without_a_sentence_end_a_pause_ends_the_cue() -> None:
    """Speakers stop between thoughts even where no mark is written."""
    shown = cues([spoken("one two three four five six seven eight nine ten eleven twelve", pauses={4: 0.9})])
    assert texts(shown) == ["one two three four five", "six seven eight nine ten eleven twelve"]


def test_a_sentence_end_counts_for_more_than_a_pause_and_a_pause_more_than_a_comma() -> None:
    """The order in which an editor would cut."""
    text = (
        "alpha bravo charlie delta echo foxtrot golf hotel, india juliet kilo lima mike november oscar papa quebec rome"
    )
    assert texts(cues([spoken(text)]))[0].endswith("hotel,")
    assert texts(cues([spoken(text, pauses={8: 0.7})]))[0].endswith("india")
    text = text.replace("india juliet", "india. Juliet")
    assert texts(cues([spoken(text, pauses={7: 0.7})]))[0].endswith("india.")


def test_no_cue_spans_a_long_silence() -> None:
    """Words shown before they are said give the joke away."""
    shown = cues([spoken("Wait for it ... now", pauses={3: 2.5})])
    assert texts(shown) == ["Wait for it ...", "now"]
    assert shown[1].start == pytest.approx(3.7)


def test_slow_speech_is_cut_before_seven_seconds_are_over() -> None:
    """Cutting the cue's time instead would take words off the screen before they are said."""
    shown = cues([spoken("very slow words from a very slow man", word_s=1.5)])
    assert len(shown) == 2
    assert shown[-1].end == pytest.approx(8 * 1.5)


# --- lines -----------------------------------------------------------------------------------------------------------


def test_lines_are_near_equal_and_no_word_stands_alone() -> None:
    """One word on a second line pulls the eye for nothing."""
    (cue,) = cues([spoken("she had never in her life seen anything like that")])
    assert len(cue.lines) == 2
    assert cue.lines[0] == "she had never in her life"
    (cue,) = cues([spoken("alpha bravo charlies gulf delta echoes quebecs")])
    assert cue.lines == ("alpha bravo charlies", "gulf delta echoes quebecs"), "the upper line is the shorter one"


def test_what_fits_on_one_line_stands_on_one() -> None:
    """Two lines hide more of the picture."""
    (cue,) = cues([spoken("exactly forty-two letters are in this line")])
    assert cue.lines == ("exactly forty-two letters are in this line",)


def test_chinese_has_21_characters_a_line_and_no_line_begins_with_a_full_stop() -> None:
    """Wide characters take two columns; a mark belongs to what it ends."""
    text = "测试完成后，将状态更改为成功。" * 6
    for cue in cues([wordless(text, 0, 30)]):
        assert all(len(line) <= 21 and line[0] not in "，。" for line in cue.lines)
        assert cue.lines[-1].endswith("。")


def lines_at_many_widths(text: str) -> list[str]:
    widths = range(16, 44)
    return [
        line for width in widths for cue in cues([wordless(text, 0, 60)], max_line_chars=width) for line in cue.lines
    ]


def test_japanese_breaks_before_no_small_kana_and_inside_no_katakana() -> None:
    """Half a foreign word, or a line that begins with half a syllable, is misread."""
    assert not [line for line in lines_at_many_widths("ちょっと" * 30) if line[0] in "ょっ"]
    text = "カスタムスピーチポータルからアップロードされたオーディオデータを再生し" * 4
    parts = ("カスタムスピーチポータル", "アップロード", "オーディオデータ")
    kana = re.findall("[ァ-ヿ]+", "\n".join(lines_at_many_widths(text)[-30:]))
    assert set(kana) <= set(parts)


def test_korean_breaks_at_its_spaces() -> None:
    """Its letters are wide, but its words have spaces."""
    text = "제출된 데이터 집합에서 기록과 함께 두 모델의 인식 결과를 나타내는 데이터 집합의 모든 발언을 나열합니다"
    words = [word for line in lines_at_many_widths(text) for word in line.split()]
    assert set(words) == set(text.split())


def test_a_word_without_a_space_stays_with_the_one_before() -> None:
    """Whisper splits "well-known" in two; a line that begins with a hyphen looks like a new speaker."""
    words = [" this", " is", " a", " rather", " well", "-known", " and", " much", "-loved", " old", "-time", " melody"]
    (cue,) = cues([said(*[(n * 0.3, n * 0.3 + 0.3, word) for n, word in enumerate(words)])])
    assert " ".join(cue.lines) == "this is a rather well-known and much-loved old-time melody"


def test_segments_that_lack_their_first_space_are_kept_apart() -> None:
    """Whisper now and then leaves it out; two sentences would run into one word."""
    assert texts(cues([said((0, 1, "Yes.")), said((1, 2, "No."))])) == ["Yes. No."]
    assert texts(cues([said((0, 1, "是")), said((1, 2, "不"))])) == ["是不"]


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_short_cue_stays_for_a_second_where_there_is_room() -> None:
    """A fifth of a second is too short to read even one word."""
    assert [(c.start, c.end) for c in cues([said((1.0, 1.2, " Hello."))])] == [(1.0, 2.0)]
    shown = cues([said((1.0, 1.2, " Hello.")), said((4.0, 4.2, " Goodbye."))], duration_s=4.5)
    assert [(cue.start, cue.end) for cue in shown] == [(1.0, 2.0), (4.0, 4.5)]


def test_a_word_that_was_stretched_over_silence_is_shown_for_seven_seconds() -> None:
    """Aligners do stretch a last word to the end of the window."""
    assert [(c.start, c.end) for c in cues([said((2.0, 31.0, " Hello."))])] == [(2.0, 9.0)]


def test_without_words_the_text_is_spread_over_the_segments_time() -> None:
    """Where no words could be timed, a subtitle at about the right time is better than none."""
    first, second = (
        "This sentence has quite a few letters in it, it has.",
        "So has this one, and they are about the same.",
    )
    shown = cues([wordless(f" {first} {second}", 10.0, 20.0)])
    assert texts(shown) == [first, second]
    assert shown[0].start == pytest.approx(10.1, abs=0.1)
    assert shown[1].start == pytest.approx(15.4, abs=0.3)
    assert shown[-1].end == pytest.approx(20.0)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -5.0])
def test_word_times_that_are_no_times_do_no_harm(broken: float) -> None:
    """One bad number must not lose a subtitle file."""
    (cue,) = cues([said((1.0, 1.5, " one"), (broken, broken, " two"), (2.0, 2.5, " three"))], duration_s=10.0)
    assert (cue.start, cue.end, cue.lines) == (1.0, 2.5, ("one two three",))


def test_many_words_at_one_moment_at_the_very_end_are_all_shown() -> None:
    """Failed alignments put every word at the same time; the file must still be valid."""
    shown = cues([said(*[(10.0, 10.0, " word")] * 100)], duration_s=10.0)
    assert sum(text.count("word") for text in texts(shown)) == 100
    assert all(before.end <= after.start for before, after in pairwise(shown))
    assert all(cue.start < cue.end for cue in shown)
    assert shown[-1].end <= 10.0


# --- the two formats -------------------------------------------------------------------------------------------------

TWO = [Cue(0.0, 1.5, ("Hello,", "world.")), Cue(3661.25, 3662.0, ("Bye.",))]


def test_srt_is_numbered_and_has_commas() -> None:
    """SubRip as every player reads it."""
    assert srt(TWO) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello,\nworld.\n\n2\n01:01:01,250 --> 01:01:02,000\nBye.\n"
    )  # fmt: skip


def test_vtt_has_a_header_and_points() -> None:
    """WebVTT as browsers read it."""
    assert vtt(TWO) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello,\nworld.\n\n01:01:01.250 --> 01:01:02.000\nBye.\n"
    )  # fmt: skip


def test_an_empty_transcript_is_a_valid_file() -> None:
    """Silence is a success: no cue, and nothing a player stumbles over."""
    assert cues([]) == cues([wordless("", 0, 1)]) == []
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n"


def test_what_the_formats_use_themselves_is_escaped() -> None:
    """Spoken code or a prompt's markup must not be taken for a cue's times or tags."""
    shown = [Cue(0, 1, ("a ---> b", "<i>R&D</i>"))]
    assert srt(shown).endswith("\na -> b\n<i>R&D</i>\n")
    assert vtt(shown).endswith("\na ---&gt; b\n&lt;i&gt;R&amp;D&lt;/i&gt;\n")


def test_a_voice_is_escaped_like_text() -> None:
    """A name comes from whoever named the speakers."""
    (block,) = vtt([Cue(0, 1, ("Hi",), "A>B&C")]).split("\n\n")[1:]
    assert block.endswith("<v A&gt;B&amp;C>Hi</v>\n")


def test_a_time_stands_between_the_space_and_its_word() -> None:
    """The space belongs to neither, and lit with the word before it looks like a stain."""
    parts = ((TimedPart("Hello", 0.0, 0.4), TimedPart(" world", 0.5, 0.9)), (TimedPart("again", 1.0, 1.4),))
    written = vtt([Cue(0.0, 1.5, ("Hello world", "again"), parts=parts)], karaoke=True)
    assert written.endswith("Hello <00:00:00.500>world\n<00:00:01.000>again\n")
