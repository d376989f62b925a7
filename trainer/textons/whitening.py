"""Normalised patches and their ZCA whitening (Coates and Ng 2012, as in Hames et al.'s public encoder)."""

from __future__ import annotations

import numpy as np

CONTRAST_FLOOR = 1.0
KEPT_ENERGY = 0.95
VARIANCE_FLOOR = 0.1


def normalise_patches(patches: np.ndarray, contrast_floor: float = CONTRAST_FLOOR) -> np.ndarray:
    """Take each patch's mean away and divide by its length: p' = (p - mean(p)) / (|p - mean(p)| + floor).

    Parameters
    ----------
    patches
        float [n, d], grey levels 0..255.
    contrast_floor
        Added to the length, so that flat patches stay near 0; our `contrast_floor` is their `norm_reg`.

    Returns
    -------
    np.ndarray
        Same shape, rows of mean 0 and length below 1.
    """
    centred = patches - patches.mean(axis=1, keepdims=True)
    return np.asarray(centred / (np.linalg.norm(centred, axis=1, keepdims=True) + contrast_floor))


def whitening_matrix(
    patches: np.ndarray, energy: float = KEPT_ENERGY, variance_floor: float = VARIANCE_FLOOR
) -> np.ndarray:
    """ZCA transform W = V diag(1 / sqrt(D + floor)) V' of the leading directions.

    D and V are eigenvalues and eigenvectors of the patches' covariance; the fewest leading directions are
    kept whose eigenvalues sum to `energy` of all. With a floor of 0 the whitened patches have unit variance
    along every kept direction, and none along the others.

    Parameters
    ----------
    patches
        Normalised patches [n, d], n above 1.
    energy
        Share of the variance to keep, 0..1; their `energy`.
    variance_floor
        Added to every eigenvalue; their `whiten_reg`.

    Returns
    -------
    np.ndarray
        float64 [d, d], symmetric: whitened patches are `patches @ W`.
    """
    covariance = np.cov(patches, rowvar=False, dtype=np.float64)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    n_kept = int(np.argmax(np.cumsum(values) >= energy * values.sum())) + 1
    values, vectors = values[:n_kept], vectors[:, :n_kept]
    return np.asarray((vectors / np.sqrt(values + variance_floor)) @ vectors.T)
