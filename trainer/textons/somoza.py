"""Textons of Somoza et al.: responses of the full Leung-Malik bank, k-means, hard assignment.

As Bozkurt et al. 2021 describe it. Ours, since that description leaves them open: the number of textons (that
of Kaur et al., who "leveraged the same texton extraction"), the pitch, and what Varma and Zisserman do before
clustering (A statistical approach to texture classification from single images, IJCV 62, 2005): images at
mean 0 and standard deviation 1, and Weber's law on the responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from sklearn.cluster import KMeans

from trainer.textons.leung_malik import SUPPORT, leung_malik_bank
from trainer.textons.patches import to_pitch

if TYPE_CHECKING:
    from collections.abc import Iterable

N_TEXTONS = 50
PITCH_UM = 1.0
"""The bank's 49 pixels are then 49 um, its scales 1.4 to 12 um: from a cell's border to a papilla's rim. At
2 um a third of the pixels would lie too near the image's border, and on 1,000 phantom slices of patients not
trained on it was right 4 points less often."""
N_SAMPLES = 100_000
WEBER = 0.03
_BLOCK = 4096


@dataclass(frozen=True)
class SomozaTextons:
    """A dictionary of filter responses.

    Attributes
    ----------
    centres
        float32 [n_textons, 48], contrast-normalised responses.
    pitch_um
        Pitch worked at, float64 scalar.
    """

    centres: np.ndarray
    pitch_um: np.ndarray

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Share of each texton in a uint8 image at 0.5 um, float32 [n_textons]."""
        assigned = self.assign(image)
        counts = np.bincount(assigned, minlength=len(self.centres))
        return (counts / len(assigned)).astype(np.float32)

    def assign(self, image: np.ndarray) -> np.ndarray:
        """Nearest texton of every pixel that the whole bank fits around, row by row, int64."""
        responses = filter_responses(to_pitch(image, float(self.pitch_um), SUPPORT))
        offset = (self.centres**2).sum(axis=1)
        found = [
            (weber(responses[:, at : at + _BLOCK]).T @ (2 * self.centres.T) - offset).argmax(axis=1)
            for at in range(0, responses.shape[1], _BLOCK)
        ]
        return np.concatenate(found)


def learn_somoza(images: Iterable[np.ndarray], n_images: int, seed: int) -> SomozaTextons:
    """Learn the dictionary from responses at random pixels.

    Parameters
    ----------
    images
        uint8 [rows, columns] at 0.5 um, gone through once.
    n_images
        How many there are: each gives its share of the 100,000 pixels.
    seed
        Seed of the pixels and of the clusters' beginnings.
    """
    rng = np.random.default_rng(seed)
    n_each = max(1, N_SAMPLES // n_images)
    samples = []
    for image in images:
        responses = filter_responses(to_pitch(image, PITCH_UM, SUPPORT))
        samples.append(weber(responses[:, rng.integers(responses.shape[1], size=n_each)]).T)
    clusters = KMeans(N_TEXTONS, random_state=seed)
    clusters.fit(np.concatenate(samples))
    return SomozaTextons(clusters.cluster_centers_.astype(np.float32), np.array(PITCH_UM))


def filter_responses(image: np.ndarray) -> np.ndarray:
    """Filter an image, brought to mean 0 and standard deviation 1, with the whole bank.

    Parameters
    ----------
    image
        float32 [rows, columns], at least 49 of each.

    Returns
    -------
    np.ndarray
        float32 [48, (rows - 48) * (columns - 48)]: the responses wherever all of a filter lies inside.
    """
    rows, columns = image.shape
    standard = (image - image.mean()) / max(float(image.std()), 1.0)
    # The product of spectra filters the image as if it went on periodically: only what is cut off sees that.
    spectrum = np.fft.rfft2(standard)
    inside = np.empty(
        (len(_bank_spectra(rows, columns)), rows - SUPPORT + 1, columns - SUPPORT + 1), np.float32
    )
    for response, filter_spectrum in zip(inside, _bank_spectra(rows, columns), strict=True):
        response[:] = np.fft.irfft2(spectrum * filter_spectrum, s=(rows, columns))[
            : rows - SUPPORT + 1, : columns - SUPPORT + 1
        ]
    return inside.reshape(len(inside), -1)


def weber(responses: np.ndarray) -> np.ndarray:
    """Contrast-normalise: r' = r log(1 + |r| / 0.03) / |r|, |r| over all filters (Weber's law).

    Parameters
    ----------
    responses
        float32 [48, n].
    """
    size = np.sqrt(np.einsum("fn,fn->n", responses, responses))
    return np.asarray(responses * (np.log1p(size / WEBER) / np.maximum(size, 1e-9)).astype(np.float32))


@lru_cache(maxsize=2)
def _bank_spectra(rows: int, columns: int) -> np.ndarray:
    # Conjugated: a correlation, so that response [0, 0] is the filter laid on the image's corner.
    bank = leung_malik_bank().astype(np.float32)
    return np.conj(np.fft.rfft2(bank, s=(rows, columns)))
