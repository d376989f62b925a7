"""Surfaces of the skin: outer surface, dermal-epidermal junction and the zone the junction fills."""

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

COARSE = 4  # the junction zone is found on a grid this many times coarser: it is smooth


@dataclass(frozen=True)
class Relief:
    """Depths in um below the mean skin surface, all [rows, columns] on the tissue grid.

    Attributes
    ----------
    surface, junction
        The skin's surface with its folds, and the dermal-epidermal junction with its papillae.
    corneum
        Thickness of the stratum corneum.
    shadow
        Brightness (0 to 1) left below folds.
    zone_top, zone_bottom
        Tips of the papillae, and bottoms of the rete ridges, around every position.
    papillae
        [n, 2] rows and columns of the papillae's tips.
    """

    surface: Grid
    junction: Grid
    corneum: Grid
    shadow: Grid
    zone_top: Grid
    zone_bottom: Grid
    papillae: NDArray[np.intp]


def _unit_range(field: Grid) -> Grid:
    low, high = np.percentile(field[::3, ::3], [4, 96])
    scaled = (field - np.float32(low)) / np.float32(max(high - low, 1e-6))
    return np.asarray(np.clip(scaled, -0.1, 1.1), dtype=np.float32)


def rete_pattern(rng: np.random.Generator, kind: str, spacing_um: float, shape: tuple[int, int]) -> Grid:
    """Relief of the junction: about 0 at the tips of papillae and 1 at the bottoms of rete ridges."""
    field: Grid
    if kind in ("domes", "network"):
        points = fields.scattered_points(rng, shape, spacing_um, float(rng.uniform(0.15, 0.38)))
        nearest, cell = fields.voronoi_cells(points, shape)
        if kind == "domes":
            size = rng.uniform(0.45, 0.75, len(points)).astype(np.float32)
            height = rng.uniform(0.65, 1.0, len(points)).astype(np.float32)
            reach = np.minimum(nearest / (size[cell] * np.float32(spacing_um)), 1)
            dome = (1 - reach * reach) ** np.float32(rng.uniform(0.7, 1.6))
            field = (1 - height[cell] * dome).astype(np.float32)
        else:
            width = np.float32(rng.uniform(0.12, 0.24) * spacing_um)
            height = rng.uniform(0.65, 1.0, len(points)).astype(np.float32)
            plateau = 1 - np.exp(-fields.wall_distance(cell) / width)
            field = (1 - cv2.blur(height[cell], (9, 9)) * plateau).astype(np.float32)
        field = np.asarray(cv2.GaussianBlur(field, (0, 0), float(rng.uniform(2.5, 6.0))), dtype=np.float32)
        field = fields.warped(field, rng, 0.1 * spacing_um, 0.8 * spacing_um)
    elif kind == "crates":
        columns, rows = np.meshgrid(
            np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32)
        )
        bend = np.float32(0.28 * spacing_um)
        columns = columns + bend * fields.smooth_noise(rng, shape, 1.6 * spacing_um)
        rows = rows + bend * fields.smooth_noise(rng, shape, 1.6 * spacing_um)
        turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
        wave = np.float32(2 * np.pi / spacing_um)
        field = np.cos(wave * (np.cos(turn) * columns + np.sin(turn) * rows) + np.float32(phase[0]))
        field = field * np.cos(wave * (np.cos(turn) * rows - np.sin(turn) * columns) + np.float32(phase[1]))
        field = np.abs(field) if rng.uniform() < 0.5 else field
        field = np.asarray(cv2.GaussianBlur(1 - field, (0, 0), 3.0), dtype=np.float32)
    else:
        aspect = float(rng.uniform(2.0, 4.0)) if kind == "fingers" else 1.0
        waves = fields.bandpass_noise(
            rng, shape, spacing_um, angle=float(rng.uniform(0, np.pi)), aspect=aspect
        )
        field = 1 / (
            1 + np.exp(np.float32(rng.uniform(1.0, 2.2)) * (np.float32(rng.uniform(-0.5, 0.5)) - waves))
        )
    return _unit_range(field.astype(np.float32))


def _plane(rng: np.random.Generator, shape: tuple[int, int], range_um: float) -> Grid:
    angle = rng.uniform(0, 2 * np.pi)
    rows = np.linspace(-0.5, 0.5, shape[0], dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    columns = np.linspace(-0.5, 0.5, shape[1], dtype=np.float32)[None, :] * np.float32(np.cos(angle))
    return np.float32(range_um) * (rows + columns)


def _folds(rng: np.random.Generator, shape: tuple[int, int], n_folds: int) -> Grid:
    """Depth of the skin's folds in um: lines that cross the field."""
    depth: Grid = np.zeros(shape, dtype=np.float32)
    reach = float(np.hypot(*shape))
    first_angle = rng.uniform(0, np.pi)
    for _ in range(n_folds):
        angle = first_angle + rng.choice([0.0, rng.uniform(0.6, 1.6)])
        middle = np.array([rng.uniform(0, shape[1]), rng.uniform(0, shape[0])])
        along = np.linspace(-reach, reach, 60)
        sway = np.cumsum(rng.normal(0, 3.0, 60))
        x = middle[0] + along * np.cos(angle) - sway * np.sin(angle)
        y = middle[1] + along * np.sin(angle) + sway * np.cos(angle)
        line = np.full(shape, 255, dtype=np.uint8)
        cv2.polylines(line, [np.stack([x, y], axis=1).astype(np.int32)], False, (0,), 1)
        distance = cv2.distanceTransform(line, cv2.DIST_L2, 5)
        width = rng.uniform(5.0, 16.0)
        depth = np.maximum(depth, np.float32(rng.uniform(15, 70)) * np.exp(-distance / np.float32(width)))
    return depth


def junction_zone(junction: Grid, papilla_um: float) -> tuple[Grid, Grid, NDArray[np.intp]]:
    """Find the zone the junction fills around every position, and the papillae's tips.

    The top of the zone is the local minimum of the junction's depth over a neighbourhood the size of a
    papilla, smoothed; its bottom the local maximum.

    Returns
    -------
    tuple
        Top and bottom in um ([rows, columns]) and the tips [n, 2].
    """
    size = (junction.shape[1], junction.shape[0])
    coarse = cv2.resize(junction, (size[0] // COARSE, size[1] // COARSE), interpolation=cv2.INTER_AREA)
    n = max(3, round(1.15 * papilla_um / COARSE) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (n, n))
    sigma = papilla_um / COARSE / 2
    smooth = [
        cv2.GaussianBlur(extreme, (0, 0), sigma)
        for extreme in (cv2.erode(coarse, kernel), cv2.dilate(coarse, kernel))
    ]
    top, bottom = (cv2.resize(field, size, interpolation=cv2.INTER_LINEAR) for field in smooth)
    half = np.ones((max(3, n // 2 | 1),) * 2, dtype=np.uint8)
    spread = smooth[1] - smooth[0]
    tips = (coarse == cv2.erode(coarse, half)) & (coarse < smooth[0] + 0.5 * spread)
    return (
        np.asarray(top, dtype=np.float32),
        np.asarray(bottom, dtype=np.float32),
        np.argwhere(tips) * COARSE + COARSE // 2,
    )


def build_relief(rng: np.random.Generator, recipe: Recipe, shape: tuple[int, int]) -> Relief:
    """Build the surfaces of one site."""
    plane = _plane(rng, shape, recipe.tilt_um)
    folds = _folds(rng, shape, recipe.n_folds)
    bumps = np.float32(rng.uniform(0.5, 3.5)) * fields.smooth_noise(rng, shape, float(rng.uniform(60, 200)))
    surface = plane + folds + bumps
    corneum = recipe.corneum_um * np.exp(0.2 * fields.smooth_noise(rng, shape, 70.0))

    relief = rete_pattern(rng, recipe.rete, recipe.papilla_um, shape)
    height = 1 + np.float32(0.12) * fields.smooth_noise(rng, shape, 200.0)
    if recipe.lesional:  # effaced in part of the field, irregular elsewhere
        effaced = 1 / (
            1 + np.exp(-2 * (fields.smooth_noise(rng, shape, 180.0) - np.float32(rng.normal(0.3, 0.5))))
        )
        height = height * (np.float32(1) - np.float32(rng.uniform(0.2, 0.8)) * effaced)
        relief = relief + np.float32(rng.uniform(0, 0.15)) * fields.smooth_noise(rng, shape, 60.0)
    broad = np.float32(recipe.undulation_um) * fields.smooth_noise(rng, shape, float(rng.uniform(150, 300)))
    fine = np.float32(rng.uniform(0.3, 1.5)) * fields.smooth_noise(rng, shape, 14.0)
    own_tilt = _plane(rng, shape, float(rng.uniform(0, 20)))
    follow = np.float32(rng.uniform(0.1, 0.45))
    middle = np.float32(0.5 * recipe.relief_um)
    junction = (
        plane + bumps + follow * folds + broad + fine + own_tilt
        + np.float32(recipe.tip_um) + middle
        + np.float32(recipe.relief_um) * height * (np.clip(relief, -0.2, 1.2) - np.float32(0.5))
    )  # fmt: skip
    junction = np.maximum(junction, surface + corneum + np.float32(8.0)).astype(np.float32)
    top, bottom, papillae = junction_zone(junction, recipe.papilla_um)
    shadow = np.exp(-folds / np.float32(60.0))
    return Relief(
        surface=surface.astype(np.float32),
        junction=junction,
        corneum=corneum.astype(np.float32),
        shadow=shadow.astype(np.float32),
        zone_top=top,
        zone_bottom=bottom,
        papillae=papillae,
    )
