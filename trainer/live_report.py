"""A live evaluation as Markdown."""

from __future__ import annotations

from typing import Any

from rcm_daemon.core.records import BOUNDARIES
from trainer.markdown_tables import BOUNDARY_NAMES, table

NEVER = 1e9
"""The delay of what is never announced."""
ABOUT = (
    "Every stack replayed slice by slice. A boundary is announced for good at the slice from which on it "
    "stays found; the delay counts from the first slice below it by the readers. Taken back or moved: "
    "announced, and later not found or more than 6 um from where it was first said to be. Under advice, the "
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
    rows = []
    for name, one in live.items():
        for boundary in BOUNDARIES:
            point = next(iter(one["announcing"][boundary].values()))
            low, high = point["median_delay_slices_interval"]
            delay = f"{_delay(point['median_delay_slices'])} [{_delay(low)}, {_delay(high)}]"
            never = f"{point['n_never']} of {point['n']}"
            gone = _percent(point, "share_withdrawn_or_moved")
            rows.append(
                [name, BOUNDARY_NAMES[boundary], delay, _delay(point["median_delay_um"]), never, gone]
            )
    lines += table("Announcing", head, rows)
    for name, one in live.items():
        if "coverage" in one:
            lines += _coverage(name, one["coverage"])
            lines += _mosaics(name, one["mosaics"])
            lines += _advice(name, one["advice"])
    return lines


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
