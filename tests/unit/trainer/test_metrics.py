from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from trainer.bootstrap import interval, patient_weights, resampled, weighted_median
from trainer.metrics import boundary_error_um, confusion, impossible_transitions, label_metrics

LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60)


def test_a_case_worked_by_hand() -> None:
    true = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    said = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 1])
    counts = confusion(true, said)
    assert counts.tolist() == [[3, 1, 0], [0, 2, 1], [0, 1, 2]]
    metrics = label_metrics(counts)
    assert metrics["accuracy"] == pytest.approx(0.7)
    assert metrics["sensitivity_epidermis"] == pytest.approx(3 / 4)
    assert metrics["sensitivity_dej"] == pytest.approx(2 / 3)
    assert metrics["sensitivity_dermis"] == pytest.approx(2 / 3)
    assert metrics["specificity_epidermis"] == pytest.approx(6 / 6)
    assert metrics["specificity_dej"] == pytest.approx(5 / 7)
    assert metrics["specificity_dermis"] == pytest.approx(6 / 7)


@given(LABELS)
def test_labels_agree_with_scikit_learn(pairs) -> None:
    true, said = np.array(pairs).T
    metrics = label_metrics(confusion(true, said))
    assert confusion(true, said).tolist() == confusion_matrix(true, said, labels=[0, 1, 2]).tolist()
    assert metrics["accuracy"] == pytest.approx(accuracy_score(true, said))
    for k, stratum in enumerate(("epidermis", "dej", "dermis")):
        for name, own in (("sensitivity", true == k), ("specificity", true != k)):
            found = metrics[f"{name}_{stratum}"]
            if own.any():
                positive = name == "sensitivity"
                expected = recall_score(true == k, said == k, pos_label=positive, zero_division=0)
                assert found == pytest.approx(expected)
            else:
                assert np.isnan(found)


def test_impossible_transitions_by_kind() -> None:
    stacks = [
        np.array([0, 2, 1, 0, 1, 2, 0]),
        np.array([0, 0, 1, 1, 2]),
        np.array([2]),
        np.array([1, 0, 2, 1]),
    ]
    assert impossible_transitions(stacks) == {
        "epidermis_to_dermis": 2,
        "dej_to_epidermis": 2,
        "dermis_to_epidermis": 1,
        "dermis_to_dej": 2,
        "total": 7,
    }


def test_boundary_errors() -> None:
    z_um = np.array([-10.0, 0.0, 10.0, 50.0])
    assert boundary_error_um(5.0, 8.5, z_um) == 3.5
    assert boundary_error_um(5.0, None, z_um) == 45.0  # missed: the deeper end is farther
    assert boundary_error_um(45.0, None, z_um) == 55.0  # missed: the shallower end is farther
    assert boundary_error_um(None, 5.0, z_um) is None
    assert boundary_error_um(None, None, z_um) is None


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=12).flatmap(
        lambda values: st.tuples(
            st.just(values), st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values))
        )
    )
)
def test_weighted_median_is_the_median_of_repeated_values(case) -> None:
    values, weights = np.array(case[0]), np.array(case[1])
    found = weighted_median(values, weights[None])[0]
    if weights.sum() == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(np.median(np.repeat(values, weights)))


def test_bootstrap_draws_patients_whole() -> None:
    patients = ["a", "b", "b", "c", "a"]
    weights = patient_weights(patients, 400)
    assert weights.shape == (400, 5)
    assert (weights[:, 0] == weights[:, 4]).all()
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert np.array_equal(weights, patient_weights(patients, 400))
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)


def test_interval_of_a_mean_matches_the_normal_theory() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 400)
    weights = patient_weights([str(n) for n in range(400)], 2000)
    sums = np.stack([values, np.ones(400)], axis=1)
    low, high = resampled(lambda total: total[0] / total[1], sums, weights)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert np.isnan(interval(np.array([np.nan]))).all()
