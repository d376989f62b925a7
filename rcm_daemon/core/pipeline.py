"""The chain from a partial stack to its strata; the daemon and `replay` run this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rcm_daemon.core.boundaries import boundaries_from_labels
from rcm_daemon.core.estimator import NOTHING_SAID, Reading, Said, monotone_estimate, posterior_of
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

MOST_FOLLOWED = 400
"""Of a stack of more slices than this, what was said of its beginnings is not worked out again."""
Known = tuple[int, Said]
"""How many of a stack's shallowest slices something was said of, and what that was."""
NOTHING_KNOWN: Known = (0, NOTHING_SAID)


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

    def estimate(
        self,
        stack: PartialStack,
        given: Recurrence,
        share_seen: float = 0.0,
        before: Said = NOTHING_SAID,
    ) -> StrataEstimate:
        """Estimate n >= 1 slices.

        `share_seen` is their share of the planned stack, 0 = not known; `before` is what was said of all but
        the deepest.

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
                before,
            )
        labels = paper_labels(probabilities)
        return StrataEstimate(
            labels=labels,
            probabilities=probabilities,
            posterior=np.zeros((len(stack), 3), np.float32),
            settled=np.zeros(len(stack), np.bool_),
            boundaries=boundaries_from_labels(labels, stack.z_um),
        )


def said_so_far(earlier: PartialStack, said: StrataEstimate | None, now: PartialStack) -> Known:
    """Return what an earlier estimate says of a stack's beginning; of others it says nothing."""
    n = len(earlier)
    if said is None or n >= len(now):
        return NOTHING_KNOWN
    goes_on = all(a is b for a, b in zip(earlier.slices, now.slices[:n], strict=True))
    return (n, said.said) if goes_on else NOTHING_KNOWN


def is_to_follow(known: Known, n_slices: int) -> bool:
    """Whether what is said of all but the deepest of a stack's slices is to be worked out."""
    return known[0] < n_slices - 1 and n_slices <= MOST_FOLLOWED


def said_before(
    stack: PartialStack, recurrent: Recurrent, estimation: Estimation, known: Known = NOTHING_KNOWN
) -> Said:
    """Follow what is said of a stack to all of it but its deepest slice, see `follow`; nothing of long ones.

    Raises
    ------
    InferenceError
        As the network and the estimator do.
    """
    if estimation.parameters is None or not is_to_follow(known, len(stack)):
        return known[1]
    return follow(stack.embeddings, stack.z_um, stack.weight, recurrent, estimation.parameters, known)


def follow(
    embeddings: NDArray[np.float32],
    z_um: NDArray[np.float64],
    weight: NDArray[np.float32],
    recurrent: Recurrent,
    parameters: EstimatorParameters,
    known: Known = NOTHING_KNOWN,
) -> Said:
    """Follow what is said of a stack, slice by slice in depth order, to all of it but its deepest slice.

    So a depth that is held follows from the slices alone: not from the order in which they came, nor from how
    many came between two estimates.

    Parameters
    ----------
    embeddings, z_um, weight
        [n, embedding_size], [n], [n] of the whole stack, shallowest first.
    recurrent, parameters
        The network, and its estimator.
    known
        What was said of its beginning.

    Raises
    ------
    InferenceError
        As both do.
    """
    n_known, said = known
    readings: list[Reading] = []
    # Upwards as far as anything was found: what is found later rests on nothing that was said before.
    for n in range(len(embeddings) - 1, n_known, -1):
        given = recurrent(embeddings[:n], z_um[:n].astype(np.float32), weight[:n])
        if given.evidence is None:
            return said
        reading = Reading.of(posterior_of(z_um[:n], weight[:n], given.evidence, parameters), parameters)
        if reading.forgets:
            said = NOTHING_SAID
            break
        readings.append(reading)
    for reading in reversed(readings):
        said = reading.said(parameters.thinnest_um, said)
    return said


def take_in(
    ledger: Ledger,
    stack: Acquisition,
    new: Sequence[EmbeddedSlice],
    recurrent: Recurrent,
    estimation: Estimation,
) -> None:
    """Add embedded slices to their stack and estimate it anew; if that cannot be, they are refused."""
    partial = stack.partial.with_slices(*new)
    known = said_so_far(stack.partial, stack.estimate, partial)
    try:
        estimate = estimate_strata(partial, recurrent, estimation, stack.share_seen(len(partial)), known)
    except InferenceError as error:
        for one in new:
            ledger.unusable(stack, one.index, Rule.NOT_LABELLED, str(error))
    else:
        ledger.labelled(stack, partial, estimate)


def estimate_strata(
    stack: PartialStack,
    recurrent: Recurrent,
    estimation: Estimation,
    share_seen: float = 0.0,
    known: Known = NOTHING_KNOWN,
) -> StrataEstimate:
    """Rerun the recurrent network over the n >= 1 slices so far and read strata and boundaries off it.

    What was said before of some of them is `known`; what was not, is worked out.
    """
    before = said_before(stack, recurrent, estimation, known)
    given = recurrent(stack.embeddings, stack.z_um.astype(np.float32), stack.weight)
    return estimation.estimate(stack, given, share_seen, before)
