"""Figures of a live evaluation: each against the share of the stack seen, and delay against what is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.message import INTERVAL
from rcm_daemon.core.records import BOUNDARIES
from trainer.markdown_tables import BOUNDARY_NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

LATEST_SLICES = 12.0
QUARTERS = range(1, 5)
LINES = ("o-", "s--")
HOW = {"": ("o-", "as it is said"), "for good": ("^:", "for good (ours)")}
"""Marks of working points, by what follows the number in their name."""
GONE = "taken back or moved by more than 6 um, %"


def draw_live(live: dict[str, Any], title: str, path: Path) -> None:
    """Draw what `live_evaluation` gives as one PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 8), layout="constrained")
    figure.suptitle(f"{title}\n", fontsize=10)
    (newest, everything, impossible, coverage, widths), (first, second, late, gone, advice) = figure.subplots(
        2, 5
    )
    n_covering = sum("coverage" in one for one in live.values())
    for number, (name, one) in enumerate(live.items()):
        color = f"C{number}"
        for axis, figures in ((newest, "newest"), (everything, "all"), (impossible, "impossible")):
            values = one[f"{figures}_by_fraction"]
            axis.plot((np.arange(len(values)) + 0.5) / len(values), values, color=color, label=name)
        _announcing((first, second), late, gone, one, color)
        if "coverage" in one:
            _intervals(coverage, widths, one["coverage"], f"{name}: " if n_covering > 1 else "")
            finished = [0.0, *one["advice"]["finished_by_fraction"]]
            advice.plot(np.linspace(0, 1, len(finished)), finished, color=color)
    seen = {"xlabel": "quarter of the stack seen", "xticks": QUARTERS}
    share = "share of the stack seen"
    newest.set(title="accuracy: newest slice, at its arrival", xlabel=share, ylim=(0.5, 1))
    everything.set(title="accuracy: all slices so far", xlabel=share, ylim=(0.5, 1))
    impossible.set(title="impossible transitions in a prefix (mean)", xlabel=share)
    coverage.axhline(INTERVAL, color="grey", linewidth=1)
    coverage.set(title="90 % intervals that hold", **seen)
    widths.set(title="median width of intervals, um", **seen)
    for axis, boundary in zip((first, second), BOUNDARIES, strict=True):
        axis.set(title=f"announcing {BOUNDARY_NAMES[boundary]}", xlabel=GONE, ylabel="median delay, slices")
    late.set(title="median delay, slices", **(seen | {"xlabel": "quarter of the stack it is crossed in"}))
    gone.set(title="taken back or moved, %", **(seen | {"xlabel": "quarter of the stack it is announced in"}))
    advice.set(
        title="advice wants no more", xlabel="share of a sweep's slices taken", ylabel="share of the stacks"
    )
    impossible.set_ylim(0, max(1.0, impossible.get_ylim()[1]))
    for boundary, line in zip(BOUNDARIES, LINES, strict=True):
        late.plot([], [], line, markersize=4, color="black", label=BOUNDARY_NAMES[boundary])
    for marks, how in HOW.values():
        first.plot([], [], marks, markersize=4, color="black", label=how)
    for axis in (newest, coverage, widths, late, first):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def _announcing(
    at_points: tuple[Axes, Axes], late: Axes, gone: Axes, one: dict[str, Any], color: str
) -> None:
    for axis, boundary, line in zip(at_points, BOUNDARIES, LINES, strict=True):
        by_point = one["announcing"][boundary]
        for how, (marks, _) in HOW.items():
            keys = {float(key.split()[0]): key for key in by_point if key.partition(" ")[2] == how}
            points = [by_point[keys[number]] for number in sorted(keys)]
            delays = [min(point["median_delay_slices"], LATEST_SLICES) for point in points]
            shares = [100 * point["share_withdrawn_or_moved"] for point in points]
            axis.plot(shares, delays, marks, markersize=4, color=color)
        by_quarter = one["announcing_by_quarter"][boundary]
        delays = [min(each["median_delay_slices"], LATEST_SLICES) for each in by_quarter["crossed_in"]]
        shares = [100 * each["share_withdrawn_or_moved"] for each in by_quarter["announced_in"]]
        late.plot(QUARTERS, delays, line, markersize=4, color=color)
        gone.plot(QUARTERS, shares, line, markersize=4, color=color)


def _intervals(coverage: Axes, widths: Axes, given: dict[str, Any], name: str) -> None:
    for kind, aside in (("inside", -0.06), ("forecast", 0.06)):
        quarters = [given[kind][f"quarter_{quarter}"] for quarter in QUARTERS]
        shares = np.array([quarter["share"] for quarter in quarters])
        edges = np.array([quarter["interval"] for quarter in quarters]).T
        place = np.array(QUARTERS) + aside
        label = f"{name}{kind}"
        coverage.errorbar(place, shares, np.abs(edges - shares), fmt="o", capsize=3, label=label)
        widths.plot(QUARTERS, [quarter["median_width_um"] for quarter in quarters], "o-", label=label)
