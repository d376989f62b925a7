"""Phantoms a calibration asks for: which they are, and that a stop costs no more than a part of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from seeded_bundles import write_seeded_bundle
from trainer_commands import run

import trainer.calibration_phantoms
from rcm_daemon.errors import DataSetError
from trainer.beginnings import BEGINNINGS
from trainer.calibration_phantoms import calibration_phantoms
from trainer.data.manifest import load_data_set
from trainer.offline import WHOLE, run_bundles

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.data.manifest import DataSet
    from trainer.offline import StackRun


@pytest.fixture
def data(work: Path) -> DataSet:
    # Coarse pictures are soon rendered.
    found = load_data_set(work / "data")
    return replace(found, stacks=tuple(replace(stack, pixel_size_um=5.0) for stack in found.stacks))


@pytest.fixture
def parts_run(monkeypatch) -> list[str]:
    """Titles of the parts that are run and not taken from the cache."""
    titles: list[str] = []

    def counted(folders, sources, n_workers, title, left_out) -> list[StackRun]:
        titles.append(title)
        return run_bundles(folders, sources, n_workers, title, left_out)

    monkeypatch.setattr(trainer.calibration_phantoms, "run_bundles", counted)
    monkeypatch.setattr(trainer.calibration_phantoms, "PART", 2)
    return titles


def same(some: list[StackRun], others: list[StackRun]) -> bool:
    return [_of(one) for one in some] == [_of(one) for one in others]


def _of(run: StackRun) -> tuple[str, float, list[float], list[float]]:
    depths_um, embeddings = run.stack.z_um.tolist(), [one.embedding for own in run.slices for one in own]
    return run.stack.stack, run.weight, depths_um, np.array(embeddings).ravel().tolist()


def test_a_part_that_was_run_is_not_run_again(data, work: Path, tmp_path, parts_run) -> None:
    found = calibration_phantoms(data, work / "cnn", 4, 1, tmp_path)
    assert [title.split(" phantoms ")[1] for title in parts_run] == ["1 to 2 of 4", "3 to 4 of 4"]
    assert same(calibration_phantoms(data, work / "cnn", 4, 1, tmp_path), found)
    assert len(parts_run) == 2
    more = calibration_phantoms(data, work / "cnn", 5, 1, tmp_path)
    assert len(parts_run) == 3
    assert same(more[:4], found)
    assert not same(more[1:], found)


@pytest.mark.parametrize("what", ["network", "set", "left out", "simulator"])
def test_a_part_that_something_else_made_is_run_anew(
    data, work: Path, tmp_path, parts_run, monkeypatch, what
) -> None:
    calibration_phantoms(data, work / "cnn", 2, 1, tmp_path)
    cnn, left_out = work / "cnn", WHOLE
    if what == "network":
        write_seeded_bundle(tmp_path / "live", "live")
        cnn = tmp_path / "live" / "cnn.pt"
    elif what == "set":
        data = replace(data, digest="0" * 64)
    elif what == "left out":
        left_out = BEGINNINGS
    else:
        build = trainer.calibration_phantoms.build_stack
        another = lambda plan, parameters: build(replace(plan, seed=plan.seed + 1), parameters)  # noqa: E731
        monkeypatch.setattr(trainer.calibration_phantoms, "build_stack", another)
    calibration_phantoms(data, cnn, 2, 1, tmp_path, left_out)
    assert len(parts_run) == 2


def test_a_stop_costs_the_part_that_was_running(data, work: Path, tmp_path, parts_run, monkeypatch) -> None:
    counted = trainer.calibration_phantoms.run_bundles

    def stopped(*given) -> list[StackRun]:
        if parts_run:
            raise KeyboardInterrupt
        return counted(*given)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.calibration_phantoms, "run_bundles", stopped)
        with pytest.raises(KeyboardInterrupt):
            calibration_phantoms(data, work / "cnn", 4, 1, tmp_path)
    assert len(calibration_phantoms(data, work / "cnn", 4, 1, tmp_path)) == 4
    assert len(parts_run) == 2


@pytest.mark.parametrize("option", ["--beginnings", "--phantoms"])
def test_to_recorded_stacks_no_phantoms_are_added(work: Path, option) -> None:
    with pytest.raises(DataSetError, match=r"are for sets of phantoms, .* holds recorded stacks"):
        run("calibrate", "--data", work / "data", "--cnn", work / "cnn", "--rcn", work / "rcn", option, "5")


def test_the_command_gives_each_kind_of_phantoms_its_place(work: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trainer.data.manifest.DataSet.is_phantom", property(lambda _: True))
    monkeypatch.setattr("trainer.calibrate.FEWEST_PATIENTS", 1)  # the tests' set has no more
    monkeypatch.setattr("trainer.picture_domain.FEWEST_PICTURES", 2)
    monkeypatch.setattr(trainer.calibration_phantoms, "calibration_phantoms", lambda *given: given)
    places = []

    def looked_at(*given, **_) -> None:
        places.extend(given[-2:])
        raise DataSetError("seen")

    monkeypatch.setattr("trainer.calibrate.calibrate", looked_at)
    write_seeded_bundle(tmp_path / "live", "live")
    with pytest.raises(DataSetError, match="seen"):
        run(
            "calibrate", "--data", work / "data", "--cnn", work / "cnn",
            "--rcn", tmp_path / "live" / "rcn.pt", "--split", work / "cnn" / "split.json",
            "--part", "validation", "--beginnings", "5", "--phantoms", "3",
        )  # fmt: skip
    assert [(n_stacks, left_out) for *_, n_stacks, _, _, left_out in places] == [(5, BEGINNINGS), (3, WHOLE)]
