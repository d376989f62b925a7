"""What is shown of one stack, as plain data, and the words and colours it is shown in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy.typing as npt

STRATUM_WORDS = ("epidermis", "DEJ", "dermis")
BOUNDARY_WORDS = ("epidermis-DEJ", "DEJ-dermis")
# Okabe and Ito's orange, reddish purple and blue: apart for every colour vision, and in lightness too.
STRATUM_COLOURS = ("#E69F00", "#CC79A7", "#0072B2")


@dataclass(frozen=True)
class BoundaryView:
    """One boundary: `um` where its status is inside; an interval of 0 to 0 is none."""

    status: Literal["not_reached", "inside", "above_start"]
    um: float = 0.0
    low_um: float = 0.0
    high_um: float = 0.0

    @property
    def has_interval(self) -> bool:
        """Whether an interval was stated."""
        return self.status == "inside" and self.high_um > self.low_um


@dataclass(frozen=True)
class StackView:
    """One stack in depth order, n slices.

    Attributes
    ----------
    z_um
        [n], depth of each slice, um.
    labels
        [n], 0 epidermis, 1 DEJ, 2 dermis.
    probabilities
        [n, 3].
    boundaries
        Epidermis-DEJ and DEJ-dermis.
    truth_um
        True depths of both, where they are known.
    index, flags
        Number of each slice and its flags (words joined by commas), or empty.
    interval
        Share of cases in which a boundary lies within its interval.
    is_calibrated
        Whether that share was found on calibration stacks.
    notice
        Which bundle labelled it, and what is to be known of that.
    """

    stack_id: str
    z_um: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    probabilities: npt.NDArray[Any]
    boundaries: tuple[BoundaryView, BoundaryView]
    truth_um: tuple[float, float] | None = None
    index: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()
    interval: float = 0.9
    is_calibrated: bool = True
    notice: str = ""

    @property
    def n_slices(self) -> int:
        """How many slices are shown."""
        return len(self.z_um)

    @property
    def interval_words(self) -> str:
        """What share an interval holds, and whether anybody found that out."""
        return f"{self.interval:.0%}".replace("%", " %") + ("" if self.is_calibrated else ", not calibrated")


def boundary_sentence(view: StackView, which: int) -> str:
    """Say where one boundary (0 or 1) lies, in words."""
    boundary = view.boundaries[which]
    words = {
        "not_reached": "not reached",
        "above_start": "above the first slice",
        "inside": f"{boundary.um:.1f} um",
    }[boundary.status]
    if boundary.has_interval:
        words += f" ({view.interval_words}: {boundary.low_um:.1f} to {boundary.high_um:.1f})"
    if view.truth_um is not None:
        words += f", truth {view.truth_um[which]:.1f} um"
    return f"{BOUNDARY_WORDS[which]} {words}"
