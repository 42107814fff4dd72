"""docs/faults.md promises nothing that no test holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import errors

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "faults.md").read_text("utf-8")


def rows() -> list[list[str]]:
    """The cells of all rows of all tables, their heads left out."""
    lines = [line for line in TABLE.splitlines() if line.startswith("|") and not line.startswith(("| fault", "|---"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", cell)


def defined() -> set[str]:
    """The names of all tests there are."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_every_fault_is_told_whole_and_held_by_a_test(row: list[str]) -> None:
    """A promise without a test is a hope."""
    assert len(row) == 5
    assert all(row)
    assert names_in(row[4])


def test_the_tests_that_hold_faults_exist() -> None:
    """A test that is renamed takes its row along."""
    assert set(names_in(TABLE)) - defined() == set()


def test_the_codes_of_faults_exist() -> None:
    """And those that they are answered with."""
    told = set(re.findall(r"\d{3} `([A-Z_]+)`", TABLE))
    assert told
    assert told <= {error.code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")}
