"""Boundaries from the geometry, simulated readers, and strata from boundaries."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.simulator.labels import (
    NARROWEST_JUNCTION_UM,
    read_boundaries,
    reader_agreement,
    strata_at,
    true_boundaries,
)

depths = st.floats(-500, 500)


@given(first=depths, width=st.floats(0, 200), z_um=st.lists(depths, min_size=1, max_size=50))
def test_strata_only_deepen(first: float, width: float, z_um: list[float]) -> None:
    ordered = sorted(z_um)
    strata = strata_at(ordered, (first, first + width))
    assert (np.diff(strata) >= 0).all()
    assert strata_at([first], (first, first + 1.0))[0] == 1  # a slice at a boundary is past it
    assert strata_at([first + 1.0], (first, first + 1.0))[0] == 2


@given(seed=st.integers(0, 10_000), first=depths, width=st.floats(0.0, 100.0), difficulty=st.floats(0.1, 3.0))
def test_readers_keep_the_order_of_boundaries(
    seed: int, first: float, width: float, difficulty: float
) -> None:
    read = read_boundaries(np.random.default_rng(seed), (first, first + width), difficulty)
    assert read.shape == (2, 2)
    assert (read[:, 1] - read[:, 0] >= NARROWEST_JUNCTION_UM - 1e-6).all()


def test_readers_err_more_at_the_second_boundary_and_in_part_together() -> None:
    rng = np.random.default_rng(0)
    error = np.stack([read_boundaries(rng, (50.0, 150.0), 1.0) for _ in range(4000)]) - (50.0, 150.0)
    scatter = error.std(axis=0)
    assert (scatter[:, 0] < scatter[:, 1]).all()
    assert (scatter[:, 0] > 3).all()
    for boundary in (0, 1):
        assert 0.2 < np.corrcoef(error[:, 0, boundary], error[:, 1, boundary])[0, 1] < 0.6
    assert np.abs(error.mean(axis=(0, 1))).max() < 1.0  # biases of the two readers nearly cancel


def test_true_boundaries_halve_the_field() -> None:
    rng = np.random.default_rng(1)
    top = rng.normal(60, 5, (40, 40)).astype(np.float32)
    bottom = top + rng.uniform(10, 50, (40, 40)).astype(np.float32)
    first, second = true_boundaries(top, bottom)
    assert abs((top <= first).mean() - 0.5) < 0.01
    assert abs((bottom <= second).mean() - 0.5) < 0.01
    flat = np.full((4, 4), 80, np.float32)
    assert true_boundaries(flat, flat) == (80.0, 80.0 + NARROWEST_JUNCTION_UM)


def test_agreement_is_a_share() -> None:
    assert reader_agreement([[0, 0, 1, 2], [0, 1, 1, 2]]) == 0.75
