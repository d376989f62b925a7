"""Geometry of the phantom skin: the junction's zone and the order of the layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rcm_daemon.simulator import FAMILIES
from rcm_daemon.simulator.recipe import Recipe, draw_patient, draw_recipe
from rcm_daemon.simulator.relief import build_relief, junction_zone, rete_pattern
from rcm_daemon.simulator.textures import BASAL, CORNEUM, HONEYCOMB, N_LAYERS, PAPILLARY
from rcm_daemon.simulator.tissue import build_tissue, layer_coordinate

SHAPE = (300, 300)
PATTERNS = ("domes", "network", "waves", "fingers", "crates")


def _recipe(seed: int, family: str = "classic", **changes: object) -> Recipe:
    rng = np.random.default_rng(seed)
    recipe = draw_recipe(rng, FAMILIES[family], draw_patient(rng), "trunk", lesional=False)
    return dataclasses.replace(recipe, **changes)


@pytest.mark.parametrize("kind", PATTERNS)
def test_rete_patterns_fill_their_range(kind: str) -> None:
    for seed in range(5):
        pattern = rete_pattern(np.random.default_rng(seed), kind, 90.0, SHAPE)
        assert pattern.shape == SHAPE
        assert np.isfinite(pattern).all()
        assert -0.11 < pattern.min() < 0.1
        assert 0.9 < pattern.max() < 1.11
        assert pattern.std() > 0.15


def test_zone_of_a_flat_junction_is_the_junction() -> None:
    top, bottom, _ = junction_zone(np.full(SHAPE, 70, np.float32), 90.0)
    np.testing.assert_allclose(top, 70, atol=1e-3)
    np.testing.assert_allclose(bottom, 70, atol=1e-3)


def test_zone_reaches_from_tips_to_ridges() -> None:
    # An egg crate 40 um high: everywhere a tip and a ridge are within reach.
    rows, columns = np.mgrid[0:300, 0:300].astype(np.float32)
    junction = 100 + 20 * np.cos(2 * np.pi * rows / 80) * np.cos(2 * np.pi * columns / 80)
    top, bottom, tips = junction_zone(junction.astype(np.float32), 90.0)
    assert np.median(top) == pytest.approx(80, abs=2)
    assert np.median(bottom) == pytest.approx(120, abs=2)
    assert (top <= bottom).all()
    assert len(tips) > 5
    assert junction[tips[:, 0], tips[:, 1]].max() < 90


@pytest.mark.parametrize("family", FAMILIES)
def test_surfaces_lie_in_order(family: str) -> None:
    for seed in range(3):
        relief = build_relief(np.random.default_rng(seed), _recipe(seed, family), SHAPE)
        assert (relief.surface + relief.corneum < relief.junction).all()
        assert (relief.corneum > 0).all()
        assert (relief.shadow <= 1).all()


def test_layers_follow_each_other_with_depth() -> None:
    rng, recipe = np.random.default_rng(2), _recipe(2)
    tissue = build_tissue(rng, recipe, build_relief(rng, recipe, SHAPE), SHAPE)
    assert tissue.layers.shape == (N_LAYERS, *SHAPE)
    window = (slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    last = np.zeros(SHAPE, np.float32)
    for z_um in np.arange(-60, 400, 4.0):
        coordinate = layer_coordinate(tissue, float(z_um), window)
        assert (coordinate >= last - 1e-3).all()
        last = coordinate
        below = z_um - tissue.relief.surface
        dermal = z_um - tissue.relief.junction
        assert (coordinate[below < -2] < CORNEUM).all()
        assert (coordinate[dermal > 2] >= PAPILLARY - 1e-3).all()
        assert (coordinate[dermal < -2] <= BASAL + 1e-3).all()
        living = (below > tissue.relief.corneum + 3) & (dermal < -2)
        assert (coordinate[living] >= HONEYCOMB - 1e-3).all()
    np.testing.assert_allclose(last, N_LAYERS - 1, atol=1e-3)
