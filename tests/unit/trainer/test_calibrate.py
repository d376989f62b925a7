"""Calibration on made-up networks whose mistakes are known, and its way into a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded_bundles import write_seeded_bundle

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.estimator import EstimatorParameters
from rcm_daemon.core.pipeline import Estimation, Recurrence
from rcm_daemon.core.posterior import BoundaryPrior
from rcm_daemon.core.quality import PictureDomain
from rcm_daemon.errors import DataSetError
from trainer.calibrate import (
    Rank,
    _fit_levels,
    _fit_settled,
    calibrate,
    read_calibration,
    uncalibrated,
    write_calibration,
)
from trainer.data.manifest import LabelledStack
from trainer.export import export_bundle
from trainer.live_runs import live_run, slices_of
from trainer.live_scores import coverages
from trainer.networks.rcn import Architecture, RecurrentStrata
from trainer.offline import StackRun, thinned
from trainer.train_rcn import load_rcn

PRIOR = BoundaryPrior(60.0, 14.0, 45.0, 8.0, 5.0)
ERROR_UM = 5.0


def stacks(n_patients: int, seed: int) -> tuple[list[LabelledStack], list[np.ndarray]]:
    """Stacks whose embeddings are where the boundaries seem to lie, off by a known scatter."""
    rng = np.random.default_rng(seed)
    made, embeddings = [], []
    for patient in range(n_patients):
        n_slices = int(rng.integers(30, 60))
        z_um = np.arange(n_slices) * 3.0
        first = rng.logistic(60, 9)
        second = first + max(8.0, rng.logistic(45, 6))
        seen = np.array([first, second]) + rng.normal(0, ERROR_UM, 2)
        labels = (z_um >= first).astype(np.int64) + (z_um >= second)
        made.append(
            LabelledStack(
                stack=f"s{patient}",
                patient=f"p{patient}",
                site="",
                family="",
                files=(Path("x.tif"),) * n_slices,
                pages=tuple(range(n_slices)),
                z_um=z_um,
                pixel_size_um=0.5,
                labels=labels,
                readings={},
            )
        )
        rows = np.repeat(seen[None].astype(np.float32), n_slices, axis=0)
        embeddings.append(np.column_stack([rows, np.arange(n_slices, dtype=np.float32)]))
    return made, embeddings


def overconfident(embeddings, z_um, weight) -> Recurrence:
    """Evidence and probabilities far surer than the scatter warrants."""
    first, second = embeddings[0, :2]
    sides = np.stack([first - z_um, np.minimum(z_um - first, second - z_um), z_um - second], axis=1)
    sides -= sides.max(axis=1, keepdims=True)
    probabilities = np.exp(sides) / np.exp(sides).sum(axis=1, keepdims=True)
    return Recurrence(probabilities.astype(np.float32), np.clip(0.1 * sides, -0.6, 0.6).astype(np.float32))


def coverage_of(parameters, seed: int) -> float:
    made, embeddings = stacks(100, seed)
    given = []
    for stack, rows in zip(made, embeddings, strict=True):
        run = live_run(stack, slices_of(stack, rows), overconfident, Estimation(parameters))
        given += [interval.holds for interval in coverages(run) if interval.kind == "inside"]
    return float(np.mean(given))


def test_intervals_of_an_overconfident_network_are_widened_until_they_hold() -> None:
    found = calibrate(*stacks(100, 0), overconfident, PRIOR)
    before = coverage_of(uncalibrated(PRIOR), 1)
    after = coverage_of(found.parameters, 1)
    assert before < 0.8
    assert 0.85 < after < 0.95
    assert found.temperature > 1.5
    assert found.parameters.evidence_scale < 1


@pytest.mark.parametrize("n_patients", [20, 30, 50, 200])
def test_intervals_hold_however_few_patients_set_their_levels(n_patients: int) -> None:
    rng = np.random.default_rng(n_patients)
    held = []
    for _ in range(500):
        ranks = [Rank(f"p{i}", 0, True, 1.0, rank) for i, rank in enumerate(rng.uniform(size=n_patients))]
        low, high = _fit_levels(ranks, (), (), inside=True).overall[0]
        held.append(high - low)  # of a new patient's rank, as uniform as theirs
    assert np.mean(held) == pytest.approx(1 - 2 * ((n_patients + 1) // 20) / (n_patients + 1), abs=0.006)
    assert np.mean(held) > 0.895


def test_beginnings_set_the_levels_of_the_first_quarter_alone() -> None:
    found = calibrate(*stacks(100, 0), overconfident, PRIOR)
    begun = []
    for stack, rows in zip(*stacks(60, 7), strict=True):
        n_seen = stack.n_slices // 4
        cut = thinned(stack, np.arange(stack.n_slices) < n_seen)
        begun.append(StackRun(cut, (slices_of(cut, rows[:n_seen]),), n_planned=stack.n_slices, weight=2.0))
    unseen = StackRun(begun[0].stack, n_planned=begun[0].n_planned, weight=0.0)
    more = calibrate(*stacks(100, 0), overconfident, PRIOR, beginnings=[*begun, unseen])
    for kind in ("inside", "forecast"):
        before, after = (getattr(one.parameters, kind) for one in (found, more))
        assert after.overall == before.overall
        assert after.by_share[1:] == before.by_share[1:]
    assert more.parameters.forecast.by_share[0] != found.parameters.forecast.by_share[0]
    same = ("temperature", "n_stacks", "n_patients")
    assert [getattr(more, name) for name in same] == [getattr(found, name) for name in same]
    assert more.parameters.settled_probability == found.parameters.settled_probability


def test_whole_phantoms_set_the_levels_of_all_but_the_first_quarter() -> None:
    found = calibrate(*stacks(100, 0), overconfident, PRIOR)
    others = [StackRun(stack, (slices_of(stack, rows),)) for stack, rows in zip(*stacks(150, 7), strict=True)]
    more = calibrate(*stacks(100, 0), overconfident, PRIOR, phantoms=others)
    assert more.parameters.evidence_scale == found.parameters.evidence_scale
    both, embeddings = (a + b for a, b in zip(stacks(100, 0), stacks(150, 7), strict=True))
    both = [replace(stack, patient=f"p{number}") for number, stack in enumerate(both)]
    together = calibrate(both, embeddings, overconfident, PRIOR)
    assert together.parameters.evidence_scale == found.parameters.evidence_scale  # so ranks are the same
    for kind in ("inside", "forecast"):
        before, after, wanted = (getattr(one.parameters, kind) for one in (found, more, together))
        # Too few find a boundary in the first quarter: its intervals take the levels of all together.
        assert after.by_share[0] == (after.overall if kind == "inside" else before.by_share[0])
        assert after.by_share[1:] == wanted.by_share[1:] != before.by_share[1:]
        assert after.overall == wanted.overall != before.overall
    assert more.parameters.settled_probability == found.parameters.settled_probability


def test_what_is_said_may_be_calibrated_to_be_kept_for_good() -> None:
    data = stacks(40, 0)
    held, kept = (
        calibrate(*data, overconfident, PRIOR, for_good=for_good).parameters for for_good in (False, True)
    )
    assert (held.for_good, kept.for_good) == (False, True)
    assert kept.settled_probability < held.settled_probability  # fewer labels change
    older = held.model_dump(by_alias=True)
    del older["for_good"]
    assert EstimatorParameters.model_validate(older) == held


def test_settled_labels_hardly_ever_change() -> None:
    found = calibrate(*stacks(80, 2), overconfident, PRIOR)
    made, embeddings = stacks(60, 3)
    n_settled = n_changed = 0
    for stack, rows in zip(made, embeddings, strict=True):
        run = live_run(stack, slices_of(stack, rows), overconfident, Estimation(found.parameters))
        final = run.estimates[-1].labels
        for estimate in run.estimates:
            n = len(estimate.labels)
            n_settled += int(estimate.settled.sum())
            n_changed += int((estimate.settled & (estimate.labels != final[:n])).sum())
    assert n_settled > 1000
    assert n_changed / n_settled < 0.02


def test_the_pictures_it_was_made_for_are_written_down_with_it() -> None:
    domain = PictureDomain(**dict.fromkeys(PictureDomain.model_fields, (0.0, 1.0)))
    assert calibrate(*stacks(25, 0), overconfident, PRIOR, domain).parameters.domain == domain
    assert calibrate(*stacks(25, 0), overconfident, PRIOR).parameters.domain is None


def test_labels_settle_at_the_smallest_probability_at_which_few_enough_change() -> None:
    probability = np.repeat([0.5, 0.7, 0.9], 1000)
    changed = np.concatenate([np.arange(1000) < n for n in (300, 11, 2)])
    assert _fit_settled([(probability, changed)]) == 0.9
    changed = np.concatenate([np.arange(1000) < n for n in (300, 9, 2)])
    assert _fit_settled([(probability, changed)]) == 0.7
    assert _fit_settled([(probability, np.ones(3000, np.bool_))]) == 1.0


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(DataSetError, match="20 patients or more"):
        calibrate(*stacks(5, 0), overconfident, PRIOR)


def test_a_calibration_belongs_to_one_network(tmp_path) -> None:
    torch.manual_seed(0)
    network = RecurrentStrata(Architecture(segmental=True))
    found = calibrate(*stacks(25, 0), overconfident, PRIOR)
    assert read_calibration(tmp_path, network) is None
    path = write_calibration(tmp_path, found, network)
    content = json.loads(path.read_text())
    assert read_calibration(tmp_path / "best.pt", network) == content
    with pytest.raises(DataSetError, match="was fitted to another"):
        read_calibration(tmp_path, RecurrentStrata(Architecture(segmental=True)))


def test_a_live_network_goes_to_a_bundle_with_its_calibration_or_the_bundle_says_it_has_none(
    tmp_path,
) -> None:
    plain = write_seeded_bundle(tmp_path, "live")
    found = calibrate(*stacks(25, 0), overconfident, PRIOR, for_good=True)
    write_calibration(tmp_path, found, load_rcn(tmp_path / "rcn.pt")[0])
    calibrated = tmp_path / "calibrated"
    export_bundle(tmp_path / "cnn.pt", tmp_path / "rcn.pt", calibrated, name="live")
    rng = np.random.default_rng(0)
    given = rng.normal(size=(20, 256)).astype(np.float32), 3.0 * np.arange(20), np.ones(20)
    before, after = (
        Networks.open(load_verified(folder), "cpu", 1).label(*given) for folder in (plain, calibrated)
    )
    cooled = before.astype(np.float64) ** (1 / found.temperature)
    np.testing.assert_allclose(after, cooled / cooled.sum(axis=1, keepdims=True), atol=1e-5)
    assert np.abs(after - before).max() > 1e-3
    for folder, is_calibrated in ((plain, False), (calibrated, True)):
        bundle = load_verified(folder)
        networks = Networks.open(bundle, "cpu", 1)
        assert bundle.manifest.rcn_inputs == ("embeddings", "z_um", "weight")
        assert networks.estimator_parameters is not None
        assert networks.estimator_parameters.is_calibrated == is_calibrated
        assert (networks.estimator_parameters == found.parameters) == is_calibrated
        report = check_bundle(folder, "cpu")
        assert report.ok, report.items
        said = {item.what: item.detail for item in report.items}
        assert {"golden probabilities", "golden evidence"} <= set(said)
        assert ("its intervals are not calibrated" in said["estimator"]) != is_calibrated
        card = (folder / "MODEL_CARD.md").read_text()
        assert ("Its intervals are not calibrated" in card) != is_calibrated
        assert "Epidermis-DEJ counts as found from a probability of 0." in card
        assert ("is kept for good" in card) == is_calibrated
        assert "\n\n\n" not in card.partition("## How good")[0]
