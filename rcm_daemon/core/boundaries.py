"""Labels to the two boundary depths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.records import Boundary

if TYPE_CHECKING:
    from numpy.typing import NDArray


def boundaries_from_labels(
    labels: NDArray[np.int64], z_um: NDArray[np.floating]
) -> tuple[Boundary, Boundary]:
    """Return where labels change, half-way between the two slices.

    Parameters
    ----------
    labels
        [n], never falling with depth.
    z_um
        [n], rising.

    Returns
    -------
    tuple
        Epidermis-DEJ and DEJ-dermis. Where no DEJ slice lies between, both are at the same depth.
    """
    return _boundary(labels >= 1, z_um), _boundary(labels >= 2, z_um)


def _boundary(below: NDArray[np.bool_], z_um: NDArray[np.floating]) -> Boundary:
    if not below.any():
        return Boundary("not_reached")
    first = int(np.argmax(below))
    if first == 0:
        return Boundary("above_start")
    return Boundary("inside", um=(float(z_um[first - 1]) + float(z_um[first])) / 2)
