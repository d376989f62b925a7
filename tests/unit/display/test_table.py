"""What the terminal shows of a stack."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from shown_stacks import shown

from rcm_daemon.display.stack_view import STRATUM_COLOURS, BoundaryView, StackView, boundary_sentence
from rcm_daemon.display.table import stack_report


def printed(view: StackView, width: int = 100, n_rows: int | None = None, colour: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        no_color=False,  # whatever NO_COLOR says where the tests run
    )
    console.print(stack_report(view, n_rows))
    return stream.getvalue()


STACK = shown(
    [0, 0, 1, 1, 2, 2], start_um=-3.0, index=(5, 4, 3, 2, 1, 0), flags=("", "dark,cropped", "", "", "", "")
)


def test_every_slice_has_its_row() -> None:
    text = printed(STACK)
    rows = [line.split() for line in text.splitlines()[2:8]]
    assert rows[0][:6] == ["5", "-3.0", "epidermis", "80", "10", "10"]
    assert rows[1] == ["4", "0.0", "epidermis", "80", "10", "10", "dark", "cropped"]
    assert rows[5][:6] == ["0", "12.0", "dermis", "10", "10", "80"]
    assert "left arm  6 slices, -3.0 to 12.0 um" in text


def test_boundaries_and_strip() -> None:
    text = printed(STACK, width=64)
    lines = text.splitlines()
    strip = next(line for line in lines if "█" in line)
    assert strip.strip() == "░" * 18 + "▒" * 24 + "█" * 18
    marks = lines[lines.index(strip) + 1]
    assert [i for i, c in enumerate(marks) if c == "▲"] == [2 + 18, 2 + 42]
    assert "░ epidermis  ▒ DEJ  █ dermis" in text
    assert "epidermis-DEJ 1.5 um" in text
    assert "DEJ-dermis 7.5 um" in text


@pytest.mark.parametrize(
    ("boundary", "other", "sentence"),
    [
        (BoundaryView("not_reached"), {}, "epidermis-DEJ not reached"),
        (BoundaryView("above_start"), {}, "epidermis-DEJ above the first slice"),
        (BoundaryView("inside", 54.5), {}, "epidermis-DEJ 54.5 um"),
        (BoundaryView("inside", 54.5, 50.1, 58.9), {}, "epidermis-DEJ 54.5 um (90 %: 50.1 to 58.9)"),
        (
            BoundaryView("inside", 54.5, 50.1, 58.9),
            {"is_calibrated": False},
            "epidermis-DEJ 54.5 um (90 %, not calibrated: 50.1 to 58.9)",
        ),
        (BoundaryView("inside", 54.5), {"truth_um": (52.0, 80.0)}, "epidermis-DEJ 54.5 um, truth 52.0 um"),
    ],
)
def test_boundary_sentences(boundary: BoundaryView, other: dict[str, Any], sentence: str) -> None:
    view = shown([0, 1], boundaries=(boundary, BoundaryView("not_reached")), **other)
    assert boundary_sentence(view, 0) == sentence
    assert sentence in printed(view)


def test_strata_are_coloured() -> None:
    text = printed(STACK, colour=True)
    for colour in STRATUM_COLOURS:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert f"38;2;{red};{green};{blue}m" in text


@pytest.mark.parametrize(("width", "n_lines"), [(60, 101), (120, 51), (200, 26)])
def test_a_hundred_slices_stand_side_by_side_where_there_is_room(width: int, n_lines: int) -> None:
    view = shown([0] * 50 + [1] * 30 + [2] * 21)
    text = printed(view, width)
    table = [
        line
        for line in text.splitlines()
        if any(word in line.split() for word in ("epidermis", "DEJ", "dermis"))
    ]
    rows = [line for line in table if "▒" not in line and "left arm" not in line and "epi %" not in line]
    rows = [line for line in rows if "-DEJ" not in line and "-dermis" not in line]
    assert len(rows) == n_lines
    assert all(len(line) <= width for line in text.splitlines())
    assert sum(line.split().count("epidermis") for line in rows) == 50


@pytest.mark.parametrize("width", [30, 36, 44, 60])
def test_flags_stay_where_there_is_little_room(width: int) -> None:
    lines = printed(STACK, width).splitlines()
    row = next(line for line in lines if line.split()[:2] == ["4", "0.0"])
    assert row.split()[:3] == ["4", "0.0", "epidermis"]
    assert "dark cropped" in row or row.rstrip().endswith("…")
    assert all(len(line) <= width for line in lines)


def test_live_table_keeps_the_deepest_rows_and_the_whole_strip() -> None:
    text = printed(shown([0] * 20 + [1] * 20), n_rows=5)
    assert "35 shallower slices not shown" in text
    assert "epidermis  80" not in " ".join(text.split())
    assert "░" * 20 in text


@pytest.mark.parametrize("n", [1, 2, 101])
def test_strip_of_any_length(n: int) -> None:
    strip = next(line for line in printed(shown([0] * n), width=44).splitlines() if "░░" in line)
    assert strip.strip() == "░" * 40


def test_slices_at_one_depth() -> None:
    assert "2 slices, 4.0 to 4.0 um" in printed(shown([0, 1], step_um=0.0, start_um=4.0))


def test_stack_without_a_slice() -> None:
    assert "no slice labelled yet" in printed(shown([]))


def test_name_is_no_markup() -> None:
    assert "[bold]x[/]" in printed(shown([0], stack_id="[bold]x[/]"))
