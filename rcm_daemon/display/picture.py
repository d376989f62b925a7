"""A stack as a picture: slices along depth, strata, probabilities and both boundaries at a glance."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.display.stack_view import (
    STRATUM_COLOURS,
    STRATUM_WORDS,
    BoundaryView,
    StackView,
)
from rcm_daemon.errors import StackFileError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_THUMBNAILS = 10
_BOUNDARY_WORDS = ("Epidermis\u2013DEJ", "DEJ\u2013dermis")  # with the dash of print
_INK, _GREY = "#222222", "#6b6b6b"
_WIDTH_IN, _HEIGHT_IN, _DPI = 13.0, 7.2, 150
_LEFT, _RIGHT = 0.06, 0.975
# Shares of the figure's height, bottom to top.
_CURVES_BOTTOM, _CURVES_TOP = 0.125, 0.425
_BAND_BOTTOM, _BAND_TOP = 0.495, 0.555
_LEADS_TOP, _THUMBNAILS_BOTTOM = 0.635, 0.67
_FORMATS = frozenset({"png", "pdf", "svg"})


def draw_stack(view: StackView, slices: Sequence[npt.NDArray[np.uint8]], path: Path) -> None:
    """Draw a stack to a file (PNG; PDF or SVG where the suffix says so).

    Parameters
    ----------
    slices
        One thumbnail a slice, uint8 [rows, columns], in the view's depth order.

    Raises
    ------
    StackFileError
        The file cannot be written.
    """
    figure = compose(view, slices)
    suffix = path.suffix.lower().removeprefix(".")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script the font lacks
        try:
            figure.savefig(path, dpi=_DPI, format=suffix if suffix in _FORMATS else "png")
        except OSError as error:
            raise StackFileError(
                f"a picture must go to a writable file, got {error.strerror} at {path}"
            ) from error


def compose(view: StackView, slices: Sequence[npt.NDArray[np.uint8]]) -> Figure:
    """Compose the figure; nothing is written and no global state of matplotlib is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(slices) != view.n_slices:
        raise ValueError(f"one thumbnail a slice, got {len(slices)} for {view.n_slices}")
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), facecolor="white")
    FigureCanvasAgg(figure)
    _write_head(figure, view)
    if view.n_slices:
        edges_um = slice_edges_um(view.z_um)
        band = figure.add_axes(
            (_LEFT, _BAND_BOTTOM, _RIGHT - _LEFT, _BAND_TOP - _BAND_BOTTOM), label="strata"
        )
        curves = figure.add_axes(
            (_LEFT, _CURVES_BOTTOM, _RIGHT - _LEFT, _CURVES_TOP - _CURVES_BOTTOM),
            label="probabilities",
            sharex=band,
        )
        _draw_band(band, view, edges_um)
        _draw_curves(curves, view)
        _draw_boundaries(curves, view, (float(edges_um[0]), float(edges_um[-1])))
        _draw_thumbnails(figure, band, view, slices)
    else:
        figure.text(0.5, 0.5, "no slice was labelled", ha="center", fontsize=16, color=_GREY)
    figure.text(_LEFT, 0.018, _cut(view.notice, 180), fontsize=8.5, color=_GREY, parse_math=False)
    return figure


def slice_edges_um(z_um: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[n + 1] depths halfway between neighbouring slices; the outer ones mirror the first and last step."""
    z = np.asarray(z_um, float)
    if z[0] == z[-1]:  # no step to mirror
        return np.linspace(z[0] - 1.5, z[0] + 1.5, len(z) + 1)
    middle = (z[1:] + z[:-1]) / 2
    return np.concatenate([[2 * z[0] - middle[0]], middle, [2 * z[-1] - middle[-1]]])


def _cut(text: str, n_max: int) -> str:
    return text if len(text) <= n_max else text[: n_max - 1] + "\u2026"


def _write_head(figure: Figure, view: StackView) -> None:
    span = f"   {view.z_um[0]:.0f} to {view.z_um[-1]:.0f} um" if view.n_slices > 1 else ""
    count = f"{view.n_slices} slice{'s' * (view.n_slices != 1)}{span}"
    figure.text(
        _LEFT, 0.945, _cut(view.stack_id, 34), fontsize=17, weight="bold", color=_INK, parse_math=False
    )
    figure.text(_LEFT, 0.91, count.replace("um", "\u00b5m"), fontsize=11, color=_GREY)
    for which, x in ((0, 0.5), (1, 0.755)):
        figure.text(x, 0.953, _BOUNDARY_WORDS[which], fontsize=11, color=_GREY)
        value, detail = _head_words(view, which)
        figure.text(x, 0.912, value, fontsize=16, weight="bold", color=_INK)
        figure.text(x, 0.885, detail, fontsize=9.5, color=_GREY)


def _head_words(view: StackView, which: int) -> tuple[str, str]:
    boundary = view.boundaries[which]
    value = {
        "inside": f"{boundary.um:.1f} \u00b5m",
        "not_reached": "not reached",
        "above_start": "above the first slice",
    }[boundary.status]
    details = []
    if boundary.has_interval:
        details.append(f"{boundary.low_um:.1f} to {boundary.high_um:.1f} \u00b5m")
    if view.truth_um is not None:
        details.append(f"truth {view.truth_um[which]:.1f} \u00b5m")
    return value, "   ".join(details)


def _draw_band(axes: Axes, view: StackView, edges_um: npt.NDArray[np.float64]) -> None:
    labels = np.asarray(view.labels, int)
    starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))
    ends = np.concatenate([starts[1:], [len(labels)]])
    whole_um = float(edges_um[-1] - edges_um[0])
    lines_um = [boundary.um for boundary in view.boundaries if boundary.status == "inside"]
    for start, end in zip(starts, ends, strict=True):
        label, low_um, high_um = int(labels[start]), float(edges_um[start]), float(edges_um[end])
        axes.axvspan(low_um, high_um, color=STRATUM_COLOURS[label], lw=0)
        # The word stands where no boundary's line runs through it, or nowhere.
        stops_um = sorted([low_um, high_um, *(um for um in lines_um if low_um < um < high_um)])
        room_um, room_at_um = max((b - a, (a + b) / 2) for a, b in pairwise(stops_um))
        if room_um > 0.01 * whole_um * (2 + len(STRATUM_WORDS[label])):
            axes.text(
                room_at_um, 0.5, STRATUM_WORDS[label], ha="center", va="center", fontsize=12,
                weight="bold", color="white" if label == 2 else _INK,
            )  # fmt: skip
    for edge_um in edges_um[1:-1]:
        axes.axvline(edge_um, color="white", lw=0.5, alpha=0.6)
    axes.set_xlim(float(edges_um[0]), float(edges_um[-1]))
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


def _draw_curves(axes: Axes, view: StackView) -> None:
    many = view.n_slices > 40
    for k, (word, colour) in enumerate(zip(STRATUM_WORDS, STRATUM_COLOURS, strict=True)):
        axes.plot(
            view.z_um, np.asarray(view.probabilities)[:, k], color=colour, lw=2.2, marker="osD"[k],
            markersize=3.0 if many else 5.0, label=word, clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_ylabel("probability", fontsize=10.5, color=_INK)
    axes.set_xlabel("depth (\u00b5m)", fontsize=11, color=_INK, loc="left")
    axes.grid(axis="y", color="#e4e4e4", lw=0.8)
    axes.tick_params(colors=_INK, labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")


def _draw_boundaries(curves: Axes, view: StackView, limits_um: tuple[float, float]) -> None:
    """Draw lines from the bottom of the curves to the top of the band, and names in the gap between them."""
    top = (_BAND_TOP - _CURVES_BOTTOM) / (_CURVES_TOP - _CURVES_BOTTOM)
    across = curves.get_xaxis_transform()
    shaded = dashed = False
    taken: tuple[float, float] | None = None
    for which in (1, 0):  # the second first, so that the first stands above it where they meet
        boundary = view.boundaries[which]
        if boundary.status == "inside":
            if boundary.has_interval:
                low_um, high_um = np.clip((boundary.low_um, boundary.high_um), *limits_um)
                curves.axvspan(low_um, high_um, color=_INK, alpha=0.10, lw=0, zorder=1)
                shaded = True
            curves.plot(
                [boundary.um] * 2, [0, top], transform=across, clip_on=False, color=_INK, lw=2.0, zorder=4,
                label="_line",
            )  # fmt: skip
        if view.truth_um is not None and limits_um[0] <= view.truth_um[which] <= limits_um[1]:
            curves.axvline(view.truth_um[which], color=_INK, lw=1.4, ls=(0, (4, 3)), zorder=2, label="_truth")
            dashed = True
        taken = _label_boundary(curves, which, boundary, limits_um, taken)
    lined = any(boundary.status == "inside" for boundary in view.boundaries)
    _draw_key(curves, lined, f"interval ({view.interval_words})" if shaded else "", dashed)


def _label_boundary(
    axes: Axes,
    which: int,
    boundary: BoundaryView,
    limits_um: tuple[float, float],
    taken: tuple[float, float] | None,
) -> tuple[float, float]:
    """Name a boundary beside its line, higher where that room is taken; return the room it takes.

    The first goes to the left of its line and the second to the right, unless that is too near the edge. Room
    is in shares of the axes' width.
    """
    words = boundary_words(which, boundary)
    room = 0.0082 * len(words)
    share = {"not_reached": 1.0, "above_start": 0.0}.get(
        boundary.status, (boundary.um - limits_um[0]) / (limits_um[1] - limits_um[0])
    )
    to_left = share > room if which == 0 else share > 1 - room
    extent = (share - room, share) if to_left else (share, share + room)
    overlaps = taken is not None and extent[0] < taken[1] and taken[0] < extent[1]
    axes.annotate(
        words, (share, 1.0), xycoords="axes fraction", xytext=(-5 if to_left else 5, 24 if overlaps else 9),
        textcoords="offset points", ha="right" if to_left else "left", va="bottom", fontsize=10.5,
        weight="bold" if boundary.status == "inside" else "normal", color=_INK, zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )  # fmt: skip
    return extent


def boundary_words(which: int, boundary: BoundaryView) -> str:
    """Name a boundary and say where it lies, for the place beside its line."""
    name = _BOUNDARY_WORDS[which]
    if boundary.status == "inside":
        return f"{name} {boundary.um:.1f} \u00b5m"
    return (
        f"\u25c2 {name} above the first slice"
        if boundary.status == "above_start"
        else f"{name} not reached \u25b8"
    )


def _draw_key(axes: Axes, lined: bool, interval: str, dashed: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    if lined:
        handles.append(Line2D([], [], color=_INK, lw=2.0, label="boundary"))
    if interval:
        handles.append(Patch(facecolor=_INK, alpha=0.10, label=interval))
    if dashed:
        handles.append(Line2D([], [], color=_INK, lw=1.4, ls=(0, (4, 3)), label="truth"))
    axes.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1.005, -0.105), ncols=len(handles), frameon=False,
        fontsize=10, handlelength=1.7, columnspacing=1.6,
    )  # fmt: skip


def representative_slices(labels: npt.NDArray[Any]) -> list[int]:
    """Return at most MAX_THUMBNAILS rows, evenly spread, with every stratum that occurs."""
    n = len(labels)
    chosen = np.unique(np.linspace(0, n - 1, min(n, MAX_THUMBNAILS)).round().astype(int))
    for label in set(labels.tolist()) - set(labels[chosen].tolist()):
        rows = np.flatnonzero(labels == label)
        middle = rows[len(rows) // 2]
        # Never in place of the first, the last, or another stratum's only one.
        spare = [
            i for i in range(1, len(chosen) - 1) if np.count_nonzero(labels[chosen] == labels[chosen[i]]) > 1
        ]
        chosen[min(spare, key=lambda i: abs(int(chosen[i]) - int(middle)))] = middle
    return sorted(chosen.tolist())


def _draw_thumbnails(
    figure: Figure, band: Axes, view: StackView, slices: Sequence[npt.NDArray[np.uint8]]
) -> None:
    from matplotlib.lines import Line2D

    chosen = representative_slices(view.labels)
    slot = (_RIGHT - _LEFT) / MAX_THUMBNAILS
    width = 0.92 * slot
    height = width * _WIDTH_IN / _HEIGHT_IN
    first = (_LEFT + _RIGHT - slot * len(chosen)) / 2
    low_um, high_um = band.get_xlim()
    for place, row in enumerate(chosen):
        left = first + slot * place + (slot - width) / 2
        colour = STRATUM_COLOURS[int(view.labels[row])]
        axes = figure.add_axes((left, _THUMBNAILS_BOTTOM, width, height), label=f"slice {row}")
        axes.imshow(slices[row], cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(color=colour, linewidth=3.5)
        axes.set_xlabel(f"{view.z_um[row]:.1f} \u00b5m", fontsize=9.5, color=_INK, labelpad=5)
        centre = left + width / 2
        at = _LEFT + (_RIGHT - _LEFT) * (float(view.z_um[row]) - low_um) / (high_um - low_um)
        figure.add_artist(
            Line2D(
                [centre, centre, at, at],
                [_LEADS_TOP, _LEADS_TOP - 0.008, _BAND_TOP + 0.016, _BAND_TOP],
                color=colour,
                lw=1.4,
            )
        )
