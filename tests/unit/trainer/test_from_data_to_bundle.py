"""The trainer's commands end to end on a tiny set: split, prepare, CNN, RCN, bundle, evaluation."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from trainer_commands import CNN_OPTIONS, run

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.manifest import Manifest
from rcm_daemon.errors import BundleError, DataSetError
from trainer import train_cnn as cnn_module
from trainer import train_rcn as rcn_module
from trainer.data.manifest import load_data_set
from trainer.data.prepared import fields_of_stack, prepare
from trainer.data.split import draw_split, load_split
from trainer.embeddings import embed_set
from trainer.export import export_bundle
from trainer.networks.preprocess import resize
from trainer.rcn_recipe import preset
from trainer.run_folder import load_checkpoint
from trainer.train_cnn import CnnRecipe, load_cnn, train_cnn
from trainer.train_rcn import load_rcn, train_rcn

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


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
        if name == "cnn":  # what it reads in an epoch is a part of the epoch
            assert all(line["images_read_per_second"] > line["images_per_second"] > 0 for line in lines)
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


@pytest.mark.parametrize("command", ["cnn", "rcn"])
def test_a_training_does_not_write_over_another(work: Path, command: str) -> None:
    where = ("--data", work / "data", "--out", work / command)
    with pytest.raises(DataSetError, match="holds one training"):
        run(command, *where, *(("--cnn", work / "cnn") if command == "rcn" else ()))


def test_an_rcn_refuses_another_split_than_its_cnns(work: Path, tmp_path) -> None:
    data = load_data_set(work / "data")
    draw_split(data, 99, (6, 2, 3)).write(tmp_path / "split.json")
    arguments = ("--cnn", work / "cnn", "--out", tmp_path / "rcn", "--split", tmp_path / "split.json")
    with pytest.raises(DataSetError, match="its CNN's split"):
        run("rcn", "--data", work / "data", *arguments)


def test_an_rcn_takes_patients_that_came_after_its_cnn(work: Path, tmp_path) -> None:
    with (work / "data" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["file"] = str(work / "data" / row["file"])
    one = [row for row in rows if row["stack"] == rows[0]["stack"]]
    rows += [{**row, "stack": f"added-{k}", "patient": f"added-{k}"} for k in range(4) for row in one]
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    where = ("--data", tmp_path / "manifest.csv", "--cnn", work / "cnn", "--out", tmp_path / "rcn")
    options = ("--epochs", "1", "--copies", "0", "--workers", "1")
    with pytest.raises(DataSetError, match="4 are in none"):
        run("rcn", *where, *options)
    run("rcn", *where, *options, "--new-shares", "1,0,0,3")
    before = load_split(work / "cnn" / "split.json", load_data_set(work / "data"))
    split = load_split(tmp_path / "rcn" / "split.json", load_data_set(tmp_path / "manifest.csv"))
    gained = {part: set(split.patients[part]) - set(before.patients[part]) for part in split.patients}
    assert [len(gained[part]) for part in ("train", "validation", "test", "calibration")] == [1, 0, 0, 3]
    draw_split(load_data_set(work / "data"), 99, (6, 2, 3)).write(tmp_path / "other.json")
    other = ("--split", tmp_path / "other.json", "--new-shares", "1,0,0,3")
    with pytest.raises(DataSetError, match="its CNN's split"):
        run("rcn", *where[:-1], tmp_path / "other", *other)
    assert not (tmp_path / "other").exists()


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
    original = rcn_module.HeldOut.measure
    calls = []

    def stopping(self, network):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, network)

    monkeypatch.setattr(rcn_module.HeldOut, "measure", stopping)
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
    lengths = [len(drawn._draw(0, rng).labels) for _ in range(200)]
    assert min(lengths) == 1
    assert len(set(lengths)) > 5
    assert max(lengths) <= data.stacks[0].n_slices


def test_a_live_network_trains_on_parts_of_stacks_by_the_likelihood_of_both_boundaries(
    work: Path, tmp_path
) -> None:
    data = load_data_set(work / "data")
    split = load_split(work / "cnn" / "split.json", data)
    embeddings = np.random.default_rng(0).normal(size=(1, data.n_slices, 256)).astype(np.float32)
    recipe = preset("live", n_epochs=3, n_copies=0)
    best = train_rcn(data, embeddings, split, recipe, tmp_path, cnn_digest="c", device=CPU)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_segmental_loss"] for line in lines]
    assert best["segmental_loss"] == pytest.approx(min(losses), abs=1e-5)
    network, _ = load_rcn(tmp_path)
    assert network.likelihood is not None
    drawn = rcn_module._Training(data, torch.from_numpy(embeddings), np.arange(3), recipe, CPU)
    rng = np.random.default_rng(1)
    sequences = [drawn._draw(0, rng) for _ in range(200)]
    assert all(float(sequence.z_um[0]) == 0.0 for sequence in sequences)
    assert len({len(sequence.labels) for sequence in sequences}) > 5
    weights = torch.cat([sequence.weight for sequence in sequences])
    assert 0.01 < (weights == 0).float().mean() < 0.1


ALL_OFF = dict.fromkeys(("prefixes", "late_starts", "strides", "sparse", "dropped_slices", "untrusted"), 0.0)


def drawn_slices(work: Path, step_um: float, **chances: float) -> list[list[int]]:
    """Tell which slices of one stack 100 draws for training keep."""
    data = load_data_set(work / "data")
    first = replace(data.stacks[0], z_um=step_um * np.arange(data.stacks[0].n_slices))
    data = replace(data, stacks=(first, *data.stacks[1:]))
    embeddings = np.zeros((1, data.n_slices, 256), np.float32)
    embeddings[0, :, 0] = np.arange(data.n_slices)
    recipe = preset("live", **(ALL_OFF | chances))
    drawn = rcn_module._Training(data, torch.from_numpy(embeddings), np.arange(1), recipe, CPU)
    rng = np.random.default_rng(1)
    return [drawn._draw(0, rng).embeddings[:, 0].int().tolist() for _ in range(100)]


def test_training_draws_stacks_that_begin_lower_take_wider_steps_or_few_slices(work: Path) -> None:
    whole = list(range(load_data_set(work / "data").stacks[0].n_slices))
    assert all(one == whole for one in drawn_slices(work, 1.5))
    kept = drawn_slices(work, 1.5, late_starts=1.0)
    assert all(one == whole[one[0] :] for one in kept)
    assert {one[0] for one in kept} == set(range((len(whole) + 1) // 2))
    assert all(one == whole for one in drawn_slices(work, 3.0, strides=1.0))  # are wide enough
    kept = drawn_slices(work, 1.5, strides=1.0)
    assert {tuple(one) for one in kept} == {tuple(whole[::2]), tuple(whole[1::2])}
    kept = drawn_slices(work, 1.5, sparse=1.0)
    assert min(map(len, kept)) == 2
    assert len({tuple(one) for one in kept}) > 50
    assert all(one == sorted(set(one)) and len(one) <= rcn_module.MOST_SPARSE for one in kept)


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


def test_export_refuses_used_folders_and_strange_pairs(work: Path, tmp_path) -> None:
    before = (work / "whole" / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match=r"a folder of its own, .*whole is not empty"):
        run("export", "--cnn", work / "cnn", "--out", work / "whole", "--name", "other")
    assert (work / "whole" / "manifest.json").read_bytes() == before
    checkpoint = load_checkpoint(work / "rcn", "rcm-rcn-1")
    checkpoint["provenance"]["cnn_digest"] = "0" * 64
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(DataSetError, match="belongs to the CNN it was trained on"):
        export_bundle(work / "cnn", tmp_path / "other.pt", tmp_path / "bundle", name="tiny")
