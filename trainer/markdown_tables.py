"""What reports share: the strata's and boundaries' names, and a table in Markdown."""

from __future__ import annotations

STRATUM_NAMES = {"epidermis": "epidermis", "dej": "DEJ", "dermis": "dermis"}
BOUNDARY_NAMES = {"epidermis_dej": "epidermis-DEJ", "dej_dermis": "DEJ-dermis"}


def table(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    """Write a table with its heading as lines of Markdown."""
    lines = ["", f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
