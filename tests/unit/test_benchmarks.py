"""The rules by which results are counted: a wrong one would make every figure wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.accuracy import LONG, UTTERANCES, Row, lost_by_length, summary
from benchmarks.baselines import answer, merged
from benchmarks.machine import cpu
from benchmarks.processes import MemoryWatch, TreeMemory, stop, tree_memory
from benchmarks.results import Run, factor, medians
from benchmarks.scoring import Score, score, total
from benchmarks.speech_set import SpeechSet, SpeechSetMissing, clips_of
from benchmarks.tables import markdown


def test_spelling_and_punctuation_are_no_errors() -> None:
    """Both sides go through Whisper's normaliser: the figure is about words, not about style."""
    assert score("Mister Smith doesn't like 2 colours.", "mr smith does not like two colors", "en").errors == 0


def test_errors_are_counted_by_kind() -> None:
    """One word replaced, one left out, one added: three errors of four words."""
    found = score("one cat sat there", "one dog there again", "en")
    assert found == Score(errors=3, reference=4, written=4)
    assert found.error_rate == 0.75


def test_languages_without_spaces_are_counted_by_character() -> None:
    """A sentence that is one 'word' would be wholly wrong for one wrong sign."""
    assert score("砸自己的脚", "打自己的脚", "zh") == Score(errors=1, reference=5, written=5)


def test_words_where_nobody_speaks_are_errors() -> None:
    """jiwer cannot divide by an empty reference; invented words must not vanish for that."""
    assert score("", "Thank you.", "en") == Score(errors=2, reference=0, written=2)
    assert score("", " ... ", None) == Score()


def test_scores_add_up_by_words() -> None:
    """The mean of rates would let a clip of one word weigh as much as one of a hundred."""
    assert total([Score(1, 1, 1), Score(0, 99, 99)]).error_rate == 0.01


def test_clips_without_reference_are_left_out() -> None:
    """null is unknown, the empty string is silence."""
    lines = [json.dumps({"file": f"{i}.wav", "text": text, "duration_s": 1}) for i, text in enumerate(["a", None, ""])]
    assert [clip.text for clip in clips_of([*lines, ""], Path("x"))] == ["a", ""]


def test_a_missing_speech_set_says_what_to_set(tmp_path: Path) -> None:
    """The recordings are not part of the project."""
    with pytest.raises(SpeechSetMissing, match="SPEECH_DIR"):
        SpeechSet(tmp_path)


def test_spans_are_merged_over_short_gaps_and_within_the_window() -> None:
    """Merging over silence loses words, and a clip past 30 s would be cut off."""
    assert merged([(0, 5), (5.2, 9), (9.5, 12)]) == [(0, 9), (9.5, 12)]
    assert merged([(0, 20), (20.1, 31)]) == [(0, 20), (20.1, 31)]
    assert merged([]) == []


def test_answers_come_line_by_line() -> None:
    """The parent writes a request and waits for its line."""
    answers = io.StringIO()
    answer(lambda path, language: f"{path} in {language}", ['{"path": "a.wav", "language": "en"}'], answers)
    assert json.loads(answers.getvalue())["text"] == "a.wav in en"


def run(system: str, wall_s: float, error_rate: float = 0.1, workload: str = "long") -> Run:
    return Run(system, workload, wall_s, 100.0, error_rate, TreeMemory(int(wall_s), 0), (wall_s / 10,))


def test_medians_are_taken_over_repeats() -> None:
    """One slow repeat says something about the machine, not about the system."""
    (line,) = medians([run("a", 1), run("a", 100), run("a", 2)])
    assert (line.wall_s, line.real_time_factor, line.peak.rss, line.first_byte_s) == (2, 50, 2, 0.2)


def test_speed_is_compared_at_like_accuracy_only() -> None:
    """A configuration that drops words is not fast."""
    ours, alike, sloppy = medians([run("us", 1), run("alike", 2, 0.12), run("sloppy", 3, 0.13)])
    assert (factor(alike, ours), factor(sloppy, ours), factor(ours, ours), factor(alike, None)) == (
        "2.00",
        "(3.00)",
        "",
        "",
    )


def test_the_memory_of_children_counts() -> None:
    """The weights are in a child process: without it every figure would flatter."""
    grow = "import sys; held = bytearray(64 * 2**20); print(flush=True); sys.stdin.read()"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grow!r}])"
    parent = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    try:
        parent.stdout.readline()
        with MemoryWatch(parent.pid) as watch:
            now = tree_memory(parent.pid)
        assert now.rss >= 64 * 2**20
        assert watch.peak.rss >= 64 * 2**20
    finally:
        stop(parent)
        parent.stdin.close()
        parent.stdout.close()
    assert tree_memory(parent.pid) == TreeMemory()


def test_a_stopped_process_leaves_no_children() -> None:
    """A benchmark that leaves servers behind spoils the next one."""
    start = "import subprocess, sys; c = subprocess.Popen(['sleep', '600']); print(c.pid, flush=True); c.wait()"
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    stop(parent)
    parent.stdout.close()
    assert parent.returncode is not None
    # Where process 1 does not collect the dead, what is left is a zombie.
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_the_machine_is_named() -> None:
    """Figures without their machine cannot be compared."""
    assert cpu("model name\t: Some CPU\nflags\t\t: fpu avx2 sse\nmodel name\t: Some CPU\n") == ("Some CPU", ("avx2",))


def test_tables_are_aligned() -> None:
    """They are read on a terminal, too."""
    assert markdown(["a", "long"], [["12", "3"]]).splitlines() == ["| a  | long |", "|----|------|", "| 12 | 3    |"]


def test_what_length_costs_is_told() -> None:
    """Long files lose nothing: the whole file is held against its own utterances, not against the library alone."""
    rows = [
        Row(LONG, "long", "en", "cats eat small fish", "cats eat small", "en", "cats eat"),
        Row(UTTERANCES, "1", "en", "cats eat", "cats eat", "en", "cats eat"),
        Row(UTTERANCES, "2", "en", "small fish", "small fish", "en", "small dish"),
    ]
    assert "Stenogate +25.0 points, faster-whisper batched +25.0" in lost_by_length(summary(rows))
    assert lost_by_length(summary(rows[1:])) == ""


def test_invented_words_are_shown_with_their_file() -> None:
    """A rate without reference words says nothing; the text does."""
    (line,) = summary([Row("no speech", "silence.wav", None, "", "Thank you.", "en", "")])
    assert line["texts_where_none_is_right"] == ["silence.wav: 'Thank you.'"]
