"""The second task of a CNN: how far below each boundary a slice lies."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from trainer_commands import CNN_OPTIONS, run

from rcm_daemon.bundle.verify import load_verified
from trainer.data.manifest import load_data_set
from trainer.distances import compressed_distances, distance_loss

if TYPE_CHECKING:
    from pathlib import Path


def test_distances_come_from_the_data_set_or_else_from_the_labels(work: Path) -> None:
    data = load_data_set(work / "data")
    stack = replace(
        data.stacks[0],
        z_um=np.array([0.0, 10.0, 20.0]),
        labels=np.array([0, 1, 1]),
        pages=(0, 1, 2),
        boundaries_um=(4.0, 40.0),
    )
    found = compressed_distances(replace(data, stacks=(stack,)))
    expected = [[-4 / 24, -40 / 60], [6 / 26, -30 / 50], [16 / 36, -20 / 40]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = compressed_distances(replace(data, stacks=(replace(stack, boundaries_um=None),)))
    np.testing.assert_allclose(found[:, 0], [-5 / 25, 5 / 25, 15 / 35], rtol=1e-6)
    assert np.isnan(found[:, 1]).all()  # somewhere below what was labelled


def test_what_is_not_known_costs_nothing() -> None:
    said = torch.tensor([[0.5, 7.0], [0.0, 0.25]], requires_grad=True)
    wanted = torch.tensor([[0.0, torch.nan], [0.0, 0.75]])
    loss = distance_loss(said, wanted)
    assert loss.item() == pytest.approx((0.25 + 0.0 + 0.25) / 3)
    loss.backward()
    assert said.grad is not None and said.grad[0, 1] == 0 and torch.isfinite(said.grad).all()
    assert distance_loss(said, torch.full((2, 2), torch.nan)).item() == 0


def test_it_is_learnt_beside_the_strata_and_stays_behind_on_export(work: Path, tmp_path: Path) -> None:
    options = [
        "--data",
        work / "data",
        *CNN_OPTIONS,
        "--split",
        work / "cnn" / "split.json",
        "--workers",
        "1",
    ]
    with_task, without = tmp_path / "with", tmp_path / "without"
    run("cnn", *options, "--out", with_task, "--epochs", "6", "--distance-weight", "4")
    lines = [json.loads(line) for line in (with_task / "metrics.jsonl").read_text().splitlines()]
    losses = [line["distance_loss"] for line in lines]
    assert losses[-1] < losses[0]
    run("export", "--cnn", with_task, "--out", tmp_path / "bundle", "--name", "tiny")
    assert b"distances" not in load_verified(tmp_path / "bundle").files["cnn.onnx"]
    run("cnn", *options, "--out", without, "--epochs", "1", "--start-from", with_task)
    run("cnn", *options, "--out", with_task, "--epochs", "6", "--distance-weight", "4", "--resume")
