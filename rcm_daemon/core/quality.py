"""What is plainly wrong with a slice's picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DARK = "dark"
"""Flag of a slice without a picture: whatever the network makes of it is no evidence."""
DARK_GREY = 16
SATURATED = "saturated"
WEIGHTS = {DARK: 0.0, SATURATED: 0.3}
"""Trust in a slice with this flag; in others it is 1."""
SATURATED_GREY = 250
SATURATED_SHARE = 0.25


def quality_flags(image: NDArray[np.uint8]) -> tuple[str, ...]:
    """Return the flags a slice [rows, columns] earns by its grey levels, read on every fourth pixel.

    `dark`: 99 % of it is darker than grey 16 (real frames reach 173 and more). `saturated`: more than a
    quarter is at 250 or above (real frames have 2.3 % at most).
    """
    sample = np.ascontiguousarray(image[::4, ::4])
    flags = []
    if np.count_nonzero(sample >= DARK_GREY) < 0.01 * sample.size:
        flags.append(DARK)
    if np.count_nonzero(sample >= SATURATED_GREY) > SATURATED_SHARE * sample.size:
        flags.append(SATURATED)
    return tuple(flags)


def weight_of(flags: tuple[str, ...]) -> float:
    """Return the trust (0..1) in a slice with these flags."""
    return min((WEIGHTS[flag] for flag in flags if flag in WEIGHTS), default=1.0)
