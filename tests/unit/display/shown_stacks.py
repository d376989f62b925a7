"""Stacks to show."""

from __future__ import annotations

from typing import Any

import numpy as np

from rcm_daemon.display.stack_view import BoundaryView, StackView


def shown(labels: list[int], step_um: float = 3.0, start_um: float = 0.0, **other: Any) -> StackView:
    """Build a view whose probabilities are 0.8 for its labels; boundaries as the labels say unless given."""
    z_um = start_um + step_um * np.arange(len(labels))
    found = np.array(labels, int)

    def boundary(k: int) -> BoundaryView:
        below = found > k
        if not below.any():
            return BoundaryView("not_reached")
        first = int(np.argmax(below))
        return (
            BoundaryView("inside", float(z_um[first] - step_um / 2)) if first else BoundaryView("above_start")
        )

    fields: dict[str, Any] = {
        "stack_id": "left arm",
        "z_um": z_um,
        "labels": found,
        "probabilities": np.where(np.arange(3) == found[:, None], 0.8, 0.1).reshape(-1, 3),
        "boundaries": (boundary(0), boundary(1)),
    }
    return StackView(**(fields | other))


def thumbnails(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (20, 20)).astype(np.uint8) for _ in range(n)]
