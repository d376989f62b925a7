"""The trainer's commands end to end on a tiny set: split, prepare, CNN, RCN, bundle, evaluation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_set import write_tiny_set
from typer.testing import CliRunner

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.manifest import Manifest
from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import BundleError, DataSetError
from trainer import train_cnn as cnn_module
from trainer import train_rcn as rcn_module
from trainer.baselines import fit_depth_classifier, fit_prior_boundaries
from trainer.cli import app
from trainer.data.manifest import load_data_set
from trainer.data.phantoms import SetParameters, plan_stacks
from trainer.data.prepared import fields_of_stack, prepare
from trainer.data.split import draw_split, load_split
from trainer.embeddings import embed_set
from trainer.export import export_bundle
from trainer.networks.preprocess import resize
from trainer.offline import fresh_phantoms, run_bundles
from trainer.run_folder import load_checkpoint
from trainer.scores import Prediction, depths, score
from trainer.train_cnn import CnnRecipe, load_cnn, train_cnn
from trainer.train_rcn import load_rcn, preset, train_rcn

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
CNN_OPTIONS = (
    "--width",
    "0.125",
    "--size",
    "75",
    "--batch-size",
    "16",
    "--precision",
    "full",
    "--threads",
    "1",
)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Make a folder with the set, a CNN, an RCN and both bundles, all made by the commands."""
    folder = tmp_path_factory.mktemp("work")
    data = write_tiny_set(folder / "data", 14)
    cnn, rcn = folder / "cnn", folder / "rcn"
    run(
        "cnn",
        "--data",
        data,
        "--out",
        cnn,
        *CNN_OPTIONS,
        "--epochs",
        "4",
        "--shares",
        "6,2,3",
        "--workers",
        "1",
    )
    run(
        "rcn", "--data", data, "--cnn", cnn, "--out", rcn, "--epochs", "12", "--copies", "1", "--workers", "1"
    )
    run("export", "--cnn", cnn, "--rcn", rcn, "--out", folder / "whole", "--name", "tiny")
    run("export", "--cnn", cnn, "--out", folder / "single", "--name", "tiny-single")
    return folder


def test_prepared_slices_are_what_the_graph_would_see(work: Path) -> None:
    data = load_data_set(work / "data")
    prepared = prepare(data, 75, work / "data" / "cache", n_workers=1)
    assert prepared.slices.shape == (data.n_slices, 75, 75)
    stack = data.stacks[2]
    fields = torch.from_numpy(np.stack(list(fields_of_stack(stack))))
    assert fields.shape == (stack.n_slices, 1000, 1000)
    rows = prepared.slice_indices(np.array([2]))
    difference = prepared.slices[rows].astype(float) - resize(fields, 75).numpy()
    assert np.abs(difference).max() <= 0.51
    assert prepared.labels[rows].tolist() == stack.labels.tolist()


def test_preparing_resumes_where_it_stopped(work: Path, tmp_path, monkeypatch) -> None:
    from trainer.data import prepared as module

    data, done = load_data_set(work / "data"), []
    original = module._prepare_stack

    def stopping(stack, *rest) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        original(stack, *rest)
        done.append(stack.stack)

    monkeypatch.setattr(module, "_prepare_stack", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, 75, tmp_path, n_workers=1)
    monkeypatch.setattr(
        module, "_prepare_stack", lambda stack, *rest: (original(stack, *rest), done.append(stack.stack))
    )
    whole = prepare(data, 75, tmp_path, n_workers=1)
    assert done == [stack.stack for stack in data.stacks]
    once = prepare(data, 75, work / "data" / "cache", n_workers=1)
    assert np.array_equal(whole.slices, once.slices)


def test_a_resumed_cnn_is_the_one_never_stopped(work: Path, tmp_path, monkeypatch) -> None:
    data = load_data_set(work / "data")
    split = load_split(work / "cnn" / "split.json", data)
    prepared = prepare(data, 75, work / "data" / "cache", n_workers=1)
    recipe = CnnRecipe(width=0.125, size=75, n_epochs=4, batch_size=16)
    original = cnn_module._validate
    calls = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(cnn_module, "_validate", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_cnn(prepared, split, recipe, tmp_path, device=CPU, precision="full")
    assert load_checkpoint(tmp_path / "last.pt", "rcm-cnn-1")["epoch"] == 2
    train_cnn(prepared, split, recipe, tmp_path, device=CPU, precision="full", resume=True)
    resumed = load_checkpoint(tmp_path / "last.pt", "rcm-cnn-1")
    unbroken = load_checkpoint(work / "cnn" / "last.pt", "rcm-cnn-1")
    assert resumed["epoch"] == unbroken["epoch"] == 4
    for key in ("network", "average"):
        for name, value in unbroken[key].items():
            assert torch.equal(value, resumed[key][name]), name
    with pytest.raises(DataSetError, match="another batch_size"):
        train_cnn(
            prepared, split, CnnRecipe(width=0.125, size=75, n_epochs=4), tmp_path, device=CPU, resume=True
        )


def test_training_learns_and_logs(work: Path) -> None:
    for name in ("cnn", "rcn"):
        lines = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
        assert lines[-1]["loss"] < lines[0]["loss"]
        best = load_checkpoint(work / name, f"rcm-{name}-1")["metrics"]["accuracy"]
        assert best == pytest.approx(max(line["validation_accuracy"] for line in lines), abs=1e-6)
    assert best > 0.6


def test_mixed_precision_and_fine_tuning_start_from_a_checkpoint(work: Path, tmp_path) -> None:
    options = (
        *CNN_OPTIONS[:6],
        "--precision",
        "mixed",
        "--epochs",
        "1",
        "--split",
        work / "cnn" / "split.json",
    )
    start = (
        "--start-from",
        work / "cnn",
        "--learning-rate",
        "1e-6",
        "--without",
        "blur",
        "--without",
        "speckle",
    )
    run("cnn", "--data", work / "data", "--out", tmp_path / "tuned", *options, *start, "--workers", "1")
    tuned, before = load_cnn(tmp_path / "tuned")[0], load_cnn(work / "cnn")[0]
    difference = (tuned.fc_embedding.weight - before.fc_embedding.weight).abs().max().item()
    assert 0 < difference < 1e-3


def test_an_rcn_refuses_another_split_than_its_cnns(work: Path, tmp_path) -> None:
    data = load_data_set(work / "data")
    draw_split(data, 99, (6, 2, 3)).write(tmp_path / "split.json")
    arguments = ("--cnn", work / "cnn", "--out", tmp_path / "rcn", "--split", tmp_path / "split.json")
    with pytest.raises(DataSetError, match="its CNN's split"):
        run("rcn", "--data", work / "data", *arguments)


def test_embeddings_are_cached_and_copies_differ(work: Path, tmp_path) -> None:
    data = load_data_set(work / "data")
    prepared = prepare(data, 75, work / "data" / "cache", n_workers=1)
    network = load_cnn(work / "cnn")[0]
    once = embed_set(network, prepared, {0: [0, 1, 2], 1: [1]}, tmp_path, CPU)
    assert once.shape == (2, data.n_slices, 256)
    rows = prepared.slice_indices(np.array([1]))
    with torch.inference_mode():
        expected = network.embed(torch.from_numpy(prepared.slices[rows])).numpy()
    np.testing.assert_allclose(once[0, rows], expected, atol=1e-5)
    assert np.abs(once[1, rows] - expected).max() > 1e-2
    assert (once[1, prepared.slice_indices(np.array([0]))] == 0).all()
    network.embed = None  # from here on everything must come from the cache
    again = embed_set(network, prepared, {0: [0, 1, 2], 1: [1]}, tmp_path, CPU)
    assert np.array_equal(once, again)


def test_the_paper_preset_is_the_published_recipe_and_resumes(work: Path, tmp_path, monkeypatch) -> None:
    recipe = preset("paper", half_width=2, n_epochs=3, n_copies=None)
    assert (recipe.batch_size, recipe.learning_rate, recipe.max_slices) == (4, 1e-3, 71)
    assert (recipe.recurrent_dropout, recipe.recurrent_l1, recipe.n_hidden) == (0.1, 0.05, 64)
    assert preset("paper").n_epochs == 200
    assert not recipe.standardised
    data = load_data_set(work / "data")
    split = load_split(work / "cnn" / "split.json", data)
    embeddings = np.random.default_rng(0).normal(size=(1, data.n_slices, 256)).astype(np.float32)
    arguments = {"cnn_digest": "c", "device": CPU}
    train_rcn(data, embeddings, split, recipe, tmp_path / "unbroken", **arguments)
    original = rcn_module.WholeStacks.measure
    calls = []

    def stopping(self, network):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, network)

    monkeypatch.setattr(rcn_module.WholeStacks, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_rcn(data, embeddings, split, recipe, tmp_path / "broken", **arguments)
    train_rcn(data, embeddings, split, recipe, tmp_path / "broken", **arguments, resume=True)
    last = [load_checkpoint(tmp_path / name / "last.pt", "rcm-rcn-1") for name in ("unbroken", "broken")]
    for name, value in last[0]["network"].items():
        assert torch.equal(value, last[1]["network"][name]), name
    kernel = load_rcn(tmp_path / "unbroken")[0].attention.kernel()
    assert len(kernel) == 5
    assert (kernel >= 0).all()
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(DataSetError, match="one of ours, paper"):
        preset("keras")


def test_prefixes_and_dropped_slices_train(work: Path, tmp_path) -> None:
    data = load_data_set(work / "data")
    split = load_split(work / "cnn" / "split.json", data)
    embeddings = np.random.default_rng(0).normal(size=(1, data.n_slices, 256)).astype(np.float32)
    recipe = preset("ours", n_epochs=2, prefixes=1.0, dropped_slices=0.5, n_copies=0)
    train_rcn(data, embeddings, split, recipe, tmp_path, cnn_digest="c", device=CPU)
    drawn = rcn_module._Training(data, torch.from_numpy(embeddings), np.arange(3), recipe, CPU)
    rng = np.random.default_rng(1)
    lengths = [len(drawn._draw(0, rng)[1]) for _ in range(200)]
    assert min(lengths) == 1
    assert len(set(lengths)) > 5
    assert max(lengths) <= data.stacks[0].n_slices


@pytest.mark.parametrize(("name", "kind"), [("whole", "whole"), ("single", "single")])
def test_bundles_pass_their_check_and_agree_with_torch(work: Path, name: str, kind: str) -> None:
    report = check_bundle(work / name, "cpu")
    assert report.ok, report.items
    manifest = Manifest.load(work / name)
    assert manifest.kind == kind
    assert manifest.attention_half_width == (1 if kind == "whole" else 0)
    assert manifest.z_step_um == (3.0, 3.0)
    assert manifest.notice == "research use only, not a medical device"  # the tiny set is no phantom set
    accuracy = load_checkpoint(work / "cnn", "rcm-cnn-1")["metrics"]["accuracy"]
    assert manifest.provenance.metrics["cnn_validation_accuracy"] == accuracy
    card = (work / name / "MODEL_CARD.md").read_text()
    assert "not a medical device" in card
    network, recurrent = load_cnn(work / "cnn")[0], load_rcn(work / "rcn")[0]
    session = onnxruntime.InferenceSession(work / name / "rcn.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for n_slices in (1, 2, 7, 50, 101):
        embeddings = torch.from_numpy(rng.normal(size=(n_slices, 256)).astype(np.float32))
        with torch.inference_mode():
            if kind == "whole":
                logits = recurrent(embeddings[None], torch.tensor([n_slices]))[0]
            else:
                logits = network.fc(embeddings.relu())
            expected = torch.softmax(logits, -1).numpy()
        (found,) = session.run(None, {"embeddings": embeddings.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_export_refuses_strange_folders_and_strange_pairs(work: Path, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds notes\.txt"):
        export_bundle(work / "cnn", None, tmp_path, name="tiny")
    checkpoint = load_checkpoint(work / "rcn", "rcm-rcn-1")
    checkpoint["provenance"]["cnn_digest"] = "0" * 64
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(DataSetError, match="belongs to the CNN it was trained on"):
        export_bundle(work / "cnn", tmp_path / "other.pt", tmp_path / "bundle", name="tiny")


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
    (one,) = result["sets"]
    names = [
        "tiny",
        "its single-image CNN",
        "depth only (boosted trees)",
        "prior boundaries only",
        "reader 1",
        "reader 2",
    ]
    assert list(one["methods"]) == names
    assert all(f"| {name} |" in text for name in names)
    assert one["methods"]["reader 1"]["labels"]["accuracy"] == 1.0
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
    expected = score(stacks, predictions)
    assert one["methods"]["tiny"]["confusion"] == expected["confusion"]
    assert one["methods"]["tiny"]["impossible"] == expected["impossible"]


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
    flat = type(stack)(**{**vars(stack), "labels": np.zeros(n, np.int64)})
    false = score([flat], [said[0]])
    assert (false["epidermis_dej"]["n"], false["epidermis_dej"]["n_false"]) == (0, 1)


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
