"""The line alone: who is next, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from turns import LOWER_CLASS_EVERY
from waiting import Line


@dataclass(frozen=True)
class Waits:
    name: str
    key: str = ""
    priority: int = 0
    amount: float = 10.0
    short: bool = False


def line_of(*waiting: Waits) -> Line[Waits]:
    line: Line[Waits] = Line()
    for one in waiting:
        line.add(one)
    return line


def taken(line: Line[Waits], *, short_only: bool = False) -> list[str]:
    """Everybody's name, in the order in which they are taken."""
    found = []
    while one := line.take(short_only=short_only):
        found.append(one.name)
    return found


def test_an_empty_line_has_nobody() -> None:
    """And nothing to wait for."""
    line = line_of()
    assert (line.first(), line.take(), len(line), list(line)) == (None, None, 0, [])
    assert (line.mean_amount, line.amount_up_to(9), line.amount_of("a"), line.count_of("a")) == (0.0, 0.0, 0.0, 0)


def test_one_key_is_served_as_it_came() -> None:
    """Long or short."""
    line = line_of(*(Waits(str(index), short=bool(index % 2)) for index in range(6)))
    assert taken(line) == ["0", "1", "2", "3", "4", "5"]


def test_many_keys_that_come_once_are_served_as_they_came() -> None:
    """Nobody has had anything yet: the clips too, where they alone are called, keep the order of their arrival."""
    waiting = [Waits(str(index), key=f"key {index}", short=True) for index in range(50)]
    assert taken(line_of(*waiting)) == [str(index) for index in range(50)]
    assert taken(line_of(*waiting), short_only=True) == [str(index) for index in range(50)]


def test_where_only_clips_may_go_the_first_clip_goes() -> None:
    """Past the long ones before it, which stay where they are."""
    line = line_of(Waits("long"), Waits("clip", short=True), Waits("batch clip", priority=1, short=True))
    assert taken(line, short_only=True) == ["clip", "batch clip"]
    assert line.first(short_only=True) is None
    assert taken(line) == ["long"]


def test_a_key_without_clips_has_no_turn_among_clips() -> None:
    """Though it is the least served."""
    line = line_of(Waits("a1", "a", short=True), Waits("a2", "a", short=True), Waits("b1", "b"))
    assert taken(line, short_only=True) == ["a1", "a2"]
    assert taken(line) == ["b1"]


def test_to_look_at_the_first_costs_nothing() -> None:
    """Who is looked at and dropped has had no turn: its key comes as early as before."""
    first, second, other = Waits("a1", "a"), Waits("a2", "a"), Waits("b1", "b")
    line = line_of(first, other, second)
    assert line.first() is first
    assert line.first() is first
    line.remove(first)
    assert taken(line) == ["a2", "b1"]


def test_turns_go_by_amount() -> None:
    """An hour weighs as much as sixty minutes."""
    line = line_of(*(Waits(f"a{index}", "a", amount=30.0) for index in range(3)))
    for index in range(9):
        line.add(Waits(f"b{index}", "b", amount=10.0))
    assert "".join(name[0] for name in taken(line)) == "abbbabbbabbb"


def test_the_lower_class_has_every_eighth_turn() -> None:
    """And nobody's turn is counted while only looking."""
    line = line_of(*(Waits(f"low{index}", priority=1) for index in range(20)))
    for index in range(20):
        line.add(Waits(f"high{index}"))
    for _ in range(100):
        line.first()
    served = [name.startswith("low") for name in taken(line)[: 2 * LOWER_CLASS_EVERY]]
    assert served == ([False] * (LOWER_CLASS_EVERY - 1) + [True]) * 2


@pytest.mark.parametrize("short", [True, False])
def test_who_is_removed_is_forgotten(short: bool) -> None:
    """Its key, too, where nothing else of it waits; and a second time nothing happens."""
    stays, goes = Waits("stays", "a"), Waits("goes", "b", priority=1, amount=0.1, short=short)
    line = line_of(stays, goes)
    line.remove(goes)
    line.remove(goes)
    line.remove(Waits("never came", "b", priority=7))
    assert list(line) == [stays]
    assert (line.count_of("b"), line.amount_of("b"), line.amount_up_to(1)) == (0, 0.0, 10.0)
    assert taken(line, short_only=True) == []
    assert taken(line) == ["stays"]


def test_an_empty_line_holds_no_amount() -> None:
    """Sums of tenths drift; what is left of them would be waited for, for ever."""
    waiting = [Waits(str(index), amount=0.1 * index) for index in range(30)]
    line = line_of(*waiting)
    for one in reversed(waiting):
        line.remove(one)
    assert line.amount_up_to(9) == 0.0
    assert line.amount_of("") == 0.0


def test_amounts_are_known_by_class_and_by_key() -> None:
    """What a newcomer waits for."""
    line = line_of(
        Waits("1", "a", amount=1.0),
        Waits("2", "a", priority=1, amount=2.0),
        Waits("3", "b", priority=1, amount=4.0, short=True),
        Waits("4", "b", priority=1, amount=8.0),
    )
    assert [line.amount_up_to(number) for number in (-1, 0, 1, 2)] == [0.0, 1.0, 15.0, 15.0]
    assert (line.amount_of("a"), line.amount_of("a", 0), line.amount_of("a", 1), line.amount_of("a", 2)) == (3, 1, 2, 0)
    assert (line.count_of("a"), line.count_of("b"), len(line)) == (2, 2, 4)
    line.remove(Waits("4", "b", priority=1, amount=8.0))
    assert (line.amount_of("b"), line.amount_up_to(1), line.count_of("b")) == (4.0, 7.0, 1)


def test_the_mean_is_of_all_that_ever_came() -> None:
    """It stands for those whose length is not known yet, whether or not anybody waits now."""
    line = line_of(Waits("1", amount=10.0), Waits("2", amount=50.0))
    assert taken(line) == ["1", "2"]
    assert line.mean_amount == 30.0
