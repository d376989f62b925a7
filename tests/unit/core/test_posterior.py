"""The posterior of both boundaries against plain loops over every pair of gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.core.posterior import (
    AHEAD_UM,
    N_ABOVE,
    BoundaryPrior,
    boundary_posterior,
    depth_shares_um,
)

PRIOR = BoundaryPrior(50.0, 15.0, 45.0, 9.0, 8.0)


def logistic(x: float) -> float:
    return 1.0 / (1.0 + float(np.exp(-x)))


def by_loops(z_um, evidence, weight, prior: BoundaryPrior) -> tuple[np.ndarray, dict[tuple[int, int], float]]:
    """Return [2, n + F] probabilities of a boundary above each depth, and the mass of every pair of gaps."""
    depths = [*z_um, *(z_um[-1] + AHEAD_UM)]
    n, m = len(z_um), len(depths)
    share = depth_shares_um(np.asarray(z_um)) * weight

    def first_below(x: float) -> float:
        return logistic((x - z_um[0] - prior.start_um) / prior.start_scale_um)

    cut = logistic((prior.thinnest_um - prior.thickness_um) / prior.thickness_scale_um)

    def thinner_than(t: float) -> float:
        raw = logistic((t - prior.thickness_um) / prior.thickness_scale_um)
        return max(raw - cut, 0.0) / (1 - cut)

    places: list[tuple[int, float, float]] = []  # gap, depth, mass
    for k in range(N_ABOVE):
        depth = z_um[0] + prior.start_scale_um * np.log((k + 0.5) / N_ABOVE)
        places.append((0, depth, first_below(z_um[0]) / N_ABOVE))
    for j in range(1, m):
        middle = (depths[j - 1] + depths[j]) / 2
        places.append((j, middle, first_below(depths[j]) - first_below(depths[j - 1])))
    mass: dict[tuple[int, int], float] = {(m, m): 1 - first_below(depths[-1])}
    for j, place, prior_mass in places:
        edges = [0.0, *(thinner_than(depth - place) for depth in depths), 1.0]
        for k in range(j, m + 1):
            mass[j, k] = mass.get((j, k), 0.0) + prior_mass * (edges[k + 1] - edges[k])
    for j, k in list(mass):
        labels = [0 if i < j else 1 if i < k else 2 for i in range(n)]
        mass[j, k] *= float(np.exp(sum(share[i] * evidence[i][labels[i]] for i in range(n))))
    total = sum(mass.values())
    cdf = np.zeros((2, m))
    for (j, k), value in mass.items():
        cdf[0, j:] += value / total
        cdf[1, k:] += value / total
    return cdf, {pair: value / total for pair, value in mass.items()}


stacks = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 0.5, 1.5, 3.0, 5.0, 12.0]), min_size=n, max_size=n),
        st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n),
        st.floats(-1e5, 1e5),
    )
)


@given(stacks)
def test_the_posterior_is_that_of_plain_loops(stack) -> None:
    steps, evidence, weight, zero = stack
    z_um = zero + np.cumsum(steps)
    found = boundary_posterior(z_um, np.array(evidence), np.array(weight), PRIOR)
    expected, mass = by_loops(z_um, evidence, weight, PRIOR)
    np.testing.assert_allclose(found.cdf, expected, atol=1e-9)
    joint = found.joint
    for pair, value in mass.items():
        assert joint[pair] == pytest.approx(value, abs=1e-9)
    assert joint.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(joint.sum(axis=1)[:-1].cumsum(), found.cdf[0], atol=1e-9)
    np.testing.assert_allclose(joint.sum(axis=0)[:-1].cumsum(), found.cdf[1], atol=1e-9)
    strata = found.strata
    np.testing.assert_allclose(strata.sum(axis=1), 1.0, atol=1e-12)
    assert strata.min() >= -1e-12


@given(stacks, st.sampled_from([1.0, 30.0]), st.sampled_from([-1.0, 20.0, 300.0]))
def test_however_far_evidence_contradicts_itself(stack, strength: float, factored: float) -> None:
    """Both ways to the exponentials give one answer, and neither overflows."""
    steps, evidence, weight, zero = stack
    z_um, evidence = zero + np.cumsum(steps), strength * np.array(evidence)
    expected, _ = by_loops(z_um, evidence, weight, PRIOR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rcm_daemon.core.posterior.FACTORED_NATS", factored)
        found = boundary_posterior(z_um, evidence, np.array(weight), PRIOR)
    np.testing.assert_allclose(found.cdf, expected, atol=1e-9)


@given(stacks)
def test_quantiles_rise_and_keep_the_boundaries_in_order(stack) -> None:
    steps, evidence, weight, zero = stack
    z_um = zero + np.cumsum(steps)
    found = boundary_posterior(z_um, np.array(evidence), np.array(weight), PRIOR)
    levels = np.linspace(0.01, 0.99, 30)
    first, second = found.quantile(0, levels), found.quantile(1, levels)
    assert np.all(np.diff(first) >= -1e-9)
    assert np.all(second >= first - 1e-9)


def test_no_pair_puts_both_boundaries_in_one_narrow_gap() -> None:
    z_um = np.arange(0.0, 60.0, 3.0)
    _, mass = by_loops(z_um, np.zeros((20, 3)), np.ones(20), PRIOR)
    assert all(value == 0.0 for (j, k), value in mass.items() if j == k and 0 < j < 20)
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = boundary_posterior(z_um, rng.uniform(-1, 1, (20, 3)), np.ones(20), PRIOR)
        labels = (found.cdf[:, :20] >= 0.5).sum(axis=0)
        assert set(np.diff(labels)) <= {0, 1}


def test_evidence_finds_the_boundaries_whatever_the_step() -> None:
    for step_um in (1.5, 3.0, 5.0):
        z_um = np.arange(0.0, 160.0, step_um)
        strata = (z_um > 60).astype(int) + (z_um > 105)
        found = boundary_posterior(z_um, 0.5 * np.eye(3)[strata], np.ones(len(z_um)), PRIOR)
        assert found.quantile(0, 0.5) == pytest.approx(60, abs=step_um)
        assert found.quantile(1, 0.5) == pytest.approx(105, abs=step_um)
        assert found.reached(1) > 0.999


def test_the_same_depth_in_finer_steps_is_no_more_evidence() -> None:
    widths = []
    for step_um in (1.5, 3.0):
        z_um = np.arange(0.0, 160.0, step_um)
        strata = (z_um > 60).astype(int) + (z_um > 105)
        found = boundary_posterior(z_um, 0.1 * np.eye(3)[strata], np.ones(len(z_um)), PRIOR)
        widths.append(float(found.quantile(0, 0.95) - found.quantile(0, 0.05)))
    assert widths[0] == pytest.approx(widths[1], rel=0.05)


def test_slices_without_weight_say_nothing() -> None:
    z_um = np.arange(0.0, 90.0, 3.0)
    rng = np.random.default_rng(1)
    evidence = rng.uniform(-1, 1, (30, 3))
    weight = np.zeros(30)
    found = boundary_posterior(z_um, evidence, weight, PRIOR)
    nothing = boundary_posterior(z_um, np.zeros((30, 3)), np.ones(30), PRIOR)
    np.testing.assert_allclose(found.cdf, nothing.cdf)


@pytest.mark.parametrize("first_um", [60.0, 800.0, 2_000.0])
def test_however_deep_a_boundary_lies_it_is_found_there(first_um: float) -> None:
    z_um = np.arange(0.0, first_um + 150.0, 3.0)
    strata = (z_um > first_um).astype(int) + (z_um > first_um + 50)
    found = boundary_posterior(z_um, 0.5 * np.eye(3)[strata], np.ones(len(z_um)), PRIOR)
    assert found.quantile(0, 0.5) == pytest.approx(first_um, abs=4)
    assert found.quantile(1, 0.5) == pytest.approx(first_um + 50, abs=4)
    nothing = boundary_posterior(z_um, 0.5 * np.eye(3)[0 * strata], np.ones(len(z_um)), PRIOR)
    assert nothing.reached(0) < 0.1
