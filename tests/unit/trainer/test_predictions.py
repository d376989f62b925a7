"""Predictions of any method, from a CSV to the report."""

from __future__ import annotations

import csv
import json
import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_set import write_tiny_set
from trainer_commands import run

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError
from trainer.data.manifest import load_data_set
from trainer.live_report import _best, _coverage, _delay
from trainer.predictions import PROBABILITIES, read_predictions
from trainer.scores import prediction_of, score

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_set(tmp_path_factory.mktemp("set"), 4)


def write(path: Path, columns: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def labels_of(data: Path) -> list[list[object]]:
    stacks = load_data_set(data).stacks
    return [
        [stack.stack, z_um, STRATA[label]]
        for stack in stacks
        for z_um, label in zip(stack.z_um, stack.labels, strict=True)
    ]


def test_probabilities_and_labels_score_as_the_same_predictions_do(data: Path, tmp_path: Path) -> None:
    stacks = load_data_set(data).stacks
    rng = np.random.default_rng(0)
    drawn = [rng.dirichlet(np.ones(3), stack.n_slices) for stack in stacks]
    pairs = list(zip(stacks, drawn, strict=True))
    rows = [[s.stack, z, *p] for s, found in pairs for z, p in zip(s.z_um, found, strict=True)]
    said = [[*row[:2], STRATA[int(np.argmax(row[2:]))]] for row in rows]
    rng.shuffle(rows)  # in whatever order
    soft = write(tmp_path / "soft.csv", ["stack", "z_um", *PROBABILITIES], rows)
    hard = write(tmp_path / "hard.csv", ["z_um", "stack", "label"], [[z, s, label] for s, z, label in said])
    run("evaluate", "--data", data, "--out", tmp_path, "--predictions", soft, "--predictions", hard)
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["bundle"] is None
    assert "not a medical device" in result["notice"]
    assert (tmp_path / "evaluation.md").read_text().startswith("# Evaluation of predictions\n")
    (one,) = result["sets"]
    assert list(one["methods"]) == ["soft", "hard", "reader 1", "reader 2", "geometry"]
    expected = json.loads(json.dumps(score(stacks, [prediction_of(found, s.z_um) for s, found in pairs])))
    assert one["methods"]["soft"] == one["methods"]["hard"] == expected


def test_where_there_is_nothing_to_measure_the_report_says_none(data: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat.csv"
    rows = (data / "manifest.csv").read_text().replace(",stack-", f",{data}/stack-")
    flat.write_text(re.sub("(?<=,)(dej|dermis)(?=,|\\n)", "epidermis", rows))
    stacks = load_data_set(flat).stacks
    path = write(
        tmp_path / "mine.csv",
        ["stack", "z_um", "label"],
        [[stack.stack, z_um, "epidermis"] for stack in stacks for z_um in stack.z_um],
    )
    text = run("evaluate", "--data", flat, "--out", tmp_path, "--predictions", path)
    assert "| mine | 100.00 [100.0, 100.0] | 100.0 | none | none | none | 100.0 | 100.0 |" in text
    assert "| mine | none | none | 0 of 0 | 0 | none | none | 0 of 0 | 0 |" in text
    assert "nan" not in text
    nothing = {"share": float("nan"), "interval": [float("nan")] * 2, "median_width_um": float("nan")}
    assert "| all | none | none | none | none |" in _coverage(
        "live", {"inside": {"all": nothing}, "forecast": {"all": nothing}}
    )
    point = dict.fromkeys(("median_delay_slices", "announced_mae_um"), float("nan"))
    assert _best([point], "median_delay_slices") == _delay(float("nan")) == "none"


def test_only_the_stacks_asked_for_are_read(data: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", ["stack", "z_um", "label"], labels_of(data))
    stack = load_data_set(data).stacks[2]
    (found,) = read_predictions(path, [stack])
    assert found.labels.tolist() == stack.labels.tolist()


def test_what_is_wrong_is_listed(data: Path, tmp_path: Path) -> None:
    stacks = load_data_set(data).stacks[:2]
    rows = [row for row in labels_of(data) if row[0] != "stack-1"]
    rows[1][2], rows[2][1] = "basale", "deep"
    path = write(tmp_path / "bad.csv", ["stack", "z_um", "label"], [*rows, rows[0]])
    with pytest.raises(DataSetError) as caught:
        read_predictions(path, stacks)
    for fault in (
        "row 3 must hold a depth and a label of epidermis, dej, dermis, got z_um '-17.0', label 'basale'",
        "got z_um 'deep'",
        f"row {len(rows) + 2} repeats z -20 um of stack stack-0",
        "stack stack-0 lacks 2 slices, at z -17 um, -14 um",
        f"stack stack-1 lacks {stacks[1].n_slices} slices",
    ):
        assert fault in str(caught.value)
    path = write(tmp_path / "bad.csv", ["stack", "z_um", *PROBABILITIES], [["stack-0", -20.0, 0.5, 0.5, 0.5]])
    with pytest.raises(DataSetError, match="row 2 must hold a depth and probabilities from 0 that sum to 1"):
        read_predictions(path, stacks)
    with pytest.raises(
        DataSetError, match=r"lacks z_um, label: its columns, as commas separate them: stack$"
    ):
        read_predictions(write(tmp_path / "bad.csv", ["stack"], []), stacks)
    with pytest.raises(DataSetError, match=r"none\.csv cannot be read: No such file or directory$"):
        read_predictions(tmp_path / "none.csv", stacks)


def test_an_evaluation_of_nothing_is_refused(data: Path, work: Path, tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="needs a bundle or predictions"):
        run("evaluate", "--data", data, "--out", tmp_path)
    path = write(tmp_path / "tiny.csv", ["stack", "z_um", "label"], labels_of(data))
    with pytest.raises(DataSetError, match="needs test stacks"):
        run("evaluate", "--out", tmp_path, "--predictions", path)
    with pytest.raises(DataSetError, match="go with a bundle"):
        run("evaluate", "--data", data, "--out", tmp_path, "--predictions", path, "--fresh-phantoms", "2")
    own = shutil.copy(path, tmp_path / "geometry.csv")
    with pytest.raises(DataSetError, match="a name of its own, got two of geometry"):
        run("evaluate", "--data", data, "--out", tmp_path, "--predictions", own)
    with pytest.raises(DataSetError, match="a name of its own, got two of tiny"):
        run("evaluate", work / "whole", "--data", data, "--out", tmp_path, "--predictions", path)
