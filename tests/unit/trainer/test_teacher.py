"""A CNN that learns from another one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional
from trainer_commands import CNN_OPTIONS, run

from rcm_daemon.errors import DataSetError
from trainer.networks.inception import InceptionStrata
from trainer.run_folder import load_checkpoint
from trainer.teacher import Teacher
from trainer.train_cnn import CNN_SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


def test_a_teacher_sees_the_students_view_at_its_own_size() -> None:
    torch.manual_seed(0)
    network = InceptionStrata(0.125, 96).eval()
    teacher = Teacher(network, 1, CPU)
    small = torch.rand(2, 75, 75) * 255
    stretched = functional.interpolate(small[:, None], size=(96, 96), mode="bilinear")[:, 0]
    torch.testing.assert_close(teacher.probabilities(small), network(stretched).softmax(1))
    torch.testing.assert_close(teacher.probabilities(stretched), network(stretched).softmax(1))
    with pytest.raises(DataSetError, match="must see as many slices as its student, 3, it sees 1"):
        Teacher(network, 3, CPU)


def test_by_the_command(work: Path, tmp_path: Path) -> None:
    split = work / "cnn" / "split.json"
    options = ["--data", work / "data", *CNN_OPTIONS, "--workers", "1", "--out", tmp_path / "student"]
    taught = [*options, "--split", split, "--teacher", work / "cnn", "--teacher-weight", "1"]
    run("cnn", *taught, "--epochs", "5")
    checkpoint = load_checkpoint(tmp_path / "student", CNN_SCHEMA)
    assert checkpoint["recipe"]["teacher_weight"] == 1
    digest = checkpoint["provenance"]["teacher_digest"]
    assert len(digest) == 64
    run("export", "--cnn", tmp_path / "student", "--out", tmp_path / "bundle", "--name", "taught")
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert f"The CNN learned from a larger one, {digest[:16]}, which has 100% of the say." in card
    lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]
    alone = [*options, "--split", split, "--epochs", "5", "--out", tmp_path / "alone"]
    run("cnn", *alone)
    line = (tmp_path / "alone" / "metrics.jsonl").read_text().splitlines()[0]
    assert abs(json.loads(line)["loss"] - losses[0]) > 1e-3  # all else is the same
    with pytest.raises(DataSetError, match="begun with another teacher_weight"):
        run("cnn", *options, "--split", split, "--epochs", "5", "--resume")
    with pytest.raises(DataSetError, match="a teacher must be trained on its student's split"):
        other = ["--seed", "9", "--shares", "6,2,3", "--out", tmp_path / "other"]
        run("cnn", *options, *other, "--teacher", work / "cnn")
