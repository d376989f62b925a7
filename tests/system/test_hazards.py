"""docs/hazards.md and the tests' marks say the same, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import hazards


def test_every_row_of_the_catalogue_is_there_once():
    assert sorted(hazards.rows()) == [f"H{number:02}" for number in range(1, 65)]


def test_every_row_has_a_test_and_every_mark_a_row():
    assert hazards.drift(hazards.rows(), hazards.marks()) == []


def test_every_row_has_a_test_that_is_always_run():
    assert set(hazards.rows()) - hazards.always_run() == set()


def test_a_slow_test_is_known_from_the_others():
    import ast

    text = "@pytest.mark.slow\ndef test_a(): ...\n\n@pytest.mark.timeout(9)\ndef test_b(): ..."
    assert list(hazards._slow_in(ast.parse(text))) == ["test_a"]


def test_drift_is_seen_from_both_sides():
    rows, marked = hazards.rows(), hazards.marks()
    assert hazards.drift(rows, [mark for mark in marked if mark != "H07"]) == ["H07 has no test"]
    assert hazards.drift([*rows, "H65"], marked) == ["H65 has no test"]
    assert hazards.drift(rows, [*marked, "H99"]) == ["H99 marks a test but has no row"]
    assert hazards.drift([row for row in rows if row != "H07"], marked) == ["H07 marks a test but has no row"]


def test_the_list_of_tests_is_fresh():
    assert hazards.PAGE.read_text() == hazards.page(), "run `make docs`"


def test_what_does_it_is_there():
    """The page names files of the package that exist."""
    import re

    for name in set(re.findall(r"`([a-z_]+/(?:[a-z_]+\.py)?|[a-z_]+\.py)`", hazards.PAGE.read_text())):
        assert (hazards.ROOT / "rcm_daemon" / name).exists(), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('@pytest.mark.hazard("H01")\ndef test_a(): ...', [("f::test_a", "H01")]),
        (
            '@pytest.mark.hazard("H01", "H02")\ndef test_a(): ...',
            [("f::test_a", "H01"), ("f::test_a", "H02")],
        ),
        ('CASES = [pytest.param(1, marks=pytest.mark.hazard("H03"))]', [("f", "H03")]),
        ('class T:\n    @pytest.mark.hazard("H04")\n    def test_a(self): ...', [("f::T::test_a", "H04")]),
        ('# pytest.mark.hazard("H05")', []),
    ],
)
def test_marks_are_found_wherever_they_stand(text, expected):
    import ast

    assert list(hazards._marks_in(ast.parse(text), "f")) == expected


def test_tests_are_looked_for_where_pytest_looks():
    assert Path(__file__) in set((hazards.ROOT / "tests").rglob("test_*.py"))
