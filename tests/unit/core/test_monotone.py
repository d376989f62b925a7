"""What a partial stack is said to be: never impossible, from one posterior, with plan and advice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.core.advice import FARTHEST_UM
from rcm_daemon.core.estimator import NOTHING_SAID, EstimatorParameters, Levels, monotone_estimate
from rcm_daemon.core.mosaic import MOSAICS, MosaicRule
from rcm_daemon.core.pipeline import Estimation, Recurrence
from rcm_daemon.core.quality import weight_of
from rcm_daemon.core.records import Advice
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


def estimate(z_um, evidence, weight=None, before=NOTHING_SAID, **changes):
    n = len(z_um)
    weight = np.ones(n, np.float32) if weight is None else weight
    uniform = np.full((n, 3), 1 / 3, np.float32)
    evidence = np.asarray(evidence, np.float32)
    z_um = np.asarray(z_um, np.float64)
    return monotone_estimate(z_um, weight, uniform, evidence, parameters(**changes), before=before)


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


@given(
    st.integers(1, 40),
    st.integers(0, 10_000),
    st.tuples(FOUND, FOUND),
    st.sampled_from([5.0, 8.0]),
    st.sampled_from([0.0, 0.3]),
)
def test_no_prefix_of_any_stack_has_an_impossible_transition(
    n, seed, found_probability, thinnest_um, share_dark
) -> None:
    rng = np.random.default_rng(seed)
    z_um = np.cumsum(rng.uniform(0.5, 2 * thinnest_um, n)) + rng.uniform(-1e4, 1e4)
    evidence = rng.uniform(-1, 1, (n, 3))
    weight = (rng.uniform(size=n) >= share_dark).astype(np.float32)
    changes = {"found_probability": found_probability, "thinnest_um": thinnest_um}
    for prefix in range(1, n + 1):
        said = estimate(z_um[:prefix], evidence[:prefix], weight[:prefix], **changes)
        steps = np.diff(said.labels)
        assert set(steps) <= {0, 1}
        for k, boundary in enumerate(said.boundaries):
            if boundary.status == "inside":
                assert np.array_equal(said.labels > k, z_um[:prefix] >= boundary.um)
                assert z_um[0] < boundary.um <= z_um[:prefix][weight[:prefix] > 0][-1]
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


def test_forecasts_have_levels_of_their_own() -> None:
    z_um, evidence, _ = clear_stack(75.0)  # between the boundaries
    wide, narrow = (
        Levels(by_share=((pair,) * 2,) * 4, overall=(pair,) * 2) for pair in ((0.005, 0.995), (0.3, 0.7))
    )
    one = estimate(z_um, 0.05 * evidence, inside=narrow, forecast=wide).boundaries
    other = estimate(z_um, 0.05 * evidence, inside=wide, forecast=narrow).boundaries
    assert [boundary.status for boundary in one] == ["inside", "not_reached"]
    assert one[0].high_um - one[0].low_um < 0.5 * (other[0].high_um - other[0].low_um)
    forecast_um = [said[1].forecast_high_um - said[1].forecast_low_um for said in (one, other)]
    assert forecast_um[0] > 2 * forecast_um[1]


@pytest.mark.parametrize("threshold", [0.6, 0.87, 0.99])
def test_a_label_is_settled_from_the_bundles_probability_on(threshold: float) -> None:
    z_um, evidence, _ = clear_stack(160.0)
    said = estimate(z_um, 0.1 * evidence, settled_probability=threshold)
    own = said.posterior[np.arange(len(z_um)), said.labels]
    assert said.settled.tolist() == (own >= threshold).tolist()
    assert 0 < said.settled.sum() < len(z_um)


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
    assert z_um[first_stop - 1] < estimate(z_um, evidence).mosaic[-1].z_um <= z_um[first_stop]
    assert set(kinds[first_stop:]) == {"stop"}


def test_the_deepest_mosaic_is_imaged_before_a_stack_may_stop() -> None:
    z_um, evidence, _ = clear_stack(160.0)
    seen = z_um <= 112
    said = estimate(z_um[seen], evidence[seen])
    assert said.boundaries[1].status == "inside"
    assert said.advice == Advice("acquire_at", said.mosaic[-1].z_um)
    there = np.append(z_um[seen], said.advice.z_um)
    assert estimate(there, np.vstack([evidence[seen], evidence[-1]])).advice.kind == "stop"


@pytest.mark.hazard("H23")
def test_a_deepest_mosaic_that_was_dark_is_asked_for_once_more_and_no_oftener() -> None:
    z_um, evidence, _ = clear_stack(112.5)
    weight = np.ones(len(z_um), np.float32)
    asked = []
    for _ in range(3):
        said = estimate(z_um, evidence, weight)
        asked.append(said.advice.kind)
        z_um, weight = np.append(z_um, said.mosaic[-1].z_um), np.append(weight, np.float32(0))
        evidence = np.vstack([evidence, np.zeros(3)])
    assert asked == ["acquire_at", "acquire_at", "stop"]


def test_no_mosaic_is_asked_for_farther_ahead_than_any_other_depth() -> None:
    z_um, evidence, _ = clear_stack(112.5)
    uniform = np.full((len(z_um), 3), 1 / 3, np.float32)
    rule, weight = MosaicRule(below_um=100), np.ones(len(z_um), np.float32)
    said = monotone_estimate(z_um, weight, uniform, evidence.astype(np.float32), parameters(), 0.0, rule)
    assert said.mosaic[-1].z_um > z_um[-1] + FARTHEST_UM
    assert said.advice == Advice("acquire_at", z_um[-1] + FARTHEST_UM)


@pytest.mark.parametrize(("from_um", "planned"), [(75.0, ("papillary_dermis",)), (120.0, ())])
def test_what_lies_above_the_stack_is_not_planned_and_never_done(
    from_um: float, planned: tuple[str, ...]
) -> None:
    z_um, evidence, _ = clear_stack(220.0)
    below = z_um >= from_um
    said = estimate(z_um[below], evidence[below])
    assert said.boundaries[0].status == "above_start"
    assert tuple(place.name for place in said.mosaic) == planned
    assert said.advice.kind == "continue"


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


def test_no_dej_is_stepped_over_where_dej_dermis_is_held_at_the_newest_slice() -> None:
    """DEJ-dermis is found at 0.4: its median may lie below the newest slice, which then counts as dermis."""
    rng = np.random.default_rng(3)
    n_held = 0
    for step_um in (5.5, 6.0, 8.0, 10.0):
        for _ in range(400):
            z_um = step_um * np.arange(rng.integers(2, 12))
            changes = {"found_probability": (0.65, 0.4), "thinnest_um": 5.0}
            said = estimate(z_um, rng.uniform(-1, 1, (len(z_um), 3)), **changes)
            n_held += said.boundaries[1].um == z_um[-1]
            assert set(np.diff(said.labels)) <= {0, 1}
    assert n_held > 10


@pytest.mark.hazard("H23")
def test_a_scan_in_the_dark_finds_nothing_settles_nothing_and_goes_on() -> None:
    z_um = np.arange(0.0, 300.0, 3.0)
    said = estimate(z_um, np.zeros((100, 3)), np.zeros(100, np.float32))
    assert [one.status for one in said.boundaries] == ["not_reached", "not_reached"]
    assert not said.settled.any()
    assert not said.labels.any()
    assert said.advice.kind == "continue"
    # Nor where the light goes out after a few slices of epidermis.
    weight = (z_um < 12).astype(np.float32)
    evidence = np.outer(weight, [0.5, 0.0, 0.0])
    said = estimate(z_um, evidence, weight)
    assert [one.status for one in said.boundaries] == ["not_reached", "not_reached"]
    assert not said.settled[4:].any()
    assert said.advice.kind != "stop"


def test_what_pictures_unlike_all_others_say_is_never_settled() -> None:
    z_um, evidence, _ = clear_stack(160.0)
    said = estimate(z_um, 5 * evidence, np.full(len(z_um), weight_of(["out_of_domain"]), np.float32))
    assert [one.status for one in said.boundaries] == ["inside", "inside"]
    assert not said.settled.any()
    assert said.advice.kind != "stop"


@pytest.mark.hazard("H23")
def test_a_depth_that_was_dark_is_asked_for_once_more_and_no_oftener() -> None:
    z_um = np.arange(0.0, 160.0, 6.0)
    evidence = 0.5 * np.eye(3)[(z_um > 60).astype(int) + (z_um > 105)]
    dark = (z_um >= 54) & (z_um <= 66)
    weight = (~dark).astype(np.float32)
    said = estimate(z_um, evidence, weight)
    assert (said.advice.kind, said.advice.z_um) == ("acquire_at", 60.0)
    assert not said.settled[dark].any()
    # It is taken, and dark again.
    z_um, evidence, weight = (
        np.insert(one, 11, new, axis=0) for one, new in ((z_um, 60.0), (evidence, 0), (weight, 0))
    )
    said = estimate(z_um, evidence, weight)
    assert not (said.advice.kind == "acquire_at" and abs(said.advice.z_um - 60.0) < 1.5)


@pytest.mark.hazard("H23")
def test_a_dark_slice_between_settled_ones_alike_is_settled_too() -> None:
    z_um, evidence, strata = clear_stack(160.0)
    weight = np.ones(len(z_um), np.float32)
    weight[5] = 0.0
    said = estimate(z_um, evidence, weight)
    assert said.settled[5]
    assert said.labels.tolist() == strata.tolist()


def test_a_boundary_held_at_the_first_slice_lies_above_the_stack() -> None:
    """DEJ-dermis between two slices 5 um apart leaves no room for an epidermis above it."""
    for seed in range(400):
        evidence = np.random.default_rng(seed).uniform(-1, 1, (2, 3))
        said = estimate([0.0, 5.0], evidence, found_probability=(0.65, 0.4), thinnest_um=5.0)
        first = said.boundaries[0]
        assert first.status != "inside" or said.labels[0] == 0
        assert first.status != "above_start" or said.labels[0] > 0


@pytest.mark.parametrize("pair", [(0.9, 0.95), (0.05, 0.1)])
def test_levels_that_leave_the_median_out_are_refused(pair) -> None:
    with pytest.raises(ValueError, match=r"a low level must be at most 0\.5 and a high one at least 0\.5"):
        Levels(by_share=(((0.05, 0.95),) * 2,) * 4, overall=(pair, (0.05, 0.95)))
    with pytest.raises(ValueError, match="at least 2 items"):
        Levels(by_share=(((0.05, 0.95),),) * 4, overall=((0.05, 0.95),) * 2)
