"""A live evaluation as Markdown."""

from __future__ import annotations

from typing import Any

from rcm_daemon.core.records import BOUNDARIES
from trainer.markdown_tables import BOUNDARY_NAMES, table

GONE = (0, 1, 2, 5, 10, 20)
"""Percentages of announced boundaries that may be taken back or move."""
NEVER = 1e9
"""The delay of what is never announced."""
ABOUT = (
    "Every stack replayed slice by slice. A boundary is announced for good at the slice from which on it "
    "stays found; the delay counts from the first slice below it by the readers. Taken back or moved: "
    "announced, and later not found or more than 6 um from where it was first said to be. Off by, when "
    "announced: from the readers' depth to where it was first said to be, and to the farther end of the "
    "stack where it never was. Each method announces at several working points: found from a lower or higher "
    "probability, with what was said held as in the bundle or for good; one read as the paper does once it "
    "is found at 1 to 8 slices running. Under advice, the "
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
    head = ["method", "boundary", "median delay, slices", "um", "never", "taken back or moved %"]
    head.append("off by, when announced, um")
    rows = []
    for name, one in live.items():
        for boundary in BOUNDARIES:
            point = next(iter(one["announcing"][boundary].values()))
            low, high = point["median_delay_slices_interval"]
            delay = f"{_delay(point['median_delay_slices'])} [{_delay(low)}, {_delay(high)}]"
            never = f"{point['n_never']} of {point['n']}"
            gone = _percent(point, "share_withdrawn_or_moved")
            late_um, off_um = _delay(point["median_delay_um"]), _off_um(point)
            rows.append([name, BOUNDARY_NAMES[boundary], delay, late_um, never, gone, off_um])
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
    head = ["method", "boundary", *(f"at most {gone} %" for gone in GONE)]
    rows = []
    for name, one in live.items():
        for boundary in BOUNDARIES:
            points = list(one["announcing"][boundary].values())
            row = [name, BOUNDARY_NAMES[boundary]]
            for gone in GONE:
                within = [p for p in points if 100 * p["share_withdrawn_or_moved"] <= gone + 1e-9]
                best = min(within, key=_earliest_and_nearest, default=None)
                row.append(f"{_delay(best['median_delay_slices'])} ({_off_um(best)} um)" if best else "none")
            rows.append(row)
    title = "Median delay in slices, by how many may be taken back or moved (and off by, when announced)"
    return table(title, head, rows)


def _earliest_and_nearest(point: dict[str, Any]) -> tuple[float, float]:
    return point["median_delay_slices"], point["announced_mae_um"]


def _off_um(point: dict[str, Any]) -> str:
    return f"{point['announced_mae_um']:.1f}"


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
            low, high = one["interval"]
            row += [
                f"{100 * one['share']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                f"{one['median_width_um']:.1f}",
            ]
        rows.append(row)
    return table(f"Coverage of 90 % intervals: {name}", head, rows)


def _mosaics(name: str, mosaics: dict[str, Any]) -> list[str]:
    head = ["mosaic", "intervals that hold %", "median width um"]
    rows = [
        [
            cut.replace("_", " ").replace("dej", "DEJ"),
            f"{100 * one['share']:.1f} [{100 * one['interval'][0]:.1f}, {100 * one['interval'][1]:.1f}]",
            f"{one['median_width_um']:.1f}",
        ]
        for cut, one in mosaics.items()
    ]
    return table(f"Mosaics planned: {name}", head, rows)


def _advice(name: str, advice: dict[str, Any]) -> list[str]:
    head = ["", "share of the slices used (median)", *(f"MAE {BOUNDARY_NAMES[b]} um" for b in BOUNDARIES)]
    rows = [
        [which, share, *(f"{advice[f'{which}_{boundary}_um']:.2f}" for boundary in BOUNDARIES)]
        for which, share in (("sweep", "1"), ("advised", f"{advice['share_used']:.2f}"))
    ]
    return table(f"Under advice: {name}", head, rows)


def _percent(one: dict[str, Any], key: str, digits: int = 1) -> str:
    low, high = one[f"{key}_interval"]
    return f"{100 * one[key]:.{digits}f} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def _settled(one: dict[str, Any]) -> str:
    if not one["n_settled"]:
        return "none settled"
    return f"{_percent(one, 'settled_changed', 2)} of {one['n_settled']}"


def _delay(late: float) -> str:
    return "never" if late >= NEVER else f"{late:.1f}"
