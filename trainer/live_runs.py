"""Stacks replayed slice by slice through a recurrent network and an estimator, as the daemon sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.stack import EmbeddedSlice, PartialStack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.core.pipeline import Estimation, Recurrence, Recurrent
    from rcm_daemon.core.records import StrataEstimate
    from trainer.data.manifest import LabelledStack


@dataclass(frozen=True)
class LiveRun:
    """What was said of one stack after each of its slices: `estimates[n - 1]` of the first n of them.

    `given` is what the network gave for it.
    """

    stack: LabelledStack
    estimates: tuple[StrataEstimate, ...]
    given: tuple[Recurrence, ...]


def live_run(
    stack: LabelledStack,
    embeddings_NE: np.ndarray,
    recurrent: Recurrent,
    estimation: Estimation,
    kept: Sequence[int] | None = None,
) -> LiveRun:
    """Replay one stack.

    Parameters
    ----------
    stack
        The stack.
    embeddings_NE
        float32 [n, 256] of its slices.
    recurrent, estimation
        As the daemon has them.
    kept
        Slices that arrive, rising; none = all of them.
    """
    indices = range(stack.n_slices) if kept is None else kept
    partial = PartialStack()
    estimates, answers = [], []
    for count, index in enumerate(indices, start=1):
        partial = partial.with_slices(EmbeddedSlice(index, float(stack.z_um[index]), embeddings_NE[index]))
        given = recurrent(partial.embeddings, partial.z_um.astype(np.float32), partial.weight)
        answers.append(given)
        estimates.append(estimation.estimate(partial, given, count / len(indices)))
    return LiveRun(stack, tuple(estimates), tuple(answers))


def again(run: LiveRun, estimation: Estimation) -> LiveRun:
    """Read what the network gave for a whole stack anew, by another estimation."""
    partial, estimates = PartialStack(), []
    nothing = np.zeros(0, np.float32)
    for index, given in enumerate(run.given):
        partial = partial.with_slices(EmbeddedSlice(index, float(run.stack.z_um[index]), nothing))
        estimates.append(estimation.estimate(partial, given, (index + 1) / run.stack.n_slices))
    return LiveRun(run.stack, tuple(estimates), run.given)
