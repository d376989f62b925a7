"""Patient-level bootstrap: slices and stacks of one patient are no independent evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

N_RESAMPLES = 1000
SEED = 20_211


def patient_weights(patients: Sequence[str], n_resamples: int = N_RESAMPLES) -> np.ndarray:
    """Draw patients with replacement.

    Parameters
    ----------
    patients
        Patient of every stack.
    n_resamples
        Number of draws.

    Returns
    -------
    np.ndarray
        int64 [n_resamples, n_stacks]: how often each stack counts in each draw (its patient's number of
        times). The same patients give the same draws, so that methods are compared on the same resamples.
    """
    names, patient_of = np.unique(np.array(patients), return_inverse=True)
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    return times[:, patient_of]


def interval(values: np.ndarray) -> list[float]:
    """Central 95 % of resampled values, [low, high]; NaN values are left out."""
    kept = values[np.isfinite(values)]
    if len(kept) == 0:
        return [float("nan"), float("nan")]
    return [float(value) for value in np.percentile(kept, [2.5, 97.5])]


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of `values` [n] under each row of whole-number `weights` [m, n].

    Equal to `np.median` of the values repeated as often as they weigh; NaN where all weights are 0.
    """
    if len(values) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[:, order], axis=1)
    total = sums[:, -1]
    low = values[order][np.minimum((sums <= ((total - 1) // 2)[:, None]).sum(axis=1), len(values) - 1)]
    high = values[order][np.minimum((sums <= (total // 2)[:, None]).sum(axis=1), len(values) - 1)]
    return np.where(total > 0, (low + high) / 2, np.nan)


def resampled(statistic: Callable[[np.ndarray], float], sums: np.ndarray, weights: np.ndarray) -> list[float]:
    """Interval of a statistic of summed per-stack numbers.

    Parameters
    ----------
    statistic
        Takes the sum over stacks.
    sums
        Per-stack numbers [n_stacks, ...].
    weights
        As `patient_weights` gives them.
    """
    totals = np.tensordot(weights, sums, axes=1)
    return interval(np.array([statistic(total) for total in totals]))
