"""What each response format looks like, to the character."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from transcription.core import ResponseFormat, Task, Transcript, TranscriptSegment, Word
from transcription.formats import media_type, render

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
)
SECOND = replace(FIRST, id=1, start=5.0, end=5.5, text=" Bye.", words=(Word(5.0, 5.5, " Bye.", 0.7),))
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
    ("response_format", "written"), [("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n"), ("tsv", "start\tend\ttext\n")]
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
    else:
        assert media_type(response_format).endswith("; charset=utf-8")
