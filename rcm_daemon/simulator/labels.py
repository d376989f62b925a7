"""Strata as readers give them: the true switch depths, simulated readers, and how far they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from rcm_daemon.simulator.grids import Grid

N_READERS = 2

READER_BIAS_UM = ((-1.0, 1.5), (1.2, -1.0))
"""[reader][boundary]: how much deeper than the truth a reader sees each switch on average."""

READER_SCATTER_UM = (4.9, 7.0)
"""SD of a reader's error at the two switches in healthy skin with good optics."""

SHARED_VARIANCE = 0.4
"""Share of the error variance that both readers have in common, so that their mean is not the truth."""

NARROWEST_JUNCTION_UM = 3.0


def true_boundaries(zone_top: Grid, zone_bottom: Grid) -> tuple[float, float]:
    """Depths at which half of the field lies below the top, and below the bottom, of its junction zone."""
    first, second = float(np.median(zone_top)), float(np.median(zone_bottom))
    return first, max(second, first + NARROWEST_JUNCTION_UM)


def read_boundaries(
    rng: np.random.Generator, boundaries_um: tuple[float, float], difficulty: float
) -> NDArray[np.float64]:
    """Simulate where the readers see the two switches.

    Parameters
    ----------
    boundaries_um
        True depths.
    difficulty
        Factor on the readers' scatter: 1 for healthy skin and good optics.

    Returns
    -------
    numpy.ndarray
        [readers, 2] depths in um, each reader's second at least 3 um below the first.
    """
    scatter = np.asarray(READER_SCATTER_UM) * difficulty
    shared = rng.standard_normal(2) * np.sqrt(SHARED_VARIANCE)
    own = rng.standard_normal((N_READERS, 2)) * np.sqrt(1 - SHARED_VARIANCE)
    read = np.asarray(boundaries_um) + np.asarray(READER_BIAS_UM) + scatter * (shared + own)
    middle = read.mean(axis=1, keepdims=True)
    half = np.maximum((read[:, 1:] - read[:, :1]) / 2, NARROWEST_JUNCTION_UM / 2)
    return np.concatenate([middle - half, middle + half], axis=1)


def strata_at(z_um: ArrayLike, boundaries_um: ArrayLike) -> NDArray[np.int64]:
    """Stratum of each depth: 0 above the first boundary, 1 from it on, 2 from the second on."""
    z = np.asarray(z_um, dtype=np.float64)
    first, second = np.asarray(boundaries_um, dtype=np.float64)
    return np.asarray((z >= first).astype(np.int64) + (z >= second), dtype=np.int64)


def reader_agreement(reader_labels: ArrayLike) -> float:
    """Share of slices to which both readers gave the same stratum; `reader_labels` is [2, n]."""
    labels = np.asarray(reader_labels)
    return float((labels[0] == labels[1]).mean())
