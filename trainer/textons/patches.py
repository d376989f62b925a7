"""Small square windows of an image: every one of it in blocks, or some at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELD_PIXEL_SIZE_UM = 0.5
"""Pitch of the images every texton method takes: the bundle's field, see `rcm_daemon.bundle.field`."""
BLOCK_PATCHES = 4096
"""Patches of a block: with a few hundred responses each, a block stays within a core's second-level cache."""


def to_pitch(image: np.ndarray, pitch_um: float, least_side: int) -> np.ndarray:
    """Reduce an image of the field to a method's own pitch, by the mean over areas.

    Parameters
    ----------
    image
        uint8 [rows, columns] at 0.5 um a pixel.
    pitch_um
        Pitch wanted, 0.5 um or more.
    least_side
        Fewest rows and columns of the result that the method can use.

    Returns
    -------
    np.ndarray
        float32 [rows', columns'], grey levels 0..255.

    Raises
    ------
    DataSetError
        If the image is not of that kind, or too small.
    """
    if image.ndim != 2 or image.dtype != np.uint8:
        raise DataSetError(
            f"textons are counted in uint8 images [rows, columns], got {image.dtype} {list(image.shape)}"
        )
    share = FIELD_PIXEL_SIZE_UM / pitch_um
    rows, columns = (round(side * share) for side in image.shape)
    if min(rows, columns) < least_side:
        raise DataSetError(
            f"an image for textons must have {least_side} rows and columns or more at {pitch_um:g} um, got "
            f"{rows} x {columns}"
        )
    return np.asarray(
        cv2.resize(image.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA), np.float32
    )


def dense_patches(image: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Every patch that lies wholly inside, row by row of the image, in blocks.

    Parameters
    ----------
    image
        float32 [rows, columns].
    side
        Rows and columns of a patch.

    Yields
    ------
    np.ndarray
        float32 [n, side * side], the caller's own to change.
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    n_rows = max(1, BLOCK_PATCHES // windows.shape[1])
    for top in range(0, windows.shape[0], n_rows):
        yield windows[top : top + n_rows].reshape(-1, side * side).copy()


def random_patches(image: np.ndarray, side: int, n_patches: int, rng: np.random.Generator) -> np.ndarray:
    """Patches at random places (the same place may come twice), float32 [n_patches, side * side]."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    rows = rng.integers(windows.shape[0], size=n_patches)
    columns = rng.integers(windows.shape[1], size=n_patches)
    return windows[rows, columns].reshape(n_patches, side * side).astype(np.float32)
