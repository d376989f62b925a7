"""A live evaluation as Markdown."""

from __future__ import annotations

import math
from typing import Any

from rcm_daemon.core.records import BOUNDARIES
from trainer.markdown_tables import BOUNDARY_NAMES, NOTHING, number, table, with_interval

GONE = (0, 1, 2, 5, 10, 20)
"""Percentages of announced boundaries that may be taken back or move."""
NEVER = 1e9
"""The delay of what is never announced."""
ABOUT = (
    "Every stack replayed slice by slice. A boundary is announced for good at the slice from which on it "
    "stays found; the delay counts from the first slice below it by the readers. Taken back or moved: "
    "announced, and later not found or more than 6 um from where it was first said to be. Off by, when "
    "announced: from the readers' depth to where it was first said to be, and to the farther end of the "
    "stack where it never was. False: announced in a stack that, by the readers, does not come to it. A "
    "method announces at several working points: once a boundary is found with a lower or higher "
    "probability, also with what was first said kept for good, which is a bundle's choice; or, read as the "
    "paper does, at 1 to 8 slices running. Whoever keeps what was first "
    "announced, whatever is said later, has nothing taken back, of any method: then the delay counts to the "
    "first announcement, and is negative where that came before the boundary was crossed. Under advice, the "
    "next slice is the recorded one nearest to the depth asked for. Probabilities are off by the expected "
    "calibration error, in tenths, of every slice of every prefix."
)


def live_markdown(live: dict[str, Any]) -> list[str]:
    """Write what `live_evaluation` gives as lines of Markdown."""
    lines = ["", ABOUT]
    head = [
        "method",
        "newest slice %",
        "final %",
        "impossible transitions",
        "settled labels that changed %",
        "probabilities off by, points",
    ]
    rows = [
        [
            name,
            _percent(one, "newest"),
            _percent(one, "final"),
            str(one["n_impossible"]),
            _settled(one),
            _percent(one, "calibration_error"),
        ]
        for name, one in live.items()
    ]
    lines += table("Live labels", head, rows)
    head = [
        "method",
        "boundary",
        "median delay, slices",
        "um",
        "never",
        "false",
        "taken back or moved %",
        "off by, when announced, um",
    ]
    rows = []
    for name, one in live.items():
        for boundary in BOUNDARIES:
            point = next(iter(one["announcing"][boundary].values()))
            delay = _delay(point["median_delay_slices"])
            if delay != NOTHING:
                low, high = map(_delay, point["median_delay_slices_interval"])
                delay += f" [{low}, {high}]"
            never = f"{point['n_never']} of {point['n']}"
            gone = _percent(point, "share_withdrawn_or_moved")
            late_um, off_um = _delay(point["median_delay_um"]), _percent(point, "announced_mae_um", 1, 1)
            false = str(point["n_false"])
            rows.append([name, BOUNDARY_NAMES[boundary], delay, late_um, never, false, gone, off_um])
    lines += table("Announcing", head, rows)
    lines += _earliest(live)
    for name, one in live.items():
        if "coverage" in one:
            lines += _coverage(name, one["coverage"])
            lines += _mosaics(name, one["mosaics"])
            lines += _advice(name, one["advice"])
    return lines


def _earliest(live: dict[str, Any]) -> list[str]:
    """Table of the shortest delay of all working points at which no more is taken back or moved than may."""
    head = ["method", "boundary", *(f"at most {gone} %" for gone in GONE), "none: the first is kept"]
    rows = []
    for name, one in live.items():
        for boundary in BOUNDARIES:
            points = list(one["announcing"][boundary].values())
            row = [name, BOUNDARY_NAMES[boundary]]
            for gone in GONE:
                within = [p for p in points if 100 * p["share_withdrawn_or_moved"] <= gone + 1e-9]
                row.append(_best(within, "median_delay_slices"))
            rows.append([*row, _best(points, "median_delay_if_kept_slices")])
    title = "Shortest median delay in slices, by how many may be taken back or moved (off by, when announced)"
    return table(title, head, rows)


def _best(points: list[dict[str, Any]], key: str) -> str:
    points = [point for point in points if not math.isnan(point[key])]
    if not points:
        return NOTHING
    best = min(points, key=lambda point: (point[key], point["announced_mae_um"]))
    return f"{_delay(best[key])} ({best['announced_mae_um']:.1f} um)"


def _coverage(name: str, coverage: dict[str, Any]) -> list[str]:
    head = ["cut", "intervals that hold %", "median width um", "forecasts that hold %", "median width um"]
    rows = []
    for cut in coverage["inside"]:
        row = [
            cut.replace("_", " ")
            .replace("epidermis dej", "epidermis-DEJ")
            .replace("dej dermis", "DEJ-dermis")
        ]
        for kind in ("inside", "forecast"):
            one = coverage[kind][cut]
            row += [_held(one), number(one["median_width_um"], 1)]
        rows.append(row)
    return table(f"Coverage of 90 % intervals: {name}", head, rows)


def _mosaics(name: str, mosaics: dict[str, Any]) -> list[str]:
    head = ["mosaic", "intervals that hold %", "median width um"]
    rows = [
        [
            cut.replace("_", " ").replace("dej", "DEJ"),
            _held(one),
            number(one["median_width_um"], 1),
        ]
        for cut, one in mosaics.items()
    ]
    return table(f"Mosaics planned: {name}", head, rows)


def _advice(name: str, advice: dict[str, Any]) -> list[str]:
    head = ["", "share of the slices used (median)", *(f"MAE {BOUNDARY_NAMES[b]} um" for b in BOUNDARIES)]
    rows = [
        [which, share, *(number(advice[f"{which}_{boundary}_um"], 2) for boundary in BOUNDARIES)]
        for which, share in (("sweep", "1"), ("advised", f"{advice['share_used']:.2f}"))
    ]
    return table(f"Under advice: {name}", head, rows)


def _percent(one: dict[str, Any], key: str, digits: int = 1, factor: float = 100) -> str:
    return with_interval(one[key], one[f"{key}_interval"], digits, digits, factor)


def _held(one: dict[str, Any]) -> str:
    return with_interval(one["share"], one["interval"], 1, 1, 100)


def _settled(one: dict[str, Any]) -> str:
    if not one["n_settled"]:
        return "none settled"
    return f"{_percent(one, 'settled_changed', 2)} of {one['n_settled']}"


def _delay(late: float) -> str:
    return "never" if late >= NEVER else number(late, 1)
