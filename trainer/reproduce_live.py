"""Our own row of the comparison: whole stacks through the segmental network and the monotone estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.pipeline import Estimation, estimate_strata
from rcm_daemon.core.stack import PartialStack
from rcm_daemon.errors import DataSetError
from trainer.calibrate import uncalibrated
from trainer.live_runs import slices_of
from trainer.offline import graph_runner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.data.manifest import LabelledStack
    from trainer.networks.rcn import RecurrentStrata


def estimate_stacks(
    network: RecurrentStrata, stacks: Sequence[LabelledStack], embeddings: Sequence[np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Estimate whole stacks; medians need no calibration.

    Parameters
    ----------
    network
        A segmental network.
    stacks, embeddings
        Stacks, and float32 [n, 256] of each.

    Returns
    -------
    probabilities
        float32 [slices of all stacks, 3].
    estimated
        `labels` int8 [slices of all stacks], and `boundaries_um` [stacks, 2], NaN for one that is not found.
    """
    if network.likelihood is None:
        raise DataSetError("our estimator needs a segmental network, this one is none")
    recurrent, estimation = graph_runner(network), Estimation(uncalibrated(network.likelihood.prior()))
    said = []
    for stack, rows_NE in zip(stacks, embeddings, strict=True):
        said.append(estimate_strata(PartialStack(slices_of(stack, rows_NE)), recurrent, estimation))
    return np.concatenate([estimate.probabilities for estimate in said]), {
        "labels": np.concatenate([estimate.labels for estimate in said]).astype(np.int8),
        "boundaries_um": np.array(
            [[place.um if place.found else np.nan for place in estimate.boundaries] for estimate in said]
        ),
    }
