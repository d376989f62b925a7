"""Beginnings of stacks: which are run, what they count for, and what is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from seeded_bundles import write_seeded_bundle
from trainer_commands import run

from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.pipeline import Estimation
from rcm_daemon.errors import DataSetError
from trainer.beginnings import BEGINNINGS, FIRST_SHARE, evaluate_beginnings
from trainer.data.manifest import load_data_set
from trainer.live_runs import live_run
from trainer.live_scores import coverages
from trainer.offline import LeftOut, run_bundles
from trainer.scores import depths

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.data.manifest import LabelledStack


def tiny_stacks(work: Path, n: int = 3) -> list[LabelledStack]:
    return list(load_data_set(work / "data").stacks[:n])


def test_what_is_said_of_a_beginning_is_what_was_said_of_it_in_the_whole_stack(work: Path, tmp_path) -> None:
    folder = write_seeded_bundle(tmp_path / "live", "live")
    stacks = [replace(stack, boundaries_um=None) for stack in tiny_stacks(work)]
    whole = run_bundles([folder], stacks, 1, "whole")
    early = run_bundles([folder], stacks, 1, "early", LeftOut(first_share=FIRST_SHARE))
    networks = Networks.open(load_verified(folder), "cpu", 1)
    estimation = Estimation(networks.estimator_parameters)
    for stack, full, part in zip(stacks, whole, early, strict=True):
        n_seen = stack.n_slices // 4
        assert 1 < n_seen == part.stack.n_slices < part.n_planned == stack.n_slices
        # Where its boundaries are is known, though the scan has not come there.
        assert part.stack.boundaries_um == depths(stack.labels, stack.z_um)
        said, said_early = (
            coverages(live_run(one.stack, one.slices[0], networks.recur, estimation, one.n_planned))
            for one in (full, part)
        )
        assert said_early == [one for one in said if one.share_seen <= n_seen / stack.n_slices]
        assert said_early


@pytest.mark.parametrize(("below_um", "share"), [(-30.0, 1.0), (4.0, 1.0), (20.0, 0.4), (90.0, 0.3)])
def test_a_stack_that_is_run_counts_for_all_that_lie_as_far(work: Path, below_um, share) -> None:
    stack = replace(tiny_stacks(work, 1)[0], boundaries_um=(below_um, below_um + 40))
    weights = [BEGINNINGS.weight(stack, 0.0, seed) for seed in range(4000)]
    assert set(weights) <= {0.0, 1 / share}
    assert np.mean(weights) == pytest.approx(1.0, abs=4 * np.sqrt((1 / share - 1) / 4000) + 1e-9)
    without = replace(stack, boundaries_um=None, labels=np.zeros(stack.n_slices, np.int64))
    assert {BEGINNINGS.weight(without, 0.0, seed) for seed in range(200)} <= {0.0, 1 / 0.3}


def test_stacks_that_are_not_run_cost_nothing_and_weigh_nothing(work: Path, tmp_path) -> None:
    folder = write_seeded_bundle(tmp_path / "live", "live")
    stacks = tiny_stacks(work, 4)
    none = LeftOut(first_share=FIRST_SHARE, taken=((np.inf, 1e-12),))
    (skipped, *_), runs = (run_bundles([folder], stacks, 1, "beginnings", how) for how in (none, BEGINNINGS))
    assert (skipped.weight, skipped.slices) == (0.0, ())
    networks = Networks.open(load_verified(folder), "cpu", 1)
    assert evaluate_beginnings([skipped], networks)["inside"]["all"]["n"] == 0
    # By hand: of four stacks, two weigh one and two weigh four; those of the third and fourth are forecasts.
    runs = run_bundles([folder], stacks, 1, "beginnings", LeftOut(first_share=FIRST_SHARE))
    heavy = [replace(one, weight=weight) for one, weight in zip(runs, (1, 1, 4, 0), strict=True)]
    found = evaluate_beginnings(heavy, networks)
    assert (found["n_stacks"], found["n_rendered"]) == (4, 3)
    estimation = Estimation(networks.estimator_parameters)
    sums = np.zeros(2)
    for one in heavy[:3]:
        live = live_run(one.stack, one.slices[0], networks.recur, estimation, one.n_planned)
        held = [c.holds for c in coverages(live) if c.kind == "forecast"]
        sums += one.weight * np.array([sum(held), len(held)])
    assert found["forecast"]["all"]["share"] == pytest.approx(sums[0] / sums[1])


def test_an_evaluation_of_beginnings_reports_them(work: Path, tmp_path) -> None:
    folder = write_seeded_bundle(tmp_path / "live", "live")
    out = tmp_path / "report"
    text = run(
        "evaluate", folder, "--out", out, "--beginnings", "12", "--pixel-size-um", "5", "--workers", "1"
    )
    assert "## Beginnings" in text
    assert "| epidermis-DEJ |" in text
    assert "Phantoms are another data set: the figures must not be read against each other." in text
    found = json.loads((out / "evaluation.json").read_text())["beginnings"]
    assert 1 <= found["n_rendered"] <= found["n_stacks"] == 12
    assert set(found["inside"]) == {"all", "epidermis_dej", "dej_dermis"}
    with pytest.raises(DataSetError, match="beginnings are for a bundle with an estimator, got none"):
        run("evaluate", work / "whole", "--out", out, "--beginnings", "12")
    with pytest.raises(DataSetError, match="beginnings are looked at without leaving slices out"):
        run("evaluate", folder, "--out", out, "--beginnings", "12", "--missing", "0.1")


def test_the_command_calibrates_what_is_kept_for_good(work: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trainer.calibrate.FEWEST_PATIENTS", 1)  # the tests' set has no more
    monkeypatch.setattr("trainer.picture_domain.FEWEST_PICTURES", 2)
    write_seeded_bundle(tmp_path / "live", "live")
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "live" / "rcn.pt").rename(folder / "best.pt")
    for options, for_good in (([], False), (["--for-good"], True)):
        run(
            "calibrate", "--data", work / "data", "--cnn", work / "cnn", "--rcn", folder,
            "--split", work / "cnn" / "split.json", "--part", "validation", *options,
        )  # fmt: skip
        content = json.loads((folder / "calibration.json").read_text())
        assert content["estimator"]["for_good"] == for_good
