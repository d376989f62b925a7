"""How good a live answer is: newest labels, announcements, intervals, over every prefix of every stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.mosaic import MOSAICS, MosaicRule, mosaic_plan
from rcm_daemon.core.records import BOUNDARIES
from trainer.metrics import impossible_transitions
from trainer.scores import depths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.core.records import StrataEstimate
    from trainer.data.manifest import LabelledStack
    from trainer.live_runs import LiveRun

MOVED_UM = 6.0
"""An announced boundary that comes to lie this far from where it was first said to be has moved."""
N_FRACTIONS = 20
N_TENTHS = 10


@dataclass(frozen=True)
class Announcement:
    """How one boundary of one stack was announced.

    Attributes
    ----------
    crossed
        Number of the first slice below it (from 0), by the readers; None where the stack has none.
    first, for_good
        Slice at whose arrival it was first, and finally for good, said to be found; None where never.
    withdrawn, moved
        Whether it was taken back after `first`, or came to lie more than 6 um from where it was said to be.
    first_um
        Depth it was said to lie at then; None where never.
    """

    crossed: int | None
    first: int | None
    for_good: int | None
    withdrawn: bool
    moved: bool
    first_um: float | None = None

    @property
    def delay(self) -> float:
        """Slices from crossing to announcing for good; infinite where it never was."""
        if self.crossed is None:
            return float("nan")
        return float("inf") if self.for_good is None else float(self.for_good - self.crossed)


def announce(
    estimates: Sequence[StrataEstimate], labels: np.ndarray, boundary: int, wait: int = 1
) -> Announcement:
    """Follow one boundary over the prefixes of a stack.

    Parameters
    ----------
    estimates
        After each slice.
    labels
        [n] by the readers.
    boundary
        0 or 1.
    wait
        Count it as announced once it was found at so many slices running.
    """
    found = np.array([estimate.boundaries[boundary].found for estimate in estimates])
    running = found.copy()
    for shift in range(1, wait):
        running[shift:] &= found[:-shift]
        running[:shift] = False
    um = np.array([estimate.boundaries[boundary].um for estimate in estimates])
    below = labels > boundary
    crossed = int(np.argmax(below)) if below.any() and not below[0] else None
    if not running.any():
        return Announcement(crossed, None, None, withdrawn=False, moved=False)
    first = int(np.argmax(running))
    later = running[first:]
    for_good = (
        None if not running[-1] else len(running) - int(np.argmin(running[::-1])) if not running.all() else 0
    )
    moved = bool((np.abs(um[first:][later] - um[first]) > MOVED_UM).any())
    return Announcement(crossed, first, for_good, not later.all(), moved, float(um[first]))


@dataclass(frozen=True)
class LiveCounts:
    """What one stack adds to the live figures.

    Attributes
    ----------
    newest, final
        Right labels among the newest slices at their arrival, and among all slices at the end; of n_slices.
    by_fraction
        [20, 2] right labels and labels of all slices of the prefixes that end in each twentieth.
    newest_by_fraction
        The same of newest slices alone.
    impossible_by_fraction
        [20, 2] impossible transitions in the prefixes that end in each twentieth, and how many those are.
    announcements
        Of both boundaries.
    n_settled, n_unsettled
        Labels said to be settled, over all prefixes, and those of them that were another one later.
    reliability
        [10, 3] by tenths of the probability of the most probable stratum, over all slices of all prefixes:
        how many, sum of probabilities, and how often the readers say so.
    """

    n_slices: int
    newest: int
    final: int
    by_fraction: np.ndarray
    newest_by_fraction: np.ndarray
    impossible_by_fraction: np.ndarray
    announcements: tuple[Announcement, Announcement]
    n_settled: int
    n_unsettled: int
    reliability: np.ndarray

    @property
    def n_impossible(self) -> int:
        """Impossible transitions over all prefixes."""
        return int(self.impossible_by_fraction[:, 0].sum())


def count(run: LiveRun, wait: int = 1) -> LiveCounts:
    """Count over all prefixes of one stack of which every slice arrived."""
    labels, n = run.stack.labels, run.stack.n_slices
    by_fraction, newest_by_fraction, impossible = np.zeros((3, N_FRACTIONS, 2))
    newest = 0
    for seen, estimate in enumerate(run.estimates, start=1):
        place = min(N_FRACTIONS - 1, (seen - 1) * N_FRACTIONS // run.n_planned)
        right = estimate.labels == labels[:seen]
        by_fraction[place] += [right.sum(), seen]
        newest_by_fraction[place] += [right[-1], 1]
        impossible[place] += [impossible_transitions([estimate.labels])["total"], 1]
        newest += int(right[-1])
    return LiveCounts(
        n,
        newest,
        int((run.estimates[-1].labels == labels).sum()),
        by_fraction,
        newest_by_fraction,
        impossible,
        tuple(announce(run.estimates, labels, k, wait) for k in range(len(BOUNDARIES))),  # type: ignore[arg-type]
        *count_settled(run.estimates),
        reliability(run.estimates, labels),
    )


def reliability(estimates: Sequence[StrataEstimate], labels: np.ndarray) -> np.ndarray:
    """Sum up how probable the most probable strata were, and how often they were the readers'; [10, 3]."""
    sums = np.zeros((N_TENTHS, 3))
    for estimate in estimates:
        surest = estimate.probabilities.max(axis=1)
        right = estimate.probabilities.argmax(axis=1) == labels[: len(surest)]
        tenths = np.minimum(N_TENTHS - 1, (N_TENTHS * surest).astype(np.int64))
        np.add.at(sums, tenths, np.column_stack([np.ones(len(surest)), surest, right]))
    return sums


def count_settled(estimates: Sequence[StrataEstimate]) -> tuple[int, int]:
    """Count labels said to be settled, and those of them that were another one in any later estimate.

    Parameters
    ----------
    estimates
        After each slice, each of which lay below all before it.
    """
    changed = changed_later([estimate.labels for estimate in estimates])
    n_settled = sum(int(estimate.settled.sum()) for estimate in estimates)
    n_unsettled = sum(int((e.settled & later).sum()) for e, later in zip(estimates, changed, strict=True))
    return n_settled, n_unsettled


def changed_later(labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Tell which labels of each estimate are another one in any later estimate.

    Parameters
    ----------
    labels
        After each slice, each of which lay below all before it: [1], [2], ... [n].

    Returns
    -------
    list of np.ndarray
        bool of the same shapes.
    """
    changes = np.zeros(len(labels), np.bool_)
    found = []
    for seen in range(len(labels), 0, -1):
        if seen < len(labels):
            changes[:seen] |= labels[seen][:seen] != labels[seen - 1]
        found.append(changes[:seen].copy())
    return found[::-1]


@dataclass(frozen=True)
class Coverage:
    """One interval that was given: of which boundary, after which share of the stack, and whether it held.

    `kind` is `inside` or `forecast`, or `mosaic`, whose `place` is that in the plan instead of a boundary's;
    `width_um` is that of the interval.
    """

    place: int
    kind: str
    share_seen: float
    holds: bool
    width_um: float


def coverages(run: LiveRun) -> list[Coverage]:
    """Collect every interval given of one stack whose boundary's depth is known.

    Quantiles are held at the first slice, so a boundary above it is taken to lie there.
    """
    given = []
    known_um = run.stack.boundaries_um or label_boundaries(run.stack)
    for seen, estimate in enumerate(run.estimates, start=1):
        for k, boundary in enumerate(estimate.boundaries):
            known = known_um[k]
            if known is None or boundary.status == "above_start":
                continue
            truth = max(known, float(run.stack.z_um[0]))
            kind = "inside" if boundary.found else "forecast"
            low, high = (
                (boundary.low_um, boundary.high_um)
                if boundary.found
                else (boundary.forecast_low_um, boundary.forecast_high_um)
            )
            given.append(Coverage(k, kind, seen / run.n_planned, low <= truth <= high, high - low))
    return given


def mosaic_coverages(run: LiveRun) -> list[Coverage]:
    """Collect every planned mosaic's interval, of one stack whose boundaries' depths say where it belongs."""
    known_um = run.stack.boundaries_um or label_boundaries(run.stack)
    exact = [None if um is None else (um, um, um) for um in known_um]
    wanted_um = {mosaic.name: mosaic.z_um for mosaic in mosaic_plan(exact[0], exact[1], MosaicRule())}
    return [
        Coverage(
            MOSAICS.index(mosaic.name),
            "mosaic",
            seen / run.n_planned,
            mosaic.low_um <= wanted_um[mosaic.name] <= mosaic.high_um,
            mosaic.high_um - mosaic.low_um,
        )
        for seen, estimate in enumerate(run.estimates, start=1)
        for mosaic in estimate.mosaic
        if mosaic.name in wanted_um
    ]


def label_boundaries(stack: LabelledStack) -> tuple[float | None, float | None]:
    """Boundaries of the readers' labels, half-way between slices."""
    return depths(stack.labels, stack.z_um)
