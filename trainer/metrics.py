"""Numbers that say how good labels and boundaries are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.records import STRATA

if TYPE_CHECKING:
    from collections.abc import Sequence


def confusion(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Count pairs of labels, [3, 3]: row is the true stratum, column the predicted one."""
    n_classes = len(STRATA)
    counts = np.bincount(true * n_classes + predicted, minlength=n_classes * n_classes)
    return counts.reshape(n_classes, n_classes)


def label_metrics(counts: np.ndarray) -> dict[str, float]:
    """Accuracy, and sensitivity and specificity of every stratum, as shares 0..1.

    Sensitivity is TP / (TP + FN) and specificity TN / (TN + FP), one stratum against the rest; NaN where a
    denominator is 0.

    Parameters
    ----------
    counts
        Confusion counts [3, 3], row true, column predicted.
    """
    total = counts.sum()
    metrics = {"accuracy": _ratio(np.trace(counts), total)}
    for k, stratum in enumerate(STRATA):
        hit, true, named = counts[k, k], counts[k].sum(), counts[:, k].sum()
        metrics[f"sensitivity_{stratum}"] = _ratio(hit, true)
        metrics[f"specificity_{stratum}"] = _ratio(total - true - named + hit, total - true)
    return metrics


IMPOSSIBLE_TRANSITIONS = (
    ("epidermis_to_dermis", 0, 2),
    ("dej_to_epidermis", 1, 0),
    ("dermis_to_epidermis", 2, 0),
    ("dermis_to_dej", 2, 1),
)
"""The four kinds of Table 2 of Bozkurt et al. 2021: name, stratum above, stratum below."""


def impossible_transitions(stacks: Sequence[np.ndarray]) -> dict[str, int]:
    """Count anatomically impossible transitions between neighbouring slices of each stack.

    Parameters
    ----------
    stacks
        Raw labels (no post-processing) of each stack from shallow to deep.

    Returns
    -------
    dict
        One count for each of the four kinds, and their sum under `total`.
    """
    found = dict.fromkeys((name for name, _, _ in IMPOSSIBLE_TRANSITIONS), 0)
    for labels in stacks:
        for name, above, below in IMPOSSIBLE_TRANSITIONS:
            found[name] += int(np.sum((labels[:-1] == above) & (labels[1:] == below)))
    return {**found, "total": sum(found.values())}


def boundary_error_um(true_um: float | None, found_um: float | None, z_um: np.ndarray) -> float | None:
    """Error of one boundary of one stack in um.

    Parameters
    ----------
    true_um, found_um
        Depths; None where the stack has, or the method finds, no such boundary between two slices.
    z_um
        Depths of the stack's slices, increasing.

    Returns
    -------
    float or None
        The absolute difference; for a missed boundary the distance from the truth to the farther end of the
        stack; None where there is no true boundary (a false one is counted, not measured).
    """
    if true_um is None:
        return None
    if found_um is None:
        return float(max(abs(true_um - z_um[0]), abs(z_um[-1] - true_um)))
    return abs(true_um - found_um)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
