"""What each response format looks like, to the character."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from docx import Document

from api.schemas import TranscriptionSchema, VerboseTranscriptionSchema
from transcription.core import ResponseFormat, Task, Transcript, TranscriptSegment, Word
from transcription.formats import extension, media_type, render

FIRST = TranscriptSegment(
    id=0,
    start=0.51234,
    end=2.0,
    text=" Hello there,\tyou.",
    avg_logprob=-0.234567,
    no_speech_prob=0.012345,
    compression_ratio=0.98765,
    temperature=0.0,
    words=(
        Word(0.51234, 1.0, " Hello", 0.987654),
        Word(1.0, 1.5, " there,", 0.9),
        Word(1.5, 2.0, " you.", 0.8),
    ),
    tokens=(50, 60),
)
SECOND = replace(FIRST, id=1, start=5.0, end=5.5, text=" Bye.", words=(Word(5.0, 5.5, " Bye.", 0.7),), tokens=(70,))
TRANSCRIPT = Transcript(
    segments=(FIRST, SECOND),
    language="en",
    language_probability=0.999951,
    duration_s=5.7,
    task=Task.TRANSCRIBE,
    model="tiny.en",
    device="cpu",
    compute_type="int8",
    timings_s={"decode": 0.01234, "transcribe": 0.5, "total": 1.14},
)
SILENCE = replace(TRANSCRIPT, segments=())


def said_by(speaker: str | None, segment: TranscriptSegment) -> TranscriptSegment:
    words = tuple(replace(word, speaker=speaker) for word in segment.words or ())
    return replace(segment, speaker=speaker, words=words or None)


TWO_SPEAKERS = replace(
    TRANSCRIPT,
    segments=(
        said_by("SPEAKER_00", FIRST),
        said_by("SPEAKER_00", replace(SECOND, id=1, start=2.2, end=2.6, words=(Word(2.2, 2.6, " Bye.", 0.7),))),
        said_by("SPEAKER_01", replace(SECOND, id=2, start=2.8, end=3.2, words=(Word(2.8, 3.2, " Bye.", 0.7),))),
        said_by("SPEAKER_00", replace(SECOND, id=3)),
    ),
)


def as_json(transcript: Transcript, response_format: ResponseFormat = ResponseFormat.JSON) -> dict[str, object]:
    """What a caller reads: through JSON's own rules, which know no NaN."""
    answer = render(transcript, response_format, request_id="a1b2c3d4")
    assert isinstance(answer, dict)
    parsed = json.loads(json.dumps(answer, allow_nan=False))
    assert isinstance(parsed, dict)
    return parsed


def as_text(transcript: Transcript, response_format: ResponseFormat) -> str:
    answer = render(transcript, response_format, request_id="a1b2c3d4")
    assert isinstance(answer, str)
    return answer


def without_words(transcript: Transcript) -> Transcript:
    return replace(transcript, segments=tuple(replace(segment, words=None) for segment in transcript.segments))


def test_json_tells_what_was_said_and_how_it_was_found() -> None:
    """Callers build on these names and on their rounding."""
    assert as_json(TRANSCRIPT) == {
        "text": "Hello there,\tyou. Bye.",
        "language": "en",
        "language_probability": 1.0,
        "duration": 5.7,
        "segments": [
            {
                "id": 0,
                "start": 0.512,
                "end": 2.0,
                "text": "Hello there,\tyou.",
                "avg_logprob": -0.2346,
                "no_speech_prob": 0.0123,
                "words": [
                    {"word": "Hello", "start": 0.512, "end": 1.0, "probability": 0.9877},
                    {"word": "there,", "start": 1.0, "end": 1.5, "probability": 0.9},
                    {"word": "you.", "start": 1.5, "end": 2.0, "probability": 0.8},
                ],
            },
            {
                "id": 1,
                "start": 5.0,
                "end": 5.5,
                "text": "Bye.",
                "avg_logprob": -0.2346,
                "no_speech_prob": 0.0123,
                "words": [{"word": "Bye.", "start": 5.0, "end": 5.5, "probability": 0.7}],
            },
        ],
        "task": "transcribe",
        "model": "tiny.en",
        "device": "cpu",
        "compute_type": "int8",
        "timings": {"decode": 0.012, "transcribe": 0.5, "total": 1.14},
        "real_time_factor": 5.0,
        "provider": "local",
        "request_id": "a1b2c3d4",
    }


def test_verbose_json_is_what_clients_of_openai_expect() -> None:
    """Their parsers want the language's name, the words at the top, and these fields in each segment."""
    answer = as_json(TRANSCRIPT, ResponseFormat.VERBOSE_JSON)
    assert list(answer)[:6] == ["task", "language", "duration", "text", "segments", "words"]
    assert answer["language"] == "english"
    assert answer["segments"] == [
        {
            "id": 0,
            "seek": 51,
            "start": 0.512,
            "end": 2.0,
            "text": "Hello there,\tyou.",
            "tokens": [50, 60],
            "temperature": 0.0,
            "avg_logprob": -0.2346,
            "compression_ratio": 0.9877,
            "no_speech_prob": 0.0123,
        },
        {
            "id": 1,
            "seek": 500,
            "start": 5.0,
            "end": 5.5,
            "text": "Bye.",
            "tokens": [70],
            "temperature": 0.0,
            "avg_logprob": -0.2346,
            "compression_ratio": 0.9877,
            "no_speech_prob": 0.0123,
        },
    ]
    words = answer["words"]
    assert isinstance(words, list)
    assert words[0] == {"word": "Hello", "start": 0.512, "end": 1.0, "probability": 0.9877}
    assert [word["word"] for word in words] == ["Hello", "there,", "you.", "Bye."]
    assert answer["language_code"] == "en"
    assert answer["request_id"] == "a1b2c3d4"


def test_words_are_there_only_where_they_were_asked_for() -> None:
    """They are most of the answer's bytes."""
    assert "words" not in json.dumps(as_json(without_words(TRANSCRIPT)))
    assert "words" not in json.dumps(as_json(without_words(TRANSCRIPT), ResponseFormat.VERBOSE_JSON))


def test_text_is_the_whole_text_and_a_newline() -> None:
    """As OpenAI's text format: one line, whatever the segments were."""
    assert as_text(TRANSCRIPT, ResponseFormat.TEXT) == "Hello there,\tyou. Bye.\n"


def test_text_of_a_language_without_spaces_gets_none() -> None:
    """Segments carry their own spaces; joining with more would put gaps into Chinese."""
    segments = (replace(FIRST, text="测试完成后，", words=None), replace(FIRST, text="更改状态。", words=None))
    assert as_text(replace(TRANSCRIPT, segments=segments), ResponseFormat.TEXT) == "测试完成后，更改状态。\n"


def test_tsv_has_a_header_and_one_row_a_segment() -> None:
    """A tab or a newline inside a text would be a column or a row more."""
    broken = replace(SECOND, text=" a\tb\r\nc\u2028d ", words=None)
    table = as_text(replace(TRANSCRIPT, segments=(FIRST, broken)), ResponseFormat.TSV)
    assert table == "start\tend\ttext\n512\t2000\tHello there, you.\n5000\t5500\ta b c d\n"


def test_subtitles_end_with_the_recording() -> None:
    """A short last cue lingers for a second, but the video has only 0.2 s left."""
    assert as_text(TRANSCRIPT, ResponseFormat.SRT) == (
        "1\n00:00:00,512 --> 00:00:02,000\nHello there, you.\n\n2\n00:00:05,000 --> 00:00:05,700\nBye.\n"
    )
    assert as_text(TRANSCRIPT, ResponseFormat.VTT) == (
        "WEBVTT\n\n00:00:00.512 --> 00:00:02.000\nHello there, you.\n\n00:00:05.000 --> 00:00:05.700\nBye.\n"
    )


@pytest.mark.parametrize(
    ("response_format", "written"),
    [
        *(("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n"), ("vtt_words", "WEBVTT\n")),
        ("tsv", "start\tend\ttext\n"),
    ],
)
def test_silence_is_an_empty_answer_in_every_format(response_format: str, written: str) -> None:
    """Silence is a success, and its file must open."""
    assert as_text(SILENCE, ResponseFormat(response_format)) == written
    assert as_json(SILENCE)["segments"] == as_json(SILENCE, ResponseFormat.VERBOSE_JSON)["segments"] == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_becomes_null(number: float) -> None:
    """Python would write NaN, which no other JSON reader accepts."""
    segment = replace(FIRST, start=number, end=number, avg_logprob=number, words=(Word(number, number, " x", number),))
    broken = replace(
        TRANSCRIPT, segments=(segment,), language_probability=number, duration_s=number, timings_s={"total": number}
    )
    for response_format in (ResponseFormat.JSON, ResponseFormat.VERBOSE_JSON):
        answer = as_json(broken, response_format)
        assert answer["duration"] is None
        assert answer["language_probability"] is None
    for response_format in (ResponseFormat.SRT, ResponseFormat.VTT, ResponseFormat.TSV, ResponseFormat.TEXT):
        assert "nan" not in as_text(broken, response_format)


def test_numpys_floats_are_written_as_json() -> None:
    """The engine computes with numpy, whose float32 the json module refuses."""
    segment = replace(FIRST, avg_logprob=np.float32(-0.5), words=None)  # type: ignore[arg-type]
    assert '"avg_logprob": -0.5' in json.dumps(as_json(replace(TRANSCRIPT, segments=(segment,))))


@pytest.mark.parametrize("response_format", list(ResponseFormat))
def test_every_format_has_a_media_type_that_fits(response_format: ResponseFormat) -> None:
    """Browsers save or show an answer by it; text without a charset is read as Latin-1 by some."""
    answer = render(TRANSCRIPT, response_format, request_id="a1b2c3d4")
    if isinstance(answer, dict):
        assert media_type(response_format) == "application/json"
    elif isinstance(answer, str):
        assert media_type(response_format).endswith("; charset=utf-8")
    else:
        assert "charset" not in media_type(response_format)


def test_a_file_is_named_as_programs_open_it() -> None:
    """A player looks for .vtt, and knows no .vtt_words."""
    assert [extension(one) for one in ResponseFormat] == [
        *("json", "txt", "srt", "vtt", "vtt", "ass", "tsv", "docx", "json")
    ]


@pytest.mark.parametrize("response_format", list(ResponseFormat))
def test_subtitles_need_words(response_format: ResponseFormat) -> None:
    """Their cues are cut by them, and karaoke is nothing else."""
    assert response_format.needs_words == (response_format.value in ("srt", "vtt", "vtt_words", "ass"))


# --- who speaks ------------------------------------------------------------------------------------------------------


def test_json_tells_who_speaks_and_what_else_was_asked_for() -> None:
    """A program may ask `"speaker" in segment`: what is not known is not there."""
    word = Word(5.0, 5.5, " Bye.", 0.7, score=0.83333, speaker="SPEAKER_01")
    known = replace(SECOND, words=(word,), speaker="SPEAKER_01", language="de", aligned=False)
    transcript = replace(TRANSCRIPT, segments=(FIRST, known), warnings=("No model for it.",), provider="openai")
    for response_format, schema in (
        (ResponseFormat.JSON, TranscriptionSchema),
        (ResponseFormat.VERBOSE_JSON, VerboseTranscriptionSchema),
    ):
        answer = as_json(transcript, response_format)
        schema.model_validate(answer)
        assert answer["warnings"] == ["No model for it."]
        assert answer["provider"] == "openai"
        first, second = answer["segments"]  # type: ignore[misc]
        assert not {"speaker", "language", "aligned"} & set(first)
        assert (second["speaker"], second["language"], second["aligned"]) == ("SPEAKER_01", "de", False)
        words = answer.get("words") or [*first["words"], *second["words"]]
        assert words[-1] == {
            **{"word": "Bye.", "start": 5.0, "end": 5.5, "probability": 0.7},
            **{"score": 0.8333, "speaker": "SPEAKER_01"},
        }
        assert not {"score", "speaker"} & set(words[0])
        assert "warnings" not in as_json(TRANSCRIPT, response_format)


def test_text_has_a_paragraph_a_turn() -> None:
    """As minutes are written: who, then all that was said until another spoke."""
    assert as_text(TWO_SPEAKERS, ResponseFormat.TEXT) == (
        "SPEAKER_00: Hello there,\tyou. Bye.\n\nSPEAKER_01: Bye.\n\nSPEAKER_00: Bye.\n"
    )
    nobody = said_by(None, replace(SECOND, id=4, text=" Hm."))
    mixed = replace(TWO_SPEAKERS, segments=(*TWO_SPEAKERS.segments, nobody))
    assert as_text(mixed, ResponseFormat.TEXT).endswith("SPEAKER_00: Bye.\n\nHm.\n")


def test_words_of_two_speakers_in_a_segment_are_two_turns() -> None:
    """Whoever tells the speakers may leave the segments whole."""
    words = (Word(0, 1, " Yes?", 0.9, speaker="A"), Word(1, 2, " No.", 0.9, speaker="B"), Word(2, 3, " Why?", 0.9))
    mixed = replace(TRANSCRIPT, segments=(replace(FIRST, text=" Yes? No. Why?", speaker="B", words=words),))
    assert as_text(mixed, ResponseFormat.TEXT) == "A: Yes?\n\nB: No. Why?\n"
    assert "<v A>Yes?</v>" in as_text(mixed, ResponseFormat.VTT)
    assert "<v B>No. Why?</v>" in as_text(mixed, ResponseFormat.VTT)


def test_subtitles_tell_who_speaks_each_in_their_own_way() -> None:
    """SubRip has no speakers, so a change of them is written; WebVTT has voices."""
    srt = as_text(TWO_SPEAKERS, ResponseFormat.SRT)
    assert [block.split("\n", 2)[2].strip() for block in srt.strip().split("\n\n")] == [
        *("SPEAKER_00: Hello there, you. Bye.", "SPEAKER_01: Bye.", "SPEAKER_00: Bye.")
    ]
    vtt = as_text(TWO_SPEAKERS, ResponseFormat.VTT)
    assert [block.split("\n", 1)[1].strip() for block in vtt.strip().split("\n\n")[1:]] == [
        "<v SPEAKER_00>Hello there, you. Bye.</v>",
        "<v SPEAKER_01>Bye.</v>",
        "<v SPEAKER_00>Bye.</v>",
    ]


def test_tsv_has_a_column_more_where_it_is_known_who_speaks() -> None:
    """The last one: programs that take columns by their number go on working."""
    rows = as_text(TWO_SPEAKERS, ResponseFormat.TSV).splitlines()
    assert rows[0] == "start\tend\ttext\tspeaker"
    assert rows[3] == "2800\t3200\tBye.\tSPEAKER_01"


# --- words that are lit one by one -----------------------------------------------------------------------------------


def test_vtt_words_holds_the_time_of_each_word() -> None:
    """A player's karaoke: the first word's time is the cue's own."""
    assert as_text(TRANSCRIPT, ResponseFormat.VTT_WORDS) == (
        "WEBVTT\n\n00:00:00.512 --> 00:00:02.000\nHello <00:00:01.000>there, <00:00:01.500>you.\n\n"
        "00:00:05.000 --> 00:00:05.700\nBye.\n"
    )


def test_without_words_nothing_is_lit() -> None:
    """A time made up is worse than none."""
    plain = without_words(TRANSCRIPT)
    assert as_text(plain, ResponseFormat.VTT_WORDS) == as_text(plain, ResponseFormat.VTT)
    assert "\\k" not in as_text(plain, ResponseFormat.ASS)


# --- documents -------------------------------------------------------------------------------------------------------


def as_document(transcript: Transcript, title: str | None = None) -> list[str]:
    answer = render(transcript, ResponseFormat.DOCX, request_id="a1b2c3d4", title=title)
    assert isinstance(answer, bytes)
    return [paragraph.text for paragraph in Document(io.BytesIO(answer)).paragraphs]


def test_a_document_has_a_title_and_a_paragraph_a_segment() -> None:
    """Without speakers, the segments are the only paragraphs there are."""
    assert as_document(TRANSCRIPT, "A <talk> & more") == [
        "A <talk> & more",
        "[0:00] Hello there,\tyou.",
        "[0:05] Bye.",
    ]
    assert as_document(SILENCE) == []


def test_a_document_has_a_paragraph_a_turn_and_another_each_minute() -> None:
    """An hour's lecture in one paragraph could not be found one's way in."""
    assert as_document(TWO_SPEAKERS) == [
        "[0:00] SPEAKER_00: Hello there,\tyou. Bye.",
        "[0:02] SPEAKER_01: Bye.",
        "[0:05] SPEAKER_00: Bye.",
    ]
    lecture = tuple(said_by("A", replace(SECOND, id=n, start=20.0 * n, end=20.0 * n + 5)) for n in range(200))
    paragraphs = as_document(replace(TRANSCRIPT, segments=lecture))
    assert len(paragraphs) == 50
    assert paragraphs[-1] == "[1:05:20] A: Bye. Bye. Bye. Bye."


def test_a_document_holds_no_character_that_xml_does_not() -> None:
    """Word refuses a file with a single one."""
    odd = replace(FIRST, text=" a\x00b\x0bc\ufffe\ud800d", words=None)
    assert as_document(replace(TRANSCRIPT, segments=(odd,)), "t\x01") == ["t", "[0:00] abcd"]


def test_a_document_says_its_language_and_not_who_wrote_the_library() -> None:
    """Word checks the spelling by it."""
    written = render(replace(TRANSCRIPT, language="de"), ResponseFormat.DOCX, request_id="a1b2c3d4")
    translated = render(
        replace(TRANSCRIPT, language="de", task=Task.TRANSLATE), ResponseFormat.DOCX, request_id="a1b2c3d4"
    )
    assert isinstance(written, bytes)
    assert isinstance(translated, bytes)
    properties = Document(io.BytesIO(written)).core_properties
    assert (properties.language, properties.author, properties.comments) == ("de", "", "")
    assert Document(io.BytesIO(translated)).core_properties.language == "en"
