"""Textons of Kaur et al.: Leung-Malik filters on 5 x 5 pixels, k-means, soft assignment to the nearest 8.

P. Kaur, K. J. Dana, G. O. Cula, C. Mack, Hybrid deep learning for reflectance confocal microscopy skin
images, as Bozkurt et al. 2021 describe it: 50 textons, and each pixel shared among its 8 nearest ones in
inverse proportion to distance. Ours, since that description leaves them open: the LM Small scales (the finest
published), images at mean 0 and standard deviation 1 (as Varma and Zisserman have them), and the pitch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.cluster import KMeans

from trainer.textons.leung_malik import SMALL_SIGMAS_PX, leung_malik_bank
from trainer.textons.patches import dense_patches, random_patches, to_pitch

if TYPE_CHECKING:
    from collections.abc import Iterable

SIDE = 5
N_TEXTONS = 50
N_NEAREST = 8
PITCH_UM = 2.0
"""Chosen as for Hames et al., see `hames.PITCH_UM`; here too 2 um was right 5 points more often."""
N_SAMPLES = 100_000
DISTANCE_FLOOR = 1e-3
"""Least distance counted, in standard deviations of the image: a pixel on a texton is that texton's alone."""


@dataclass(frozen=True)
class KaurTextons:
    """A dictionary of filter responses, on the few axes that 48 filters of 25 pixels can span.

    Attributes
    ----------
    filters
        float32 [25, d]: the bank, turned so that distances between responses stay what they are with all 48.
    centres
        float32 [50, d], the textons on the same axes.
    pitch_um
        Pitch worked at, float64 scalar.
    """

    filters: np.ndarray
    centres: np.ndarray
    pitch_um: np.ndarray

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Share of each texton in a uint8 image at 0.5 um, float32 [50]; the shares sum to one."""
        standard = _standardise(to_pitch(image, float(self.pitch_um), SIDE))
        histogram = np.zeros(len(self.centres))
        n_patches = 0
        for block in dense_patches(standard, SIDE):
            histogram += nearest_weights(block @ self.filters, self.centres).sum(axis=0, dtype=np.float64)
            n_patches += len(block)
        return (histogram / n_patches).astype(np.float32)


def nearest_weights(responses: np.ndarray, centres: np.ndarray, n_nearest: int = N_NEAREST) -> np.ndarray:
    """Share each row among its nearest centres, w_i = (1 / d_i) / sum_j (1 / d_j), and 0 for all others.

    Parameters
    ----------
    responses
        float32 [n, d].
    centres
        float32 [k, d], k at least `n_nearest`.
    n_nearest
        Number of centres that get a share; more where the last one's distance comes twice.

    Returns
    -------
    np.ndarray
        float32 [n, k], rows summing to one.
    """
    square = responses @ (-2 * centres.T)
    square += (responses**2).sum(axis=1, keepdims=True)
    square += (centres**2).sum(axis=1)
    np.maximum(square, np.float32(DISTANCE_FLOOR**2), out=square)
    farthest = np.partition(square, n_nearest - 1, axis=1)[:, n_nearest - 1 : n_nearest]
    weights = (square <= farthest) / np.sqrt(square)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(weights)


def learn_kaur(images: Iterable[np.ndarray], n_images: int, seed: int) -> KaurTextons:
    """Learn the dictionary from filter responses at random places.

    Parameters
    ----------
    images
        uint8 [rows, columns] at 0.5 um, gone through once.
    n_images
        How many there are: each gives its share of the 100,000 places.
    seed
        Seed of the places and of the clusters' beginnings.
    """
    rng = np.random.default_rng(seed)
    n_each = max(1, N_SAMPLES // n_images)
    filters = response_axes()
    responses = np.concatenate(
        [
            random_patches(_standardise(to_pitch(image, PITCH_UM, SIDE)), SIDE, n_each, rng) @ filters
            for image in images
        ]
    )
    clusters = KMeans(N_TEXTONS, random_state=seed).fit(responses)
    return KaurTextons(filters, clusters.cluster_centers_.astype(np.float32), np.array(PITCH_UM))


def response_axes() -> np.ndarray:
    """Give the bank on an orthonormal basis of what its responses can span, float32 [25, d], d below 25.

    Responses are p @ F with F [25, 48] = U S V'; |p F - q F| = |(p - q) U S|, so U S serves as well.
    """
    bank = leung_malik_bank(SIDE, SMALL_SIGMAS_PX).reshape(-1, SIDE * SIDE).T
    directions, sizes, _ = np.linalg.svd(bank, full_matrices=False)
    kept = sizes > 1e-6 * sizes[0]
    return np.asarray(directions[:, kept] * sizes[kept], np.float32)


def _standardise(image: np.ndarray) -> np.ndarray:
    # A blank image stays at 0 everywhere.
    return np.asarray((image - image.mean()) / max(float(image.std()), 1.0))
