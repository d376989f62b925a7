"""Things that lie in the strata: follicles, vessel loops, dendritic cells, nests and pagetoid cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rcm_daemon.simulator import random_fields as fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rcm_daemon.simulator.grids import Grid
    from rcm_daemon.simulator.recipe import Recipe
    from rcm_daemon.simulator.relief import Relief


@dataclass(frozen=True)
class Inclusions:
    """Inclusions of one site; rows, columns and depths in um on the tissue grid.

    Attributes
    ----------
    follicles
        [n, 9]: row, column, row and column moved a um of depth, radius, width of the rings round it, their
        period, their brightness, the hair's brightness.
    loops
        [n, 6]: row, column, depth of the top, half distance of the limbs, angle, radius.
    nests, pagetoid
        [n, 5]: row, column, depth, lateral and axial radius.
    dendritic
        [n, 3]: row, column, depth; their bodies lie in `dendrites`.
    dendrites
        [rows, columns] brightness of the dendritic cells.
    clutch
        [rows, columns] texture of nests.
    """

    follicles: NDArray[np.float64]
    loops: NDArray[np.float64]
    nests: NDArray[np.float64]
    pagetoid: NDArray[np.float64]
    dendritic: NDArray[np.float64]
    dendrites: Grid
    clutch: Grid


def _dendrites(rng: np.random.Generator, shape: tuple[int, int], places: NDArray[np.float64]) -> Grid:
    canvas = np.zeros(shape, dtype=np.uint8)
    for row, column, _ in places:
        cv2.circle(
            canvas, (int(column * 8), int(row * 8)), int(rng.uniform(2, 4) * 8), (255,), -1, cv2.LINE_AA, 3
        )
        for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(2, 6))):
            reach = rng.uniform(8, 26) * np.linspace(0, 1, 4)
            turn = angle + rng.normal(0, 0.3, 4).cumsum()
            arm = np.stack([column + reach * np.cos(turn), row + reach * np.sin(turn)], axis=1)
            cv2.polylines(canvas, [np.round(arm * 8).astype(np.int32)], False, (230,), 1, cv2.LINE_AA, 3)
    return cv2.GaussianBlur(canvas, (0, 0), 0.8).astype(np.float32) / np.float32(255)


def build_inclusions(
    rng: np.random.Generator, recipe: Recipe, relief: Relief, shape: tuple[int, int]
) -> Inclusions:
    """Place the inclusions of one site."""

    def places(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        rows, columns = rng.uniform(0, shape[0] - 1, n), rng.uniform(0, shape[1] - 1, n)
        depth = relief.junction[rows.astype(np.intp), columns.astype(np.intp)].astype(np.float64)
        return rows, columns, depth

    n = recipe.n_follicles
    rows, columns, _ = places(n)
    follicles = np.stack(
        [rows, columns, *rng.normal(0, 0.25, (2, n)), rng.uniform(10, 38, n), rng.uniform(14, 34, n),
         rng.uniform(5, 14, n), rng.uniform(0.3, 1.0, n),
         rng.uniform(0, 0.8, n) * (rng.uniform(size=n) < 0.5)], axis=1,
    )  # fmt: skip

    tips = relief.papillae[rng.uniform(size=len(relief.papillae)) < recipe.vessel_share].astype(np.float64)
    n = len(tips)
    tops = relief.junction[tips[:, 0].astype(np.intp), tips[:, 1].astype(np.intp)] + rng.uniform(6, 16, n)
    loops = np.stack(
        [tips[:, 0] + rng.normal(0, 5, n), tips[:, 1] + rng.normal(0, 5, n), tops, rng.uniform(3, 10, n),
         rng.uniform(0, np.pi, n), rng.uniform(2.5, 6.0, n)], axis=1,
    )  # fmt: skip

    rows, columns, depth = places(recipe.n_dendritic)
    dendritic = np.stack([rows, columns, depth - rng.uniform(3, 30, len(rows))], axis=1)
    n = recipe.n_nests
    rows, columns, depth = places(n)
    nests = np.stack(
        [rows, columns, depth + rng.normal(0, 8, n), rng.uniform(16, 55, n), rng.uniform(10, 24, n)], axis=1
    )
    n = recipe.n_pagetoid
    rows, columns, depth = places(n)
    pagetoid = np.stack(
        [rows, columns, depth - rng.uniform(8, 45, n), rng.uniform(5, 11, n), rng.uniform(6, 11, n)], axis=1
    )
    clutch: Grid = np.zeros((1, 1), dtype=np.float32)
    if recipe.n_nests:
        points = fields.scattered_points(rng, shape, float(rng.uniform(10, 16)), 0.45)
        nearest, cell = fields.voronoi_cells(points, shape)
        own = rng.uniform(0.3, 1.3, len(points)).astype(np.float32)[cell]
        clutch = np.float32(0.35) + own * np.clip(1 - nearest / np.float32(8.5), 0, 1)
    return Inclusions(
        follicles,
        loops,
        nests,
        pagetoid,
        dendritic,
        _dendrites(rng, shape, dendritic),
        clutch.astype(np.float32),
    )


def _disc(field: Grid, row: float, column: float, radius: float) -> tuple[tuple[slice, slice], Grid] | None:
    """Window of a field round a place, and the distances to that place in radii."""
    top, bottom = max(0, int(row - 1.3 * radius)), min(field.shape[0], int(row + 1.3 * radius) + 2)
    left, right = max(0, int(column - 1.3 * radius)), min(field.shape[1], int(column + 1.3 * radius) + 2)
    if top >= bottom or left >= right:
        return None
    rows = (np.arange(top, bottom, dtype=np.float32) - np.float32(row))[:, None]
    columns = (np.arange(left, right, dtype=np.float32) - np.float32(column))[None, :]
    return (slice(top, bottom), slice(left, right)), np.sqrt(rows**2 + columns**2) / np.float32(radius)


def _soft(distance: Grid, sharpness: float) -> Grid:
    """1 well inside a disc, 0 well outside."""
    return np.asarray(np.clip((1 - distance) * np.float32(sharpness) + np.float32(0.5), 0, 1), np.float32)


def add_inclusions(
    light: Grid, inclusions: Inclusions, z_um: float, origin: tuple[int, int], rng: np.random.Generator
) -> None:
    """Put what a section at `z_um` meets into its reflectance.

    `light` is a window of the tissue grid whose first row and column are `origin`; it is changed in place.
    """
    row0, column0 = origin
    height, width = light.shape
    for row, column, top, half, angle, radius in inclusions.loops:
        if z_um < top - radius:
            continue
        spread = half * min(1.0, (z_um - top + radius) / (2 * radius + half))
        for side in (-1, 1):
            y = row - row0 + side * spread * np.sin(angle)
            x = column - column0 + side * spread * np.cos(angle)
            found = _disc(light, y, x, radius)
            if found is not None:
                window, distance = found
                light[window] *= 1 - np.float32(0.65) * _soft(distance, 2.0)
                if rng.uniform() < 0.3 and 2 < y < height - 3 and 2 < x < width - 3:  # a blood cell passes
                    light[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] += np.float32(
                        rng.uniform(0.3, 0.9)
                    )
    for row, column, depth, lateral, axial in inclusions.nests:
        cut = 1 - ((z_um - depth) / axial) ** 2
        found = _disc(light, row - row0, column - column0, lateral * np.sqrt(cut)) if cut > 0.05 else None
        if found is not None:
            (rows, columns), distance = found
            share = _soft(distance, 3.0) * np.float32(0.9)
            cells = inclusions.clutch[
                rows.start + row0 : rows.stop + row0, columns.start + column0 : columns.stop + column0
            ]
            light[rows, columns] = light[rows, columns] * (1 - share) + cells * share
    for row, column, depth, lateral, axial in inclusions.pagetoid:
        cut = 1 - ((z_um - depth) / axial) ** 2
        found = _disc(light, row - row0, column - column0, lateral * np.sqrt(cut)) if cut > 0.05 else None
        if found is not None:
            window, distance = found
            share = _soft(distance, 3.0) * (1 - np.float32(0.6) * _soft(distance * 2.5, 2.0))
            light[window] += share * np.float32(0.8)
    for row, column, depth in inclusions.dendritic:
        seen = np.exp(-(((z_um - depth) / 6.0) ** 2))
        found = _disc(light, row - row0, column - column0, 26.0) if seen > 0.05 else None
        if found is not None:
            (rows, columns), _ = found
            body = inclusions.dendrites[
                rows.start + row0 : rows.stop + row0, columns.start + column0 : columns.stop + column0
            ]
            light[rows, columns] += body * np.float32(seen)
    for row, column, row_move, column_move, radius, rim, period, bright, hair in inclusions.follicles:
        y, x = row + row_move * z_um - row0, column + column_move * z_um - column0
        found = _disc(light, y, x, radius + rim)
        if found is not None:
            window, distance = found
            down = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(y)
            right = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(x)
            turn = np.arctan2(down, right)
            wobble: Grid = np.sin(2 * turn + np.float32(row)) * np.float32(0.12)
            wobble += np.sin(3 * turn + np.float32(column + z_um / 25)) * np.float32(0.06)
            beyond = distance * np.float32(radius + rim) - np.float32(radius) * (1 + wobble)
            phase = beyond * np.float32(2 * np.pi / period) + np.float32(1.5) * np.sin(turn + np.float32(row))
            rings = np.float32(bright) * (np.float32(0.6) + np.float32(0.4) * np.cos(phase))
            inside = np.where(beyond > 0, rings, np.float32(0.06))
            wall: Grid = inside + np.float32(hair) * np.exp(
                -(((distance * np.float32(radius + rim)) / np.float32(4.0)) ** 2)
            )
            fade = np.exp(-np.maximum(beyond, 0) / np.float32(0.6 * rim)) * np.float32(1.2)
            share = np.minimum(fade, 1) * np.clip((1 - distance) * 4, 0, 1)
            light[window] = light[window] * (1 - share) + wall * share
