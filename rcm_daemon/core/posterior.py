"""The posterior over both boundary depths of a partial stack, exact over all pairs of gaps.

Each boundary lies in one of the gaps between neighbouring slices, above the first slice, or below the newest
one. For a pair of gaps (j of epidermis-DEJ, k of DEJ-dermis, k >= j)

    P(j, k)  ~  M(j, k) exp(sum of h_i e_i(stratum of slice i under (j, k)))

where e_i is the evidence of slice i for each stratum in nats a um, as the recurrent network gives it, h_i the
depth in um that the slice stands for times its weight, and M the prior mass: epidermis-DEJ logistic below
the first slice, the thickness of the junction logistic, cut off at a smallest one. The evidence splits into a
part that depends on j and one that depends on k, so all pairs together are one matrix (a segmental model
after Sarawagi and Cohen 2004, with two boundaries and therefore without a recursion).

Depths nobody has imaged yet are gaps like the others, between slices without evidence: a boundary that most
probably lies there is forecast by the same quantiles as one that was passed.

Shapes: n slices, F depths ahead, G = n + F + 1 gaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

WIDEST_UM = 6.0
"""A slice stands for the depth half-way to its neighbours, at most for this much."""
LONE_UM = 3.0
"""What the only slice of a stack stands for: the thickness of an optical section."""
AHEAD_UM = np.array([4.0, 8, 12, 16, 20, 26, 32, 40, 48, 58, 70, 84, 100, 120, 145, 175, 220])
"""Depths below the newest slice at which the forecast is worked out."""
FACTORED_NATS = 300.0
"""As long as evidence contradicts itself by less, products of exponentials keep all that counts."""
N_ABOVE = 4
"""Places a boundary above the first slice is taken to be at, equally likely under the prior's tail."""
LOG_TAIL = np.log((np.arange(N_ABOVE) + 0.5) / N_ABOVE)


@dataclass(frozen=True)
class BoundaryPrior:
    """What is known of the boundaries before a slice is seen; all in um.

    Attributes
    ----------
    start_um, start_scale_um
        Location and scale of the logistic distribution of epidermis-DEJ below the stack's first slice. Weak:
        a stack may begin anywhere.
    thickness_um, thickness_scale_um
        Location and scale of the logistic distribution of the distance between the boundaries.
    thinnest_um
        No junction is thinner.
    """

    start_um: float
    start_scale_um: float
    thickness_um: float
    thickness_scale_um: float
    thinnest_um: float


@dataclass(frozen=True)
class BoundaryPosterior:
    """Distributions of both boundaries of one partial stack, and what follows for its slices.

    Attributes
    ----------
    depths_um
        [n + F] depths of the slices, then of places ahead.
    cdf
        [2, n + F] probability that each boundary lies above each of these depths.
    n_slices
        n.
    deepest
        Number of the deepest slice that says anything (of a weight above 0), from 0; -1 where none does.
    factors
        [N_ABOVE - 1 + G, G] of every pair of gaps, [N_ABOVE - 1 + G] of each row, [G] of each column: their
        product is `joint`, the places above the first slice still apart.
    """

    depths_um: Floats
    cdf: Floats
    n_slices: int
    deepest: int
    factors: tuple[Floats, Floats, Floats] = field(repr=False)

    @property
    def joint(self) -> Floats:
        """[G, G] probability of every pair of gaps, epidermis-DEJ by row."""
        pairs, row, column = self.factors
        joint = pairs * row[:, None] * column
        joint[N_ABOVE - 1] = joint[:N_ABOVE].sum(axis=0)
        return np.asarray(joint[N_ABOVE - 1 :])

    @property
    def strata(self) -> Floats:
        """[n, 3] probability of each stratum at each slice."""
        first, second = self.cdf[:, : self.n_slices]
        strata = np.empty((self.n_slices, 3))
        np.subtract(1.0, first, out=strata[:, 0])
        np.subtract(first, second, out=strata[:, 1])
        strata[:, 2] = second
        return strata

    def of_labels(self, labels: NDArray[np.int64]) -> float:
        """Probability of the pair of gaps that labels [n], never falling, imply."""
        rows, columns = (
            slice(place, None) if place == self.n_slices else slice(place, place + 1)
            for place in (int((labels < 1).sum()), int((labels < 2).sum()))
        )
        return float(self.joint[rows, columns].sum())

    def above_start(self, boundary: int) -> float:
        """Probability that a boundary (0 or 1) lies above the first slice."""
        return float(self.cdf[boundary, 0])

    def reached(self, boundary: int) -> float:
        """Probability that a boundary lies above the deepest slice that says anything, 0 where none does.

        Below that slice more and more of the prior comes to lie above the newest one, and nobody has looked.
        """
        return float(self.cdf[boundary, self.deepest]) if self.deepest >= 0 else 0.0

    def quantile(self, boundary: int, level: float | Floats) -> Floats:
        """Depth in um above which a boundary lies with probability `level`, linear within a gap.

        Held inside the depths looked at: what lies above the first slice comes out at the first slice.
        """
        return np.asarray(np.interp(level, self.cdf[boundary], self.depths_um))


def depth_shares_um(z_um: Floats) -> Floats:
    """Depth each slice stands for ([n], rising z): half-way to its neighbours, at most `WIDEST_UM`.

    At an end of the stack the one gap there is counts on both sides.
    """
    if len(z_um) == 1:
        return np.array([LONE_UM])
    gaps = z_um[1:] - z_um[:-1]
    shares = np.concatenate([gaps[:1], gaps])
    shares[:-1] += gaps
    shares[-1] += gaps[-1]
    shares *= 0.5
    return np.asarray(np.minimum(shares, WIDEST_UM, out=shares))


def boundary_posterior(
    z_um: Floats, evidence: Floats, weight: Floats, prior: BoundaryPrior
) -> BoundaryPosterior:
    """Work out the posterior of a partial stack.

    Parameters
    ----------
    z_um
        [n >= 1] depths, rising.
    evidence
        [n, 3] nats a um for epidermis, DEJ, dermis.
    weight
        [n] trust in each slice, 0..1.
    prior
        The prior.
    """
    n = len(z_um)
    depths = np.concatenate([z_um, z_um[-1] + AHEAD_UM])
    summed = np.zeros((3, len(depths) + 1))
    np.cumsum((evidence * (weight * depth_shares_um(z_um))[:, None]).T, axis=1, out=summed[:, 1 : n + 1])
    summed[:, n + 1 :] = summed[:, n : n + 1]
    first, second = summed[0] - summed[1], summed[1] - summed[2]
    pairs, row = _prior_mass(depths - z_um[0], prior)
    above = np.concatenate([np.full(N_ABOVE - 1, first[0]), first])
    # Nothing that the prior allows is larger than this, so that the exponential cannot overflow.
    largest = float((first + np.maximum.accumulate(second[::-1])[::-1]).max())
    highest = float(second.max())
    if float(first.max()) + highest - largest < FACTORED_NATS:
        # A factor a row times one a column: no exponential a pair.
        row *= np.exp(above - (largest - highest))
        column = np.exp(second - highest)
    else:
        nats = np.minimum((above - largest)[:, None] + second, 0.0)
        pairs *= np.exp(nats, out=nats)
        column = np.ones(len(second))
    # Sums of what is never negative: nothing cancels.
    by_row = row * (pairs @ column)
    total = by_row.sum()
    row /= total
    by_row[N_ABOVE - 1] = by_row[:N_ABOVE].sum()
    cdf = np.empty((2, len(depths)))
    np.cumsum(by_row[N_ABOVE - 1 : -1] / total, out=cdf[0])
    np.cumsum((column * (row @ pairs))[:-1], out=cdf[1])
    seen = np.flatnonzero(weight)
    deepest = int(seen[-1]) if len(seen) else -1
    return BoundaryPosterior(depths, np.minimum(cdf, 1.0, out=cdf), n, deepest, (pairs, row, column))


def _prior_mass(below_first_um: Floats, prior: BoundaryPrior) -> tuple[Floats, Floats]:
    """Prior of every pair of gaps: that of the second given the first, and that of the first.

    [N_ABOVE - 1 + G, G] and [N_ABOVE - 1 + G]; the gap above the start has `N_ABOVE` rows.
    """
    scaled = (below_first_um - prior.start_um) / prior.start_scale_um
    edge, ahead = _logistic(scaled), _logistic(-scaled)
    n_above, n_depths = N_ABOVE, len(below_first_um)
    # The tail of a logistic is an exponential of the same scale.
    place = np.empty(n_above + n_depths)
    place[:n_above] = prior.start_scale_um * LOG_TAIL
    place[n_above:-1] = (below_first_um[:-1] + below_first_um[1:]) / 2
    place[-1] = below_first_um[-1]
    mass = np.empty(n_above + n_depths)
    mass[:n_above] = edge[0] / n_above
    # Far down one minus a number next to one is nothing: there what is left is taken from what was left.
    np.subtract(edge[1:], edge[:-1], out=mass[n_above:-1])
    deep = scaled[:-1] > 0
    mass[n_above:-1][deep] = (ahead[:-1] - ahead[1:])[deep]
    mass[-1] = ahead[-1]
    # exp(-(z - place - thickness) / scale) is a factor a column times one a row: no exponential a pair.
    scale = prior.thickness_scale_um
    column = _exp((below_first_um - prior.thickness_um) / -scale)
    row = _exp(place / scale)
    (cut,) = _logistic(np.array([(prior.thinnest_um - prior.thickness_um) / scale]))
    within = np.multiply.outer(row, column)
    within += 1.0
    np.reciprocal(within, out=within)
    np.maximum(within, cut, out=within)  # none is thinner than the thinnest
    within[-1] = cut  # a first boundary below everything looked at has the second one below it too
    # What rises along a row rises after rounding too: no difference is below 0.
    pairs = np.empty((len(place), n_depths + 1))
    np.subtract(within[:, 0], cut, out=pairs[:, 0])
    np.subtract(within[:, 1:], within[:, :-1], out=pairs[:, 1:-1])
    np.subtract(1.0, within[:, -1], out=pairs[:, -1])
    mass /= 1.0 - cut
    return pairs, mass


def _exp(x: Floats) -> Floats:
    """Return the exponential, held where its square is still a number; x is spent."""
    np.maximum(x, -300.0, out=x)
    np.minimum(x, 300.0, out=x)
    return np.exp(x, out=x)


def _logistic(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + _exp(-x)))
