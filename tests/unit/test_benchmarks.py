"""The rules by which results are counted: a wrong one would make every figure wrong."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks import alignment, behind, chaos, cold, fuzz, gate, long, short, soak
from benchmarks.accuracy import LONG, UTTERANCES, Row, lost_by_length, summary
from benchmarks.baselines import answer, merged
from benchmarks.bench import EXPERIMENTS, parser, plan_of
from benchmarks.engine_log import Busy, busy, events_in
from benchmarks.experiment import Aim, Report
from benchmarks.load import Heard, ask_all, ask_until, attempt
from benchmarks.machine import cpu
from benchmarks.memory import Block, growth_mb
from benchmarks.plots import Panel, draw
from benchmarks.processes import MemoryWatch, TreeMemory, stop, tree_cpu_s, tree_memory
from benchmarks.results import Run, alike, faster, medians, percentile
from benchmarks.scoring import Score, score, total
from benchmarks.server import DECIDED, EngineSettings, Refused
from benchmarks.speech_set import Clip, SpeechSet, SpeechSetMissing, clips_of, spread
from benchmarks.tables import markdown
from tests.mutations import Mutant
from transcription.core import Segment


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
    return Run(system, workload, wall_s, 100.0, error_rate, TreeMemory(int(wall_s), 0), (wall_s / 10, wall_s))


def clip(name: str = "a.wav") -> Clip:
    return Clip(Path(name), name, "six words are said in here", "en", 5.0)


def test_medians_are_taken_over_repeats() -> None:
    """One slow repeat says something about the machine, not about the system."""
    (line,) = medians([run("a", 1), run("a", 100), run("a", 2)])
    assert (line.wall_s, line.real_time_factor, line.peak.rss) == (2, 50, 2)
    # Latencies are counted together: 0.1, 0.2, 1, 2, 10, 100.
    assert (line.p50_s, line.p95_s) == (1, 100)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """An invented one between two values would tell of a caller who never waited so long."""
    values = [float(number) for number in range(20, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 10, 19, 20]
    assert percentile([3.0], 0.95) == 3.0
    # 0.07 × 100 is a little more than 7 in floating point.
    assert percentile(list(range(1, 101)), 0.07) == 7


def test_speed_is_compared_at_like_accuracy_only() -> None:
    """A configuration that drops words is not fast, and neither are we where we drop them."""
    ours, equal, sloppy = medians([run("us", 1), run("equal", 2, 0.12), run("sloppy", 3, 0.13)])
    assert (faster(ours, equal), alike(equal, ours), alike(sloppy, ours), alike(ours, sloppy)) == (
        2,
        True,
        False,
        False,
    )


def test_the_long_file_is_held_against_the_fastest_library_that_hears_as_well() -> None:
    """The sloppy one is faster still, the exact one counts although it is better than we are."""
    lines = medians([run("stenogate", 1), run("exact", 1.4, 0.05), run("cut", 2, 0.11), run("whisperx", 1.2, 0.2)])
    over_whisperx, over_library, gap, share = long.aims(
        lines, lines[0], Score(9, 100, 100), [Busy(3, 2, busy_s=1.9, wall_s=1.0)]
    )
    assert over_whisperx.row()[1:] == ["1.20 times", "≥ 2", "missed"]
    assert (over_library.figure[-7:], over_library.row()[1:]) == ("(exact)", ["1.40 times", "≥ 1.5", "missed"])
    assert gap.row()[1:] == ["1.00 points", "≤ 1.5", "met"]
    assert share.row()[1:] == ["0.95", "≥ 0.9", "met"]


def test_short_clips_are_held_against_the_library_one_after_another() -> None:
    """Every number at once is told; the aim is at eight."""
    ours = [run(short.OURS, wall_s, 0.11, workload) for wall_s, workload in ((9, "1"), (4, "8"))]
    lines = medians([*ours, run(short.LIBRARY, 10, 0.10, "1")])
    one, eight, words = short.aims(lines, next(line for line in lines if line.system == short.LIBRARY))
    assert (one.row()[1], one.verdict) == ("1.11 times", "")
    assert eight.row()[1:] == ["2.50 times", "≥ 2", "met"]
    assert words.row()[1:] == ["1.00 points", "≤ 0.5", "missed"]


def test_what_clip_and_file_cost_each_other_is_a_quotient_of_one_run() -> None:
    """Latencies of all repeats count together; walls and hang-ups are compared within their repeat, then the median."""

    def repeat(alone_s: float, beside_s: float, left_s: float) -> behind.Repeat:
        alone = behind.Alone(Busy(10, 2, None, alone_s), cpu_s=20.0)
        beside = (behind.Beside(beside_s, (2.0, 8.0)),)
        return behind.Repeat((1.0, 2.0), alone, beside, behind.HungUp(left_s, batches=1))

    aims = behind.aims([repeat(10, 10.5, 2.0), repeat(20, 22.4, 3.0), repeat(10, 30, 9.0)])
    # A mean batch takes 2 CPU-seconds, and one may be under way in each of two streams.
    assert [aim.row()[1] for aim in aims] == ["2.00 times", "4.00 times", "1.12 times", "0.75 batches"]
    assert [aim.verdict for aim in aims] == ["", "missed", "missed", "met"]


def test_one_engine_loads_a_model_once() -> None:
    """The worst start counts, not the mean of them."""
    aims = cold.aims([cold.Start(2, 2, (), 6.0, 3.0), cold.Start(1, 2, ("WORKER_CRASHED",), 9.0, 3.0)])
    assert [aim.row()[1] for aim in aims] == ["1", "2.00", "2.50 times"]
    assert [aim.verdict for aim in aims] == ["missed", "missed", ""]


def test_an_aim_says_whether_it_was_met() -> None:
    """At the bound is met; what was not measured was not met, and what has no aim says nothing."""
    assert [Aim("", value, least=2.0).verdict for value in (2.0, 1.99)] == ["met", "missed"]
    assert [Aim("", value, most=50).verdict for value in (50, 50.01)] == ["met", "missed"]
    assert [Aim("", value, least=1, most=2).verdict for value in (0, 1, 3)] == ["missed", "met", "missed"]
    assert (Aim("", None, least=1).verdict, Aim("", 7.0).verdict) == ("not measured", "")
    assert Aim("wrong answers", 0, most=0, unit="").row() == ["wrong answers", "0", "≤ 0", "met"]


def test_a_report_ends_with_its_aims() -> None:
    """A figure without what it should be is read as one pleases."""
    report = Report("Title", ["table"], [Aim("speed", 3.0, least=2.0)], {})
    assert report.markdown().startswith("### Title\n\ntable\n\n")
    assert report.markdown().endswith("| speed                | 3.00 times | ≥ 2 | met |")
    assert report.document()["aims"][0]["verdict"] == "met"


def test_clips_are_spread_over_their_sources() -> None:
    """Twenty clips of one speaker tell about that speaker."""
    names = ["dir_a/1-0.wav", "dir_a/1-1.wav", "dir_a/1-2.wav", "dir_a/2-0.wav", "b/jfk.flac", "b/cards_1.wav"]
    clips = [Clip(Path(name), name, "", "en", 1.0) for name in names]
    assert [each.name for each in spread(clips, 5)] == [names[0], names[3], names[4], names[5], names[1]]


def test_batches_are_found_in_the_log_whatever_request_they_are_of() -> None:
    """A request's lines lead with its id; other programs' lines are no JSON."""
    log = "\n".join(
        [
            '{"event": "batch decoded", "segments": 2}',
            "Traceback (most recent call last):",
            '{"event": "[Request a1b2 c3d4] batch decoded", "segments": 3}',
            '{"event": "the batch decoded"}',
            "[1]",
        ]
    )
    assert [event["segments"] for event in events_in(log, "batch decoded")] == [2, 3]


def test_the_busy_share_is_of_all_streams() -> None:
    """Two streams that are busy half of the time each are half busy, not wholly."""
    batches = [{"stream": 0, "busy_s": 3.0}, {"stream": 1, "busy_s": 2.0}]
    assert busy(batches, engines=1, wall_s=5.0, cores=8).share == 0.5
    assert busy(batches, engines=2, wall_s=5.0, cores=8).share == 0.25
    # More streams than cores: no more than the cores can be busy.
    assert busy(batches, engines=2, wall_s=5.0, cores=1).share == 1.0
    # An older server tells neither.
    assert busy([{}], engines=1, wall_s=5.0) == Busy(1, 1, None, 5.0)
    assert busy([{}], engines=1, wall_s=5.0).share is None
    assert busy([], engines=1, wall_s=5.0).share is None


def test_what_is_left_to_the_server_is_not_set() -> None:
    """Without settings the benchmark measures what a user gets."""
    assert DECIDED.environment() == {}
    assert EngineSettings.parse("2:0:4:8").environment() == {
        "ENGINE_REPLICAS": "2",
        "CPU_THREADS": "4",
        "BATCH_SIZE": "8",
    }
    with pytest.raises(ValueError, match="unpack"):
        EngineSettings.parse("1:2")


def test_an_answer_is_right_or_says_that_the_engine_died() -> None:
    """Another clip's text, an empty one, and any other problem must not pass."""
    undisturbed = "the cat sat on the mat and slept"

    def worth(text: str, failure: str | None = None) -> str:
        return chaos.outcome(Heard(clip(), text, 1.0, failure), undisturbed)

    outcomes = [worth(undisturbed), worth("The cat sat on the mat, and swept."), worth("something else altogether")]
    outcomes += [worth(""), worth("", "WORKER_CRASHED"), worth("", "WORKER_CRASHED"), worth("", "ReadTimeout")]
    assert chaos.counted(Counter(outcomes)) == chaos.Counts(1, 1, 2, 2, {"ReadTimeout": 1})


def test_wrong_answers_and_strange_problems_miss_the_aim() -> None:
    """One wrong text in a thousand is what this experiment is there to find."""
    aims = chaos.aims(chaos.Counts(998, 0, 1, 0, {"HTTP 500": 1}), calm_speed=20.0, speed=10.0)
    assert [aim.verdict for aim in aims] == ["missed", "missed", "", ""]
    assert [aim.row()[1] for aim in aims] == ["1", "1", "1.00", "0.50 times"]


def test_a_problem_is_an_answer_where_one_is_expected() -> None:
    """Under kills the callers go on; what came in place of a text is counted by its code."""

    def fails(problem: Exception) -> str | None:
        def hear(_: Clip) -> str:
            raise problem

        return attempt(hear, clip()).failure

    assert fails(Refused(clip(), 503, b'{"code": "WORKER_CRASHED"}')) == "WORKER_CRASHED"
    assert fails(Refused(clip(), 502, b"<html>")) == "HTTP 502"
    assert fails(httpx.ReadTimeout("slow")) == "ReadTimeout"
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())


def test_answers_keep_the_clips_order() -> None:
    """Texts are scored against the reference of the clip in their place; all callers are at work at the same time."""
    together = threading.Barrier(3)

    def hear(asked: Clip) -> str:
        together.wait(10)
        return asked.name

    clips = [clip(f"{number}") for number in range(6)]
    assert [heard.text for heard in ask_all(hear, clips, at_once=3)] == [each.name for each in clips]


def test_callers_ask_until_they_are_told_to_stop() -> None:
    """Each starts at another clip, so that a batch is not made of the same one again and again."""
    done = threading.Event()
    asked: list[str] = []
    together = threading.Barrier(2, action=lambda: done.set() if len(asked) >= 4 else None)

    def hear(wanted: Clip) -> str:
        asked.append(wanted.name)
        together.wait(10)
        return ""

    heard = ask_until(done, hear, [clip("0"), clip("1"), clip("2"), clip("3")], at_once=2)
    assert sorted(asked[:2]) == ["0", "2"]
    assert sorted(asked) == sorted(each.clip.name for each in heard) == ["0", "1", "2", "3"]


def test_growth_is_counted_from_the_first_block_on() -> None:
    """What the first jobs warm up is no leak."""
    blocks = [Block(number, 1, TreeMemory(rss * 10**6, 0)) for number, rss in enumerate((300, 390, 320))]
    assert growth_mb(blocks) == 20


def test_curves_are_drawn_where_they_are_wanted(tmp_path: Path) -> None:
    """No folder, no picture; the folder is made."""
    panels = [Panel("speed", {"ours": [(1, 2.0), (4, 3.0)]}, {"library": 1.5})]
    assert draw(None, "curve", "Title", "at once", panels) is None
    path = draw(tmp_path / "plots", "curve", "Title", "at once", panels)
    assert path == tmp_path / "plots" / "curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_every_experiment_can_be_asked_for() -> None:
    """A quick look is one repeat, whatever was asked."""
    assert " ".join(EXPERIMENTS) == (
        "long short behind cold memory flat chaos turns overload bounded durable fleet backlog gate speakers sizing "
        "alignment whole fuzz soak"
    )
    assert plan_of(parser().parse_args(["short", "--repeats", "5"])).repeats == 5
    plan = plan_of(parser().parse_args(["sizing", "--quick", "--settings", "1:1:2:8", "2:1:2:4"]))
    assert (plan.repeats, plan.settings) == (1, (EngineSettings(1, 1, 2, 8), EngineSettings(2, 1, 2, 4)))
    with pytest.raises(SystemExit):
        parser().parse_args(["fast"])


@pytest.mark.parametrize(
    ("status", "document", "seconds", "flaw"),
    [
        (200, {"text": "", "duration": 1.0}, 1.0, ""),
        (415, {"code": "UNSUPPORTED_MEDIA"}, 1.0, ""),
        (0, {}, 1.0, "no answer"),
        (415, {"code": "UNSUPPORTED_MEDIA"}, 200.0, "took 200 s"),
        (200, {}, 1.0, "no transcript"),
        (200, {"text": "", "duration": 61.0}, 1.0, "no transcript"),
        (500, {"code": "INTERNAL_ERROR"}, 1.0, "500 INTERNAL_ERROR"),
        (422, {"code": "UNSUPPORTED_MEDIA"}, 1.0, "422 UNSUPPORTED_MEDIA"),
        (429, {"code": "QUEUE_FULL"}, 1.0, "429 QUEUE_FULL"),
        (415, {}, 1.0, "415 None"),
    ],
)
def test_a_wrong_file_is_heard_or_told_what_is_wrong_with_it(
    status: int, document: dict[str, Any], seconds: float, flaw: str
) -> None:
    """What says something of the server in place of the file is a flaw, and so is what comes too late."""
    assert fuzz.flaw(Mutant(1, "wav", "cut", b""), status, document, seconds) == flaw


def test_words_for_a_playlist_are_a_flaw() -> None:
    """It names other files, and those are what was heard."""
    playlist = Mutant(1, "wav", "text", b"#EXTM3U", is_text=True)
    assert fuzz.flaw(playlist, 200, {"text": "root", "duration": 1.0}, 1.0) == "text was heard"
    assert fuzz.flaw(playlist, 415, {"code": "UNSUPPORTED_MEDIA"}, 1.0) == ""


def test_what_a_server_keeps_is_told() -> None:
    """An engine that died and came back has another number; an open file fewer is no harm."""
    before = fuzz.Traces(frozenset({1, 2}), 20, frozenset())
    assert fuzz.Traces(frozenset({1, 2}), 19, frozenset()).more_than(before) == ""
    kept = fuzz.Traces(frozenset({1, 3}), 21, frozenset({"work/a"})).more_than(before)
    assert kept == "processes [1, 2] are now [1, 3]; 21 open files in place of 20; files are left: work/a"


def test_the_gates_experiment_measures_as_many_as_it_says() -> None:
    """A line that was not full would refuse nobody, and the figure would be of nothing."""
    costs = asyncio.run(gate.line(keys=3, waiting=20, counted=5))
    assert (costs.keys, len(costs.refusals_us), len(costs.grants_us)) == (3, 5, 5)
    assert min(costs.refusals_us + costs.grants_us) > 0


def test_words_heard_wrongly_are_not_timed() -> None:
    """The error of a time is of a word that both texts have; one that was put in moves no other."""
    right = [(0.0, 0.4), (0.5, 0.9), (1.0, 1.4)]
    words, times = (" The", " big", " cat", " sad."), [(0.1, 0.4), (0.4, 0.5), (0.5, 1.0), (1.0, 1.4)]
    found = list(alignment.errors(["the", "cat", "sat"], right, words, times))
    assert found == [pytest.approx((0.1, 0.0)), pytest.approx((0.0, 0.1))]


def test_words_are_compared_as_whisperx_parts_them() -> None:
    """At spaces alone: what Whisper parts at a hyphen is one word there. Times are the recording's."""
    segment = Segment(Path("a.pcm"), 32_000, 16_000, 0)
    one = alignment.Heard(segment, (" well", "-known", " cat"), [(0.0, 0.1)] * 3)
    assert alignment.spaced([one], [[(0.1, 0.2), (0.2, 0.4), (0.5, 0.9)]]) == [(2.1, 2.4), (2.5, 2.9)]


def test_alignment_is_held_against_whisperx_in_the_same_network() -> None:
    """The acoustic model's seconds are the same for both, so the rest is told apart."""
    passes = [alignment.Pass(system, "net", 60.0, *s) for system, s in (("stenogate", (3, 2)), ("whisperx", (9, 2)))]
    errors = {"decoder": [(0.2, 0.2)], "aligned": [(0.1, 0.1)]}
    judged = [{"set": "a", "words": "b", "times": times, "errors_s": pairs} for times, pairs in errors.items()]
    found = alignment.report(passes, [(0.0, 1.0)], [(0.01, 1.03)], judged, repeats=1)
    assert [aim.row()[1] for aim in found.aims] == ["3.00 times", "7.00 times", "1.00", "0.00", "0.50 times"]
    assert [aim.verdict for aim in found.aims] == ["missed", "met", "met", "missed", "met"]


def test_the_cpu_time_of_ended_children_counts() -> None:
    """ffmpeg and dead engines have worked, too."""
    work = "import time\nwhile time.process_time() < 0.1: pass"
    start = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); print(flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    try:
        parent.stdout.readline()
        own = psutil.Process(parent.pid).cpu_times()
        # Clocks of the system tick every hundredth of a second.
        assert tree_cpu_s(parent.pid) >= own.user + own.system + 0.09
    finally:
        stop(parent)
        parent.stdin.close()
        parent.stdout.close()
    assert tree_cpu_s(parent.pid) == 0


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


def held(at_s: float, mib: float = 500.0, threads: int = 20, work_files: int = 0) -> soak.Sample:
    return soak.Sample(at_s, int(mib * 2**20), 2**27, 2**28, 100, threads, 3, work_files, uploads=1)


def test_a_leak_shows_through_noise_and_a_jump_is_none() -> None:
    """A soak that calls everything flat, or everything a leak, is worth nothing."""

    def slope(sizes: list[float]) -> float:
        return soak.slope_per_h([held(60.0 * n, mib) for n, mib in enumerate(sizes)], lambda one: one.rss_bytes) / 2**20

    noise = [0.0, 7.0, -5.0, 3.0, -8.0, 1.0, 9.0, -2.0, 4.0, -6.0]
    assert abs(slope([500 + step for step in noise * 3])) < 30
    assert 90 < slope([500 + 2 * n + step for n, step in enumerate(noise * 3)]) < 150
    assert abs(slope([500.0] * 15 + [900.0] + [500.0] * 14)) < 1


def test_what_a_soak_must_not_leave_behind() -> None:
    """Threads that grow, a file, a caller still in flight, an answer that nobody planned: each is a miss."""
    flat = [held(60.0 * n) for n in range(30)]
    answers = Counter({"hear: 200": 5, "job: cancelled 200": 1, "leave the stream: gone": 2})
    assert {aim.verdict for aim in soak.aims(flat, flat[-1], answers, [])} == {"met", ""}
    growing = [held(60.0 * n, threads=20 + n) for n in range(30)]
    assert "missed" in {aim.verdict for aim in soak.aims(growing, flat[-1], answers, [])}
    assert "missed" in {aim.verdict for aim in soak.aims(flat, held(0.0, work_files=1), answers, [])}
    assert "missed" in {aim.verdict for aim in soak.aims(flat, flat[-1], answers, ["job 1 running"])}
    assert "missed" in {aim.verdict for aim in soak.aims(flat, flat[-1], Counter({"hear: 200": 5}), [])}
    assert "missed" in {aim.verdict for aim in soak.aims(flat, flat[-1], answers + Counter({"hear: 500": 1}), [])}
