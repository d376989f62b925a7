"""Flat textures of the strata, ordered by depth; a slice blends the two nearest ones at every position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.simulator import random_fields as fields

if TYPE_CHECKING:
    from rcm_daemon.simulator.grids import Grid
    from rcm_daemon.simulator.recipe import Recipe

    Shape = tuple[int, int]

GEL, CORNEUM, HONEYCOMB, BASAL, PAPILLARY, N_LAYERS = 0, 1, 3, 9, 10, 14
"""Numbers of the first layer of each stratum: 1 gel, 2 corneum, 6 honeycomb, 1 basal, 4 dermal layers."""

HONEYCOMB_SPACING_UM = (27.0, 22.0, 18.0, 15.0, 12.5, 10.5)


def _gel(rng: np.random.Generator, shape: Shape) -> Grid:
    sparks = np.maximum(fields.smooth_noise(rng, shape, 5.0) - np.float32(2.4), 0)
    haze = np.float32(0.08) + np.float32(0.03) * fields.cloud_noise(rng, shape, 80.0)
    return np.asarray(haze + np.float32(0.5) * sparks, dtype=np.float32)


def _corneum(rng: np.random.Generator, recipe: Recipe, shape: Shape) -> Grid:
    points = fields.scattered_points(rng, shape, float(rng.uniform(26, 42)) * recipe.cell_scale, 0.4)
    _, cell = fields.voronoi_cells(points, shape)
    plate = rng.gamma(4.0, 0.25, len(points)).astype(np.float32)[cell]
    edge = np.exp(-fields.wall_distance(cell) / np.float32(1.6))
    scales = plate * (np.float32(0.7) + np.float32(0.22) * fields.cloud_noise(rng, shape, 12.0, 3))
    scales += np.float32(rng.uniform(-0.35, 0.45)) * edge
    scales += np.float32(0.3) * np.maximum(fields.smooth_noise(rng, shape, 3.0) - np.float32(1.0), 0)
    scales = fields.warped(scales.astype(np.float32), rng, 2.5, 20.0)
    return np.maximum(scales, 0.05) * np.float32(recipe.corneum_brightness)


def _cells(rng: np.random.Generator, recipe: Recipe, shape: Shape, spacing_um: float, depth: float) -> Grid:
    """One layer of honeycomb; `depth` runs from 0 (granulosum) to 1 (deep spinosum)."""
    strength = np.float32(recipe.wall_strength * rng.uniform(0.85, 1.15))
    floor = np.float32(rng.uniform(0.1, 0.2))
    if recipe.cells == "ridges":
        noise = fields.bandpass_noise(
            rng, shape, spacing_um * 1.05, bandwidth=0.13 + 0.25 * recipe.cell_jitter
        )
        mesh = 1 / (1 + np.exp(np.float32(2.6) * (noise - np.float32(0.35))))
        return np.asarray(floor + strength * mesh.astype(np.float32) * np.float32(0.85), dtype=np.float32)
    points = fields.scattered_points(rng, shape, spacing_um, recipe.cell_jitter)
    nearest, cell = fields.voronoi_cells(points, shape, city_block=recipe.cells == "facets")
    reach = nearest / np.float32(0.5 * spacing_um)
    own = rng.normal(1, 0.12 + 0.2 * recipe.cell_jitter, len(points)).astype(np.float32)[cell]
    if recipe.cells == "discs":
        body = np.clip(reach, 0, 1.25) ** np.float32(rng.uniform(1.6, 3.0))
        layer = floor * own + strength * np.float32(0.75) * body
    elif recipe.cells == "facets":
        groove = np.exp(-(((fields.wall_distance(cell) - np.float32(1.2)) / np.float32(1.2)) ** 2))
        layer = floor + strength * (np.float32(0.75) * groove + np.float32(0.25) * own * np.minimum(reach, 1))
        layer = fields.warped(layer.astype(np.float32), rng, 0.12 * spacing_um, 1.2 * spacing_um)
    else:
        width = np.float32(recipe.wall_width_um * (0.75 + 0.25 * spacing_um / 15))
        wall = np.exp(-((fields.wall_distance(cell) / width) ** 2) / 2)
        layer = floor * own + strength * wall * (
            np.float32(0.85) + np.float32(0.22) * fields.smooth_noise(rng, shape, 9.0)
        )
        granules = np.float32(0.16 * (1 - depth)) * fields.smooth_noise(rng, shape, 2.5)
        layer += granules * (1 - wall)
    dark = np.exp(-((reach / np.float32(0.42)) ** 2)) * np.float32(
        recipe.nucleus_strength * (1 - 0.6 * depth)
    )
    seen = (rng.uniform(size=len(points)) < 0.75).astype(np.float32)[cell]
    return np.asarray(layer * (1 - dark * seen), dtype=np.float32)


def _honeycomb(
    rng: np.random.Generator, recipe: Recipe, shape: Shape, depth: float, spacing_um: float
) -> Grid:
    layer = _cells(rng, recipe, shape, spacing_um * recipe.cell_scale, depth)
    if recipe.lesional:  # disarranged: cells of another size, and smeared out, in patches
        other = _cells(
            rng, recipe, shape, spacing_um * recipe.cell_scale * float(rng.uniform(1.2, 1.7)), depth
        )
        share = 1 / (1 + np.exp(-3 * fields.smooth_noise(rng, shape, 70.0)))
        layer = np.asarray(layer * (1 - share) + other * share, dtype=np.float32)
        faded = np.float32(0.6) / (1 + np.exp(-3 * fields.smooth_noise(rng, shape, 90.0)))
        layer = np.asarray(layer * (1 - faded) + faded * np.float32(layer.mean()), dtype=np.float32)
    # Honeycomb is never equally clear everywhere.
    faded = np.float32(rng.uniform(0.3, 1.0)) / (1 + np.exp(-2 * fields.smooth_noise(rng, shape, 60.0) + 1))
    return np.asarray(layer + faded * (np.float32(layer.mean()) - layer), dtype=np.float32)


def _basal(rng: np.random.Generator, recipe: Recipe, shape: Shape) -> Grid:
    spacing = float(rng.uniform(8.0, 11.0)) * recipe.cell_scale
    points = fields.scattered_points(rng, shape, spacing, 0.35)
    nearest, cell = fields.voronoi_cells(points, shape)
    own = np.clip(rng.normal(1, 0.35, len(points)), 0.2, 2).astype(np.float32)[cell]
    bright = own * np.clip(np.float32(1.15) - nearest / np.float32(0.62 * spacing), 0, 1)
    patches = np.clip(1 + np.float32(0.3) * fields.smooth_noise(rng, shape, 60.0), 0.3, 2)
    light = np.float32(recipe.basal_brightness) * bright * patches * np.float32(0.75)
    return np.asarray(np.float32(0.12) + light, dtype=np.float32)


def _fibres(
    rng: np.random.Generator, recipe: Recipe, shape: Shape, width_um: float, length_um: float, order: float
) -> Grid:
    if recipe.collagen == "drawn":
        return fields.drawn_fibres(rng, shape, width_um, length_um, float(rng.uniform(0.35, 0.8)))
    return fields.fibre_noise(rng, shape, width_um, length_um, order=order)


def _vessels(rng: np.random.Generator, shape: Shape) -> Grid:
    """Brightness left (0 to 1) by dark winding vessels."""
    winding = np.abs(fields.smooth_noise(rng, shape, float(rng.uniform(90, 200))))
    return (1 - np.float32(0.75) * np.exp(-((winding / np.float32(0.06)) ** 2))).astype(np.float32)


def _dermis(rng: np.random.Generator, recipe: Recipe, shape: Shape) -> list[Grid]:
    light = np.float32(recipe.collagen_brightness)
    cloud = np.exp(np.float32(0.35) * fields.cloud_noise(rng, shape, 70.0))
    floor = np.float32(rng.uniform(0.1, 0.28))
    thin = _fibres(rng, recipe, shape, float(rng.uniform(1.5, 2.5)), 14.0, 0.2)
    net = _fibres(rng, recipe, shape, float(rng.uniform(2.2, 3.6)), 30.0, 0.5)
    bundles = _fibres(rng, recipe, shape, float(rng.uniform(3.5, 6.0)), 60.0, 0.8)
    coarse = _fibres(rng, recipe, shape, float(rng.uniform(6.0, 10.0)), 90.0, 0.9)
    dark = np.float32(1 - recipe.papilla_darkness)
    vessels = _vessels(rng, shape)
    return [
        (floor + np.float32(0.6) * light * thin) * dark * np.sqrt(cloud),
        (floor + np.float32(0.75) * light * (np.float32(0.6) * net + np.float32(0.4) * thin))
        * (dark + 1)
        / 2
        * cloud,
        (floor + light * (np.float32(0.75) * bundles + np.float32(0.3) * thin)) * cloud * vessels,
        (floor + light * (np.float32(0.75) * coarse + np.float32(0.3) * bundles)) * cloud * vessels,
    ]


def build_layers(rng: np.random.Generator, recipe: Recipe, shape: Shape) -> Grid:
    """Relative reflectance of every layer, [layers, rows, columns]."""
    layers = [_gel(rng, shape), _corneum(rng, recipe, shape), _corneum(rng, recipe, shape)]
    n = len(HONEYCOMB_SPACING_UM)
    layers += [
        _honeycomb(rng, recipe, shape, k / (n - 1), spacing) for k, spacing in enumerate(HONEYCOMB_SPACING_UM)
    ]
    layers.append(_basal(rng, recipe, shape))
    layers += _dermis(rng, recipe, shape)
    return np.stack(layers).astype(np.float32)
