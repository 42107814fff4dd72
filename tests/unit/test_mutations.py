"""The wrong recordings of the fuzzed tests: what was found with one must be found again."""

from __future__ import annotations

from random import Random

from tests.containers import ape, dsf, nistsphere
from tests.mutations import KINDS, LARGEST_BYTES, mutant, mutants, wrong_field

RECORDINGS = {"dsf": dsf(), "nistsphere": nistsphere(), "ape": ape(), "wav-stub": b"RIFF" + bytes(60)}


def test_a_number_tells_how_a_file_was_made() -> None:
    """Alone or among others, today or tomorrow: the number in a report is all that is needed."""
    assert [mutant(RECORDINGS, number) for number in range(30, 40)] == list(mutants(RECORDINGS, 10, first=30))


def test_every_container_is_made_wrong_in_every_way() -> None:
    """A fixed step through both lists would leave pairs out."""
    made = list(mutants(RECORDINGS, len(RECORDINGS) * len(KINDS)))
    assert {(one.container, one.kind) for one in made} == {(name, kind) for name in RECORDINGS for kind in KINDS}
    assert len({one.number for one in made}) == len(made)


def test_files_stay_small_and_differ_from_what_they_were() -> None:
    """Nesting and repeating must not fill the disk; and what was not changed proves nothing."""
    made = list(mutants(RECORDINGS, 200))
    assert max(len(one.content) for one in made) <= LARGEST_BYTES
    assert sum(one.content == RECORDINGS[one.container] for one in made) < 10


def test_a_wrong_field_is_where_the_container_has_one() -> None:
    """A number changed in the middle of the sound would be nothing to a reader of headers."""
    recording = RECORDINGS["dsf"]
    changed = wrong_field(recording, Random(1), RECORDINGS)
    assert changed != recording
    assert changed[100:] == recording[100:]
    assert len(changed) == len(recording)


def test_only_text_is_taken_for_text() -> None:
    """An answer with words is wrong for a playlist, and right for a damaged recording."""
    for one in mutants(RECORDINGS, 60):
        assert one.is_text == (one.kind == "text under its name")
        assert one.name.startswith(f"{one.number}-")
