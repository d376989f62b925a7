"""What reports share: the strata's and boundaries' names, and a table in Markdown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING = "none"
"""Stands where there was nothing to measure."""
STRATUM_NAMES = {"epidermis": "epidermis", "dej": "DEJ", "dermis": "dermis"}
BOUNDARY_NAMES = {"epidermis_dej": "epidermis-DEJ", "dej_dermis": "DEJ-dermis"}


def table(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    """Write a table with its heading as lines of Markdown."""
    lines = ["", f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def number(value: float, digits: int) -> str:
    """Write a number; NaN, of nothing, is `none`."""
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def with_interval(
    value: float, interval: Sequence[float], digits: int, interval_digits: int, factor: float = 1
) -> str:
    """Write a number and the interval it lies in, both times `factor`; NaN, of nothing, is `none`."""
    if math.isnan(value):
        return NOTHING
    low, high = (f"{factor * end:.{interval_digits}f}" for end in interval)
    return f"{factor * value:.{digits}f} [{low}, {high}]"
