"""What is plainly wrong with a slice's picture, and whether it is like the pictures a bundle was made for.

All of it is read off the picture itself. The CNN's embedding cannot tell: trained to name three strata, it
puts noise, photographs and writing in the middle of what it knows (decision 8).
"""

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
DARK_GREY = 16
SATURATED_GREY = 250
SATURATED_SHARE = 0.25
BLURRED_AUTOCORRELATION = 0.97
"""Neighbouring pixels of real frames correlate by 0.72 to 0.85; after a Gaussian blur of 2 pixels by 0.99."""
REPEATED_DISTANCE = 2e-4
"""Relative distance of two embeddings. Of 15,000 neighbours in phantom stacks the nearest were 4.8e-4 apart;
the same picture again is 0 apart."""
ROWS_APART = 16


class PictureStatistics(NamedTuple):
    """What is measured of a picture; grey levels 0..255, correlations -1..1."""

    mean_grey: float
    sd_grey: float
    percentile_1: float
    percentile_99: float
    skewness: float
    autocorrelation_1px: float
    autocorrelation_4px: float
    autocorrelation_16px: float
    autocorrelation_1px_down: float


Range = Annotated[tuple[float, float], Field(description="lowest, highest")]


class PictureDomain(BaseModel):
    """Range of each of `PictureStatistics` within which a picture is like those a bundle was made for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    mean_grey: Range
    sd_grey: Range
    percentile_1: Range
    percentile_99: Range
    skewness: Range
    autocorrelation_1px: Range
    autocorrelation_4px: Range
    autocorrelation_16px: Range
    autocorrelation_1px_down: Range

    def holds(self, statistics: PictureStatistics) -> bool:
        """Whether every statistic lies in its range."""
        ranges = (getattr(self, name) for name in statistics._fields)
        return all(low <= value <= high for value, (low, high) in zip(statistics, ranges, strict=True))


def picture_statistics(image: NDArray[np.uint8]) -> tuple[PictureStatistics, NDArray[np.int64]]:
    """Measure a picture [rows, columns], and return its histogram [256] over every fourth pixel too.

    Autocorrelations are taken along every sixteenth row, and from it to the row below; of a picture without
    contrast they are 1.
    """
    counts = np.bincount(image[::4, ::4].ravel(), minlength=256)
    grey = np.arange(256.0)
    total = counts.sum()
    mean = float(grey @ counts) / total
    variance = float((grey - mean) ** 2 @ counts) / total
    sd = max(variance, 1e-12) ** 0.5
    low, high = np.searchsorted(np.cumsum(counts), (0.01 * total, 0.99 * total)).tolist()
    rows = image[::ROWS_APART].astype(np.float32) - np.float32(mean)
    square = float(np.vdot(rows, rows)) / rows.size

    def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return float((one * other).mean()) / square if square > 0.25 and one.size else 1.0

    along = [correlation(rows[:, lag:], rows[:, :-lag]) for lag in (1, 4, 16)]
    below = image[1::ROWS_APART].astype(np.float32) - np.float32(mean)
    down = correlation(rows[: len(below)], below)
    skewness = float((grey - mean) ** 3 @ counts) / total / sd**3
    return PictureStatistics(mean, sd, low, high, skewness, along[0], along[1], along[2], down), counts


def quality_flags(image: NDArray[np.uint8], domain: PictureDomain | None = None) -> tuple[str, ...]:
    """Return the flags a slice [rows, columns] earns by its picture.

    `dark`: 99 % of it is darker than grey 16 (real frames reach 173 and more), and no more is said of it.
    `saturated`: more than a quarter is at 250 or above (real frames have 2.3 % at most). `blurred`:
    neighbouring pixels are almost alike, along rows or across them, as motion or a lost focus leaves them.
    `out_of_domain`: not so, and yet unlike the pictures of `domain`.
    """
    statistics, counts = picture_statistics(image)
    total = counts.sum()
    if counts[DARK_GREY:].sum() < 0.01 * total:
        return (DARK,)
    if counts[SATURATED_GREY:].sum() > SATURATED_SHARE * total:
        return (SATURATED,)
    alike = max(statistics.autocorrelation_1px, statistics.autocorrelation_1px_down)
    flags = (BLURRED,) if alike > BLURRED_AUTOCORRELATION else ()
    strange = domain is not None and not domain.holds(statistics)
    return (*flags, OUT_OF_DOMAIN) if strange else flags


def weight_of(flags: Sequence[str]) -> float:
    """Return the trust (0..1) in a slice with these flags."""
    return min((WEIGHTS[flag] for flag in flags if flag in WEIGHTS), default=1.0)


def repeats(embeddings: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which slices of a stack (embeddings [n, e], by depth) show the very picture of the one above; [n].

    A frame grabber that has stopped delivers the same picture for every depth. Neighbours that are merely
    alike are not meant: a stage that stands still cannot be told from tissue that hardly changes.
    """
    same = np.zeros(len(embeddings), np.bool_)
    if len(embeddings) > 1:
        distance = np.linalg.norm(np.diff(embeddings, axis=0), axis=1)
        same[1:] = distance < REPEATED_DISTANCE * np.linalg.norm(embeddings[1:], axis=1)
    return same
