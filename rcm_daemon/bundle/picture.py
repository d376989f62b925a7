"""What is plainly wrong with a slice's picture, and whether it is like the pictures a bundle was made for.

All of it is read off the picture itself. The CNN's embedding cannot tell: trained to name three strata, it
puts noise, photographs and writing in the middle of what it knows (decision 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from rcm_daemon.core.quality import BLURRED, DARK, OUT_OF_DOMAIN, SATURATED, PictureStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rcm_daemon.core.quality import PictureDomain

DARK_GREY = 16
SATURATED_GREY = 250
SATURATED_SHARE = 0.25
BLURRED_AUTOCORRELATION = 0.98
"""At 1 um. Phantom frames have 0.68 to 0.95, recorded at 1 um up to 0.98; after a Gaussian blur of 2 um, or
motion over 10 um, 0.98 to 1."""
BAND, BANDS_APART = 4, 16
"""Rows of a picture that are looked at, and from the first of one band to the first of the next."""
REDUCED = 2
"""Statistics are taken of the bands reduced so many times, to 1 um a pixel: a frame recorded at 1 um and
brought to the bundle's 0.5 um is no foreign one."""
GREY = np.arange(256.0)


def picture_statistics(image: NDArray[np.uint8]) -> PictureStatistics:
    """Measure a picture [rows, columns] at 0.5 um.

    Four rows of every sixteen are looked at, reduced to two. Autocorrelations are taken along the upper one,
    and from it to the lower one; of a picture without contrast they are 1.
    """
    bands = _bands(image)
    n_bands = len(bands) // BAND
    size = (max(1, image.shape[1] // REDUCED), n_bands * (BAND // REDUCED))
    reduced = np.asarray(cv2.resize(bands, size, interpolation=cv2.INTER_AREA), np.uint8)
    counts = _histogram(reduced)
    total = counts.sum()
    mean = float(GREY @ counts) / total
    sd = max(float((GREY - mean) ** 2 @ counts) / total, 1e-12) ** 0.5
    low, high = np.searchsorted(np.cumsum(counts), (0.01 * total, 0.99 * total)).tolist()
    grey = reduced.astype(np.float32) - np.float32(mean)
    rows, below = grey[:: BAND // REDUCED], grey[1 :: BAND // REDUCED]
    square = _mean_product(rows, rows)

    def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return _mean_product(one, other) / square if square > 0.25 and one.size else 1.0

    along = [correlation(rows[:, lag:], rows[:, :-lag]) for lag in (1, 4, 16)]
    down = correlation(rows, below)
    skewness = float((GREY - mean) ** 3 @ counts) / total / sd**3
    return PictureStatistics(mean, sd, low, high, skewness, along[0], along[1], along[2], down)


def _bands(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Four rows of every sixteen, one band under the other; of a lower picture its last row again."""
    n_bands = max(1, len(image) // BANDS_APART)
    rows = np.arange(n_bands)[:, None] * BANDS_APART + np.arange(BAND)
    taken: NDArray[np.uint8] = np.take(image, np.minimum(rows, len(image) - 1).ravel(), axis=0)
    return taken


def _mean_product(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean of the products of two pictures' pixels, summed row by row."""
    return float(np.add.reduce(np.einsum("rc,rc->r", one, other))) / max(1, one.size)


def _histogram(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Count the pixels [rows, columns] of each grey level, [256]."""
    counts = cv2.calcHist([picture], [0], None, [256], [0.0, 256.0])
    return np.asarray(counts, np.float64).ravel()


def quality_flags(image: NDArray[np.uint8], domain: PictureDomain | None = None) -> tuple[str, ...]:
    """Return the flags a slice [rows, columns] at 0.5 um earns by its picture.

    `dark`: 99 % of it is darker than grey 16 (real frames reach 173 and more). `saturated`: more than a
    quarter is at 250 or above (real frames have 2.3 % at most). With either, no more is said of it.
    `blurred`: places 1 um apart are almost alike, along rows or across them, as motion or a lost focus leaves
    them.
    `out_of_domain`: unlike the pictures of `domain`.
    """
    sample = image[::BANDS_APART]
    if np.count_nonzero(sample >= DARK_GREY) < 0.01 * sample.size:
        return (DARK,)
    if np.count_nonzero(sample >= SATURATED_GREY) > SATURATED_SHARE * sample.size:
        return (SATURATED,)
    statistics = picture_statistics(image)
    alike = max(statistics.autocorrelation_1um, statistics.autocorrelation_1um_down)
    flags = (BLURRED,) if alike > BLURRED_AUTOCORRELATION else ()
    strange = domain is not None and not domain.holds(statistics)
    return (*flags, OUT_OF_DOMAIN) if strange else flags
