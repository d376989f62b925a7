"""Calibration of a live network on patients it was not trained on: temperature, intervals, settled labels.

The evidence is scaled to where the readers' boundaries are likeliest. Intervals are corrected the conformal
way (Chernozhukov, Wuthrich and Zhu 2021, "Distributional conformal prediction"): for every interval the
posterior would give on calibration stacks, where in its own distribution does the readers' boundary lie? The
5 % and 95 % points of these ranks are the levels that hold 90 % of the boundaries; they are taken a little
farther out for the finite number of patients.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.estimator import N_SHARES, UNCALIBRATED, EstimatorParameters, Levels, statuses_of
from rcm_daemon.core.message import INTERVAL
from rcm_daemon.core.pipeline import Estimation
from rcm_daemon.core.posterior import boundary_posterior
from rcm_daemon.core.records import BOUNDARIES
from rcm_daemon.errors import DataSetError
from trainer.live_runs import again, live_run, slices_of
from trainer.live_scores import changed_later, label_boundaries
from trainer.progress import progress_bar
from trainer.run_folder import state_digest, this_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rcm_daemon.core.pipeline import Recurrent
    from rcm_daemon.core.posterior import BoundaryPosterior, BoundaryPrior
    from rcm_daemon.core.quality import PictureDomain
    from trainer.data.manifest import LabelledStack
    from trainer.live_runs import LiveRun
    from trainer.networks.rcn import RecurrentStrata
    from trainer.offline import StackRun

CALIBRATION_SCHEMA = "rcm-calibration-1"
CALIBRATION_NAME = "calibration.json"
FOUND_PROBABILITY = (0.65, 0.4)
"""Of epidermis-DEJ and DEJ-dermis. On 340 validation and calibration stacks 12 % of the announced
epidermis-DEJ boundaries were taken back or moved at 0.5, 8 % at 0.65, 6 % at 0.9, with a median delay of
0, 2 and 4 slices; of DEJ-dermis 10 % at 0.35, 4 % at 0.4, 2 % at 0.5. At 0.4 that was missed in 11 of 272
stacks, at 0.5 in 18, many of which end soon after it."""
SETTLED_CHANGES = 0.01
"""Share of labels of a settled label's probability that may change."""
FEWEST_PATIENTS = 20
"""A quarter of the stack with fewer patients than this takes the levels of all quarters together."""
SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3)
EVERY = 4
TEMPERATURES = np.geomspace(0.5, 4.0, 85)
OUTERMOST = 0.002


@dataclass(frozen=True)
class Rank:
    """Where in its distribution the readers' boundary lay, 0..1, when a share of the stack was seen.

    `weight` is the number of stacks it stands for.
    """

    patient: str
    boundary: int
    inside: bool
    share_seen: float
    rank: float
    weight: float = 1.0


@dataclass(frozen=True)
class Calibration:
    """What calibration found; `content` is what calibration.json holds."""

    temperature: float
    parameters: EstimatorParameters
    n_stacks: int
    n_patients: int

    @property
    def content(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "schema": CALIBRATION_SCHEMA,
            "temperature": self.temperature,
            "estimator": self.parameters.model_dump(mode="json", by_alias=True),
            "n_stacks": self.n_stacks,
            "n_patients": self.n_patients,
        }


def write_calibration(folder: Path, found: Calibration, network: RecurrentStrata) -> Path:
    """Write calibration.json into the network's run folder; returns its path."""
    path = folder / CALIBRATION_NAME
    content = {
        **found.content,
        "network_digest": state_digest(network.state_dict()),
        "command": this_command(),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def read_calibration(checkpoint: Path, network: RecurrentStrata) -> dict[str, Any] | None:
    """Read the calibration of a run folder or a checkpoint in it, None where nobody calibrated it.

    Raises
    ------
    DataSetError
        If it is that of other weights.
    """
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / CALIBRATION_NAME
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    if content.get("network_digest") != state_digest(network.state_dict()):
        raise DataSetError(
            f"a calibration belongs to one network, {path} was fitted to another: calibrate anew"
        )
    return content


def uncalibrated(
    prior: BoundaryPrior, evidence_scale: float = 1.0, *, for_good: bool = False
) -> EstimatorParameters:
    """Give the estimator of a network nobody calibrated: the posterior's own levels, little settled."""
    levels = _levels(np.array(UNCALIBRATED))
    parameters = _parameters(prior, evidence_scale, levels, levels, 0.999)
    return parameters.model_copy(update={"for_good": for_good})


def check_patients(stacks: Sequence[LabelledStack]) -> None:
    """Refuse too few patients.

    Raises
    ------
    DataSetError
        If there are fewer than `FEWEST_PATIENTS`.
    """
    n_patients = len({stack.patient for stack in stacks})
    if n_patients < FEWEST_PATIENTS:
        raise DataSetError(
            f"a calibration needs {FEWEST_PATIENTS} patients or more that nothing else was fitted on, "
            f"got {n_patients}: the fourth of --shares, or of --new-shares, sets stacks apart for it"
        )


def calibrate(
    stacks: Sequence[LabelledStack],
    embeddings: Sequence[np.ndarray],
    recurrent: Recurrent,
    prior: BoundaryPrior,
    domain: PictureDomain | None = None,
    beginnings: Sequence[StackRun] = (),
    phantoms: Sequence[StackRun] = (),
    *,
    for_good: bool = False,
) -> Calibration:
    """Calibrate on stacks of patients that no network was trained on or chosen by.

    Parameters
    ----------
    stacks, embeddings
        Calibration stacks, and the embeddings float32 [n, 256] of each.
    recurrent
        The network, its probabilities as trained.
    prior
        Its prior.
    domain
        What their pictures look like, to be kept with the rest.
    beginnings, phantoms
        Other stacks, by the same CNN: beginnings, for the intervals given in the first quarter, and whole
        ones, for those given after it and those of stacks of unknown length, see
        `trainer.calibration_phantoms`.
    for_good
        See `EstimatorParameters`.

    Raises
    ------
    DataSetError
        If there are too few patients.
    """
    check_patients(stacks)
    patients = {stack.patient for stack in stacks}
    plain = Estimation()
    with progress_bar("running the network", len(stacks), "stacks") as advance:
        runs = []
        for stack, rows_NE in zip(stacks, embeddings, strict=True):
            runs.append(live_run(stack, slices_of(stack, rows_NE), recurrent, plain))
            advance(1, "")
    scale = _fit_scale(runs, prior)
    estimation = Estimation(uncalibrated(prior, scale, for_good=for_good))
    ranks: list[Rank] = []
    confidences: list[tuple[np.ndarray, np.ndarray]] = []
    with progress_bar("calibrating", len(stacks), "stacks") as advance:
        for run in runs:
            ranks.extend(_ranks(run, prior, scale))
            confidences.append(_confidences(run, estimation))
            advance(1, "")
    early, late = (_more_ranks(others, recurrent, prior, scale) for others in (beginnings, phantoms))
    answers = [
        (given.probabilities, run.stack.labels[: len(given.probabilities)])
        for run in runs
        for given in run.given
    ]
    parameters = _parameters(
        prior,
        scale,
        _fit_levels(ranks, early, late, inside=True),
        _fit_levels(ranks, early, late, inside=False),
        _fit_settled(confidences),
    ).model_copy(update={"domain": domain, "for_good": for_good})
    return Calibration(_fit_temperature(answers), parameters, len(stacks), len(patients))


def _more_ranks(
    others: Sequence[StackRun], recurrent: Recurrent, prior: BoundaryPrior, scale: float
) -> list[Rank]:
    ranks: list[Rank] = []
    if not others:
        return ranks
    with progress_bar("calibrating on phantoms", len(others), "stacks") as advance:
        for one in others:
            if one.weight:
                run = live_run(one.stack, one.slices[0], recurrent, Estimation(), one.n_planned)
                ranks.extend(_ranks(run, prior, scale, one.weight, "another "))
            advance(1, "")
    return ranks


def _parameters(
    prior: BoundaryPrior, evidence_scale: float, inside: Levels, forecast: Levels, settled_probability: float
) -> EstimatorParameters:
    return EstimatorParameters.model_validate(
        {
            "schema": "rcm-estimator-1",
            **{name: round(value, 4) for name, value in vars(prior).items()},
            "evidence_scale": round(evidence_scale, 4),
            "found_probability": FOUND_PROBABILITY,
            "settled_probability": settled_probability,
            "inside": inside,
            "forecast": forecast,
        }
    )


def _posteriors(
    run: LiveRun, prior: BoundaryPrior, scale: float, every: int = 1
) -> Iterator[BoundaryPosterior]:
    weight = np.array([one.weight for one in run.slices])
    for given in run.given[::every]:
        if given.evidence is None:
            raise DataSetError("a calibration needs a segmental network, this one gives no evidence")
        seen = len(given.evidence)
        evidence = given.evidence.astype(np.float64) * scale
        yield boundary_posterior(run.stack.z_um[:seen], evidence, weight[:seen], prior)


def _fit_scale(runs: Sequence[LiveRun], prior: BoundaryPrior) -> float:
    """Scale of the evidence under which the readers' boundaries are likeliest, over every fourth prefix."""
    losses = []
    for scale in SCALES:
        likely = [
            posterior.of_labels(run.stack.labels[: posterior.n_slices])
            for run in runs
            for posterior in _posteriors(run, prior, scale, EVERY)
        ]
        losses.append(-float(np.log(np.maximum(likely, 1e-12)).mean()))
    return float(SCALES[int(np.argmin(losses))])


def _ranks(
    run: LiveRun, prior: BoundaryPrior, scale: float, weight: float = 1.0, prefix: str = ""
) -> list[Rank]:
    """Rank of the readers' boundaries in every prefix's posterior.

    A boundary that the stack does not come to, and of which nothing more is known, lies somewhere below its
    last slice: in the middle of what the posterior has there.
    """
    stack, found = run.stack, []
    known_um = stack.boundaries_um or label_boundaries(stack)
    for posterior in _posteriors(run, prior, scale):
        statuses = statuses_of(posterior, FOUND_PROBABILITY)
        for k in range(len(BOUNDARIES)):
            truth = known_um[k]
            if statuses[k] == "above_start" or (truth is None and stack.labels[0] > k):
                continue
            ends = stack.z_um[-1] if truth is None else truth
            rank = float(np.interp(ends, posterior.depths_um, posterior.cdf[k]))
            found.append(
                Rank(
                    boundary=k,
                    inside=statuses[k] == "inside",
                    share_seen=posterior.n_slices / run.n_planned,
                    rank=(1 + rank) / 2 if truth is None else rank,
                    patient=prefix + stack.patient,
                    weight=weight,
                )
            )
    return found


def _fit_levels(
    ranks: Sequence[Rank], early: Sequence[Rank], late: Sequence[Rank], *, inside: bool
) -> Levels:
    """Levels of each quarter, the first with the beginnings' ranks, and of all together, with the others'."""
    ranks, early, late = ([rank for rank in own if rank.inside == inside] for own in (ranks, early, late))
    begun, whole = (*ranks, *early), (*ranks, *late)
    overall = [_edges([rank for rank in whole if rank.boundary == k]) for k in range(len(BOUNDARIES))]
    by_share = []
    for quarter in range(N_SHARES):
        of_quarter = [
            rank
            for rank in (whole if quarter else begun)
            if min(N_SHARES - 1, int(np.ceil(rank.share_seen * N_SHARES)) - 1) == quarter
        ]
        pairs = []
        for k in range(len(BOUNDARIES)):
            own = [rank for rank in of_quarter if rank.boundary == k]
            enough = len({rank.patient for rank in own}) >= FEWEST_PATIENTS
            pairs.append(_edges(own) if enough else overall[k])
        by_share.append(tuple(pairs))
    return Levels(by_share=tuple(by_share), overall=tuple(overall))


def _edges(ranks: Sequence[Rank]) -> tuple[float, float]:
    """Levels that hold a new patient's boundary 90 % of the time: split conformal, from both sides.

    Of n patients, each with one rank, these are the k-th smallest and the k-th largest, k = 5 % of n + 1
    rounded down (Vovk et al. 2005): 2 k / (n + 1) of all new ones lie outside. Those of one
    patient's prefixes are much alike: patients are counted here, and their ranks taken together.
    """
    edge = (1 - INTERVAL) / 2
    if not ranks:
        return edge, 1 - edge
    n_patients = len({rank.patient for rank in ranks})
    k = int(round(edge * (n_patients + 1), 9))  # 0.05 * 20 is 1, whatever floating point makes of it
    if k == 0:
        return OUTERMOST, 1 - OUTERMOST
    outer = (k - 0.5) / n_patients  # half-way between ranks, where no rounding of weights matters
    low, high = np.quantile(
        [rank.rank for rank in ranks],
        [outer, 1 - outer],
        weights=[rank.weight for rank in ranks],
        method="inverted_cdf",  # the one that knows weights
    )
    return round(float(np.clip(low, OUTERMOST, 0.5)), 4), round(float(np.clip(high, 0.5, 1 - OUTERMOST)), 4)


def _levels(pair: np.ndarray) -> Levels:
    both = ((float(pair[0]), float(pair[1])),) * len(BOUNDARIES)
    return Levels(by_share=(both,) * N_SHARES, overall=both)


def _confidences(run: LiveRun, estimation: Estimation) -> tuple[np.ndarray, np.ndarray]:
    """Posterior probability of every label given, and whether it changed later."""
    estimates = again(run, estimation).estimates
    own = [np.take_along_axis(e.posterior, e.labels[:, None], axis=1)[:, 0] for e in estimates]
    return np.concatenate(own), np.concatenate(changed_later([e.labels for e in estimates]))


def _fit_settled(confidences: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Smallest probability of which no more labels change than may; the share of changes falls with it."""
    from sklearn.isotonic import IsotonicRegression

    probability = np.concatenate([p for p, _ in confidences])
    changed = np.concatenate([c for _, c in confidences])
    shares = IsotonicRegression(increasing=False).fit_transform(probability, changed.astype(float))
    settled = probability[shares <= SETTLED_CHANGES]
    return round(min(1.0, max(0.5, float(settled.min()))), 5) if len(settled) else 1.0


def _fit_temperature(answers: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Temperature of the smallest negative log likelihood over all prefixes."""
    logarithms = np.log(np.maximum(np.concatenate([p for p, _ in answers]).astype(np.float64), 1e-12))
    labels = np.concatenate([own for _, own in answers])
    losses = []
    for temperature in TEMPERATURES:
        scaled = logarithms / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        total = np.log(np.exp(scaled).sum(axis=1))
        losses.append(float((total - scaled[np.arange(len(labels)), labels]).mean()))
    return round(float(TEMPERATURES[int(np.argmin(losses))]), 4)
