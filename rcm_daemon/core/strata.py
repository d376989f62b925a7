"""Probabilities to labels, as the paper does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def paper_labels(probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return labels made consistent by the paper's heuristic (Bozkurt et al. 2021, Results).

    The most probable class of each slice, a median over three slices (the ends stay as they are), then a
    causal maximum: no slice is labelled shallower than one above it. A step from epidermis straight to
    dermis remains possible.

    Parameters
    ----------
    probabilities
        [n, 3] in depth order.

    Returns
    -------
    NDArray
        [n] labels, 0 epidermis, 1 DEJ, 2 dermis, never falling.
    """
    labels = np.asarray(probabilities).argmax(axis=1)
    padded = np.pad(labels, 1, mode="edge") if len(labels) else labels
    if len(labels):
        labels = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0).astype(np.int64)
    return np.maximum.accumulate(labels)
