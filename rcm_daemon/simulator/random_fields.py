"""Seeded random fields on the tissue grid of 1 um: smooth noise, cells and fibres."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rcm_daemon.simulator.grids import Grid, Labels

    Shape = tuple[int, int]


def standardised(field: Grid) -> Grid:
    """Shift and scale a field to mean 0 and standard deviation 1 (a flat field becomes 0)."""
    mean, deviation = cv2.meanStdDev(field)
    scale = 1.0 / max(float(deviation[0, 0]), 1e-6)
    return np.asarray((field - np.float32(mean[0, 0])) * np.float32(scale), dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: Shape, scale_um: float) -> Grid:
    """Zero-mean, unit-variance noise whose features measure about `scale_um`.

    Coarse white noise is interpolated, so the cost hardly depends on the scale.
    """
    pitch = max(scale_um / 2.0, 1.0)
    coarse = (int(np.ceil(shape[0] / pitch)) + 4, int(np.ceil(shape[1] / pitch)) + 4)
    noise = rng.standard_normal(coarse, dtype=np.float32)
    full = (round(coarse[1] * pitch), round(coarse[0] * pitch))
    grown = cv2.resize(noise, full, interpolation=cv2.INTER_CUBIC)
    row, column = (grown.shape[0] - shape[0]) // 2, (grown.shape[1] - shape[1]) // 2
    return standardised(np.ascontiguousarray(grown[row : row + shape[0], column : column + shape[1]]))


def cloud_noise(rng: np.random.Generator, shape: Shape, scale_um: float, n_octaves: int = 4) -> Grid:
    """Sum of smooth noises at halving scales and falling weights (zero mean, unit variance)."""
    total = smooth_noise(rng, shape, scale_um)
    for octave in range(1, n_octaves):
        total += np.float32(0.6**octave) * smooth_noise(rng, shape, max(scale_um / 2**octave, 2.0))
    return standardised(total)


def _frequencies(shape: Shape) -> tuple[Grid, Grid]:
    fy = np.fft.fftfreq(shape[0]).astype(np.float32)[:, None]
    fx = np.fft.fftfreq(shape[1]).astype(np.float32)[None, :]
    return np.broadcast_to(fy, shape), np.broadcast_to(fx, shape)


def _padded(shape: Shape) -> Shape:
    return cv2.getOptimalDFTSize(shape[0]), cv2.getOptimalDFTSize(shape[1])


def _white_spectrum(rng: np.random.Generator, shape: Shape) -> Grid:
    noise = rng.standard_normal(shape, dtype=np.float32)
    return np.asarray(cv2.dft(noise, flags=cv2.DFT_COMPLEX_OUTPUT), dtype=np.float32)


def _filtered(spectrum: Grid, response: Grid, shape: Shape) -> Grid:
    field = cv2.dft(
        spectrum * response[:, :, None], flags=cv2.DFT_INVERSE | cv2.DFT_REAL_OUTPUT | cv2.DFT_SCALE
    )
    return standardised(np.ascontiguousarray(field[: shape[0], : shape[1]], dtype=np.float32))


def bandpass_noise(
    rng: np.random.Generator,
    shape: Shape,
    wavelength_um: float,
    *,
    angle: float = 0.0,
    aspect: float = 1.0,
    bandwidth: float = 0.25,
) -> Grid:
    """Noise of one wavelength: blobs for `aspect` 1, stripes along `angle` (radians) for larger ones."""
    padded = _padded(shape)
    fy, fx = _frequencies(padded)
    along = (np.cos(angle) * fx + np.sin(angle) * fy) * np.float32(aspect)
    across = -np.sin(angle) * fx + np.cos(angle) * fy
    radius = np.sqrt(along * along + across * across) * np.float32(wavelength_um)
    response = np.exp(-(((radius - 1.0) / np.float32(bandwidth)) ** 2) / 2).astype(np.float32)
    return _filtered(_white_spectrum(rng, padded), response, shape)


def fibre_noise(
    rng: np.random.Generator,
    shape: Shape,
    width_um: float,
    length_um: float,
    *,
    n_angles: int = 6,
    order: float = 0.5,
) -> Grid:
    """Bundles of fibres: elongated noise at several orientations, one or two winning at each place.

    Parameters
    ----------
    width_um, length_um
        Thickness of a fibre and the length over which it keeps its direction.
    order
        0: all orientations everywhere (reticulated); 1: one orientation at a place (bundles).

    Returns
    -------
    Grid
        Values from 0 (between fibres) to about 1 (on a fibre).
    """
    padded = _padded(shape)
    fy, fx = _frequencies(padded)
    start = rng.uniform(0, np.pi)
    result: Grid = np.zeros(shape, dtype=np.float32)
    direction = smooth_noise(rng, shape, max(2.5 * length_um, 60.0)) * np.float32(0.8) + np.float32(start)
    for k in range(n_angles):
        angle = start + np.pi * k / n_angles
        along = np.cos(angle) * fx + np.sin(angle) * fy
        across = -np.sin(angle) * fx + np.cos(angle) * fy
        response = np.exp(
            -((along * np.float32(length_um * 1.2)) ** 2)
            - (((np.abs(across) * np.float32(2.5 * width_um)) - 1.0) / np.float32(0.6)) ** 2
        ).astype(np.float32)
        fibres = np.clip(
            _filtered(_white_spectrum(rng, padded), response, shape) * np.float32(0.45) + np.float32(0.1),
            0,
            1.2,
        )
        weight = np.abs(np.cos(direction - np.float32(angle)))
        weight = np.float32(1 - order) + np.float32(order) * weight**6
        result = np.maximum(result, fibres * weight)
    return result


def drawn_fibres(
    rng: np.random.Generator, shape: Shape, width_um: float, length_um: float, cover: float
) -> Grid:
    """Fibres drawn one by one as gently bent lines; `cover` is about the share of the area they fill.

    Returns
    -------
    Grid
        Values from 0 (between fibres) to about 1 (on a fibre).
    """
    canvas = np.zeros(shape, dtype=np.uint8)
    n_fibres = int(cover * shape[0] * shape[1] / (width_um * length_um))
    direction = smooth_noise(rng, shape, 120.0) * np.float32(0.8) + np.float32(rng.uniform(0, np.pi))
    steps = np.linspace(-0.5, 0.5, 7)
    points = np.empty((7, 2))
    for _ in range(n_fibres):
        x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        angle = float(direction[int(y), int(x)]) + rng.normal(0, 0.35)
        bend = rng.normal(0, 0.25)
        turned = angle + bend * steps * 2
        points[:, 0] = x + length_um * steps * np.cos(turned)
        points[:, 1] = y + length_um * steps * np.sin(turned)
        thickness = max(1, round(rng.uniform(0.6, 1.4) * width_um))
        colour = int(rng.uniform(90, 255))
        cv2.polylines(
            canvas, [np.round(points * 8).astype(np.int32)], False, (colour,), thickness, cv2.LINE_AA, 3
        )
    return cv2.GaussianBlur(canvas, (0, 0), 0.7).astype(np.float32) / np.float32(255)


def scattered_points(
    rng: np.random.Generator, shape: Shape, spacing_um: float, jitter: float
) -> NDArray[np.float32]:
    """Points of a hexagonal lattice, each moved at random by up to `jitter` spacings.

    Returns
    -------
    numpy.ndarray
        [n, 2] rows and columns inside the grid, in um; one point or more.
    """
    row_step = spacing_um * 0.866
    rows = np.arange(-spacing_um, shape[0] + spacing_um, row_step)
    columns = np.arange(-spacing_um, shape[1] + spacing_um, spacing_um)
    yy, xx = np.meshgrid(rows, columns, indexing="ij")
    xx = xx + (np.arange(len(rows)) % 2)[:, None] * spacing_um / 2
    points = np.stack([yy.ravel(), xx.ravel()], axis=1)
    points += rng.uniform(-jitter, jitter, points.shape) * spacing_um + rng.uniform(0, spacing_um, 2)
    inside = (points > 0).all(axis=1) & (points[:, 0] < shape[0] - 1) & (points[:, 1] < shape[1] - 1)
    if not inside.any():  # a grid smaller than the lattice
        return np.array([[shape[0] / 2, shape[1] / 2]], dtype=np.float32)
    return points[inside].astype(np.float32)


def voronoi_cells(
    points: NDArray[np.float32], shape: Shape, *, city_block: bool = False
) -> tuple[Grid, Labels]:
    """Assign every grid point to its nearest point.

    Returns
    -------
    tuple
        Distance to that point in um, and its number from 0 (in raster order of the points).
    """
    ground = np.full(shape, 255, dtype=np.uint8)
    index = np.round(points).astype(np.intp)
    ground[index[:, 0], index[:, 1]] = 0
    metric = cv2.DIST_L1 if city_block else cv2.DIST_L2
    distance, label = cv2.distanceTransformWithLabels(
        ground, metric, 3 if city_block else 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    return np.asarray(distance, dtype=np.float32), np.asarray(label, dtype=np.int32) - 1


def wall_distance(label: Labels) -> Grid:
    """Distance of every grid point to the nearest border between two cells, in um."""
    wall = np.full(label.shape, 255, dtype=np.uint8)
    wall[:, :-1][label[:, :-1] != label[:, 1:]] = 0
    wall[:-1][label[:-1] != label[1:]] = 0
    return np.asarray(cv2.distanceTransform(wall, cv2.DIST_L2, 3), dtype=np.float32)


def warped(field: Grid, rng: np.random.Generator, amplitude_um: float, scale_um: float) -> Grid:
    """Bend a field sideways by smooth random displacements."""
    shape = (field.shape[0], field.shape[1])
    columns, rows = np.meshgrid(
        np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32), copy=False
    )
    map_x = columns + np.float32(amplitude_um) * smooth_noise(rng, shape, scale_um)
    map_y = rows + np.float32(amplitude_um) * smooth_noise(rng, shape, scale_um)
    bent = cv2.remap(field, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(bent, dtype=field.dtype)
