"""What users run to find their sweet spot: how answers are counted, what is advised, who is asked with which key."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.concurrency import ALL_LEVELS, counts, in_folder, measure, parse, parser, recordings, warm_up
from benchmarks.concurrency_advice import recommend
from benchmarks.concurrency_calls import LONGEST_WAIT_S, UNSAID_WAIT_S, Asked, Reply, ask, retry_after_s
from benchmarks.concurrency_levels import Capacity, Device, Latency, Level, Usage, level_of, usage_of
from benchmarks.concurrency_report import Measured, plot
from benchmarks.concurrency_server import CannotMeasure, Target, key_for, opened, serving_pid
from settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/test_concurrency.py"
GIB = 2**30
HEARD = {"text": "six words are said in here", "duration": 5.0}


def refused(status: int = 429, code: str = "QUEUE_FULL", wait_s: float | None = 0.0) -> Reply:
    return Reply(status, code, retry_after_s=wait_s)


def transcript(audio_s: float = 5.0) -> Reply:
    return Reply(200, audio_s=audio_s)


# --- patience --------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def asked_with(patience: int, *replies: Reply) -> tuple[Asked, list[float]]:
    """The request, and the seconds that were waited before each further sending. Sending itself takes no time."""
    clock, left = Clock(), list(replies)
    asked = ask(lambda: left.pop(0), patience, clock=clock, sleep=clock.sleep)
    return asked, clock.slept


def test_who_is_patient_waits_as_long_as_the_server_says() -> None:
    """Who comes sooner is refused again and takes the line's time; the caller's latency is the whole of it."""
    asked, slept = asked_with(5, refused(wait_s=3), refused(503, "NOT_READY", wait_s=40), transcript())
    assert slept == [3, 40]
    assert (asked.succeeded, asked.seconds, len(asked.replies)) == (True, 43, 3)


def test_patience_ends() -> None:
    """Else a server that always refuses would be asked for ever."""
    asked, slept = asked_with(2, *[refused(wait_s=1)] * 9)
    assert (asked.succeeded, slept) == (False, [1, 1])


def test_without_patience_and_after_errors_nothing_is_sent_again() -> None:
    """A refusal is what is measured then; and a recording that cannot be read cannot be read twice."""
    assert asked_with(0, refused(), transcript())[0].last.status == 429
    assert asked_with(5, Reply(415, "UNSUPPORTED_MEDIA"), transcript())[0].last.status == 415


def test_a_refusal_without_a_time_is_waited_for_a_while_and_one_till_tomorrow_is_not() -> None:
    """Proxies refuse without Retry-After; a used-up quota says hours, and a measurement must end."""
    assert asked_with(1, refused(503, wait_s=None), transcript())[1] == [UNSAID_WAIT_S]
    assert asked_with(1, refused(wait_s=0), transcript())[1] == [0]
    assert asked_with(5, refused(wait_s=LONGEST_WAIT_S + 1), transcript())[1] == []


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    """RFC 9110 has both; what is neither must not become a wait of nothing."""
    now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s("17") == 17
    assert retry_after_s("Sun, 01 Mar 2026 12:01:30 GMT", now) == 90
    assert retry_after_s("Sun, 01 Mar 2026 12:01:30 -0000", now) == 90
    assert retry_after_s("Sun, 01 Mar 2026 11:00:00 GMT", now) == 0
    assert [retry_after_s(text, now) for text in (None, "", "soon", "-3", "1.5", "²")] == [None] * 6


# --- statistics ------------------------------------------------------------------------------------------------------


def test_a_level_counts_what_was_transcribed_and_what_was_refused() -> None:
    """Refused audio is no throughput, and a refusal's quick answer is no latency."""
    asked = [
        Asked(1.0, (transcript(10.0),)),
        Asked(9.0, (refused(), refused(503, "TIMEOUT"), transcript(20.0))),
        Asked(0.1, (refused(),)),
        Asked(0.2, (Reply(0, "ReadError"),)),
        Asked(0.3, (Reply(415, "UNSUPPORTED_MEDIA"),)),
    ]
    level = level_of(2, 10.0, asked, Usage())
    assert (level.requests, level.successes, level.errors) == (5, 2, 2)
    assert (level.answers_429, level.answers_503) == (2, 1)
    assert (level.speed, level.files_per_hour) == (3.0, 720.0)
    assert level.latency == Latency(1.0, 5.0, 1.0, 9.0, 9.0)
    assert level.codes == {"QUEUE_FULL": 2, "TIMEOUT": 1, "ReadError": 1, "UNSUPPORTED_MEDIA": 1}
    assert not level.all_served


def test_a_level_without_a_transcript_has_no_latency() -> None:
    """Zero seconds would be the best of all."""
    level = level_of(1, 1.0, [Asked(0.1, (refused(),))], Usage())
    assert (level.latency, level.speed, level.files_per_hour) == (None, 0, 0)


CAPACITY = {
    "devices": [
        {"device": "memory", "total_bytes": 8 * GIB, "used_bytes": 2 * GIB, "free_bytes": 6 * GIB, "source": "host"},
        {"device": "cuda:0", "total_bytes": 16 * GIB, "used_bytes": 12 * GIB, "pressure": None},
    ],
    "plans": [{"device": "cpu", "replicas": 1}],
    "work": {"transcription": {"slots": 9, "active": 5, "waiting": 12}, "download": {}},
    "queue": {"waiting": 12, "max_waiting": 100, "oldest_wait_s": 3.2, "expected_wait_s": 12.5, "max_wait_s": 600.0},
    "speed": {"audio_s_per_s": 42.0},
}


def test_capacity_is_read() -> None:
    """As the server tells it."""
    devices = (Device("memory", 2 * GIB, 8 * GIB), Device("cuda:0", 12 * GIB, 16 * GIB))
    assert Capacity.parse(CAPACITY) == Capacity(devices, 9, 12, 100, 600.0)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"devices": {}, "work": [], "queue": None},
        {"devices": [{}, 3, {"used_bytes": 1, "total_bytes": 0}]},
    ],
)
def test_what_capacity_does_not_tell_is_left_out(document: Any) -> None:
    """Older and newer servers are measured all the same."""
    assert Capacity.parse(document) == Capacity()


def test_usage_is_the_peak_of_each_device() -> None:
    """Memory that was short for a second was short."""
    seen = [
        Capacity((Device("memory", used * GIB, 8 * GIB), Device("cuda:0", GIB, 16 * GIB)), slots=4, waiting=waiting)
        for used, waiting in ((1, 0), (7, 5), (2, 1))
    ]
    usage = usage_of(seen, 3 * GIB, 1.5, 64 * GIB)
    assert usage.fullest == Device("memory", 7 * GIB, 8 * GIB)
    assert usage == Usage((usage.devices[0], Device("cuda:0", GIB, 16 * GIB)), 3 * GIB, 1.5, 4, 5, None, None)


def test_a_server_without_capacity_is_held_against_this_machine() -> None:
    """Its processes can be seen where they run here; elsewhere nothing is known, which is not nothing used."""
    assert usage_of([], 6 * GIB, 2.0, 8 * GIB).fullest == Device("memory", 6 * GIB, 8 * GIB)
    assert usage_of([], None, None, 8 * GIB) == Usage()
    assert Usage().fullest is None


# --- advice ----------------------------------------------------------------------------------------------------------


def level(
    at_once: int, speed: float, p95_s: float, *, unserved: int = 0, codes: Mapping[str, int] | None = None, **used: Any
) -> Level:
    """A level of sixteen requests in ten seconds."""
    return Level(
        at_once=at_once,
        requests=16,
        wall_s=10.0,
        audio_s=10 * speed,
        successes=16 - unserved,
        answers_429=0,
        answers_503=0,
        errors=0,
        codes=codes or {},
        latency=Latency(p95_s, p95_s, p95_s, p95_s, p95_s),
        usage=Usage(**used),
    )


def in_use(share: float, name: str = "memory") -> dict[str, Any]:
    return {"devices": (Device(name, int(share * 10 * GIB), 10 * GIB),)}


def words(levels: Sequence[Level]) -> str:
    return " ".join(recommend(levels).sentences)


def test_the_sweet_spot_is_where_more_brings_less_than_five_percent_and_longer_waits() -> None:
    """Beyond it callers wait for nothing."""
    advice = recommend([level(1, 20, 0.5), level(2, 38, 0.6), level(4, 39.8, 1.1), level(6, 39, 1.6)])
    assert (advice.at_once, advice.settings) == (2, {"MAX_CONCURRENT_TRANSCRIPTIONS": "2"})
    assert "Keep 2 recordings in flight: 38.0 audio-seconds per second, p95 0.6 s." in advice.sentences
    assert "4 at once changed the speed by +5%, and p95 to 1.1 s." in advice.sentences


def test_five_percent_are_worth_a_longer_wait() -> None:
    """The bound itself is taken."""
    assert recommend([level(1, 20, 0.5), level(2, 21, 0.9)]).at_once == 2
    assert recommend([level(1, 20, 0.5), level(2, 20.9, 0.9)]).at_once == 1


def test_a_level_that_costs_nothing_is_taken() -> None:
    """A little more speed at no more latency; but slower is never better."""
    assert recommend([level(1, 20, 0.5), level(2, 20.2, 0.5)]).at_once == 2
    assert recommend([level(1, 20, 0.5), level(2, 19.9, 0.4)]).at_once == 1


def test_a_slow_level_between_does_not_hide_a_fast_one() -> None:
    """Another program's burst during one level is no reason to stop there."""
    assert recommend([level(1, 20, 0.5), level(2, 19, 0.9), level(4, 40, 0.8)]).at_once == 4


def test_the_order_in_which_levels_were_measured_does_not_matter() -> None:
    """They are compared from few to many."""
    assert recommend([level(4, 20.5, 2), level(1, 20, 0.5)]).at_once == 1


def test_where_the_most_did_best_more_is_to_be_tried() -> None:
    """The sweet spot may lie beyond what was measured."""
    assert "--concurrent 16 shows whether more help" in words([level(1, 5, 1), level(8, 30, 2)])
    assert "shows whether" not in words([level(1, 30, 1), level(8, 30, 2)])


def test_one_level_alone_recommends_nothing() -> None:
    """There is nothing to compare it with."""
    advice = recommend([level(4, 30, 1)])
    assert (advice.at_once, advice.settings) == (None, {})
    assert "--test-all compares" in words([level(4, 30, 1)])


def test_a_level_at_which_requests_failed_is_no_sweet_spot() -> None:
    """Speed that some of the callers pay for with an error."""
    advice = recommend([level(1, 20, 0.5), level(2, 40, 0.5, unserved=1, codes={"WORKER_CRASHED": 1})])
    assert advice.at_once == 1
    assert "WORKER_CRASHED came once. An engine died at its work" in " ".join(advice.sentences)
    none = recommend([level(1, 20, 0.5, unserved=1), level(2, 40, 0.5, unserved=1)])
    assert (none.at_once, none.settings) == (None, {})
    assert "none can be recommended" in none.sentences[0]


def test_memory_above_85_percent_is_warned_of_and_not_recommended() -> None:
    """One longer recording there ends the process; 85 % itself is still safe."""
    advice = recommend(
        [level(1, 20, 1, **in_use(0.5)), level(2, 30, 1, **in_use(0.85)), level(4, 60, 1, **in_use(0.9))]
    )
    assert advice.settings == {"MAX_CONCURRENT_TRANSCRIPTIONS": "2", "MEMORY_LIMIT_MB": "8704"}
    told = " ".join(advice.sentences)
    assert "Memory warning: 90% of 10.0 GiB (memory) was in use with 4 at once" in told
    assert "a smaller MODEL_SIZE" in told
    assert "Memory warning" not in words([level(1, 20, 1, **in_use(0.85))])


def test_a_gpus_memory_is_warned_of_without_a_setting_for_ram() -> None:
    """MEMORY_LIMIT_MB says nothing about a GPU."""
    advice = recommend([level(1, 20, 1, **in_use(0.95, "cuda:0"))])
    assert "(cuda:0)" in " ".join(advice.sentences)
    assert advice.settings == {}


def test_a_full_line_is_to_be_made_longer_or_sent_less_to() -> None:
    """Both ways out are told; the setting is what lets all of them wait."""
    advice = recommend(
        [
            level(1, 20, 1, max_waiting=4),
            level(6, 22, 3, max_waiting=4, unserved=2, codes={"QUEUE_FULL": 2}),
            level(8, 22, 3, max_waiting=4, unserved=4, codes={"QUEUE_FULL": 4}),
        ]
    )
    told = " ".join(advice.sentences)
    assert advice.settings == {"MAX_CONCURRENT_TRANSCRIPTIONS": "1", "MAX_QUEUE_LENGTH": "8"}
    assert "429 came 6 times, first with 6 at once: the server's waiting line was full." in told
    assert "--patient" in told
    assert "QUEUE_FULL came" not in told


def test_where_nothing_waits_the_switch_is_told_too() -> None:
    """With FAIL_FAST a longer line alone would change nothing."""
    told = words([level(1, 20, 1), level(4, 22, 3, max_waiting=0, unserved=4, codes={"QUEUE_FULL": 4})])
    assert "MAX_QUEUE_LENGTH=4 lets all of them wait where FAIL_FAST is off." in told


def test_a_line_that_refuses_for_the_wait_is_not_to_be_made_longer() -> None:
    """There was room; the backlog was too long in seconds."""
    refused_for_wait = level(8, 22, 3, max_waiting=100, max_wait_s=600, unserved=4, codes={"QUEUE_FULL": 4})
    advice = recommend([level(1, 20, 1), refused_for_wait])
    assert "MAX_QUEUE_LENGTH" not in advice.settings
    assert "it refuses those who would wait longer than 600 s" in " ".join(advice.sentences)


def test_refusals_for_other_reasons_are_not_the_lines() -> None:
    """A key's own limit is 429 as well."""
    advice = recommend([level(1, 20, 1), level(4, 22, 3, unserved=4, codes={"KEY_BUSY": 9, "STRANGE": 1})])
    told = " ".join(advice.sentences)
    assert "KEY_BUSY came 9 times. One key may not have more" in told
    assert "STRANGE came once. The server's log says why." in told
    assert "waiting line" not in told
    assert "MAX_QUEUE_LENGTH" not in advice.settings


def test_a_patient_caller_who_was_served_in_the_end_counts_as_served() -> None:
    """Its waits are in the latency already."""
    assert recommend([level(1, 20, 1), level(4, 40, 3, codes={"QUEUE_FULL": 3})]).at_once == 4


def test_levels_above_the_servers_slots_are_told_apart() -> None:
    """They measure the line. The setting must not be raised to a number that was never at work."""
    advice = recommend([level(1, 20, 1, slots=2), level(2, 30, 1, slots=2), level(4, 40, 2, slots=2)])
    assert (advice.at_once, advice.settings) == (4, {})
    assert "The server works on 2 at once" in " ".join(advice.sentences)
    assert "MAX_CONCURRENT_TRANSCRIPTIONS=4" in " ".join(advice.sentences)
    assert recommend([level(1, 20, 1, slots=2), level(2, 30, 1, slots=2)]).settings == {
        "MAX_CONCURRENT_TRANSCRIPTIONS": "2"
    }


def test_every_setting_that_is_named_is_one() -> None:
    """People paste it; a name that does not exist is ignored without a word."""
    text = (ROOT / "benchmarks/concurrency_advice.py").read_text("utf-8")
    named = set(re.findall(r"\b(?:MAX|MODEL|MEMORY|FAIL)_[A-Z_]+\b", text)) - {"MEMORY_WARNING"}
    assert named <= {name.upper() for name in Settings.model_fields}


# --- the report ------------------------------------------------------------------------------------------------------


def measured(**changes: Any) -> Measured:
    levels = (
        level(1, 20, 0.5, tree_bytes=300 * 2**20, cpu_cores=1.24, **in_use(0.25)),
        level(2, 38, 0.6),
    )
    run = Measured("http://10.0.0.7:8000", False, False, "base", "one recording, talk.mp3", levels, 0.1)
    return replace(run, **changes)


def test_the_report_holds_every_figure_and_what_to_put() -> None:
    """What cannot be seen from here stays empty: 0 would be a figure."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in measured().text().splitlines() if "|" in line]
    assert ["1", "10.0", "20.0", "5760", "0.50", "0.50", "0.50", "0.50", "0.50"] in rows
    assert ["1", "16 of 16", "0", "0", "0", "300", "25% of 10.0 GiB", "1.2"] in rows
    assert ["2", "16 of 16", "0", "0", "0", "", "", ""] in rows
    assert measured().text().endswith("\n\nMAX_CONCURRENT_TRANSCRIPTIONS=2")


def test_a_busy_machine_is_told_of() -> None:
    """Its figures are of all that ran."""
    busy = measured(on_this_machine=True, load_before=3.0)
    assert "measure again when nothing else runs" in busy.text()
    assert "measure again" not in measured(load_before=3.0).text()


def test_the_document_is_json() -> None:
    """For programs, with the figures that the tables derive."""
    document = json.loads(json.dumps(measured().document()))
    assert (document["levels"][0]["audio_s_per_s"], document["levels"][0]["files_per_hour"]) == (20, 5760)
    assert document["levels"][0]["latency"]["p95_s"] == 0.5
    assert document["levels"][0]["usage"]["cpu_cores"] == 1.24
    assert document["advice"]["settings"] == {"MAX_CONCURRENT_TRANSCRIPTIONS": "2"}


def test_curves_are_drawn_into_the_file_that_was_named(tmp_path: Path) -> None:
    """Also where some level brought nothing."""
    nothing = replace(level(8, 0, 0), latency=None)
    plot(tmp_path / "out.png", measured(levels=(*measured().levels, nothing)))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


# --- arguments -------------------------------------------------------------------------------------------------------


def test_levels_and_patience_are_read() -> None:
    """The ways in which people will write it."""
    assert parse(["--test-all"]).levels == list(ALL_LEVELS) == [1, 2, 4, 6, 8]
    assert parse(["--concurrent", "4", "1", "4"]).levels == [1, 4]
    assert [parse(["--test-all", *more]).patient for more in ([], ["--patient"], ["--patient", "9"])] == [0, 5, 9]
    assert parse(["--test-all", "--server", "https://asr.example:8443/"]).server == "https://asr.example:8443"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "one of the arguments --test-all --concurrent is required"),
        (["--test-all", "--concurrent", "2"], "not allowed with argument"),
        (["--concurrent", "0"], "'0' is no whole number from 1 to 256"),
        (["--concurrent", "many"], "'many' is no whole number from 1 to 256"),
        (["--test-all", "--requests", "4"], "--requests 4 cannot keep 8 at once busy: give 8 or more"),
        (["--test-all", "--ramp", "-1"], "'-1' is no number of seconds"),
        (["--test-all", "--ramp", "nan"], "'nan' is no number of seconds"),
        (["--test-all", "--server", "localhost:8000"], "'localhost:8000' is no address such as http://127.0.0.1:8000"),
        (["--test-all", "--server", "http://x:99999"], "is no address"),
        (["--test-all", "--file", "/nowhere.mp3"], "there is no file /nowhere.mp3"),
        (["--test-all", "--dir", "/nowhere"], "there is no folder /nowhere"),
        (["--test-all", "--plot", "/nowhere/out.png"], "must end in .png and lie in a folder that is there"),
        (["--test-all", "--plot", "out.svg"], "must end in .png"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started or sent: a plot that cannot be written must not cost an hour."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_without_recordings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong folder would measure how fast its text files are refused."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SystemExit):
        parse(["--test-all", "--dir", str(tmp_path)])
    assert f"no recordings lie in {tmp_path}" in capsys.readouterr().err


def test_recordings_in_a_folder_are_found_below_it_too(tmp_path: Path) -> None:
    """In an order that is the same each time."""
    (tmp_path / "b").mkdir()
    for name in ("c.MP3", "b/a.wav", "b/a.json", "a.opus"):
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in in_folder(tmp_path)] == ["a.opus", "b/a.wav", "c.MP3"]


def test_named_recordings_come_before_those_that_are_at_hand(tmp_path: Path) -> None:
    """Nothing else is sent then."""
    (tmp_path / "talk.wav").touch()
    assert recordings(parse(["--test-all", "--file", str(tmp_path / "talk.wav")])) == (
        [tmp_path / "talk.wav"],
        "one recording, talk.wav",
    )


def test_without_a_speech_set_the_packages_sample_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has just installed it has no recordings at hand."""
    monkeypatch.setenv("SPEECH_DIR", str(tmp_path))
    sample = tmp_path / "sample.wav"
    monkeypatch.setattr("main.sample_recording", lambda: sample)
    assert recordings(parse(["--test-all"]))[0] == [sample]
    monkeypatch.setattr("main.sample_recording", lambda: None)
    with pytest.raises(CannotMeasure, match="--file"):
        recordings(parse(["--test-all"]))


# --- the server ------------------------------------------------------------------------------------------------------


Answer = Callable[[httpx.Request], httpx.Response]


def target(answer: Answer, model: str | None = None) -> Target:
    """A server elsewhere, as far as HTTP goes."""
    return Target("http://asr.example", "secret", model, transport=httpx.MockTransport(answer))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    path.write_bytes(b"RIFF")
    return path


def test_replies_are_told_apart(recording: Path) -> None:
    """A proxy's page, a stranger's 200 and a broken connection are errors, each by a name."""

    def replied(answer: Answer) -> Reply:
        with target(answer) as server:
            return server.send(recording)

    def broken(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("gone")

    full = httpx.Response(429, json={"code": "QUEUE_FULL"}, headers={"Retry-After": "7"})
    assert replied(lambda _: httpx.Response(200, json=HEARD)) == Reply(200, audio_s=5.0)
    assert replied(lambda _: full) == Reply(429, "QUEUE_FULL", retry_after_s=7)
    assert replied(lambda _: httpx.Response(502, text="<html>")) == Reply(502, "HTTP 502")
    assert replied(lambda _: httpx.Response(200, text="hello")) == Reply(0, "HTTP 200")
    assert replied(broken) == Reply(0, "ReadError")


def test_a_request_carries_the_key_and_names_a_model_only_where_one_was_asked_for(recording: Path) -> None:
    """What is measured is what the server does by default."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=HEARD)

    for model in (None, "tiny"):
        with target(answer, model) as server:
            server.send(recording)
    assert [dict(request.url.params) for request in seen] == [{}, {"model_size": "tiny"}]
    assert all(request.headers["X-API-Key"] == "secret" and b"RIFF" in request.read() for request in seen)


def test_a_level_keeps_as_many_in_flight_as_were_asked_for(recording: Path) -> None:
    """With fewer in flight the barrier would not open; every request is counted, the server's capacity is seen."""
    together = threading.Barrier(3)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/capacity":
            return httpx.Response(200, json=CAPACITY)
        together.wait(10)
        return httpx.Response(200, json=HEARD)

    done: list[Asked] = []
    with target(answer) as server:
        level = measure(server, [recording], 3, 6, done=done.append)
    assert (level.successes, level.audio_s, len(done)) == (6, 30, 6)
    assert (level.usage.slots, level.usage.fullest) == (9, Device("cuda:0", 12 * GIB, 16 * GIB))
    assert (level.usage.tree_bytes, level.usage.cpu_cores) == (None, None)


def test_a_server_without_capacity_is_measured_too(recording: Path) -> None:
    """And patience goes through: refused once, served then."""
    first = threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/capacity":
            return httpx.Response(404, json={"code": "NOT_FOUND"})
        if first.is_set():
            return httpx.Response(200, json=HEARD)
        first.set()
        return httpx.Response(429, json={"code": "QUEUE_FULL"}, headers={"Retry-After": "0"})

    with target(answer) as server:
        level = measure(server, [recording], 1, 2, patience=1)
    assert (level.successes, level.answers_429, level.usage) == (2, 1, Usage())
    assert counts(level).endswith("2 transcripts, 1 × 429")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (httpx.Response(401, json={"code": "UNAUTHORIZED"}), "--key"),
        (httpx.Response(422, json={"code": "MODEL_UNAVAILABLE"}), "did not transcribe talk.wav: MODEL_UNAVAILABLE"),
    ],
)
def test_a_server_that_does_not_transcribe_is_not_measured(
    recording: Path, answer: httpx.Response, sentence: str
) -> None:
    """A table of errors says less than the reason does."""
    with target(lambda _: answer) as server, pytest.raises(CannotMeasure, match=sentence):
        warm_up(server, recording)


def test_the_key_is_the_one_given_else_the_environments_else_this_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key that a server made for itself opens it wholly: it is never sent to another machine."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    (tmp_path / "api-key").write_text("made-here\n")
    told = {"STENOGATE_API_KEY": "told"}
    assert key_for("http://asr.example", "given", told) == "given"
    assert key_for("http://asr.example", None, told) == "told"
    for here in ("http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"):
        assert key_for(here, None, {}) == "made-here"
    for elsewhere in ("http://asr.example", "http://10.0.0.7:8000", "http://127.0.0.1.asr.example"):
        assert key_for(elsewhere, None, {}) == ""
    (tmp_path / "api-key").unlink()
    assert key_for("http://127.0.0.1:8000", None, {}) == ""


NOBODY = "http://127.0.0.1:1"


def test_a_server_that_was_named_and_is_not_there_is_not_replaced() -> None:
    """Its figures would be taken for the named one's."""
    with pytest.raises(CannotMeasure, match="Nobody answers at http"), opened(NOBODY, "k", None):
        pass


class Started:
    """What a started server tells of itself."""

    key, pid = "its-own", os.getpid()
    client = SimpleNamespace(url="http://127.0.0.1:2")
    ended = False

    def __init__(self, model: str) -> None:
        self.model = model

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        type(self).ended = True


def test_where_nobody_answers_a_server_is_started_said_and_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing has to be running for a first look."""
    with opened(None, None, "tiny.en", usual=NOBODY, start=Started) as (server, started_here):  # type: ignore[arg-type]
        assert (server.address, server.model, server.pid, started_here) == (
            "http://127.0.0.1:2",
            "tiny.en",
            os.getpid(),
            True,
        )
        assert not Started.ended
    assert Started.ended
    assert "Nobody answers at http://127.0.0.1:1: starting a server with tiny.en" in capsys.readouterr().err


def test_a_process_that_is_not_stenogate_is_not_watched() -> None:
    """A container's port is held by its runtime, whose memory would be taken for the server's."""
    held = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    stranger = subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert stranger.stdout is not None
        assert serving_pid(int(stranger.stdout.readline())) is None
    finally:
        stranger.communicate("")


# --- the script ------------------------------------------------------------------------------------------------------


def test_a_python_without_packages_goes_on_in_the_projects_environment(tmp_path: Path) -> None:
    """People type python3, whichever that is. The folder they are in stays theirs: --file is told from there."""
    for folder in ("scripts", ".venv/bin", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    script = tmp_path / "scripts/test_concurrency.py"
    script.write_text(SCRIPT.read_text("utf-8"))
    (tmp_path / "scripts/environment").write_text('environment() { echo "made $1 in $PWD"; }\n')
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    # -S: no packages.
    done = subprocess.run(
        [sys.executable, "-S", script, "--concurrent", "2"], cwd=tmp_path / "elsewhere", capture_output=True, text=True
    )
    assert done.stderr == f"made test in {tmp_path}\n"
    lines = done.stdout.splitlines()
    assert (lines[0], lines[1], lines[-3:]) == (str(tmp_path / "elsewhere"), "-c", [str(tmp_path), "--concurrent", "2"])


def test_the_script_starts_from_any_folder(tmp_path: Path) -> None:
    """In the project's environment nothing is installed; its errors are sentences."""
    done = subprocess.run([sys.executable, SCRIPT, "--concurrent", "0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "scripts/test_concurrency.py: error: argument --concurrent: '0' is no whole number from 1 to 256"
    )
    assert os.access(SCRIPT, os.X_OK)


def test_pytest_does_not_take_the_script_for_a_test() -> None:
    """By its name it would, wherever it looks."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == ["tests"]


def test_the_page_tells_of_every_option_and_of_no_other() -> None:
    """An option that nobody finds is none, and one that is gone stops whoever pastes it."""
    page = (ROOT / "docs/concurrency.md").read_text("utf-8")
    described = page.partition("| option |")[2].split("\n\n")[0]
    there = {name for action in parser()._actions for name in action.option_strings if name.startswith("--")}
    assert set(re.findall(r"--[a-z][a-z-]+", described)) == there - {"--help"}
    commands = [line for line in page.splitlines() if line.startswith("scripts/test_concurrency.py")]
    assert commands
    assert {name for line in commands for name in re.findall(r"--[a-z][a-z-]+", line)} <= there
