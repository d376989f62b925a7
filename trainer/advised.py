"""A stack acquired under advice: the next slice is the one asked for, among those that were recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.pipeline import estimate_strata, said_so_far
from rcm_daemon.core.stack import PartialStack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.core.pipeline import Estimation, Recurrent
    from rcm_daemon.core.records import StrataEstimate
    from rcm_daemon.core.stack import EmbeddedSlice
    from trainer.data.manifest import LabelledStack


@dataclass(frozen=True)
class AdvisedRun:
    """Slices taken, in the order they were asked for, and the last estimate."""

    taken: tuple[int, ...]
    estimate: StrataEstimate


def advised_run(
    stack: LabelledStack, slices: Sequence[EmbeddedSlice], recurrent: Recurrent, estimation: Estimation
) -> AdvisedRun:
    """Begin at the first slice and follow the advice until it says stop or nothing is left to take.

    Where a depth is asked for, the nearest slice not taken yet is; `continue` takes the next deeper one.
    """
    taken, partial = [0], PartialStack()
    estimate: StrataEstimate | None = None
    while True:
        index = taken[-1]
        earlier, partial = partial, partial.with_slices(slices[index])
        known = said_so_far(earlier, estimate, partial)
        estimate = estimate_strata(partial, recurrent, estimation, known=known)
        left = np.setdiff1d(np.arange(stack.n_slices), taken)
        if estimate.advice.kind in ("stop", "none") or len(left) == 0:
            return AdvisedRun(tuple(taken), estimate)
        if estimate.advice.kind == "acquire_at":
            nearest = left[np.argmin(np.abs(stack.z_um[left] - estimate.advice.z_um))]
        else:
            deeper = left[left > max(taken)]
            nearest = deeper[0] if len(deeper) else left[-1]
        taken.append(int(nearest))
