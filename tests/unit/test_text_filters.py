"""Hesitations left out and swear words masked: of texts and of words alike, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcription.core import Token, TranscriptSegment, Word
from transcription.text_filters import filtered


def segment(text: str, *, words: bool = True, number: int = 0, language: str | None = None) -> TranscriptSegment:
    """*text* with a word for each of its written words, two tenths of a second each."""
    spoken = tuple(Word(at * 0.2, at * 0.2 + 0.2, f" {word}", 0.9) for at, word in enumerate(text.split()))
    return TranscriptSegment(
        number, 0.0, 5.0, f" {text}", -0.2, 0.01, 1.2, 0.0, spoken if words else None, language=language
    )


def without_fillers(*texts: str, language: str | None = "en") -> str:
    """What is left of segments of these texts; of their words as of their texts."""
    segments = [segment(text, number=number) for number, text in enumerate(texts)]
    kept = filtered(segments, fillers=True, profanity=False, language=language)
    for one in kept:
        assert "".join(word.text for word in one.words or ()) == one.text
    wordless = [segment(text, words=False, number=number) for number, text in enumerate(texts)]
    alike = filtered(wordless, fillers=True, profanity=False, language=language)
    assert [one.text for one in alike] == [one.text for one in kept]
    return "|".join(one.text.strip() for one in kept)


def masked(text: str, language: str | None = "en") -> str:
    (one,) = filtered([segment(text)], fillers=False, profanity=True, language=language)
    assert "".join(word.text for word in one.words or ()) == one.text
    return one.text.strip()


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("Um, I think so.", "I think so."),
        ("Um, so I went.", "So I went."),
        ("I was, um, going home.", "I was going home."),
        ("I was um going home.", "I was going home."),
        ("I think, uh.", "I think."),
        ("I think uh.", "I think."),
        ("I think, um... we should.", "I think, we should."),
        ("Yes. Uh, no. Umm, uhh, maybe.", "Yes. No. Maybe."),
        ("Uhm, “well,” he said.", "“Well,” he said."),
        ("Hmm. That is odd.", "That is odd."),
        ("It is, er, a hum.", "It is a hum."),
        ("I know. Um,", "I know."),
    ],
)
def test_a_hesitation_goes_with_its_marks_and_leaves_its_capital(said: str, left: str) -> None:
    """What is left reads as if it had been written so."""
    assert without_fillers(said) == left


@pytest.mark.parametrize(
    "text",
    [
        "Uh-huh, that is right.",
        "An umbrella, a hummer and an erring Erma.",
        "He went to the ER at noon.",
        "It is 5 mm wide.",
        "Hm? Um! What?",
        "Oh, ah, well, like, you know.",
    ],
)
def test_what_means_something_stays(text: str) -> None:
    """Better a hesitation too many than a word too few."""
    assert without_fillers(text) == text


@pytest.mark.parametrize(
    ("language", "said", "left"),
    [
        ("de", "Äh, das ist, ähm, um acht, und er kommt eh.", "Das ist um acht, und er kommt eh."),
        ("fr", "Euh, je ne sais pas, heu, peut-être.", "Je ne sais pas peut-être."),
        ("es", "Eh, bueno, ehm, vamos, ¿eh?", "Bueno vamos, ¿eh?"),
        ("it", "Ehm, allora andiamo.", "Allora andiamo."),
        ("pt", "Hum um dia, ehm, vou.", "Hum um dia vou."),
        ("nl", "Uh, ik weet het niet.", "Ik weet het niet."),
    ],
)
def test_each_language_has_its_own(language: str, said: str, left: str) -> None:
    """ "Um" and "er" are German words, "um" a Portuguese one."""
    assert without_fillers(said, language=language) == left


@pytest.mark.parametrize("language", ["ja", None])
def test_a_language_without_a_list_is_left_alone(language: str | None) -> None:
    assert without_fillers("Um, äh, euh.", language=language) == "Um, äh, euh."


def test_the_segments_own_language_counts_unless_all_is_english() -> None:
    """Where each segment's language is detected, and where all is translated."""
    segments = [segment("Um acht, äh, ja.", language="de"), segment("Um, yes.", number=1)]
    kept = filtered(segments, fillers=True, profanity=False, language="en")
    assert [one.text for one in kept] == [" Um acht ja.", " Yes."]
    segments = [segment("Um, yes.", language="de")]
    assert filtered(segments, fillers=True, profanity=False, language="de", translated=True)[0].text == " Yes."


def test_a_segment_of_nothing_else_vanishes_and_its_capital_goes_on() -> None:
    """An empty cue is nothing to show; numbers have no gaps."""
    assert without_fillers("I know.", "Um,", "so we went.", "Uh.", "Yes.") == "I know.|So we went.|Yes."
    segments = [segment(text, number=number) for number, text in enumerate(("Um.", "Yes.", "Um.", "No."))]
    kept = filtered(segments, fillers=True, profanity=False, language="en")
    assert [one.id for one in kept] == [0, 1]


def test_a_sentence_that_goes_on_in_the_next_segment_gets_no_capital() -> None:
    assert without_fillers("I know that", "Um, so do you.") == "I know that|so do you."


def test_the_words_that_stay_keep_their_times() -> None:
    (one,) = filtered([segment("Um, so be it.")], fillers=True, profanity=False, language="en")
    assert [(word.text, word.start) for word in one.words or ()] == [
        (" So", 0.2),
        (" be", 0.4),
        (" it.", 0.6000000000000001),
    ]


def test_a_word_that_whisper_cut_in_two_is_one() -> None:
    """ " uh" and "-huh" are a yes, " mother" and "fucker" are not about mothers."""
    texts = (" Uh", "-huh,", " mother", "fucker", " um", ",", " go.")
    words = tuple(Word(at, at + 1, text, 0.9) for at, text in enumerate(texts))
    cut = TranscriptSegment(0, 0.0, 9.0, "".join(texts), -0.2, 0.01, 1.2, 0.0, words)
    (one,) = filtered([cut], fillers=True, profanity=True, language="en")
    assert one.text == " Uh-huh, m*********** go."
    assert [word.text for word in one.words or ()] == [" Uh", "-huh,", " m*****", "******", " go."]


@pytest.mark.parametrize(
    ("language", "said", "written"),
    [
        ("en", "What the fuck, you Asshole! Bullshit's SHITTY.", "What the f***, you A******! B*******'s S*****."),
        ("en", "Scunthorpe's class passed by; Dick and Cockburn assess shiitake.", None),
        (
            "de",
            "So eine Scheiße, du Arschloch! Die Klasse, der Schein.",
            "So eine S******, du A********! Die Klasse, der Schein.",
        ),
        ("fr", "Putain de merde, l'enculé ! Il dispute.", "P***** de m****, l'e***** ! Il dispute."),
        ("es", "¡Joder, qué mierda! El diputado computa.", "¡J****, qué m*****! El diputado computa."),
        ("nl", "fuck", None),
        (None, "fuck", None),
    ],
)
def test_swear_words_keep_their_first_letter_and_their_length(
    language: str | None, said: str, written: str | None
) -> None:
    """And whole words alone are looked at: towns and classes have names."""
    assert masked(said, language) == (written or said)


def test_tokens_go_where_the_text_was_changed() -> None:
    """They spell what the caller did not want; where nothing was found, they stay."""
    spelled = {"tokens": (1, 2), "logprobs": (Token("shit", (1,), -0.1),)}
    changed, same = filtered(
        [replace(segment("Oh shit."), **spelled), replace(segment("Oh."), **spelled)],  # type: ignore[arg-type]
        fillers=True,
        profanity=True,
        language="en",
    )
    assert (changed.tokens, changed.logprobs) == ((), ())
    assert same == replace(segment("Oh."), **spelled)  # type: ignore[arg-type]


def test_nothing_is_done_that_was_not_asked_for() -> None:
    segments = (segment("Um, fuck."),)
    assert filtered(segments, fillers=False, profanity=False, language="en") == segments


parts = st.sampled_from(
    [
        " Um,",
        " uh",
        " shit",
        " well",
        ",",
        ".",
        "-huh",
        " …",
        " I",
        " äh.",
        " (Um)",
        " ",
        "",
        " Hm?",
        "fuck",
        "“",
        " so",
    ]
)


@settings(deadline=None)
@given(st.lists(st.lists(parts, max_size=8), max_size=4), st.sampled_from(["en", "de", "fr", None]))
def test_text_and_words_stay_in_step(said: list[list[str]], language: str | None) -> None:
    """Whatever is said, in whatever parts: subtitles are made of the words, everything else of the text."""
    segments = [
        TranscriptSegment(
            *(number, 0.0, 1.0, "".join(texts), -0.2, 0.01, 1.2, 0.0),
            tuple(Word(0.0, 1.0, text, 0.9) for text in texts),
        )
        for number, texts in enumerate(said)
    ]
    for one in filtered(segments, fillers=True, profanity=True, language=language):
        assert "".join(word.text for word in one.words or ()).split() == one.text.split()
