"""What the picture of a stack holds."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex
from shown_stacks import shown, thumbnails

from rcm_daemon.display.picture import compose, draw_stack, representative_slices, slice_edges_um
from rcm_daemon.display.stack_view import STRATUM_COLOURS, BoundaryView
from rcm_daemon.errors import StackFileError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rcm_daemon.display.stack_view import StackView

NOTICE = "mine 1.0.0: research use only, $not$ a medical device"
INTERVAL = (BoundaryView("inside", 16.5, 12.0, 20.0), BoundaryView("inside", 28.5, 27.0, 31.0))
STACK = shown([0] * 6 + [1] * 4 + [2] * 5, boundaries=INTERVAL, truth_um=(18.0, 29.0), notice=NOTICE)


def composed(view: StackView) -> Figure:
    return compose(view, thumbnails(view.n_slices))


def axes_named(figure: Figure, name: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_label() == name)


def words(figure: Figure) -> list[str]:
    texts = [text.get_text() for text in figure.texts]
    return texts + [text.get_text() for axes in figure.axes for text in axes.texts]


def vertical_lines(axes: Axes) -> list[tuple[float, str]]:
    lines = [
        line for line in axes.get_lines() if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    return sorted((float(line.get_xdata()[0]), line.get_linestyle()) for line in lines)


def test_curves_are_the_probabilities_over_depth() -> None:
    curves = axes_named(composed(STACK), "probabilities")
    for k, word in enumerate(("epidermis", "DEJ", "dermis")):
        line = next(line for line in curves.get_lines() if line.get_label() == word)
        assert np.array_equal(line.get_xdata(), STACK.z_um)
        assert np.array_equal(line.get_ydata(), STACK.probabilities[:, k])
        assert to_hex(line.get_color()).upper() == STRATUM_COLOURS[k]
    assert curves.get_xlabel() == "depth (µm)"


def test_boundaries_intervals_and_truth_are_drawn_and_named() -> None:
    figure = composed(STACK)
    curves = axes_named(figure, "probabilities")
    assert vertical_lines(curves) == [(16.5, "-"), (18.0, "--"), (28.5, "-"), (29.0, "--")]
    spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in curves.patches)
    assert np.allclose(spans, [(12.0, 20.0), (27.0, 31.0)])
    found = words(figure)
    for text in (
        "Epidermis–DEJ 16.5 µm",
        "DEJ–dermis 28.5 µm",
        "16.5 µm",
        "12.0 to 20.0 µm   truth 18.0 µm",
        NOTICE,
    ):
        assert text in found
    assert [text.get_text() for text in curves.get_legend().get_texts()] == [
        "epidermis", "DEJ", "dermis", "boundary", "interval (90 %)", "truth",
    ]  # fmt: skip


def test_intervals_that_nobody_calibrated_are_called_so() -> None:
    curves = axes_named(composed(replace(STACK, is_calibrated=False)), "probabilities")
    assert "interval (90 %, not calibrated)" in [text.get_text() for text in curves.get_legend().get_texts()]


def test_nothing_is_drawn_that_is_not_known() -> None:
    figure = composed(shown([0] * 8))
    curves = axes_named(figure, "probabilities")
    assert vertical_lines(curves) == []
    assert not curves.patches
    assert "Epidermis–DEJ not reached ▸" in words(figure)
    assert "DEJ–dermis not reached ▸" in words(figure)
    assert "◂ Epidermis–DEJ above the first slice" in words(composed(shown([1] * 8)))


def test_band_shows_each_stratum_over_its_depths() -> None:
    band = axes_named(composed(STACK), "strata")
    spans = [(p.get_x(), p.get_x() + p.get_width(), to_hex(p.get_facecolor()).upper()) for p in band.patches]
    assert spans == [
        (-1.5, 16.5, STRATUM_COLOURS[0]), (16.5, 28.5, STRATUM_COLOURS[1]), (28.5, 43.5, STRATUM_COLOURS[2]),
    ]  # fmt: skip
    assert [text.get_text() for text in band.texts] == ["epidermis", "DEJ", "dermis"]


@pytest.mark.parametrize(
    ("line_um", "places_um"),
    [
        (28.5, [7.5, 22.5, 36.0]),  # between two strata
        (36.0, [7.5, 22.5, 39.75]),
        (40.5, [7.5, 22.5, 34.5]),
        (18.0, [7.5, 23.25, 36.0]),
    ],
)
def test_no_line_runs_through_a_word(line_um: float, places_um: list[float]) -> None:
    boundaries = (BoundaryView("inside", 16.5), BoundaryView("inside", line_um))
    band = axes_named(composed(shown([0] * 6 + [1] * 4 + [2] * 5, boundaries=boundaries)), "strata")
    assert [text.get_position()[0] for text in band.texts] == places_um


@pytest.mark.parametrize(
    ("line_um", "said"), [(82.5, ["epidermis", "DEJ", "dermis"]), (86.0, ["epidermis", "DEJ"])]
)
def test_a_word_that_a_line_leaves_no_room_is_left_out(line_um: float, said: list[str]) -> None:
    boundaries = (BoundaryView("inside", 46.5), BoundaryView("inside", line_um))
    band = axes_named(composed(shown([0] * 16 + [1] * 12 + [2] * 3, boundaries=boundaries)), "strata")
    assert [text.get_text() for text in band.texts] == said


@pytest.mark.parametrize("n", [1, 2, 5, 10, 11, 40, 101])
def test_thumbnails_are_framed_in_their_stratum_at_their_depth(n: int) -> None:
    view = shown([min(2, 3 * i // n) for i in range(n)])
    slices = thumbnails(n)
    figure = compose(view, slices)
    shown_axes = [axes for axes in figure.axes if str(axes.get_label()).startswith("slice ")]
    assert len(shown_axes) == min(n, 10)
    for axes in shown_axes:
        row = int(str(axes.get_label()).removeprefix("slice "))
        assert np.array_equal(axes.images[0].get_array(), slices[row])
        assert to_hex(axes.spines["left"].get_edgecolor()).upper() == STRATUM_COLOURS[view.labels[row]]
        assert axes.get_xlabel() == f"{view.z_um[row]:.1f} µm"


@pytest.mark.parametrize("n", [1, 101])
def test_picture_is_a_png_of_readable_size(tmp_path: Path, n: int) -> None:
    draw_stack(shown([min(2, 3 * i // n) for i in range(n)]), thumbnails(n), tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png")).shape == (1080, 1950, 3)


@pytest.mark.parametrize(
    "labels", [[0] * 60 + [1] + [2] * 40, [0] + [1] * 99 + [2], [0] * 99 + [1, 2], [0, 1] + [2] * 99]
)
def test_every_stratum_has_a_thumbnail(labels: list[int]) -> None:
    rows = representative_slices(np.array(labels))
    assert len(rows) == len(set(rows)) == 10
    assert rows == sorted(rows)
    assert (rows[0], rows[-1]) == (0, 100)
    assert {labels[row] for row in rows} == {0, 1, 2}


def test_edges_lie_halfway() -> None:
    assert slice_edges_um(np.array([0.0, 2.0, 6.0])).tolist() == [-1, 1, 4, 8]
    assert slice_edges_um(np.array([5.0])).tolist() == [3.5, 6.5]
    assert slice_edges_um(np.array([5.0, 5.0])).tolist() == [3.5, 5, 6.5]


@pytest.mark.parametrize("labels", [[], [1], [0, 0]])
def test_odd_stacks_are_drawn(tmp_path: Path, labels: list[int]) -> None:
    view = shown(labels, step_um=0.0)
    draw_stack(view, thumbnails(len(labels)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert ("no slice was labelled" in words(composed(view))) == (not labels)


@pytest.mark.parametrize("name", ["$\\frac{1}{0$", "皮膚 stack", "x" * 200])
def test_names_are_plain_text(tmp_path: Path, name: str) -> None:
    view = shown([0, 1], stack_id=name)
    draw_stack(view, thumbnails(2), tmp_path / "a.png")
    assert (name if len(name) < 35 else "x" * 33 + "…") in words(composed(view))


@pytest.mark.parametrize(
    ("suffix", "start"), [(".pdf", b"%PDF"), (".svg", b"<?xml"), (".PNG", b"\x89PNG"), ("", b"\x89PNG")]
)
def test_format_follows_the_suffix(tmp_path: Path, suffix: str, start: bytes) -> None:
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    draw_stack(shown([0, 1]), thumbnails(2), tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(start)


def test_unwritable_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        StackFileError, match=r"writable file, got No such file or directory at .*none/a\.png"
    ):
        draw_stack(shown([0, 1]), thumbnails(2), tmp_path / "none" / "a.png")


def test_each_slice_needs_its_thumbnail() -> None:
    with pytest.raises(ValueError, match="one thumbnail a slice, got 1 for 2"):
        compose(shown([0, 1]), thumbnails(1))


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, rcm_daemon.display.picture; raise SystemExit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
