"""Whose turn it is."""

from __future__ import annotations

import pytest

from turns import LOWER_CLASS_EVERY, Classes, Turns


def test_turns_start_even() -> None:
    """Who comes back has not saved anything up, and owes nothing for the time it was away."""
    turns: Turns[str] = Turns()
    turns.join("a")
    turns.charge("a", 10.0)
    turns.join("b")
    assert list(turns) == ["b", "a"], "who had nothing yet goes first among equals"
    turns.charge("b", 6.0)
    turns.charge("a", 4.0)
    turns.leave("b")
    turns.join("b")
    assert repr(turns) == "<Turns {'a': -1.0, 'b': 0.0}>"
    turns.leave("b")
    turns.charge("a", 5.0)
    turns.join("b")
    assert list(turns) == ["b", "a"], "who is served alone is owed nothing afterwards"


def test_the_first_is_the_least_served_among_those_who_are_asked_for() -> None:
    """The waiting line asks for the first only: sorting ten thousand callers for each grant would take long."""
    turns: Turns[str] = Turns()
    for name in "abc":
        turns.join(name)
    turns.charge("a", 1.0)
    assert turns.first() == next(iter(turns)) == "b"
    assert turns.first({"a"}) == "a"
    with pytest.raises(ValueError, match="empty"):
        turns.first(set())


def test_every_eighth_round_begins_with_the_lowest_class() -> None:
    """Put back, not starved."""
    classes: Classes[str] = Classes()
    classes.join(1, "later")
    classes.join(0, "now")
    first = []
    for _ in range(2 * LOWER_CLASS_EVERY):
        first.append(next(iter(classes))[0])
        classes.next_round()
    assert first == ([0] * (LOWER_CLASS_EVERY - 1) + [1]) * 2


def test_a_class_that_was_empty_for_a_while_has_lost_nothing() -> None:
    """Its callers start at the share that an even service has reached, not at nothing."""
    classes: Classes[str] = Classes()
    classes.join(0, "a")
    classes.of(0).charge("a", 10.0)
    classes.leave(0, "a")
    classes.join(0, "b")
    assert repr(classes.of(0)) == "<Turns {'b': 0.0}>"
