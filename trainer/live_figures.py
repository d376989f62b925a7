"""Figures of a live evaluation: accuracy over the stack, delay against what is taken back, coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.message import INTERVAL
from rcm_daemon.core.records import BOUNDARIES
from trainer.markdown_tables import BOUNDARY_NAMES

if TYPE_CHECKING:
    from pathlib import Path

LATEST_SLICES = 12.0


def draw_live(live: dict[str, Any], title: str, path: Path) -> None:
    """Draw what `live_evaluation` gives as one PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    (newest, everything, coverage), (first, second, widths) = figure.subplots(2, 3)
    figure.suptitle(title, fontsize=10)
    n_covering = sum("coverage" in one for one in live.values())
    for name, one in live.items():
        fractions = (np.arange(len(one["newest_by_fraction"])) + 0.5) / len(one["newest_by_fraction"])
        newest.plot(fractions, one["newest_by_fraction"], label=name)
        everything.plot(fractions, one["all_by_fraction"], label=name)
        for axis, boundary in zip((first, second), BOUNDARIES, strict=True):
            by_point = one["announcing"][boundary]
            points = [by_point[key] for key in sorted(by_point, key=float)]
            delays = [min(point["median_delay_slices"], LATEST_SLICES) for point in points]
            gone = [100 * point["share_withdrawn_or_moved"] for point in points]
            axis.plot(gone, delays, "o-", markersize=4, label=name)
        for kind, given in one.get("coverage", {}).items():
            quarters = [given[f"quarter_{q}"] for q in range(1, 5)]
            shares = np.array([quarter["share"] for quarter in quarters])
            edges = np.array([quarter["interval"] for quarter in quarters]).T
            place = np.arange(1, 5) + (0.06 if kind == "forecast" else -0.06)
            label = f"{name}: {kind}" if n_covering > 1 else kind
            coverage.errorbar(place, shares, np.abs(edges - shares), fmt="o", capsize=3, label=label)
            widths.plot(range(1, 5), [quarter["median_width_um"] for quarter in quarters], "o-", label=label)
    coverage.axhline(INTERVAL, color="grey", linewidth=1)
    for axis, text in ((newest, "newest slice, at its arrival"), (everything, "all slices so far")):
        axis.set(title=f"accuracy: {text}", xlabel="share of the stack seen", ylim=(0.5, 1))
    for axis, boundary in zip((first, second), BOUNDARIES, strict=True):
        axis.set(
            title=f"announcing {BOUNDARY_NAMES[boundary]}",
            xlabel="taken back or moved by more than 6 um, %",
            ylabel="median delay, slices",
        )
    coverage.set(title="90 % intervals that hold", xlabel="quarter of the stack seen", xticks=range(1, 5))
    widths.set(title="median width of intervals, um", xlabel="quarter of the stack seen", xticks=range(1, 5))
    for axis in (newest, coverage, widths):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
