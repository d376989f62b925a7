from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from trainer_commands import run
from typer.testing import CliRunner

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError
from rcm_daemon.simulator import Phantom
from trainer.baselines import fit_depth_classifier, fit_prior_boundaries
from trainer.cli import app
from trainer.data.manifest import load_data_set
from trainer.data.phantoms import SetParameters, plan_stacks
from trainer.data.prepared import fields_of_stack
from trainer.data.split import load_split
from trainer.networks.preprocess import resize
from trainer.offline import LeftOut, fresh_phantoms, run_bundles
from trainer.scores import Prediction, depths, score
from trainer.train_cnn import load_cnn
from trainer.train_rcn import load_rcn

if TYPE_CHECKING:
    from pathlib import Path


def test_evaluation_scores_bundle_baselines_and_readers(work: Path, tmp_path) -> None:
    split = work / "cnn" / "split.json"
    options = (
        "--data",
        work / "data",
        "--split",
        split,
        "--train-data",
        work / "data",
        "--train-split",
        split,
    )
    text = run(
        "evaluate", work / "whole", "--single", work / "single", "--out", tmp_path, *options, "--workers", "1"
    )
    assert text.strip() == (tmp_path / "evaluation.md").read_text().strip()
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert "not a medical device" in result["notice"]
    assert "Theirs is another data set: the figures must not be read against each other." in text
    (one,) = result["sets"]
    assert "seen_in_training" not in one
    assert "Without --split" not in text
    names = [
        "tiny",
        "its single-image CNN",
        "depth only (boosted trees)",
        "prior boundaries only",
        "reader 1",
        "reader 2",
        "geometry",
    ]
    assert list(one["methods"]) == names
    assert all(f"| {name} |" in text for name in names)
    assert one["methods"]["reader 1"]["labels"]["accuracy"] == 1.0
    _, _, against_geometry = text.partition("### Against the geometry instead of the readers")
    assert "| reader 1 |" in against_geometry
    assert "| geometry |" not in against_geometry
    # The bundle's row against torch, slice by slice.
    data = load_data_set(work / "data")
    stacks = [data.stacks[index] for index in load_split(split, data).stack_indices(data, "test")]
    network, recurrent = load_cnn(work / "cnn")[0], load_rcn(work / "rcn")[0]
    predictions = []
    for stack in stacks:
        fields = torch.from_numpy(np.stack(list(fields_of_stack(stack))))
        with torch.inference_mode():
            embeddings = network.embed(resize(fields, 75))
            logits = recurrent(embeddings[None], torch.tensor([stack.n_slices]))[0]
        labels = logits.argmax(1).numpy()
        predictions.append(Prediction(labels, (None, None)))
    agree = np.concatenate([s.readings["reader_1"] == s.readings["reader_2"] for s in stacks])
    assert one["readers_agree"] == pytest.approx(agree.mean())
    is_there = np.concatenate([s.readings["true_label"] == s.labels for s in stacks])
    assert one["methods"]["geometry"]["labels"]["accuracy"] == pytest.approx(is_there.mean())
    expected = score(stacks, predictions)
    assert one["methods"]["tiny"]["confusion"] == expected["confusion"]
    assert one["methods"]["tiny"]["impossible"] == expected["impossible"]


def test_an_evaluation_on_the_stacks_of_the_training_says_so(work: Path, tmp_path) -> None:
    said = "without --split the stacks that trained tiny-single are scored too: on stacks never seen figures"
    command = ["evaluate", work / "single", "--data", work / "data", "--out", tmp_path, "--workers", "1"]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert f"rcm-trainer: warning: {said}" in done.stderr
    (one,) = json.loads((tmp_path / "evaluation.json").read_text())["sets"]
    assert one["seen_in_training"] == ["tiny-single"]
    text = (tmp_path / "evaluation.md").read_text()
    assert f"\n\n**W{said[1:]} are likely to be worse.**\n\n" in text.partition("## 14 stacks")[2]
    # Other data have trained nothing: those of fewer slices are another set.
    rows = (work / "data" / "manifest.csv").read_text().splitlines(keepends=True)
    other = work / "data" / "other.csv"
    other.write_text("".join(line for line in rows if line.startswith(("stack,", "stack-1,"))))
    command[3] = other
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert "warning" not in done.stderr
    assert "seen_in_training" not in (tmp_path / "evaluation.json").read_text()


def test_scores_of_boundaries_worked_by_hand(work: Path) -> None:
    stack = load_data_set(work / "data").stacks[0]
    first, second = depths(stack.labels, stack.z_um)
    assert first is not None
    assert second is not None
    n = stack.n_slices
    said = [
        Prediction(stack.labels, (first + 2.0, second)),
        Prediction(np.zeros(n, np.int64), (None, None)),
        Prediction(np.full(n, 2), (None, second - 4.0)),
    ]
    scores = score([stack] * 3, said)
    farther = [max(b - stack.z_um[0], stack.z_um[-1] - b) for b in (first, second)]
    assert scores["epidermis_dej"]["mae_um"] == pytest.approx((2 + 2 * farther[0]) / 3)
    assert scores["epidermis_dej"]["median_um"] == pytest.approx(farther[0])
    assert (scores["epidermis_dej"]["n_missed"], scores["dej_dermis"]["n_missed"]) == (2, 1)
    assert scores["dej_dermis"]["mae_um"] == pytest.approx((farther[1] + 4) / 3)
    flat = replace(stack, labels=np.zeros(n, np.int64))
    false = score([flat], [said[0]])
    assert (false["epidermis_dej"]["n"], false["epidermis_dej"]["n_false"]) == (0, 1)
    assert scores["epidermis_dej"]["errors_um"] == pytest.approx([2.0, farther[0], farther[0]], abs=1e-3)
    assert score([flat, stack], said[:2])["epidermis_dej"]["errors_um"][0] is None


def test_the_geometry_is_scored_against_as_the_readers_are(work: Path) -> None:
    stack = load_data_set(work / "data").stacks[0]
    deeper = replace(stack, readings={"true_label": np.concatenate([stack.labels[:1], stack.labels[:-1]])})
    found = score([deeper], [Prediction(stack.labels, depths(stack.labels, stack.z_um))])
    step_um = float(np.diff(stack.z_um).mean())
    assert found["labels"]["accuracy"] == 1
    assert found["to_truth"]["accuracy"] == pytest.approx(1 - 2 / stack.n_slices)
    for boundary in ("epidermis_dej", "dej_dermis"):
        assert found[boundary]["mae_um"] == 0
        assert found["to_truth"][boundary]["mae_um"] == pytest.approx(step_um, rel=0.01)
    assert "to_truth" not in score([replace(stack, readings={})], [Prediction(stack.labels, (None, None))])


def test_baselines_know_depth_only(work: Path) -> None:
    stacks = load_data_set(work / "data").stacks
    depth, prior = fit_depth_classifier(stacks), fit_prior_boundaries(stacks)
    for baseline in (depth, prior):
        accuracy = np.mean(np.concatenate([baseline.predict(s).labels == s.labels for s in stacks]))
        assert accuracy > 0.7
    shifted = type(stacks[0])(**{**vars(stacks[0]), "z_um": stacks[0].z_um + 100})
    moved, before = prior.predict(shifted), prior.predict(stacks[0])
    assert moved.labels.tolist() == before.labels.tolist()
    assert moved.boundaries_um[0] == pytest.approx(before.boundaries_um[0] + 100)


def test_fresh_phantoms_follow_from_the_bundle_alone(work: Path) -> None:
    first = fresh_phantoms("ab" * 32, 6, ("vivid", "pale"), "one")
    assert first == fresh_phantoms("ab" * 32, 6, ("vivid", "pale"), "one")
    seeds = {plan.seed for plan, _ in first}
    assert not seeds & {plan.seed for plan, _ in fresh_phantoms("ab" * 32, 6, ("vivid", "pale"), "two")}
    assert not seeds & {plan.seed for plan, _ in fresh_phantoms("cd" * 32, 6, ("vivid", "pale"), "one")}
    parameters = SetParameters(1, 1, 100, 100, 5.0, ("vivid",), 2.0)
    (found,) = run_bundles(
        [work / "whole", work / "single"], [(plan_stacks(parameters)[0], parameters)], 1, "phantom"
    )
    assert found.stack.family == "vivid"
    assert [len(p) for p in found.probabilities] == [found.stack.n_slices] * 2
    assert found.probabilities[0].shape[1] == len(STRATA)
    assert set(found.stack.readings) == {"reader_1", "reader_2", "true_label"}


def test_missing_slices_never_arrive(work: Path, tmp_path) -> None:
    data = load_data_set(work / "data")
    stacks = [data.stacks[index] for index in range(3)]
    (whole, thin) = (
        run_bundles([work / "whole"], stacks, 1, "whole or thin", LeftOut(missing)) for missing in (0.0, 0.4)
    )
    for stack, full, part in zip(stacks, whole, thin, strict=True):
        assert full.stack.n_slices == stack.n_slices
        assert 1 <= part.stack.n_slices < stack.n_slices
        kept = np.flatnonzero(np.isin(stack.z_um, part.stack.z_um))
        assert part.stack.labels.tolist() == stack.labels[kept].tolist()
        for index, one in zip(kept, part.slices[0], strict=True):
            np.testing.assert_array_equal(one.embedding, full.slices[0][index].embedding)
    with pytest.raises(DataSetError, match=r"must be from 0 to below 1, got 1"):
        run("evaluate", work / "whole", "--data", work / "data", "--missing", "1", "--out", tmp_path)


def test_of_a_phantom_only_the_slices_that_arrive_are_rendered(work: Path, monkeypatch) -> None:
    parameters = SetParameters(1, 1, 100, 100, 5.0, ("vivid",), 2.0)
    source = plan_stacks(parameters)[0], parameters
    (whole,) = run_bundles([work / "whole"], [source], 1, "whole")
    rendered, render = [], Phantom.render
    monkeypatch.setattr(
        Phantom, "render", lambda phantom, index: rendered.append(index) or render(phantom, index)
    )
    (part,) = run_bundles([work / "whole"], [source], 1, "part", LeftOut(missing=0.5, first_share=0.5))
    assert rendered == np.flatnonzero(np.isin(whole.stack.z_um, part.stack.z_um)).tolist()
    assert 1 < len(rendered) <= whole.stack.n_slices // 2
    for index, one in zip(rendered, part.slices[0], strict=True):
        np.testing.assert_array_equal(one.embedding, whole.slices[0][index].embedding)


def test_a_sweep_can_be_cut_at_a_depth(work: Path, tmp_path) -> None:
    data = load_data_set(work / "data")
    stacks = [data.stacks[index] for index in range(3)]
    runs = run_bundles([work / "whole"], stacks, 1, "cut", LeftOut(extent_um=12.0))
    for stack, cut in zip(stacks, runs, strict=True):
        kept = stack.z_um <= stack.z_um[0] + 12.0
        assert 1 < kept.sum() < stack.n_slices
        assert cut.stack.z_um.tolist() == stack.z_um[kept].tolist()
        assert len(cut.slices[0]) == kept.sum()
    with pytest.raises(DataSetError, match=r"must be above 0 um, got 0"):
        run("evaluate", work / "whole", "--data", work / "data", "--extent-um", "0", "--out", tmp_path)
