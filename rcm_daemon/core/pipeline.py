"""The chain from a partial stack to its strata; the daemon and `replay` run this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rcm_daemon.core.boundaries import boundaries_from_labels
from rcm_daemon.core.estimator import monotone_estimate
from rcm_daemon.core.mosaic import MosaicRule
from rcm_daemon.core.quality import DARK
from rcm_daemon.core.records import StrataEstimate
from rcm_daemon.core.rejection import Rule
from rcm_daemon.core.strata import paper_labels
from rcm_daemon.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rcm_daemon.core.estimator import EstimatorParameters
    from rcm_daemon.core.ledger import Ledger
    from rcm_daemon.core.stack import Acquisition, EmbeddedSlice, PartialStack


@dataclass(frozen=True)
class Recurrence:
    """What the recurrent network gives of n slices, [n, 3]; `evidence` comes from segmental ones alone."""

    probabilities: NDArray[np.float32]
    evidence: NDArray[np.float32] | None = None


class Recurrent(Protocol):
    """The recurrent network: embeddings [n, e], z_um [n] and weight [n] in."""

    def __call__(
        self,
        embeddings: NDArray[np.float32],
        z_um: NDArray[np.float32],
        weight: NDArray[np.float32],
    ) -> Recurrence:
        """Run once over a whole partial stack in depth order."""


@dataclass(frozen=True)
class Estimation:
    """How strata are read off what the recurrent network gives.

    `parameters` are those of the bundle's monotone estimator; without them, labels and boundaries are the
    paper's (3-slice median, causal maximum).
    """

    parameters: EstimatorParameters | None = None
    rule: MosaicRule = field(default_factory=MosaicRule)

    def estimate(self, stack: PartialStack, given: Recurrence, share_seen: float = 0.0) -> StrataEstimate:
        """Estimate n >= 1 slices; `share_seen` is their share of the planned stack, 0 = not known.

        Of a dark slice all strata count as equally probable, so that its label follows from its neighbours:
        the network has been seen to call a black picture epidermis with a probability of 0.98.

        Raises
        ------
        InferenceError
            If the evidence leaves nothing possible.
        """
        probabilities = given.probabilities
        if dark := [row for row, one in enumerate(stack.slices) if DARK in one.flags]:
            probabilities = probabilities.copy()
            probabilities[dark] = 1 / 3
        if self.parameters is not None and given.evidence is not None:
            return monotone_estimate(
                stack.z_um,
                stack.weight,
                probabilities,
                given.evidence,
                self.parameters,
                share_seen,
                self.rule,
            )
        labels = paper_labels(probabilities)
        return StrataEstimate(
            labels=labels,
            probabilities=probabilities,
            posterior=np.zeros((len(stack), 3), np.float32),
            settled=np.zeros(len(stack), np.bool_),
            boundaries=boundaries_from_labels(labels, stack.z_um),
        )


def take_in(
    ledger: Ledger,
    stack: Acquisition,
    new: Sequence[EmbeddedSlice],
    recurrent: Recurrent,
    estimation: Estimation,
) -> None:
    """Add embedded slices to their stack and estimate it anew; if that cannot be, they are refused."""
    partial = stack.partial.with_slices(*new)
    try:
        estimate = estimate_strata(partial, recurrent, estimation, stack.share_seen(len(partial)))
    except InferenceError as error:
        for one in new:
            ledger.unusable(stack, one.index, Rule.NOT_LABELLED, str(error))
    else:
        ledger.labelled(stack, partial, estimate)


def estimate_strata(
    stack: PartialStack, recurrent: Recurrent, estimation: Estimation, share_seen: float = 0.0
) -> StrataEstimate:
    """Rerun the recurrent network over the n >= 1 slices so far and read strata and boundaries off it."""
    given = recurrent(stack.embeddings, stack.z_um.astype(np.float32), stack.weight)
    return estimation.estimate(stack, given, share_seen)
