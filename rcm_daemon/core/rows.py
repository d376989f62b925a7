"""A stack's result as rows of a table, one a slice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rcm_daemon.core.message import StrataMessage

CSV_HEADER = (
    "stack_id",
    "index",
    "z_um",
    "label",
    "probability_epidermis",
    "probability_dej",
    "probability_dermis",
    "flags",
)


def csv_rows(message: StrataMessage) -> list[list[object]]:
    """Return the slices in depth order, columns as in CSV_HEADER."""
    columns = (message.index, message.z_um, message.label, message.probability, message.flags)
    return [
        [message.stack_id, index, z_um, label, *probability, flags]
        for index, z_um, label, probability, flags in zip(*columns, strict=True)
    ]
