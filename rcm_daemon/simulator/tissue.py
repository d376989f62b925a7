"""Skin of one site: what a thin section at any depth reflects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rcm_daemon.simulator import random_fields as fields
from rcm_daemon.simulator.inclusions import Inclusions, add_inclusions, build_inclusions
from rcm_daemon.simulator.textures import HONEYCOMB, HONEYCOMB_SPACING_UM, build_layers

if TYPE_CHECKING:
    from rcm_daemon.simulator.grids import Grid
    from rcm_daemon.simulator.recipe import Recipe
    from rcm_daemon.simulator.relief import Relief

SECTION_UM = 3.0
"""Axial thickness of an optical section: no change with depth is sharper than this."""


@dataclass(frozen=True)
class Tissue:
    """Geometry and textures of one site on a grid of 1 um.

    Attributes
    ----------
    relief, inclusions
        Surfaces, and what lies in the strata.
    layers
        [layers, rows, columns] reflectances of the textures.
    clouds
        [rows, columns] slow variation of brightness (factor).
    basal_um
        [rows, columns] height of the basal layer above the junction: more on the steep flanks of papillae.
    dermal_from
        [rows, columns] depth from which the deeper dermal textures count.
    dermal_um
        Depths below `dermal_from` at which the three deeper dermal textures begin.
    """

    relief: Relief
    inclusions: Inclusions
    layers: Grid
    clouds: Grid
    basal_um: Grid
    dermal_from: Grid
    dermal_um: tuple[float, float, float]


def build_tissue(rng: np.random.Generator, recipe: Recipe, relief: Relief, shape: tuple[int, int]) -> Tissue:
    """Fill the surfaces of one site with textures; `shape` is its extent in um."""
    layers = build_layers(rng, recipe, shape)
    clouds = np.exp(
        np.float32(recipe.cloudiness) * fields.cloud_noise(rng, shape, float(rng.uniform(80, 220)))
    )
    thin, net = rng.uniform(10, 24), rng.uniform(14, 34)
    slope_x = cv2.Sobel(relief.junction, cv2.CV_32F, 1, 0, scale=1 / 8)
    slope_y = cv2.Sobel(relief.junction, cv2.CV_32F, 0, 1, scale=1 / 8)
    basal = np.float32(recipe.basal_um) * cv2.blur(np.sqrt(1 + slope_x**2 + slope_y**2), (7, 7))
    follow = np.float32(rng.uniform(0.2, 0.7))
    middle = (relief.zone_top + relief.zone_bottom) / 2
    return Tissue(
        relief=relief,
        inclusions=build_inclusions(rng, recipe, relief, shape),
        layers=layers,
        clouds=(clouds * relief.shadow).astype(np.float32),
        basal_um=basal.astype(np.float32),
        dermal_from=(follow * relief.junction + (1 - follow) * middle).astype(np.float32),
        dermal_um=(float(thin), float(thin + net), float(thin + net + rng.uniform(25, 45))),
    )


def _ramp(depth: Grid, middle: float | Grid, width: float) -> Grid:
    """0 above `middle`, 1 below it, over `width`."""
    return np.clip((depth - (middle - np.float32(width / 2))) * np.float32(1 / width), 0, 1)


def layer_coordinate(tissue: Tissue, z_um: float, window: tuple[slice, slice]) -> Grid:
    """Which texture a section meets at every position of a window.

    The integer part is the number of a layer, the rest the share of the next one.
    """
    z = np.float32(z_um)
    below = z - tissue.relief.surface[window]
    corneum = tissue.relief.corneum[window]
    dermal = z - tissue.relief.junction[window]
    coordinate = _ramp(below, 0.0, SECTION_UM)
    coordinate += _ramp(below, np.float32(0.5) * corneum, 4.0)
    coordinate += _ramp(below, corneum, SECTION_UM + 1)
    basal = tissue.basal_um[window]
    living = below - dermal - corneum - basal
    n_steps = len(HONEYCOMB_SPACING_UM) - 1
    share = np.clip((below - corneum) / np.maximum(living, 4), 0, 1)
    coordinate += np.float32(n_steps) * share
    coordinate += _ramp(dermal, -basal, SECTION_UM)
    coordinate += _ramp(dermal, 0.0, SECTION_UM)
    dermal = np.minimum(z - tissue.dermal_from[window], dermal)
    for start, width in zip(tissue.dermal_um, (10.0, 14.0, 20.0), strict=True):
        coordinate += _ramp(dermal, start, width)
    return coordinate


def section(
    tissue: Tissue, z_um: float, origin: tuple[int, int], size: tuple[int, int], rng: np.random.Generator
) -> Grid:
    """Relative reflectance of the section at `z_um` below the mean surface.

    Parameters
    ----------
    origin, size
        Window of the tissue grid in um.
    rng
        For what moves between slices (blood cells).

    Returns
    -------
    Grid
        [rows, columns], 0 (dark) to about 2.
    """
    window = (slice(origin[0], origin[0] + size[0]), slice(origin[1], origin[1] + size[1]))
    coordinate = layer_coordinate(tissue, z_um, window)
    n_layers, rows, columns = tissue.layers.shape
    lower = np.minimum(coordinate.astype(np.int32), n_layers - 2)
    share = coordinate - lower.astype(np.float32)
    # Cells are bodies: the honeycomb changes from one layer of cells to the next, it does not fade.
    sharp = np.clip((share - np.float32(0.5)) * np.float32(2.2) + np.float32(0.5), 0, 1)
    share = np.where((lower >= HONEYCOMB) & (lower < HONEYCOMB + 5), sharp, share)
    base = (np.arange(*window[0].indices(rows), dtype=np.int32) * columns)[:, None] + np.arange(
        *window[1].indices(columns), dtype=np.int32
    )
    index = lower * np.int32(rows * columns) + base
    flat = tissue.layers.reshape(-1)
    upper = flat[index]
    light = upper + share * (flat[index + np.int32(rows * columns)] - upper)
    light = np.asarray(light * tissue.clouds[window], dtype=np.float32)
    add_inclusions(light, tissue.inclusions, z_um, origin, rng)
    return light
