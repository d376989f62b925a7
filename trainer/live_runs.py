"""Stacks replayed slice by slice through a recurrent network and an estimator, as the daemon sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.estimator import NOTHING_SAID
from rcm_daemon.core.pipeline import said_before, said_so_far
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.core.pipeline import Estimation, Recurrence, Recurrent
    from rcm_daemon.core.records import StrataEstimate
    from trainer.data.manifest import LabelledStack


@dataclass(frozen=True)
class LiveRun:
    """What was said of one stack after each of its slices: `estimates[n - 1]` of the first n of them.

    `given` is what the network gave for it, `slices` those that arrived, of `n_planned`.
    """

    stack: LabelledStack
    slices: tuple[EmbeddedSlice, ...]
    estimates: tuple[StrataEstimate, ...]
    given: tuple[Recurrence, ...]
    n_planned: int


def slices_of(stack: LabelledStack, embeddings_NE: np.ndarray) -> tuple[EmbeddedSlice, ...]:
    """Slices of a stack from their embeddings (float32 [n, 256]); nothing is said of their pictures."""
    return tuple(
        EmbeddedSlice(index, float(z_um), row)
        for index, (z_um, row) in enumerate(zip(stack.z_um, embeddings_NE, strict=True))
    )


def live_run(
    stack: LabelledStack,
    slices: Sequence[EmbeddedSlice],
    recurrent: Recurrent,
    estimation: Estimation,
    n_planned: int = 0,
) -> LiveRun:
    """Replay one stack: its slices arrive in the order given; `n_planned` 0 = no others would come."""
    n_planned = n_planned or len(slices)
    partial = PartialStack()
    estimates: list[StrataEstimate] = []
    answers = []
    for count, new in enumerate(slices, start=1):
        earlier, partial = partial, partial.with_slices(new)
        known = said_so_far(earlier, estimates[-1] if estimates else None, partial)
        before = said_before(partial, recurrent, estimation, known)
        given = recurrent(partial.embeddings, partial.z_um.astype(np.float32), partial.weight)
        answers.append(given)
        estimates.append(estimation.estimate(partial, given, count / n_planned, before))
    return LiveRun(stack, tuple(slices), tuple(estimates), tuple(answers), n_planned)


def again(run: LiveRun, estimation: Estimation) -> LiveRun:
    """Read what the network gave for a stack whose slices came in depth order anew, by another estimation."""
    partial, before = PartialStack(), NOTHING_SAID
    estimates = []
    for new, given in zip(run.slices, run.given, strict=True):
        partial = partial.with_slices(new)
        estimates.append(estimation.estimate(partial, given, len(partial) / run.n_planned, before))
        before = estimates[-1].said
    return replace(run, estimates=tuple(estimates))
