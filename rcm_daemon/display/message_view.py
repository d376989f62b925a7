"""Messages turned into what `display` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.records import BOUNDARIES, STRATA
from rcm_daemon.display.stack_view import BoundaryView, StackView

if TYPE_CHECKING:
    from rcm_daemon.core.message import StrataMessage


def view_of(message: StrataMessage, truth_um: tuple[float, float] | None = None) -> StackView:
    """Show a message, with the true boundaries where they are known."""
    return view_of_fields(message.model_dump(by_alias=True), truth_um)


def view_of_fields(fields: dict[str, Any], truth_um: tuple[float, float] | None = None) -> StackView:
    """Show a message as read from the wire (`rcm-strata-1`)."""
    first, second = (
        BoundaryView(*(fields[f"{name}_{key}"] for key in ("status", "um", "low_um", "high_um")))
        for name in BOUNDARIES
    )
    return StackView(
        stack_id=fields["stack_id"],
        z_um=np.array(fields["z_um"], float),
        labels=np.array([STRATA.index(label) for label in fields["label"]], int),
        probabilities=np.array(fields["probability"], float).reshape(-1, 3),
        boundaries=(first, second),
        truth_um=truth_um,
        index=tuple(fields["index"]),
        flags=tuple(fields["flags"]),
        interval=fields["interval"],
    )
