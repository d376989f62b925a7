"""A slice of any size, depth and pitch brought to the one field a bundle's CNN takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rcm_daemon.errors import InferenceError

if TYPE_CHECKING:
    import numpy.typing as npt

PITCH_TOLERANCE = 1e-3
"""Relative difference of pitch below which a slice is taken as it is: one pixel in a 1000-pixel field."""
MAX_PITCH_RATIO = 50.0


def to_field(
    image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    pixel_size_um: float,
    max_value: int,
    field_shape: tuple[int, int],
    field_pixel_size_um: float,
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Scale grey levels, resample to the field's pitch, then centre-crop or pad; never stretch.

    Grey levels go linearly from 0..max_value to 0..255, whatever the slice's own extremes are, so that
    slices of one stack stay comparable. Padding mirrors the image at its border (without repeating the border
    pixel).

    Parameters
    ----------
    image
        uint8 or uint16, [rows, columns].
    pixel_size_um
        Pitch of `image`, um per pixel.
    max_value
        Grey level that becomes 255, values above are clipped; 0 = the dtype's largest.
    field_shape
        Rows and columns wanted.
    field_pixel_size_um
        Pitch wanted, um per pixel.

    Returns
    -------
    field
        uint8 [rows, columns]; `image` itself when there is nothing to do.
    flags
        Of `pitch_resampled`, `cropped`, `padded`, those that hold.

    Raises
    ------
    InferenceError
        Not a two-dimensional uint8 or uint16 image, an impossible max_value, or a pitch more than
        50 times off.
    """
    if image.ndim != 2 or image.size == 0 or image.dtype not in (np.uint8, np.uint16):
        raise InferenceError(
            f"a slice must be a uint8 or uint16 image [rows, columns], got {image.dtype} {list(image.shape)}"
        )
    largest = int(np.iinfo(image.dtype).max)
    if not 0 <= max_value <= largest:
        raise InferenceError(f"max_value of a {image.dtype} slice must be 0 to {largest}, got {max_value}")
    ratio = pixel_size_um / field_pixel_size_um if field_pixel_size_um > 0 else math.nan
    if not 1 / MAX_PITCH_RATIO <= ratio <= MAX_PITCH_RATIO:
        raise InferenceError(
            f"the pitch of a slice must lie within a factor of {MAX_PITCH_RATIO:g} of the bundle's "
            f"{field_pixel_size_um:g} um, got {pixel_size_um:g} um"
        )
    flags: list[str] = []
    size = (image.shape[0], image.shape[1])
    field = _to_8_bit(image, max_value or largest)
    if abs(ratio - 1) > PITCH_TOLERANCE:
        field = _resample(field, ratio, field_shape)
        flags.append("pitch_resampled")
        size = (_scaled(image.shape[0], ratio), _scaled(image.shape[1], ratio))
    if any(have > want for have, want in zip(size, field_shape, strict=True)):
        field = _centre(field, field_shape)
        flags.append("cropped")
    if any(have < want for have, want in zip(size, field_shape, strict=True)):
        field = _pad(field, field_shape)
        flags.append("padded")
    return field, tuple(flags)


def _to_8_bit(image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], max_value: int) -> npt.NDArray[np.uint8]:
    if image.dtype == np.uint8 and max_value == 255:
        return image.astype(np.uint8, copy=False)
    # Saturates at 255 and rounds to nearest.
    scaled = cv2.convertScaleAbs(np.ascontiguousarray(image), alpha=255.0 / max_value)
    return np.asarray(scaled, dtype=np.uint8)


def _scaled(length: int, ratio: float) -> int:
    return max(1, round(length * ratio))


def _resample(
    image: npt.NDArray[np.uint8], ratio: float, field_shape: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    # What lies outside the field would be cropped anyway: not resizing it bounds memory when ratio is large.
    # The margin holds more than any interpolation kernel reaches, and one whole pixel of the result.
    margin = max(4, math.ceil(1 / ratio))
    needed = tuple(math.ceil(want / ratio) + 2 * margin for want in field_shape)
    image = np.ascontiguousarray(_centre(image, (needed[0], needed[1])))
    rows, columns = image.shape
    size = (_scaled(columns, ratio), _scaled(rows, ratio))
    method = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def _centre(image: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    top, left = (max(0, (have - want) // 2) for have, want in zip(image.shape, shape, strict=True))
    return image[top : top + shape[0], left : left + shape[1]]


def _pad(image: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    rows, columns = (max(0, want - have) for have, want in zip(image.shape, shape, strict=True))
    top, left = rows // 2, columns // 2
    border = (top, rows - top, left, columns - left)
    padded = cv2.copyMakeBorder(np.ascontiguousarray(image), *border, cv2.BORDER_REFLECT_101)
    return np.asarray(padded, dtype=np.uint8)
