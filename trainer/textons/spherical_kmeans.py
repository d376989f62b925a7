"""Spherical k-means: clusters by direction (Coates and Ng 2012, as in Hames et al.'s public encoder)."""

from __future__ import annotations

import numpy as np

N_ITERATIONS = 10
_BLOCK = 8192


def spherical_kmeans(
    vectors: np.ndarray, n_centres: int, seed: int, n_iterations: int = N_ITERATIONS
) -> np.ndarray:
    """Cluster vectors by inner product; a centre is its members' sum at unit length.

    Longer vectors pull harder, as in the source. Centres begin as random vectors; one that no vector is
    nearest to begins anew at another.

    Parameters
    ----------
    vectors
        float [n, d], n at least `n_centres`.
    n_centres
        Number of clusters.
    seed
        Seed of the random choices.
    n_iterations
        Rounds of assigning and averaging.

    Returns
    -------
    np.ndarray
        float32 [n_centres, d], rows of unit length.
    """
    rng = np.random.default_rng(seed)
    vectors = np.asarray(vectors, np.float32)
    centres = _unit(vectors[rng.choice(len(vectors), n_centres, replace=False)])
    for _ in range(n_iterations):
        nearest = np.concatenate(
            [
                np.argmax(vectors[at : at + _BLOCK] @ centres.T, axis=1)
                for at in range(0, len(vectors), _BLOCK)
            ]
        )
        counts = np.bincount(nearest, minlength=n_centres)
        order = np.argsort(nearest, kind="stable")
        starts = np.cumsum(counts) - counts
        centres = np.zeros_like(centres)
        filled = counts > 0
        centres[filled] = np.add.reduceat(vectors[order], starts[filled], axis=0)
        lost = np.flatnonzero(np.linalg.norm(centres, axis=1) == 0)
        centres[lost] = vectors[rng.choice(len(vectors), len(lost))]
        centres = _unit(centres)
    return centres


def _unit(vectors: np.ndarray) -> np.ndarray:
    # A vector of length 0 (a flat patch) has no direction: any will do, as long as its length is 1.
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    level = np.full_like(vectors, vectors.shape[1] ** -0.5)
    return np.asarray(np.where(length > 0, vectors / np.maximum(length, 1e-30), level))
