"""The chain from a partial stack to its strata; the daemon and `replay` run this and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from rcm_daemon.core.boundaries import boundaries_from_labels
from rcm_daemon.core.quality import DARK
from rcm_daemon.core.records import StrataEstimate
from rcm_daemon.core.rejection import Rule
from rcm_daemon.core.strata import paper_labels
from rcm_daemon.errors import InferenceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rcm_daemon.core.ledger import Ledger
    from rcm_daemon.core.stack import Acquisition, EmbeddedSlice, PartialStack


class Recurrent(Protocol):
    """The recurrent network: embeddings [n, e], z_um [n] and weight [n] in, probabilities [n, 3] out."""

    def __call__(
        self,
        embeddings: NDArray[np.float32],
        z_um: NDArray[np.float32],
        weight: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Run once over a whole partial stack in depth order."""


def take_in(ledger: Ledger, stack: Acquisition, new: EmbeddedSlice, recurrent: Recurrent) -> None:
    """Add an embedded slice to its stack and estimate it anew; one that cannot be labelled is refused."""
    partial = stack.partial.with_slices(new)
    try:
        estimate = estimate_strata(partial, recurrent)
    except InferenceError as error:
        ledger.unusable(stack, new.index, Rule.NOT_LABELLED, str(error))
    else:
        ledger.labelled(stack, partial, estimate)


def estimate_strata(stack: PartialStack, recurrent: Recurrent) -> StrataEstimate:
    """Rerun the recurrent network over the n >= 1 slices so far and read strata and boundaries off it."""
    return estimate_from(stack, recurrent(stack.embeddings, stack.z_um.astype(np.float32), stack.weight))


def estimate_from(stack: PartialStack, probabilities: NDArray[np.float32]) -> StrataEstimate:
    """Read strata and boundaries off the recurrent network's probabilities [n, 3] of the n slices so far.

    Of a dark slice all strata count as equally probable, so that its label follows from its neighbours: the
    network has been seen to call a black picture epidermis with a probability of 0.98.
    """
    is_dark = np.array([DARK in s.flags for s in stack.slices], np.bool_)
    probabilities = np.where(is_dark[:, None], np.float32(1 / 3), probabilities)
    labels = paper_labels(probabilities)
    n = len(stack)
    return StrataEstimate(
        labels=labels,
        probabilities=probabilities,
        posterior=np.zeros((n, 3), np.float32),
        settled=np.zeros(n, np.bool_),
        boundaries=boundaries_from_labels(labels, stack.z_um),
    )
