"""What a partial stack is said to be: never impossible, from one posterior, with plan and advice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.core.advice import FARTHEST_UM
from rcm_daemon.core.estimator import EstimatorParameters, Levels, monotone_estimate
from rcm_daemon.core.mosaic import MOSAICS, MosaicRule
from rcm_daemon.core.pipeline import Estimation, Recurrence
from rcm_daemon.core.quality import weight_of
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack
from rcm_daemon.errors import InferenceError

FOUND = st.sampled_from([0.3, 0.4, 0.5, 0.65, 0.9])
ANY_UM = st.sampled_from([1e-3, 0.1, 5.0, 100.0, 10_000.0])
NINETY = Levels(by_share=((((0.05, 0.95),) * 2),) * 4, overall=((0.05, 0.95),) * 2)


def parameters(**changes) -> EstimatorParameters:
    fields = {
        "schema": "rcm-estimator-1",
        "start_um": 50.0,
        "start_scale_um": 15.0,
        "thickness_um": 45.0,
        "thickness_scale_um": 9.0,
        "thinnest_um": 8.0,
        "found_probability": 0.5,
        "settled_probability": 0.98,
        "inside": NINETY,
        "forecast": NINETY,
    }
    return EstimatorParameters(**(fields | changes))


def estimate(z_um, evidence, weight=None, **changes):
    n = len(z_um)
    weight = np.ones(n, np.float32) if weight is None else weight
    uniform = np.full((n, 3), 1 / 3, np.float32)
    return monotone_estimate(
        np.asarray(z_um, np.float64), weight, uniform, np.asarray(evidence, np.float32), parameters(**changes)
    )


def clear_stack(last_um: float, step_um: float = 3.0):
    z_um = np.arange(0.0, last_um, step_um)
    strata = (z_um > 60).astype(int) + (z_um > 105)
    return z_um, 0.5 * np.eye(3)[strata], strata


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(st.integers(1, 12), st.lists(ANY_UM, min_size=5, max_size=5), st.sampled_from([1e-3, 1.0, 1e4]))
def test_whatever_parameters_a_bundle_may_hold_there_is_an_estimate_or_a_reason(n, um, step_um) -> None:
    names = ("start_um", "start_scale_um", "thickness_um", "thickness_scale_um", "thinnest_um")
    evidence = np.random.default_rng(n).uniform(-1, 1, (n, 3))
    try:
        said = estimate(step_um * np.arange(n), evidence, **dict(zip(names, um, strict=True)))
    except InferenceError as error:
        assert "must leave a boundary possible" in str(error)
    else:
        assert np.all(np.isin(np.diff(said.labels), (0, 1, 2)))
        assert np.all(np.isfinite(said.posterior))


@given(st.integers(1, 40), st.integers(0, 10_000), st.tuples(FOUND, FOUND))
def test_no_prefix_of_any_stack_has_an_impossible_transition(n, seed, found_probability) -> None:
    rng = np.random.default_rng(seed)
    z_um = np.cumsum(rng.uniform(0.5, 7.0, n)) + rng.uniform(-1e4, 1e4)
    evidence = rng.uniform(-1, 1, (n, 3))
    for prefix in range(1, n + 1):
        said = estimate(z_um[:prefix], evidence[:prefix], found_probability=found_probability)
        steps = np.diff(said.labels)
        assert set(steps) <= {0, 1}
        for k, boundary in enumerate(said.boundaries):
            if boundary.status == "inside":
                assert np.array_equal(said.labels > k, z_um[:prefix] >= boundary.um)
                assert z_um[0] <= boundary.um <= z_um[prefix - 1]
                assert boundary.low_um <= boundary.um <= boundary.high_um
            elif boundary.status == "not_reached":
                assert said.labels.max() <= k
                assert z_um[prefix - 1] <= boundary.forecast_um
                assert boundary.forecast_low_um <= boundary.forecast_um <= boundary.forecast_high_um
            else:
                assert said.labels.min() > k
        np.testing.assert_allclose(said.posterior.sum(axis=1), 1.0, atol=1e-5)


def test_a_clear_stack_is_read_as_it_is() -> None:
    z_um, evidence, strata = clear_stack(160.0)
    said = estimate(z_um, evidence)
    assert said.labels.tolist() == strata.tolist()
    first, second = said.boundaries
    assert (first.status, second.status) == ("inside", "inside")
    assert first.um == pytest.approx(60, abs=3)
    assert second.um == pytest.approx(105, abs=3)
    assert first.high_um - first.low_um < 10
    assert said.settled[:10].all()
    assert said.advice.kind == "stop"


def test_what_lies_ahead_is_forecast_from_the_thickness_learned() -> None:
    z_um, evidence, _ = clear_stack(75.0)
    said = estimate(z_um, evidence)
    assert said.boundaries[0].status == "inside"
    ahead = said.boundaries[1]
    assert ahead.status == "not_reached"
    assert (ahead.um, ahead.low_um, ahead.high_um) == (0.0, 0.0, 0.0)
    assert ahead.forecast_um == pytest.approx(60 + 45, abs=6)
    assert ahead.forecast_low_um < 100 < 115 < ahead.forecast_high_um
    assert said.advice.kind in ("continue", "acquire_at")


def test_intervals_follow_the_levels_of_the_share_seen() -> None:
    z_um, evidence, _ = clear_stack(160.0)
    wide, narrow = ((0.005, 0.995),) * 2, ((0.3, 0.7),) * 2
    levels = Levels(by_share=(narrow, narrow, narrow, wide), overall=narrow)
    weight, flat = np.ones(len(z_um), np.float32), np.full((len(z_um), 3), 1 / 3, np.float32)
    widths = []
    for share in (0.0, 0.2, 0.75, 0.76, 1.0):
        said = monotone_estimate(
            z_um, weight, flat, 0.05 * evidence.astype(np.float32), parameters(inside=levels), share
        )
        widths.append(said.boundaries[0].high_um - said.boundaries[0].low_um)
    assert widths[0] == widths[1] == widths[2] < widths[3] == widths[4]


def test_mosaics_lie_where_the_rule_says() -> None:
    z_um, evidence, _ = clear_stack(160.0)
    said = estimate(z_um, evidence)
    first, second = said.boundaries
    assert tuple(place.name for place in said.mosaic) == MOSAICS
    between = second.um - first.um
    wanted = [first.um - 6, *(first.um + share * between for share in (0.2, 0.5, 0.8)), second.um + 12]
    np.testing.assert_allclose([place.z_um for place in said.mosaic], wanted)
    assert all(place.low_um <= place.z_um <= place.high_um for place in said.mosaic)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        MosaicRule(shares=(0.2, 0.5, 1.2))


def test_advice_looks_where_the_stratum_is_least_certain() -> None:
    z_um = np.array([0.0, 20.0, 40.0, 90.0, 130.0])
    strata = (z_um > 60).astype(int) + (z_um > 105)
    said = estimate(z_um, 0.9 * np.eye(3)[strata])
    assert said.advice.kind == "acquire_at"
    assert 40 < said.advice.z_um < 90 or 90 < said.advice.z_um < 130
    lone = estimate(np.array([0.0]), np.array([[0.9, 0.0, 0.0]]))
    assert lone.advice.kind == "acquire_at"
    assert 0 < lone.advice.z_um <= FARTHEST_UM


@pytest.mark.parametrize(("gap_um", "kind"), [(6.5, "stop"), (7.5, "acquire_at")])
def test_a_boundary_is_imaged_more_closely_than_every_7_um_and_no_closer(gap_um: float, kind: str) -> None:
    close = np.arange(0.0, 160.0, 2.0)
    z_um = np.concatenate([close[close < 60], close[close >= 60] - 2.0 + gap_um])  # one gap, at a boundary
    strata = (z_um > 59).astype(int) + (z_um > 110)
    said = estimate(z_um, 2.0 * np.eye(3)[strata])
    assert said.advice.kind == kind
    if kind == "acquire_at":
        assert said.advice.z_um == pytest.approx(58.0 + gap_um / 2)


def test_a_sweep_goes_on_until_both_boundaries_are_behind() -> None:
    z_um, evidence, _ = clear_stack(160.0)
    kinds = [estimate(z_um[:n], evidence[:n]).advice.kind for n in range(1, len(z_um) + 1)]
    first_stop = kinds.index("stop")
    assert z_um[first_stop] > 105
    assert set(kinds[first_stop:]) == {"stop"}


def test_the_papers_reading_stays_to_be_had() -> None:
    stack = PartialStack()
    for index in range(3):
        stack = stack.with_slices(EmbeddedSlice(index, 3.0 * index, np.zeros(2, np.float32)))
    given = Recurrence(np.eye(3, dtype=np.float32), np.zeros((3, 3), np.float32))
    paper = Estimation().estimate(stack, given)
    assert paper.labels.tolist() == [0, 1, 2]
    assert not paper.posterior.any()
    assert paper.advice.kind == "none"
    monotone = Estimation(parameters()).estimate(stack, given)
    assert monotone.posterior.any()


def test_evidence_that_leaves_nothing_possible_is_refused() -> None:
    z_um = np.arange(0.0, 60.0, 3.0)
    with pytest.raises(InferenceError, match="must leave a boundary possible"):
        estimate(z_um, np.full((20, 3), np.nan))


@pytest.mark.hazard("H23")
def test_a_black_slice_is_no_evidence_for_the_posterior() -> None:
    z_um, evidence, _ = clear_stack(140.0)
    misled = evidence.copy()
    misled[-3:] = [9.0, 0.0, 0.0]  # the network calls three black pictures deep in the dermis epidermis
    flags = [("dark",) if i >= len(z_um) - 3 else () for i in range(len(z_um))]
    slices = tuple(
        EmbeddedSlice(i, float(z), np.zeros(2, np.float32), weight_of(flags[i]), flags[i])
        for i, z in enumerate(z_um)
    )
    rows = np.full((len(z_um), 3), [0.98, 0.01, 0.01], np.float32)
    said = Estimation(parameters()).estimate(
        PartialStack(slices), Recurrence(rows, misled.astype(np.float32))
    )
    assert said.labels[-3:].tolist() == [2, 2, 2]
    assert said.posterior[-3:, 0].max() < 0.1
    assert said.probabilities[-3:].max() < 0.5


def test_dej_dermis_found_means_that_epidermis_dej_is() -> None:
    z_um, evidence, _ = clear_stack(112.0)
    uncertain = 0.05 * evidence
    for last in range(20, len(z_um)):
        said = estimate(z_um[:last], uncertain[:last], found_probability=(0.99, 0.5))
        if said.boundaries[1].found:
            assert said.boundaries[0].found
            break
    else:
        pytest.fail("DEJ-dermis was never found")


def test_one_number_is_meant_for_both_boundaries() -> None:
    both = parameters(found_probability=0.7)
    assert both.found_probability == (0.7, 0.7)
    again = EstimatorParameters.model_validate_json(both.model_dump_json(by_alias=True))
    assert again == both
