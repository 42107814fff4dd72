"""SubStation Alpha: what its readers rely on, whatever was said."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcription.styled_subtitles import ass, escaped
from transcription.subtitles import Cue, TimedPart

TIMED = Cue(
    0.5,
    2.004,
    ("Hello there", "you"),
    "SPEAKER_00",
    ((TimedPart("Hello", 0.75, 0.9), TimedPart(" there", 1.0, 1.4)), (TimedPart("you", 1.5, 1.9),)),
)


def events(script: str) -> list[list[str]]:
    """The fields of each event, the text last."""
    lines = script.split("[Events]\n")[1].splitlines()
    assert lines[0] == "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"
    assert all(line.startswith("Dialogue: ") for line in lines[1:])
    return [line.removeprefix("Dialogue: ").split(",", 9) for line in lines[1:]]


def as_drawn(text: str) -> str:
    """What libass draws of an event's text (`ass_parse.c`): tags gone, its escapes resolved."""
    drawn, at = "", 0
    while at < len(text):
        pair = text[at : at + 2]
        if text[at] == "{":
            at = text.index("}", at) + 1
        elif pair in (r"\N", r"\n", r"\h", r"\{", r"\}"):
            drawn += {r"\N": "\n", r"\n": " ", r"\h": "\u00a0"}.get(pair, pair[1])
            at += 2
        else:
            drawn += text[at]
            at += 1
    return drawn.replace("\u2060", "")


def test_a_script_has_its_three_sections_and_a_style_for_its_events() -> None:
    """Readers find their way by these names, and by as many fields as the format line names."""
    script = ass([TIMED])
    assert re.findall(r"^\[(.+)\]$", script, re.M) == ["Script Info", "V4+ Styles", "Events"]
    assert "ScriptType: v4.00+\n" in script
    format_line, style = script.split("[V4+ Styles]\n")[1].splitlines()[:2]
    assert len(style.split(",")) == len(format_line.split(","))
    assert style.split(",")[0] == "Style: Default"
    assert ass([]).endswith("Effect, Text\n")


def test_each_word_is_lit_from_its_start_until_the_next_begins() -> None:
    """Tags count from the event's start in hundredths of a second: the first stands for the silence before."""
    assert events(ass([TIMED])) == [
        [
            *("0", "0:00:00.50", "0:00:02.00", "Default", "SPEAKER_00", "0", "0", "0", ""),
            r"{\k25}{\k25}Hello {\k50}there\N{\k50}you",
        ]
    ]


def test_without_word_times_nothing_is_lit() -> None:
    ((*_, text),) = events(ass([Cue(0, 1, ("Hello there", "you"))]))
    assert text == r"Hello there\Nyou"


def test_hours_and_the_shortest_cue() -> None:
    """A hundredth is the least that can be shown; a cue of a millisecond would be none."""
    assert [
        event[1:3] for event in events(ass([Cue(3661.25, 36_000, ("a",)), Cue(36_000.001, 36_000.002, ("b",))]))
    ] == [
        ["1:01:01.25", "10:00:00.00"],
        ["10:00:00.00", "10:00:00.01"],
    ]


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("{b1}", r"\{b1\}"),
        (r"c:\new\Now\home", "c:\\\u2060new\\\u2060Now\\\u2060home"),
        (r"\k\{", "\\k\\\u2060\\{"),
        ("a\r\nb\u2028c", "a b c"),
        ("a, b", "a, b"),
        ("\x00x\x07", "x"),
    ],
)
def test_what_the_format_uses_itself_is_escaped(said: str, written: str) -> None:
    """Braces begin tags, and a backslash means something before some letters."""
    assert escaped(said) == written


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab \\{}nNhk,;\u2060")))
def test_all_that_was_said_is_drawn(text: str) -> None:
    assert as_drawn(escaped(text)) == text.replace("\u2060", "")


def test_a_speaker_is_one_field() -> None:
    ((*fields, text),) = events(ass([Cue(0, 1, ("Hi, you",), "Smith, J.\n")]))
    assert (fields[4], text) == ("Smith  J.", "Hi, you")


@settings(deadline=None)
@given(st.lists(st.floats(-5, 40), min_size=1, max_size=12), st.floats(0, 20), st.floats(0.001, 7))
def test_the_tags_of_a_cue_last_as_long_as_the_cue(starts: list[float], start: float, length: float) -> None:
    """Whatever the word times: what was lit too long would light the rest too late."""
    parts = tuple(TimedPart(" x" if at else "x", begin, begin) for at, begin in enumerate(starts))
    ((_, begins, ends, *_, text),) = events(
        ass([Cue(start, start + length, ("x" + " x" * (len(starts) - 1),), None, (parts,))])
    )
    hundredths = [
        (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * 100 + int(rest)
        for hours, minutes, seconds, rest in (re.split("[:.]", clock) for clock in (begins, ends))
    ]
    assert sum(map(int, re.findall(r"\\k(\d+)", text))) == hundredths[1] - hundredths[0]
