"""Textons of Hames et al.: whitened 7 x 7 patches, spherical k-means, hard assignment.

S. C. Hames, M. Ardigo, H. P. Soyer, A. P. Bradley, T. W. Prow, Automated segmentation of skin strata in
reflectance confocal microscopy depth stacks, PLoS ONE 11 (2016) e0153208. The numbers are the defaults of the
author's public encoder (github.com/SamHames/simple-bag-of-features), which Bozkurt et al. ran too: our
`normalise_patches` is its `normalise_inplace`, our `whitening_matrix` its `Whiten`, our `n_textons` its
`n_words` with one level instead of a hierarchy. Ours are the number of textons and the pitch, see `PITCH_UM`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainer.textons.patches import dense_patches, random_patches, to_pitch
from trainer.textons.spherical_kmeans import spherical_kmeans
from trainer.textons.whitening import normalise_patches, whitening_matrix

if TYPE_CHECKING:
    from collections.abc import Iterable

SIDE = 7
N_TEXTONS = 256
PITCH_UM = 2.0
"""Images are reduced to it: 7 pixels (14 um) then hold one cell with its border, while at the instrument's
0.5 um they span a few spots of its lateral resolution (0.5-1 um). On 1,000 phantom slices of patients not
trained on, 2 um was right 5 points more often than 1 um."""
N_SAMPLES = 200_000


@dataclass(frozen=True)
class HamesTextons:
    """A dictionary of patches.

    Attributes
    ----------
    filters
        float32 [49, n_textons]: whitening and centre in one, W c. A patch belongs to the filter with the
        largest response.
    pitch_um
        Pitch worked at, float64 scalar.
    """

    filters: np.ndarray
    pitch_um: np.ndarray

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Share of each texton among all patches of a uint8 image at 0.5 um, float32 [n_textons]."""
        return _shares(self.assign(image), self.filters.shape[1])

    def assign(self, image: np.ndarray) -> np.ndarray:
        """Texton of every patch of a uint8 image at 0.5 um, row by row, int64.

        A patch is only centred here: dividing it by its length would scale all its responses alike, which
        cannot change the largest one.
        """
        reduced = to_pitch(image, float(self.pitch_um), SIDE)
        found = []
        for block in dense_patches(reduced, SIDE):
            block -= block.mean(axis=1, keepdims=True)
            found.append((block @ self.filters).argmax(axis=1))
        return np.concatenate(found)


def learn_hames(images: Iterable[np.ndarray], n_images: int, seed: int) -> HamesTextons:
    """Learn the dictionary from random patches.

    Parameters
    ----------
    images
        uint8 [rows, columns] at 0.5 um, gone through once.
    n_images
        How many there are: each gives its share of the 200,000 patches.
    seed
        Seed of the patches' places and of the clusters' beginnings.
    """
    rng = np.random.default_rng(seed)
    n_each = max(1, N_SAMPLES // n_images)
    patches = normalise_patches(
        np.concatenate(
            [random_patches(to_pitch(image, PITCH_UM, SIDE), SIDE, n_each, rng) for image in images]
        )
    )
    whiten = whitening_matrix(patches)
    centres = spherical_kmeans(patches @ whiten, N_TEXTONS, seed)
    return HamesTextons((whiten @ centres.T).astype(np.float32), np.array(PITCH_UM))


def _shares(assigned: np.ndarray, n_textons: int) -> np.ndarray:
    return (np.bincount(assigned, minlength=n_textons) / len(assigned)).astype(np.float32)
