"""Wrong recordings of every container: each gets a transcript or a reason, and the server is as it was before.

FUZZ_FILES asks for more of them than the suite has time for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from benchmarks.fuzz import Answer, Traces, ask_all, quick_server, settled, traces, unharmed
from tests.acceptance.server import Server
from tests.containers import recordings
from tests.mutations import KINDS, mutants

FILES = int(os.environ.get("FUZZ_FILES", "110"))

UNREADABLE = {"ape"}
"""What nothing here can write: only its header is right."""


@dataclass(frozen=True)
class Fuzzed:
    """A server before and after all the files, and what it answered."""

    server: Server
    seeds: dict[str, bytes]
    unharmed: list[Answer]
    before: Traces
    answers: list[Answer]
    after: Traces


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    """A server of its own, whose processes and open files nobody else changes."""
    seeds = recordings(tmp_path_factory.mktemp("seeds"))
    with quick_server(tmp_path_factory.mktemp("fuzzed")) as server:
        # First what is right: it opens what the server then keeps open.
        heard = ask_all(server, unharmed(seeds))
        before = traces(server)
        answers = ask_all(server, mutants(seeds, FILES))
        yield Fuzzed(server, seeds, heard, before, answers, settled(server, before))


def test_every_container_is_heard_as_it_was_written(fuzzed: Fuzzed) -> None:
    """A mutation of what was never readable would show nothing."""
    assert {answer.container for answer in fuzzed.unharmed if answer.status != 200} == UNREADABLE


def test_every_wrong_file_gets_a_transcript_or_a_reason(fuzzed: Fuzzed) -> None:
    """Never an error of the server's, never silence, and words for no playlist."""
    assert [answer for answer in fuzzed.answers if answer.flaw] == []
    assert len(fuzzed.answers) == FILES


def test_the_files_are_wrong_in_many_ways(fuzzed: Fuzzed) -> None:
    """Were all refused at their first byte, or all as good as new, nothing would have been tried."""
    assert {answer.container for answer in fuzzed.answers} == set(fuzzed.seeds)
    assert {answer.kind for answer in fuzzed.answers} == set(KINDS)
    heard = sum(answer.status == 200 for answer in fuzzed.answers)
    assert FILES / 5 < heard < FILES * 4 / 5


def test_nothing_is_left_of_them(fuzzed: Fuzzed) -> None:
    """The same processes, no file, and nothing open."""
    assert fuzzed.after.more_than(fuzzed.before) == ""


def test_the_server_hears_as_before(fuzzed: Fuzzed) -> None:
    """The last of a thousand strangers must not be what breaks it."""
    (answer,) = ask_all(fuzzed.server, unharmed({"wav": fuzzed.seeds["wav"]}))
    assert (answer.status, answer.flaw) == (200, "")
