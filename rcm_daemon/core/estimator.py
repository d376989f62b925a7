"""The live answer: labels, boundaries, intervals, mosaic depths and advice, all from one posterior.

Because everything is read off the same two distributions, nothing can contradict. A boundary is found once
it lies above the newest slice with its `found_probability`; it is first said to lie at its median, and stays
there while the median wanders a little (`HELD`), or lies at the newest slice where that is less deep; slices
below are labelled so. (The newest slice is the deepest one that says
anything: what lies below, dark, has not been looked at.) The median is that of the whole distribution, not
of the part above the newest slice: that part ends where the stack ends for now, and its median would sink
with every slice that follows. The distributions are in order, so the labels can never fall, and no junction
thinner than the prior's thinnest is ever skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rcm_daemon.core.advice import advise
from rcm_daemon.core.mosaic import MosaicRule, mosaic_plan
from rcm_daemon.core.posterior import BoundaryPosterior, BoundaryPrior, boundary_posterior
from rcm_daemon.core.quality import PictureDomain
from rcm_daemon.core.records import Boundary, Status, StrataEstimate
from rcm_daemon.errors import InferenceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rcm_daemon.core.mosaic import Place

Probability = Annotated[float, Field(ge=0, le=1)]
FoundProbability = Annotated[float, Field(ge=0.3, lt=1)]
Um = Annotated[float, Field(gt=0, le=10_000)]
N_SHARES = 4
"""Intervals are corrected for each quarter of the planned stack, and once for stacks of unknown length."""
UNCALIBRATED = (0.05, 0.95)
"""Levels of a 90 % interval before anybody fitted them to patients."""
HELD = (0.4, 0.6)
"""A depth that was said of a boundary stays as it is while it lies between these points of the distribution,
and moves no farther than to the nearer one (decision 22)."""
TRUSTED = 0.25
"""A slice of less weight than this settles nothing, and its depth is not imaged yet."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _around_the_median(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] <= 0.5 <= pair[1]:
        raise ValueError(f"a low level must be at most 0.5 and a high one at least 0.5, got {pair}")
    return pair


LowHigh = Annotated[tuple[Probability, Probability], AfterValidator(_around_the_median)]
Said = tuple[float | None, float | None]
"""Depths in um at which epidermis-DEJ and DEJ-dermis were said to lie; none = not found."""
NOTHING_SAID: Said = (None, None)
OfBoth = Annotated[tuple[LowHigh, ...], Field(min_length=2, max_length=2)]


class Levels(_Record):
    """Quantile levels of a posterior that in truth hold 90 % between them, found on calibration patients.

    Attributes
    ----------
    by_share
        [quarter of the planned stack seen][epidermis-DEJ, DEJ-dermis] (low, high).
    overall
        [boundary] (low, high), where the planned length is not known.
    """

    by_share: Annotated[tuple[OfBoth, ...], Field(min_length=N_SHARES, max_length=N_SHARES)]
    overall: OfBoth

    def of(self, boundary: int, share_seen: float) -> tuple[float, float]:
        """Levels (low, high) of a boundary; `share_seen` 0 = not known."""
        if share_seen <= 0:
            return self.overall[boundary]
        quarter = min(N_SHARES - 1, max(0, int(np.ceil(share_seen * N_SHARES)) - 1))
        return self.by_share[quarter][boundary]


def _for_both(value: object) -> object:
    if isinstance(value, float):
        return value, value
    return tuple(value) if isinstance(value, list) else value


class EstimatorParameters(_Record):
    """estimator.json of a bundle: the prior, and what was fitted on calibration patients.

    Attributes
    ----------
    start_um, start_scale_um, thickness_um, thickness_scale_um, thinnest_um
        See `BoundaryPrior`.
    evidence_scale
        Factor on the network's evidence, below 1 where it is surer than it should be.
    found_probability
        Each boundary is found once it lies above the newest slice with its probability, epidermis-DEJ also
        once DEJ-dermis is found; below 0.5 where missing one costs more than a false one. One number in a
        file is meant for both.
    for_good
        Whether what was first said of a boundary is kept whatever the posterior says later, as long as slices
        come one below the other: neither moved nor taken back, unless the other boundary leaves no room.
    settled_probability
        A label of at least this posterior probability changes in at most 1 % of the cases.
    inside, forecast
        Levels of a found boundary, and of one that lies ahead.
    domain
        What pictures look like that the bundle was made for; none = pictures are not held against any.
    """

    schema_name: Annotated[Literal["rcm-estimator-1"], Field(alias="schema")]
    start_um: Um
    start_scale_um: Um
    thickness_um: Um
    thickness_scale_um: Um
    thinnest_um: Um
    evidence_scale: Annotated[float, Field(gt=0, le=4)] = 1.0
    found_probability: Annotated[tuple[FoundProbability, FoundProbability], BeforeValidator(_for_both)]
    for_good: bool = False
    settled_probability: Annotated[float, Field(ge=0.5, le=1)]
    inside: Levels
    forecast: Levels
    domain: PictureDomain | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether the levels are anything but the 5 and 95 % that a network is exported with uncalibrated."""
        levels = [pair for kind in (self.inside, self.forecast) for pair in kind.overall]
        return not np.allclose(levels, [UNCALIBRATED] * len(levels), atol=1e-6)

    @property
    def prior(self) -> BoundaryPrior:
        """The prior of both boundaries."""
        return BoundaryPrior(
            self.start_um, self.start_scale_um, self.thickness_um, self.thickness_scale_um, self.thinnest_um
        )


def monotone_estimate(
    z_um: NDArray[np.float64],
    weight: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    evidence: NDArray[np.float32],
    parameters: EstimatorParameters,
    share_seen: float = 0.0,
    rule: MosaicRule | None = None,
    before: Said = NOTHING_SAID,
) -> StrataEstimate:
    """Estimate a partial stack.

    Parameters
    ----------
    z_um, weight
        [n >= 1] rising depths and trust 0..1.
    probabilities, evidence
        [n, 3] what the recurrent network gives.
    parameters
        The bundle's.
    share_seen
        Share of the planned stack seen, 0 = not known.
    rule
        Where mosaics are taken; none = the default rule.
    before
        What was said of all slices but the deepest.

    Raises
    ------
    InferenceError
        If the evidence leaves nothing possible.
    """
    posterior = posterior_of(z_um, weight, evidence, parameters)
    reading = Reading.of(posterior, parameters)
    first, second = (
        _boundary(posterior, k, status, um, parameters, share_seen)
        for k, (status, um) in enumerate(reading.depths(parameters.thinnest_um, before))
    )
    strata = posterior.strata
    labels = _below(z_um, first) + _below(z_um, second)
    settled = strata[np.arange(len(labels)), labels] >= parameters.settled_probability
    trusted = weight >= TRUSTED
    if not trusted.all():
        settled = _between_settled(settled, labels, trusted)
    plan = mosaic_plan(_place(first), _place(second), rule or MosaicRule())
    both_inside = first.status == second.status == "inside"
    deepest_um = max(mosaic.z_um for mosaic in plan) if both_inside else None
    return StrataEstimate(
        labels=labels,
        probabilities=probabilities,
        posterior=strata.astype(np.float32),
        settled=settled,
        boundaries=(first, second),
        mosaic=plan,
        advice=advise(posterior, trusted, deepest_um),
    )


@dataclass(frozen=True)
class Reading:
    """What of a stack's posterior it takes to say where its boundaries lie.

    Attributes
    ----------
    z_um
        [n] depths of its slices.
    deepest_um
        Depth of the deepest slice that says anything.
    statuses
        Of both boundaries, had nothing been said before.
    points_um
        Of both, where a depth is held at least, the median, and where it is held at most, see `HELD`.
    for_good
        Whether what was said before is kept, see `EstimatorParameters`.
    """

    z_um: NDArray[np.float64]
    deepest_um: float
    statuses: tuple[Status, Status]
    points_um: tuple[list[float], list[float]]
    for_good: bool

    @classmethod
    def of(cls, posterior: BoundaryPosterior, parameters: EstimatorParameters) -> Reading:
        """Read a posterior."""
        z_um = posterior.depths_um[: posterior.n_slices]
        first, second = (posterior.quantile(k, np.array([HELD[0], 0.5, HELD[1]])).tolist() for k in (0, 1))
        statuses = statuses_of(posterior, parameters.found_probability)
        return cls(z_um, float(z_um[posterior.deepest]), statuses, (first, second), parameters.for_good)

    def depths(self, thinnest_um: float, before: Said) -> tuple[tuple[Status, float], tuple[Status, float]]:
        """Where each boundary lies, and at which depth in um where that is inside the stack.

        One found before stays there as long as that is about as probable. A found one lies at the deepest
        slice that says anything or above it, whatever its distribution; where that is the first slice, it
        lies above the stack. What holds of DEJ-dermis holds of epidermis-DEJ, which lies above it.
        """
        second = self._depth(1, before[1], self.statuses[1])
        if second[0] == "above_start":
            return second, second
        status = self.statuses[0]
        if second[0] == "inside" and status == "not_reached":
            status = "inside"
        return self._depth(0, before[0], status, _lowest_um(self.z_um, second, thinnest_um)), second

    @property
    def forgets(self) -> bool:
        """Whether nothing is found, whatever was said before."""
        return "inside" not in self.statuses and not self.for_good

    def said(self, thinnest_um: float, before: Said) -> Said:
        """Return the depths of those that are found."""
        first, second = (
            um if status == "inside" else None for status, um in self.depths(thinnest_um, before)
        )
        return first, second

    def _depth(
        self, k: int, before_um: float | None, status: Status, lowest_um: float = math.inf
    ) -> tuple[Status, float]:
        low_um, um, high_um = self.points_um[k]
        if before_um is not None and self.for_good:
            status, um = "inside", before_um
        elif before_um is not None:
            um = min(max(before_um, low_um), high_um)
        if status != "inside":
            return status, 0.0
        um = min(um, self.deepest_um, lowest_um)
        return ("inside", um) if um > self.z_um[0] else ("above_start", 0.0)


def posterior_of(
    z_um: NDArray[np.float64],
    weight: NDArray[np.float32],
    evidence: NDArray[np.float32],
    parameters: EstimatorParameters,
) -> BoundaryPosterior:
    """Work out the posterior that `monotone_estimate` reads, of the same slices.

    Raises
    ------
    InferenceError
        If the evidence leaves nothing possible.
    """
    scaled = evidence.astype(np.float64) * parameters.evidence_scale
    posterior = boundary_posterior(z_um, scaled, weight.astype(np.float64), parameters.prior)
    if not np.all(np.isfinite(posterior.cdf)):
        raise InferenceError(
            f"the evidence of {len(z_um)} slices must leave a boundary possible, it does not"
        )
    return posterior


def _lowest_um(z_um: NDArray[np.float64], second: tuple[Status, float], thinnest_um: float) -> float:
    """How deep epidermis-DEJ may lie where DEJ-dermis was found: no junction is thinner than the thinnest.

    In a gap between slices in which no two boundaries have room it lies above the gap, so that labels never
    step over the DEJ there.
    """
    status, second_um = second
    if status != "inside":
        return math.inf
    lowest_um = second_um - thinnest_um
    below = int(np.searchsorted(z_um, second_um))
    if 0 < below < len(z_um) and z_um[below] - z_um[below - 1] <= 2 * thinnest_um:
        lowest_um = min(lowest_um, float(z_um[below - 1]))
    return lowest_um


def _between_settled(
    settled: NDArray[np.bool_], labels: NDArray[np.int64], trusted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Leave one that is not trusted settled only between trusted ones that are settled and labelled alike."""
    found = settled & trusted
    known = np.flatnonzero(trusted)
    for one in np.flatnonzero(~trusted):
        place = int(np.searchsorted(known, one))
        if 0 < place < len(known):
            above, below = known[place - 1], known[place]
            found[one] = settled[above] and settled[below] and labels[above] == labels[below]
    return found


def _below(z_um: NDArray[np.float64], boundary: Boundary) -> NDArray[np.int64]:
    """1 for each slice below a boundary, else 0; [n]."""
    if boundary.found:
        return (z_um >= boundary.um).astype(np.int64)
    return np.full(len(z_um), boundary.status == "above_start", np.int64)


def statuses_of(
    posterior: BoundaryPosterior, found_probability: tuple[float, float]
) -> tuple[Status, Status]:
    """Where each boundary lies: above the first slice (most probably), inside the stack, or still ahead.

    What holds of DEJ-dermis holds of epidermis-DEJ, which lies above it.
    """
    above, found = False, False
    statuses: list[Status] = []
    for k in (1, 0):
        above |= posterior.above_start(k) >= 0.5
        found |= posterior.n_slices > 1 and posterior.reached(k) >= found_probability[k]
        statuses.append("above_start" if above else "inside" if found else "not_reached")
    return statuses[1], statuses[0]


def _boundary(
    posterior: BoundaryPosterior,
    k: int,
    status: Status,
    um: float,
    parameters: EstimatorParameters,
    share_seen: float,
) -> Boundary:
    """Interval of one boundary that is said to lie at `um`; one not found yet is forecast.

    That is expected at the newest slice or below it; its interval may begin above: it may just have been
    passed.
    """
    if status == "above_start":
        return Boundary(status)
    levels = parameters.inside if status == "inside" else parameters.forecast
    low, high = levels.of(k, share_seen)
    low_um, median_um, high_um = posterior.quantile(k, np.array([low, 0.5, high])).tolist()
    if status == "inside":
        return Boundary(status, um=um, low_um=min(low_um, um), high_um=max(high_um, um))
    um = max(median_um, float(posterior.depths_um[posterior.n_slices - 1]))
    return Boundary(forecast_um=um, forecast_low_um=min(low_um, um), forecast_high_um=max(high_um, um))


def _place(boundary: Boundary) -> Place | None:
    """Where a boundary lies or is expected; none where it lies above the stack."""
    if boundary.status == "above_start":
        return None
    if boundary.found:
        return boundary.um, boundary.low_um, boundary.high_um
    return boundary.forecast_um, boundary.forecast_low_um, boundary.forecast_high_um
