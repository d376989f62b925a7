"""What is plainly wrong with a slice's picture, and whether it is like the pictures a bundle was made for.

All of it is read off the picture itself. The CNN's embedding cannot tell: trained to name three strata, it
puts noise, photographs and writing in the middle of what it knows (decision 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import cv2
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
BLURRED_AUTOCORRELATION = 0.98
"""At 1 um. Phantom frames have 0.68 to 0.95, recorded at 1 um up to 0.98; after a Gaussian blur of 2 um, or
motion over 10 um, 0.98 to 1."""
REPEATED_DISTANCE = 2e-4
"""Relative distance of two embeddings. Of 15,000 neighbours in phantom stacks the nearest were 4.8e-4 apart;
the same picture again is 0 apart."""
REDUCED = 2
"""Statistics are taken of the picture reduced so many times, to 1 um a pixel: a frame recorded at 1 um and
brought to the bundle's 0.5 um is no foreign one."""
ROWS_APART = 8


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


def picture_statistics(image: NDArray[np.uint8]) -> PictureStatistics:
    """Measure a picture [rows, columns] at 0.5 um.

    Autocorrelations are taken along every eighth row of the reduced picture, and from it to the row below; of
    a picture without contrast they are 1.
    """
    size = (max(1, image.shape[1] // REDUCED), max(1, image.shape[0] // REDUCED))
    reduced = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    counts = np.bincount(reduced[::2, ::2].ravel(), minlength=256)
    grey = np.arange(256.0)
    total = counts.sum()
    mean = float(grey @ counts) / total
    sd = max(float((grey - mean) ** 2 @ counts) / total, 1e-12) ** 0.5
    low, high = np.searchsorted(np.cumsum(counts), (0.01 * total, 0.99 * total)).tolist()
    rows = reduced[::ROWS_APART].astype(np.float32) - np.float32(mean)
    square = float((rows * rows).mean())

    def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return float((one * other).mean()) / square if square > 0.25 and one.size else 1.0

    along = [correlation(rows[:, lag:], rows[:, :-lag]) for lag in (1, 4, 16)]
    below = reduced[1::ROWS_APART].astype(np.float32) - np.float32(mean)
    down = correlation(rows[: len(below)], below)
    skewness = float((grey - mean) ** 3 @ counts) / total / sd**3
    return PictureStatistics(mean, sd, low, high, skewness, along[0], along[1], along[2], down)


def quality_flags(image: NDArray[np.uint8], domain: PictureDomain | None = None) -> tuple[str, ...]:
    """Return the flags a slice [rows, columns] at 0.5 um earns by its picture.

    `dark`: 99 % of it is darker than grey 16 (real frames reach 173 and more). `saturated`: more than a
    quarter is at 250 or above (real frames have 2.3 % at most). With either, no more is said of it.
    `blurred`: places 1 um apart are almost alike, along rows or across them, as motion or a lost focus leaves
    them.
    `out_of_domain`: unlike the pictures of `domain`.
    """
    counts = np.bincount(image[::4, ::4].ravel(), minlength=256)
    total = counts.sum()
    if counts[DARK_GREY:].sum() < 0.01 * total:
        return (DARK,)
    if counts[SATURATED_GREY:].sum() > SATURATED_SHARE * total:
        return (SATURATED,)
    statistics = picture_statistics(image)
    alike = max(statistics.autocorrelation_1um, statistics.autocorrelation_1um_down)
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
