"""Latency against stack length, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rcm_daemon.errors import RcmError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLOURS = ("#1f5fa8", "#b5442a", "#4c7a34", "#7a4c8c", "#6b6b6b")


def draw_latency(
    curves: dict[str, Sequence[tuple[float, float]]], levels: dict[str, float], title: str, path: Path
) -> None:
    """Draw milliseconds, on a logarithmic axis, over the number of slices so far.

    Parameters
    ----------
    curves
        By name, (number of slices, ms).
    levels
        By name, ms of what does not depend on the stack.

    Raises
    ------
    RcmError
        The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(9.0, 5.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = iter(COLOURS * (1 + len(curves) + len(levels)))
    for name, curve in curves.items():
        x, y = zip(*curve, strict=True)
        axes.plot(x, y, color=next(colours), label=name, marker="o" if len(x) < 10 else "", linewidth=1.6)
    for name, ms in levels.items():
        axes.axhline(ms, color=next(colours), label=name, linestyle="--", linewidth=1.2)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("slices of the stack so far")
    axes.set_ylabel("ms, median")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise RcmError(
            f"a picture must go to a writable PNG, PDF or SVG file, got {error} at {path}"
        ) from error
