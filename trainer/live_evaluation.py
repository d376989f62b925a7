"""Bundles as the daemon runs them: every prefix of every stack, beside one another.

Shapes: S stacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.mosaic import MOSAICS
from rcm_daemon.core.pipeline import Estimation
from rcm_daemon.core.records import BOUNDARIES
from trainer.advised import advised_run
from trainer.bootstrap import interval, patient_weights, resampled, weighted_median
from trainer.live_report import NEVER
from trainer.live_runs import again, live_run
from trainer.live_scores import N_FRACTIONS, LiveCounts, count, coverages, label_boundaries, mosaic_coverages
from trainer.metrics import boundary_error_um
from trainer.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.bundle.sessions import Networks
    from trainer.live_scores import Announcement, Coverage
    from trainer.offline import StackRun

FOUND_PROBABILITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Working points of the monotone estimator, besides the bundle's own."""
FOUND_FOR_GOOD = (0.3, 0.5, 0.7)
"""More of them, and the bundle's own once more, at which what was first said is kept for good."""
WAITS = (1, 2, 3, 4, 6, 8)
"""Working points of the paper's reading: announce once found at so many slices running."""
KINDS = ("inside", "forecast")


@dataclass(frozen=True)
class WorkingPoint:
    """How a method announces: what of the bundle's estimator is changed, or how many slices it waits for."""

    name: tuple[str, str]
    changes: dict[str, Any] = field(default_factory=dict)
    wait: int = 1


@dataclass(frozen=True)
class _Seen:
    """What one bundle said of one stack, at its own working point and at the others."""

    counts: tuple[LiveCounts, ...]
    coverages: list[Coverage]
    advised: dict[str, float] | None


def live_evaluation(
    runs: Sequence[StackRun], names: Sequence[str], bundles: Sequence[Networks]
) -> dict[str, Any]:
    """Replay stacks slice by slice through bundles.

    Parameters
    ----------
    runs
        Stacks with the embeddings of each bundle.
    names, bundles
        The bundles; those of kind context are left out.

    Returns
    -------
    dict
        By bundle: `newest` and `final` accuracy, `n_impossible` over all prefixes, `settled_changed` the
        share of settled labels that changed later, `calibration_error` and `reliability` (by tenths: mean
        probability of the most probable stratum, how often it is the readers', slices), the same accuracies
        and `impossible_by_fraction` (transitions a prefix) by twentieth of the stack, `announcing` for each
        boundary and working point, `announcing_by_quarter` for each boundary at the first of them,
        `coverage` of intervals and forecasts, `mosaics` the same of the plan's, and `advice`, whose
        `finished_by_fraction` is the share of the stacks for which it wants no more after each twentieth of a
        sweep's slices. Beside a figure, `_interval` is the central 95 % of a bootstrap over patients.
    """
    weights = patient_weights([run.stack.patient for run in runs])
    found = {}
    for number, (name, networks) in enumerate(zip(names, bundles, strict=True)):
        if networks.manifest.kind == "context":
            continue
        with progress_bar(f"slice by slice: {name}", len(runs), "stacks") as advance:
            seen = []
            for run in runs:
                seen.append(_replay(run, number, networks))
                advance(1, "")
        found[name] = _summary(runs, seen, _working_points(networks), weights)
    return found


def _working_points(networks: Networks) -> tuple[WorkingPoint, ...]:
    """Working points of a bundle, its own first."""
    if networks.estimator_parameters is None:
        return tuple(WorkingPoint((f"{wait}", f"{wait}"), wait=wait) for wait in WAITS)
    own, kept = networks.estimator_parameters.found_probability, networks.estimator_parameters.for_good
    points = {
        _named(found, for_good): WorkingPoint(
            _named(found, for_good), {"found_probability": found, "for_good": for_good}
        )
        for for_good, probabilities in ((False, FOUND_PROBABILITIES), (True, FOUND_FOR_GOOD))
        for found in (own, *((both, both) for both in probabilities))
    }
    return (points.pop(_named(own, kept)), *points.values())


def _named(found: tuple[float, float], for_good: bool) -> tuple[str, str]:
    how = " for good" if for_good else ""
    return f"{found[0]:g}{how}", f"{found[1]:g}{how}"


def _places(points: Sequence[WorkingPoint], k: int) -> dict[str, int]:
    """Place of each working point of a boundary, by its name; own first."""
    places: dict[str, int] = {}
    for place, point in enumerate(points):
        places.setdefault(point.name[k], place)
    return places


def _replay(run: StackRun, number: int, networks: Networks) -> _Seen:
    stack, parameters = run.stack, networks.estimator_parameters
    own = live_run(stack, run.slices[number], networks.recur, Estimation(parameters), run.n_planned)
    points = _working_points(networks)
    if parameters is None:
        return _Seen(tuple(count(own, point.wait) for point in points), [], None)
    others = [again(own, Estimation(parameters.model_copy(update=point.changes))) for point in points[1:]]
    advised = advised_run(stack, run.slices[number], networks.recur, Estimation(parameters))
    errors: dict[str, float] = {"share_used": len(advised.taken) / stack.n_slices}
    for which, estimate in (("sweep", own.estimates[-1]), ("advised", advised.estimate)):
        for k, boundary in enumerate(BOUNDARIES):
            place = estimate.boundaries[k]
            error = boundary_error_um(
                label_boundaries(stack)[k], place.um if place.found else None, stack.z_um
            )
            errors[f"{which}_{boundary}_um"] = float("nan") if error is None else error
    given = coverages(own) + mosaic_coverages(own)
    return _Seen(tuple(map(count, (own, *others))), given, errors)


def _summary(
    runs: Sequence[StackRun],
    seen: Sequence[_Seen],
    points: Sequence[WorkingPoint],
    weights: np.ndarray,
) -> dict[str, Any]:
    assert all(len(one.counts) == len(points) for one in seen)  # noqa: S101  # a count for every working point
    own = [one.counts[0] for one in seen]
    labels = np.array([[c.newest, c.final, c.n_slices] for c in own], float)
    result: dict[str, Any] = {
        "newest": float(labels[:, 0].sum() / labels[:, 2].sum()),
        "newest_interval": resampled(partial(_share, 0), labels, weights),
        "final": float(labels[:, 1].sum() / labels[:, 2].sum()),
        "final_interval": resampled(partial(_share, 1), labels, weights),
        "n_impossible": sum(c.n_impossible for c in own),
        "n_settled": sum(c.n_settled for c in own),
        **_of_settled(own, weights),
        **_of_probabilities(np.array([c.reliability for c in own]), weights),
        "newest_by_fraction": _ratios(sum(c.newest_by_fraction for c in own)),
        "all_by_fraction": _ratios(sum(c.by_fraction for c in own)),
        "impossible_by_fraction": _ratios(sum(c.impossible_by_fraction for c in own)),
        "announcing": {
            boundary: {
                point: _announcing([one.counts[place].announcements[k] for one in seen], runs, k, weights)
                for point, place in _places(points, k).items()
            }
            for k, boundary in enumerate(BOUNDARIES)
        },
        "announcing_by_quarter": {
            boundary: _by_quarter([c.announcements[k] for c in own], [run.n_planned for run in runs])
            for k, boundary in enumerate(BOUNDARIES)
        },
    }
    if seen[0].advised is not None:
        result["coverage"] = {
            kind: _coverage(
                [[c for c in one.coverages if c.kind == kind] for one in seen], BOUNDARIES, weights
            )
            for kind in KINDS
        }
        planned = [[c for c in one.coverages if c.kind == "mosaic"] for one in seen]
        result["mosaics"] = _coverage(planned, MOSAICS, weights)
        advised = [one.advised for one in seen if one.advised]
        result["advice"] = {
            key: float(np.nanmedian(values) if key == "share_used" else np.nanmean(values))
            for key in advised[0]
            if (values := np.array([one[key] for one in advised])).size
        }
        used = np.array([one["share_used"] for one in advised])
        twentieths = np.arange(1, N_FRACTIONS + 1) / N_FRACTIONS
        result["advice"]["finished_by_fraction"] = [
            round(float((used <= share + 1e-9).mean()), 4) for share in twentieths
        ]
    return result


def _of_settled(own: Sequence[LiveCounts], weights: np.ndarray) -> dict[str, Any]:
    """Share of settled labels that changed all the same; nothing where a method settles none."""
    counts = np.array([[c.n_unsettled, c.n_settled] for c in own], float)
    n_changed, n_settled = counts.sum(axis=0)
    if not n_settled:
        return {}
    changed = resampled(lambda sums: float(sums[0] / max(1.0, sums[1])), counts, weights)
    return {"settled_changed": float(n_changed / n_settled), "settled_changed_interval": changed}


def _of_probabilities(sums: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """How far probabilities are off from shares: the expected calibration error (Naeini et al. 2015)."""

    def error(sums: np.ndarray) -> float:
        return float(np.abs(sums[:, 1] - sums[:, 2]).sum() / sums[:, 0].sum())

    return {
        "calibration_error": error(sums.sum(axis=0)),
        "calibration_error_interval": resampled(error, sums, weights),
        "reliability": [
            [round(float(said / n), 4), round(float(right / n), 4), int(n)]
            for n, said, right in sums.sum(axis=0)
            if n
        ],
    }


def _share(place: int, sums: np.ndarray) -> float:
    return float(sums[place] / sums[2])


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def _ratios(sums: Any) -> list[float]:
    return [round(float(right / total), 4) if total else float("nan") for right, total in sums]


def _announcing(
    found: Sequence[Announcement], runs: Sequence[StackRun], k: int, weights: np.ndarray
) -> dict[str, Any]:
    there = np.array([one.crossed is not None for one in found])
    delays = np.array([one.delay for one in found])
    # One that is never announced is late by more than any.
    late = np.where(np.isinf(delays), NEVER, delays)
    first = np.array(
        [NEVER if one.first is None else one.first - one.crossed for one in found if one.crossed is not None]
    )
    announced = np.array([one.first is not None for one in found])
    gone = np.array([one.withdrawn or one.moved for one in found])
    counts = np.stack([gone & announced, announced], axis=1).astype(float)
    known_um = [label_boundaries(run.stack)[k] for run in runs]
    late_um = np.array(
        [
            NEVER if one.for_good is None else float(run.stack.z_um[one.for_good]) - true_um
            for one, run, true_um in zip(found, runs, known_um, strict=True)
            if one.crossed is not None and true_um is not None
        ]
    )
    off = [
        boundary_error_um(true_um, one.first_um, run.stack.z_um)
        for one, run, true_um in zip(found, runs, known_um, strict=True)
    ]
    off_um = np.array([[0.0, 0.0] if error is None else [error, 1.0] for error in off])
    return {
        "n": int(there.sum()),
        "n_never": int(np.isinf(delays[there]).sum()),
        "n_false": int((announced & ~there).sum()),
        "median_delay_slices": float(np.median(late[there])) if there.any() else float("nan"),
        "median_delay_slices_interval": interval(weighted_median(late[there], weights[:, there])),
        "median_delay_if_kept_slices": float(np.median(first)) if len(first) else float("nan"),
        "median_delay_um": float(np.median(late_um)) if len(late_um) else float("nan"),
        "announced_mae_um": _mean(off_um.sum(axis=0)),
        "announced_mae_um_interval": resampled(_mean, off_um, weights),
        "share_withdrawn_or_moved": float(counts[:, 0].sum() / max(1.0, counts[:, 1].sum())),
        "share_withdrawn_or_moved_interval": resampled(
            lambda sums: float(sums[0] / max(1.0, sums[1])), counts, weights
        ),
    }


def _by_quarter(found: Sequence[Announcement], n_planned: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Median delay by the quarter a boundary is crossed in, share gone by that it is announced in."""
    crossed_in, announced_in = [], []
    pairs = list(zip(found, n_planned, strict=True))
    for quarter in range(4):
        delays = [
            min(one.delay, NEVER)
            for one, n in pairs
            if one.crossed is not None and _is_within(quarter, (one.crossed + 1) / n)
        ]
        gone = [
            one.withdrawn or one.moved
            for one, n in pairs
            if one.first is not None and _is_within(quarter, (one.first + 1) / n)
        ]
        crossed_in.append(
            {"n": len(delays), "median_delay_slices": float(np.median(delays)) if delays else float("nan")}
        )
        announced_in.append(
            {"n": len(gone), "share_withdrawn_or_moved": float(np.mean(gone)) if gone else float("nan")}
        )
    return {"crossed_in": crossed_in, "announced_in": announced_in}


def _coverage(
    given: Sequence[Sequence[Coverage]], names: Sequence[str], weights: np.ndarray
) -> dict[str, Any]:
    """Share of intervals that held: of all, of each boundary or mosaic, and in each quarter of the stack."""
    result = {}
    cuts: list[tuple[str, Any]] = [("all", lambda c: True)]
    cuts += [(name, partial(_is_of, k)) for k, name in enumerate(names)]
    cuts += [(f"quarter_{q + 1}", partial(_is_in, q)) for q in range(4)]
    for name, chosen in cuts:
        sums = np.array(
            [[sum(c.holds for c in own if chosen(c)), sum(1 for c in own if chosen(c))] for own in given],
            float,
        )
        widths = [c.width_um for own in given for c in own if chosen(c)]
        total = sums.sum(axis=0)
        result[name] = {
            "share": _mean(total),
            "interval": resampled(_mean, sums, weights),
            "n": int(total[1]),
            "median_width_um": float(np.median(widths)) if widths else float("nan"),
        }
    return result


def _is_of(k: int, one: Coverage) -> bool:
    return one.place == k


def _is_in(quarter: int, one: Coverage) -> bool:
    return _is_within(quarter, one.share_seen)


def _is_within(quarter: int, share_seen: float) -> bool:
    return quarter / 4 < share_seen <= (quarter + 1) / 4
