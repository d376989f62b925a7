"""Phantom data sets: what is written, that it can be finished, and the report on its difficulty."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile

from rcm_daemon.errors import DataSetError
from rcm_daemon.simulator import HELD_OUT_FAMILY, TRAINING_FAMILIES
from trainer.data import phantoms
from trainer.data.agreement import agreement_report, depth_only_accuracy, prior_guess_mae
from trainer.data.phantoms import MANIFEST_COLUMNS, STACK_COLUMNS, plan_stacks, write_phantom_set

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"shape": (40, 48), "pixel_size_um": 2.0}


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "one"
    write_phantom_set(out, 16, seed=3, **SMALL)
    return out


def test_tables_and_stacks_agree(small_set: Path) -> None:
    slices, stacks = _table(small_set / "manifest.csv"), _table(small_set / "stacks.csv")
    assert tuple(slices[0]) == MANIFEST_COLUMNS
    assert tuple(stacks[0]) == STACK_COLUMNS
    assert len(stacks) == 16
    assert [row["stack"] for row in stacks] == [f"stack-{k:04d}" for k in range(16)]
    assert {row["family"] for row in stacks} <= set(TRAINING_FAMILIES)
    for stack in stacks:
        own = [row for row in slices if row["stack"] == stack["stack"]]
        assert [int(row["slice"]) for row in own] == list(range(int(stack["n_slices"])))
        assert {row["patient"] for row in own} == {stack["patient"]}
        z_um = np.array([float(row["z_um"]) for row in own])
        np.testing.assert_allclose(np.diff(z_um), float(stack["z_step_um"]), atol=2e-3)
        for prefix, column in (
            ("", "label"),
            ("true_", "true_label"),
            ("reader_1_", "reader_1"),
            ("reader_2_", "reader_2"),
        ):
            first, second = (float(stack[f"{prefix}{name}_um"]) for name in ("epidermis_dej", "dej_dermis"))
            strata = ["epidermis" if z < first else "dej" if z < second else "dermis" for z in z_um]
            assert [row[column] for row in own] == strata
        with tifffile.TiffFile(small_set / own[0]["file"]) as file:
            assert file.is_imagej
            assert file.series[0].axes == "ZYX"
            assert file.series[0].shape == (len(own), 40, 48)
            assert file.imagej_metadata is not None
            assert file.imagej_metadata["spacing"] == pytest.approx(float(stack["z_step_um"]))
            assert file.imagej_metadata["unit"] == "um"
            numerator, denominator = file.pages[0].tags["XResolution"].value
            assert denominator / numerator == pytest.approx(2.0)


def test_workers_and_interruptions_do_not_show(small_set: Path, tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    again = tmp_path / "again"
    write_phantom_set(
        again, 16, seed=3, n_workers=2, progress=lambda done, of: shown.append((done, of)), **SMALL
    )
    assert shown == [(k, 16) for k in range(1, 17)]
    wanted = _contents(small_set)
    assert _contents(again) == wanted
    # As an interruption leaves it: some stacks missing, one begun, one without its record, no tables.
    stacks = again / "stacks"
    (again / "manifest.csv").unlink()
    (again / "stacks.csv").unlink()
    (stacks / "stack-0002.tif").unlink()
    (stacks / "stack-0003.json").unlink()
    (stacks / "stack-0004.tif").write_bytes(b"II*\x00")
    write_phantom_set(again, 16, seed=3, **SMALL)
    assert _contents(again) == wanted


def test_finished_stacks_are_not_rendered_again(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(phantoms, "build_stack", refuse)
    before = _contents(small_set)
    write_phantom_set(small_set, 16, seed=3, **SMALL)
    assert _contents(small_set) == before


@pytest.mark.parametrize("changed", [{"seed": 4}, {"pixel_size_um": 1.5}, {"families": ("classic",)}])
def test_other_parameters_are_refused(small_set: Path, changed: dict[str, object]) -> None:
    before = _contents(small_set)
    with pytest.raises(DataSetError, match="parameters it was begun with"):
        write_phantom_set(small_set, 16, **({"seed": 3} | SMALL | changed))
    assert _contents(small_set) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataSetError, match="holds other files"):
        write_phantom_set(tmp_path, 2, **SMALL)
    (tmp_path / "parameters.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataSetError, match="not JSON"):
        write_phantom_set(tmp_path, 2, **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_stacks": 0},
        {"families": ()},
        {"families": ("martian",)},
        {"stacks_per_patient": 0.5},
        {"shape": (8, 8)},
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(DataSetError):
        write_phantom_set(tmp_path / "out", **({"n_stacks": 2} | SMALL | wrong))
    assert not (tmp_path / "out").exists()


def test_held_out_family_on_request(tmp_path: Path) -> None:
    manifest = write_phantom_set(tmp_path / "held", 2, families=(HELD_OUT_FAMILY,), **SMALL)
    assert {row["family"] for row in _table(manifest)} == {HELD_OUT_FAMILY}


def test_patients_have_about_two_stacks_and_plans_are_stable() -> None:
    def plan(n_stacks: int) -> list[phantoms.StackPlan]:
        return plan_stacks(phantoms.SetParameters(1, n_stacks, 40, 40, 1.0, TRAINING_FAMILIES, 2.0))

    plans = plan(504)
    n_patients = len({item.patient_number for item in plans})
    assert 504 / n_patients == pytest.approx(2.0, rel=0.1)
    assert len({item.seed for item in plans}) == 504
    assert plan(100) == plans[:100]
    for family in TRAINING_FAMILIES:
        assert 0.12 < np.mean([item.family == family for item in plans]) < 0.28


def test_agreement_report_is_consistent(small_set: Path) -> None:
    report = agreement_report(small_set / "manifest.csv")
    slices = _table(small_set / "manifest.csv")
    assert report["n_slices"] == len(slices)
    assert report["reader_agreement"] == np.mean([row["reader_1"] == row["reader_2"] for row in slices])
    assert report["share_dej"] == np.mean([row["label"] == "dej" for row in slices])
    assert sum(report[f"share_{name}"] for name in ("epidermis", "dej", "dermis")) == pytest.approx(1)
    assert report["prior_mae_epidermis_dej_um"] > 5
    assert json.loads(json.dumps(report)) == report


def test_a_set_of_one_patient_is_reported_without_what_takes_two(tmp_path: Path) -> None:
    manifest = write_phantom_set(tmp_path / "one", 1, seed=3, **SMALL)
    report = agreement_report(manifest)
    assert report["n_stacks"] == 1
    assert not [name for name in report if name.endswith("_accuracy") and name != "majority_accuracy"]


def test_agreement_report_refuses_what_is_no_phantom_set(small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="cannot be read"):
        agreement_report(tmp_path / "manifest.csv")
    (tmp_path / "manifest.csv").write_text("stack,label\na,dej\n", encoding="utf-8")
    (tmp_path / "stacks.csv").write_bytes((small_set / "stacks.csv").read_bytes())
    with pytest.raises(DataSetError, match="lacks or garbles"):
        agreement_report(tmp_path / "manifest.csv")


def test_baselines_on_known_stacks() -> None:
    z = np.arange(30.0)
    label = (z >= 10).astype(np.intp) + (z >= 20)
    assert depth_only_accuracy([z] * 6, [label] * 6, list("aabbcc")) > 0.95
    with pytest.raises(DataSetError, match="2 patients"):
        depth_only_accuracy([z], [label], ["a"])
    assert prior_guess_mae(np.array([50.0, 70.0])) == 20.0
    assert prior_guess_mae(np.array([60.0, 60.0, 60.0])) == 0.0
