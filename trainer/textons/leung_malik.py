"""The Leung-Malik filter bank, as Varma and Zisserman publish it.

T. Leung, J. Malik, Representing and recognizing the visual appearance of materials using three-dimensional
textons, IJCV 43 (2001); the parameters and the normalisation are those of the Visual Geometry Group's page
"Texture classification: filter banks" (its LM Large set; LM Small has the finer scales).
"""

from __future__ import annotations

import numpy as np

N_FILTERS = 48
SMALL_SIGMAS_PX = (1.0, 2**0.5, 2.0, 2 * 2**0.5)
LARGE_SIGMAS_PX = (2**0.5, 2.0, 2 * 2**0.5, 4.0)
SUPPORT = 49
_N_ORIENTATIONS = 6
_ELONGATION = 3.0


def leung_malik_bank(
    support: int = SUPPORT, sigmas_px: tuple[float, float, float, float] = LARGE_SIGMAS_PX
) -> np.ndarray:
    """Edges, bars, spots and blobs at several scales and directions.

    In order: 18 first and 18 second derivatives of an elongated Gaussian (3 scales, 6 directions each, sigma
    along the line 3 times that across), 8 Laplacians of Gaussians (sigma and 3 sigma), 4 Gaussians. Each has
    its mean taken away and its absolute values summing to one; as published that holds for the Gaussians too.

    Parameters
    ----------
    support
        Rows and columns of every filter, odd.
    sigmas_px
        The four basic scales in pixels; derivatives use the first three.

    Returns
    -------
    np.ndarray
        float64 [48, support, support].
    """
    half = support // 2
    y, x = np.mgrid[half : -half - 1 : -1, -half : half + 1].astype(np.float64)
    bars = []
    for order in (1, 2):
        for sigma in sigmas_px[:3]:
            for turn in np.pi * np.arange(_N_ORIENTATIONS) / _N_ORIENTATIONS:
                along, across = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
                bars.append(
                    np.exp(-(along**2) / (2 * (_ELONGATION * sigma) ** 2)) * _derivative(across, sigma, order)
                )
    square = x**2 + y**2
    spots = [
        (square - 2 * sigma**2) / sigma**4 * np.exp(-square / (2 * sigma**2))
        for scale in (1.0, _ELONGATION)
        for sigma in (scale * basic for basic in sigmas_px)
    ]
    blobs = [np.exp(-square / (2 * sigma**2)) for sigma in sigmas_px]
    bank = np.stack([*bars, *spots, *blobs])
    bank -= bank.mean(axis=(1, 2), keepdims=True)
    return np.asarray(bank / np.abs(bank).sum(axis=(1, 2), keepdims=True))


def _derivative(x: np.ndarray, sigma: float, order: int) -> np.ndarray:
    gaussian = np.exp(-(x**2) / (2 * sigma**2))
    factor = -x / sigma**2 if order == 1 else (x**2 - sigma**2) / sigma**4
    return np.asarray(factor * gaussian)
