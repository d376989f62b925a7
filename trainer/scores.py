"""What a method says about stacks, and how good that is: the numbers of one row of every table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.boundaries import boundaries_from_labels
from rcm_daemon.core.records import BOUNDARIES
from rcm_daemon.core.strata import paper_labels
from trainer.bootstrap import interval, patient_weights, resampled, weighted_median
from trainer.metrics import (
    IMPOSSIBLE_TRANSITIONS,
    boundary_error_um,
    confusion,
    impossible_transitions,
    label_metrics,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.core.records import StrataEstimate
    from trainer.data.manifest import LabelledStack

Depths = tuple[float | None, float | None]
"""Depths of both boundaries in um; None where one does not lie between two slices of the stack."""


@dataclass(frozen=True)
class Prediction:
    """What one method says about one stack.

    Attributes
    ----------
    labels
        Raw label of every slice, int64 [n], before any post-processing.
    boundaries_um
        Both boundaries after the method's post-processing.
    """

    labels: np.ndarray
    boundaries_um: Depths


def prediction_of(probabilities: np.ndarray, z_um: np.ndarray) -> Prediction:
    """Take probabilities [n, 3] the paper's way: argmax for labels, median and causal max for boundaries."""
    return Prediction(probabilities.argmax(axis=1), depths(paper_labels(probabilities), z_um))


def estimated(said: StrataEstimate) -> Prediction:
    """Take labels and boundaries as an estimator gives them."""
    first, second = (place.um if place.found else None for place in said.boundaries)
    return Prediction(said.labels, (first, second))


def depths(labels: np.ndarray, z_um: np.ndarray) -> Depths:
    """Depths of both boundaries in labels; where labels run backwards the deepest so far counts."""
    first, second = boundaries_from_labels(np.maximum.accumulate(labels), z_um)
    return first.um if first.found else None, second.um if second.found else None


def score(stacks: Sequence[LabelledStack], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Score a method against the readers' consensus.

    Parameters
    ----------
    stacks, predictions
        Stacks, and what the method says of each.

    Returns
    -------
    dict
        `labels` (accuracy, sensitivities, specificities), `impossible` (the four kinds and their total, on
        raw labels), and for each boundary `mae_um`, `median_um`, `n`, `n_missed`, `n_false`, and `errors_um`
        of every stack (None where the readers have no such boundary); where the data have a geometric truth,
        `to_truth`: the accuracy and both boundaries once more, against it. Beside every figure that has one,
        `<name>_interval`: the central 95 % of a bootstrap over patients.
    """
    weights = patient_weights([stack.patient for stack in stacks])
    pairs = list(zip(stacks, predictions, strict=True))
    counts = np.stack([confusion(stack.labels, said.labels) for stack, said in pairs])
    labels: dict[str, Any] = label_metrics(counts.sum(axis=0))
    for name in list(labels):
        labels[f"{name}_interval"] = resampled(partial(_label_metric, name), counts, weights)
    kinds = [*(name for name, _, _ in IMPOSSIBLE_TRANSITIONS), "total"]
    per_stack = [impossible_transitions([said.labels]) for said in predictions]
    impossible: dict[str, Any] = {kind: sum(found[kind] for found in per_stack) for kind in kinds}
    totals = np.array([found["total"] for found in per_stack])
    impossible["total_interval"] = resampled(float, totals, weights)
    scores: dict[str, Any] = {
        "labels": labels,
        "impossible": impossible,
        "confusion": counts.sum(axis=0).tolist(),
    }
    consensus = [stack.labels for stack in stacks]
    for k, boundary in enumerate(BOUNDARIES):
        scores[boundary] = _score_boundary(pairs, consensus, k, weights)
    if all("true_label" in stack.readings for stack in stacks):
        scores["to_truth"] = _to_truth(pairs, weights)
    return scores


def _to_truth(pairs: list[tuple[LabelledStack, Prediction]], weights: np.ndarray) -> dict[str, Any]:
    true = [stack.readings["true_label"] for stack, _ in pairs]
    right = np.array(
        [[np.sum(labels == said.labels), len(labels)] for labels, (_, said) in zip(true, pairs, strict=True)]
    )
    scores: dict[str, Any] = {
        "accuracy": float(right[:, 0].sum() / right[:, 1].sum()),
        "accuracy_interval": resampled(lambda sums: float(sums[0] / sums[1]), right, weights),
    }
    for k, boundary in enumerate(BOUNDARIES):
        scores[boundary] = _score_boundary(pairs, true, k, weights)
    return scores


def _label_metric(name: str, counts: np.ndarray) -> float:
    return label_metrics(counts)[name]


def _score_boundary(
    pairs: list[tuple[LabelledStack, Prediction]],
    labels: Sequence[np.ndarray],
    k: int,
    weights: np.ndarray,
) -> dict[str, Any]:
    """Score one boundary against labels of every stack: the readers' consensus, or the geometry's."""
    errors, there, n_missed, n_false = [], [], 0, 0
    by_stack: list[float | None] = []
    for index, ((stack, said), true) in enumerate(zip(pairs, labels, strict=True)):
        true_um, found_um = depths(true, stack.z_um)[k], said.boundaries_um[k]
        error = boundary_error_um(true_um, found_um, stack.z_um)
        n_missed += true_um is not None and found_um is None
        n_false += true_um is None and found_um is not None
        by_stack.append(None if error is None else round(error, 3))
        if error is not None:
            errors.append(error)
            there.append(index)
    values, weights = np.array(errors), weights[:, there]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ values) / weights.sum(axis=1) if len(values) else np.full(len(weights), np.nan)
    return {
        "mae_um": float(values.mean()) if len(values) else float("nan"),
        "mae_um_interval": interval(means),
        "median_um": float(np.median(values)) if len(values) else float("nan"),
        "median_um_interval": interval(weighted_median(values, weights)),
        "n": len(values),
        "n_missed": int(n_missed),
        "n_false": int(n_false),
        "errors_um": by_stack,
    }
