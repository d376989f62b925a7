"""The whole comparison on a tiny set: what it reports, what it keeps, and how it goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tiny_set import write_tiny_set
from trainer_commands import run

from rcm_daemon.errors import DataSetError
from trainer import reproduce, reproduce_textons
from trainer.data.manifest import load_data_set
from trainer.data.prepared import fields_of_stack
from trainer.data.split import draw_split
from trainer.methods import METHODS, TABLE_1
from trainer.paper_tables import PAPER_TABLE_1, PAPER_TABLE_2, PAPER_TABLE_3
from trainer.rcn_recipe import RcnRecipe
from trainer.recipes import told
from trainer.reproduce_presets import FULL, QUICK, TextonRecipe, preset_of, recipe_of
from trainer.reproduction_report import page
from trainer.reproduction_scores import paired
from trainer.scores import Prediction

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = ("--stacks", "0", "--width", "0.125", "--size", "75", "--cnn-epochs", "2", "--rcn-epochs", "3")
SMALL = (*OPTIONS, "--workers", "1", "--device", "cpu", "--precision", "full")
NAMES = ("toeplitz-1", "global", "inception-v3", "hames")
TRAININGS = ("train_cnn", "train_rcn", "train_textons")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_set(tmp_path_factory.mktemp("set"), 10)


def small_fields(stack):
    """Fields small enough to encode at once; only how long it takes hangs on their size."""
    return (field[:160, :160] for field in fields_of_stack(stack))


def compare(data: Path, out: Path, names=NAMES) -> str:
    return run("reproduce", "--data", data, "--out", out, "--methods", ",".join(names), *SMALL)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce_textons, "fields_of_stack", small_fields)
        compare(data, out)
    return out


def count_trainings(patch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def counting(name: str, real):
        def counted(*args, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        return counted

    for name in TRAININGS:
        patch.setattr(reproduce, name, counting(name, getattr(reproduce, name)))
    return calls


def test_the_report_holds_every_table(done: Path) -> None:
    result = json.loads((done / "reproduction.json").read_text())
    assert tuple(result["methods"]) == NAMES
    html = (done / "report.html").read_text()
    for name in NAMES:
        assert METHODS[name].title in html
        method = result["methods"][name]
        assert np.sum(method["scores"]["confusion"]) == result["data"]["n_test_slices"]
        assert (method["against_reference"] is None) == (name == "toeplitz-1")
    for heading in ("Table 1", "Table 2", "Table 3", "Fig. 2", "Confusion", "Attention learned"):
        assert heading in html
    assert html.count("data:image/png;base64,") == 2
    assert "http" not in html  # nothing is fetched: the page stands alone
    assert "88.07" in html and "10.65" in html
    kernel = result["methods"]["toeplitz-1"]["kernel"]
    assert len(kernel) == 3 and min(kernel) >= 0 and sum(kernel) == pytest.approx(1)
    assert (done / "errors.png").read_bytes().startswith(b"\x89PNG")
    with np.load(done / "global" / "predictions.npz") as stored:
        np.testing.assert_allclose(stored["probabilities"].sum(1), 1, atol=1e-5)
        assert stored["n_slices"].sum() == result["data"]["n_test_slices"]


def test_the_report_says_what_it_was_trained_on(done: Path) -> None:
    result = json.loads((done / "reproduction.json").read_text())
    assert not result["phantom"]
    assert "rained on phantoms" not in (done / "report.html").read_text()
    notice = "trained on phantoms, research use only, not a medical device"
    html = page({**result, "phantom": True, "notice": notice}, b"", None)
    assert "Trained on phantoms, research use only, not a medical device." in html
    assert "must not be read against the paper" in html


def test_a_second_run_trains_nothing(data: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_trainings(monkeypatch)
    before = json.loads((done / "reproduction.json").read_text())["methods"]
    compare(data, done)
    assert calls == []
    assert json.loads((done / "reproduction.json").read_text())["methods"] == before


def test_a_killed_run_goes_on_where_it_stopped(
    data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("toeplitz-1", "global")
    real, save = reproduce.train_rcn, torch.save

    def killed(*args, **kwargs):
        if args[3].attention == "global":
            n_saved = 0

            def save_once(*saved):
                nonlocal n_saved
                n_saved += 1
                if n_saved > 2:  # best.pt and last.pt of the first epoch
                    raise KeyboardInterrupt
                save(*saved)

            with monkeypatch.context() as patch:
                patch.setattr(torch, "save", save_once)
                return real(*args, **kwargs)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "train_rcn", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            compare(data, tmp_path, names)
    assert not (tmp_path / "global" / "predictions.npz").exists()
    calls = count_trainings(monkeypatch)
    said = compare(data, tmp_path, names)
    assert calls == ["train_rcn"]
    assert "epoch 1:" not in said and "epoch 2:" in said
    for name in names:  # broken off or not, the same comes out
        with (
            np.load(tmp_path / name / "predictions.npz") as found,
            np.load(done / name / "predictions.npz") as expected,
        ):
            np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-5)


def test_killed_textons_encode_only_what_is_missing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce_textons, "fields_of_stack", small_fields)
    real, learnt = reproduce_textons._encode, reproduce_textons.learn_textons
    whole = load_data_set(data)
    split = draw_split(whole, 0)
    recipe = TextonRecipe(n_learnt=10, n_fitted=20)
    encoded: list[str] = []

    def killed(stack, *args):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(stack.stack)
        real(stack, *args)

    monkeypatch.setattr(reproduce_textons, "_encode", killed)
    with pytest.raises(KeyboardInterrupt):
        reproduce_textons.train_textons("hames", whole, split, recipe, tmp_path, 1)
    first, encoded = encoded, []
    monkeypatch.setattr(reproduce_textons, "_encode", lambda s, *a: (encoded.append(s.stack), real(s, *a)))
    monkeypatch.setattr(reproduce_textons, "learn_textons", None)  # learnt before: never called
    resumed = reproduce_textons.train_textons("hames", whole, split, recipe, tmp_path, 1)
    assert encoded and not set(first) & set(encoded)
    monkeypatch.setattr(reproduce_textons, "learn_textons", learnt)
    unbroken = reproduce_textons.train_textons("hames", whole, split, recipe, tmp_path / "anew", 1)
    np.testing.assert_array_equal(resumed, unbroken)


def test_another_recipe_trains_anew_and_only_what_it_touches(
    data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_trainings(monkeypatch)
    options = [*SMALL]
    options[options.index("--rcn-epochs") + 1] = "4"
    for name in ("inception-v3", "toeplitz-1"):
        (tmp_path / name).mkdir()
        for path in (path for path in (done / name).iterdir() if path.is_file()):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    (tmp_path / "split.json").write_bytes((done / "split.json").read_bytes())
    names = "toeplitz-1,inception-v3"
    run("reproduce", "--data", data, "--out", tmp_path, "--methods", names, *options)
    assert calls == ["train_rcn"]


def test_what_is_not_its_own_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "inception-v3").mkdir()
    (tmp_path / "inception-v3" / "notes.txt").write_text("mine")
    with pytest.raises(DataSetError, match="holds only its own files"):
        compare(data, tmp_path, ("inception-v3",))
    assert (tmp_path / "inception-v3" / "notes.txt").read_text() == "mine"
    with pytest.raises(DataSetError, match="a method must be one of"):
        compare(data, tmp_path, ("toeplitz-4",))


def test_stacks_are_taken_by_whole_patients(data: Path) -> None:
    whole = load_data_set(data)
    taken = reproduce.take_stacks(whole, 5, 0)
    assert len(taken.stacks) == 6  # two a patient
    assert all((s.patient in taken.patients) == (s in taken.stacks) for s in whole.stacks)
    assert taken.digest != whole.digest
    assert reproduce.take_stacks(whole, 0, 0) is whole


def test_textons_learn_from_slices_spread_over_the_training_stacks(data: Path) -> None:
    whole = load_data_set(data)
    taken = reproduce_textons._spread(whole, [0, 2, 3], 12)
    assert sum(map(len, taken.values())) == 12
    assert taken[0][0] == 0 and taken[3][-1] == whole.stacks[3].n_slices - 1
    everything = reproduce_textons._spread(whole, [1], 0)
    np.testing.assert_array_equal(everything[1], np.arange(whole.stacks[1].n_slices))
    images = list(islice(reproduce_textons._images(whole.stacks[0], np.array([1, 4])), 3))
    fields = list(fields_of_stack(whole.stacks[0]))
    np.testing.assert_array_equal(images, [fields[1], fields[4]])


def test_presets_and_recipes() -> None:
    for method in METHODS.values():
        for preset in (QUICK, FULL):
            recipe = recipe_of(method, preset, 101)
            assert (isinstance(recipe, RcnRecipe)) == (method.trained_by == "rcn")
    assert recipe_of(METHODS["global"], FULL, 101).architecture.max_slices == 101
    assert recipe_of(METHODS["toeplitz-5"], FULL, 101).half_width == 5
    changed = preset_of("paper", 3, {"size": 96, "width": None}, {}, 12)
    assert changed == replace(
        FULL,
        n_stacks=12,
        seed=3,
        cnn=replace(FULL.cnn, size=96, seed=3),
        rcn=replace(FULL.rcn, seed=3),
        textons=replace(FULL.textons, seed=3),
    )
    with pytest.raises(DataSetError, match="a preset must be one of quick, compact, paper"):
        preset_of("slow", 0, {}, {}, None)


def test_the_papers_tables_are_whole() -> None:
    assert tuple(PAPER_TABLE_1) == tuple(method.name for method in TABLE_1)
    assert all(sum(row[:4]) == row[4] for row in PAPER_TABLE_2.values())
    assert set(PAPER_TABLE_2) == set(PAPER_TABLE_3) <= set(PAPER_TABLE_1)
    for accuracy, *shares in PAPER_TABLE_1.values():
        # Accuracy is the class-weighted mean of the sensitivities (44 / 34 / 22 % of the slices).
        assert accuracy == pytest.approx(np.dot(shares[:3], [0.44, 0.34, 0.22]), abs=1.5)


def test_paired_differences_by_hand(data: Path) -> None:
    stacks = load_data_set(data).stacks[:4]
    right = [Prediction(s.labels, (None, None)) for s in stacks]
    wrong = [Prediction(np.where(np.arange(s.n_slices) == 0, 1, s.labels), (None, None)) for s in stacks]
    found = paired(stacks, wrong, right)
    assert found["accuracy"]["difference"] == pytest.approx(-4 / sum(s.n_slices for s in stacks))
    assert found["accuracy"]["interval"][1] < 0
    assert found["accuracy"]["p"] == pytest.approx(2 / 1001)
    assert found["impossible"]["difference"] == 4  # one from DEJ back to epidermis in each stack
    same = paired(stacks, right, right)
    assert same["accuracy"]["difference"] == 0 and same["accuracy"]["p"] == 1


def test_a_recipe_is_known_again_when_a_later_version_has_one_field_more() -> None:
    @dataclass(frozen=True)
    class Older:
        width: float = 0.25
        seed: int = 0

    @dataclass(frozen=True)
    class Newer(Older):
        distance_weight: float = 0.0

    assert told(Older(width=0.5)) == told(Newer(width=0.5)) == {"width": 0.5}
    assert told(Newer(distance_weight=1.0)) == {"distance_weight": 1.0}
