"""What can be wrong with a slice's picture, and how far a slice is then trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DARK, SATURATED, BLURRED = "dark", "saturated", "blurred"
OUT_OF_DOMAIN, REPEATED = "out_of_domain", "repeated"
WEIGHTS = {DARK: 0.0, SATURATED: 0.3, BLURRED: 0.3, OUT_OF_DOMAIN: 0.1, REPEATED: 0.0}
"""Trust in a slice with this flag; in others it is 1."""
REPEATED_DISTANCE = 2e-4
"""Relative distance of two embeddings. Of 15,000 neighbours in phantom stacks the nearest were 4.8e-4 apart;
the same picture again is 0 apart."""


class PictureStatistics(NamedTuple):
    """What is measured of a picture; grey levels 0..255, correlations -1..1."""

    mean_grey: float
    sd_grey: float
    percentile_1: float
    percentile_99: float
    skewness: float
    autocorrelation_1um: float
    autocorrelation_4um: float
    autocorrelation_16um: float
    autocorrelation_1um_down: float


Range = Annotated[tuple[float, float], Field(description="lowest, highest")]


class PictureDomain(BaseModel):
    """Range of each of `PictureStatistics` within which a picture is like those a bundle was made for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    mean_grey: Range
    sd_grey: Range
    percentile_1: Range
    percentile_99: Range
    skewness: Range
    autocorrelation_1um: Range
    autocorrelation_4um: Range
    autocorrelation_16um: Range
    autocorrelation_1um_down: Range

    def holds(self, statistics: PictureStatistics) -> bool:
        """Whether every statistic lies in its range."""
        ranges = (getattr(self, name) for name in statistics._fields)
        return all(low <= value <= high for value, (low, high) in zip(statistics, ranges, strict=True))


def weight_of(flags: Sequence[str]) -> float:
    """Return the trust (0..1) in a slice with these flags."""
    return min((WEIGHTS[flag] for flag in flags if flag in WEIGHTS), default=1.0)


def weights_in_stack(own: NDArray[np.float32], repeated: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the trust in the slices of a stack [n]: their own, and that in repeated ones."""
    return np.where(repeated, np.minimum(own, np.float32(WEIGHTS[REPEATED])), own)


def repeats(embeddings: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which slices of a stack (embeddings [n, e], by depth) show the very picture of the one above; [n].

    A frame grabber that has stopped delivers the same picture for every depth. Neighbours that are merely
    alike are not meant: a stage that stands still cannot be told from tissue that hardly changes.
    """
    same = np.zeros(len(embeddings), np.bool_)
    if len(embeddings) > 1:
        steps = embeddings[1:] - embeddings[:-1]
        distance, size = (np.einsum("ne,ne->n", rows, rows) for rows in (steps, embeddings[1:]))
        same[1:] = distance < REPEATED_DISTANCE**2 * size  # both squared
    return same
