"""Fine-tuning: a network that starts from a bundle says at first what the bundle says."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from trainer_commands import CNN_OPTIONS, run

from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import DataSetError
from trainer.data.manifest import load_data_set
from trainer.data.prepared import prepare
from trainer.methods import METHODS
from trainer.networks.inception import InceptionStrata, SliceEmbedder
from trainer.networks.rcn import RecurrentStrata
from trainer.onnx_graphs import cnn_graph
from trainer.onnx_recurrent import rcn_graph
from trainer.rcn_recipe import LIVE, preset
from trainer.run_folder import load_checkpoint
from trainer.starting import fit_classifier, settle_norms, starting_point, take_cnn, take_rcn
from trainer.train_cnn import CnnRecipe, load_cnn
from trainer.train_rcn import load_rcn

if TYPE_CHECKING:
    from pathlib import Path

RECURRENT = [name for name, method in METHODS.items() if method.trained_by == "rcn"]


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {value.name: numpy_helper.to_array(value) for value in graph.initializer}


def drawn(seed: int, changes) -> RecurrentStrata:
    torch.manual_seed(seed)
    network = RecurrentStrata(preset("ours", changes).architecture).eval()
    for name, parameter in network.named_parameters():
        if "likelihood" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    network.input_mean.normal_()
    network.input_scale.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_network_comes_back_from_its_graph(name: str, tmp_path: Path) -> None:
    written, started = (drawn(seed, METHODS[name].changes) for seed in (1, 2))
    mean, scale = started.input_mean.clone(), started.input_scale.clone()
    prior = written.likelihood.prior() if written.likelihood else None
    graph = rcn_graph(copy.deepcopy(written), 1.5 if prior else 1.0).graph
    take_rcn(started, graph, tmp_path, prior)
    embeddings, lengths = torch.randn(2, 9, 256), torch.tensor([9, 4])
    z_um = torch.arange(9.0).mul(3).expand(2, 9)
    given = (embeddings, lengths, z_um, torch.ones(2, 9))
    with torch.inference_mode():
        expected, found = written(*given), started(*given)
        if prior:
            expected, found = (torch.cat(network.with_evidence(*given), 2) for network in (written, started))
            assert asdict(started.likelihood.prior()) == pytest.approx(asdict(prior), rel=1e-5)
    for stack, length in enumerate(lengths.tolist()):
        np.testing.assert_allclose(found[stack, :length], expected[stack, :length], atol=2e-5)
    assert torch.equal(started.input_mean, mean) and torch.equal(started.input_scale, scale)
    if not prior:  # a segmental network's embeddings are taken about the new mean
        again = constants(rcn_graph(started).graph)
        for constant, value in constants(graph).items():
            np.testing.assert_allclose(again[constant], value, atol=1e-5, err_msg=constant)


def test_a_convolutional_network_comes_back_from_its_graph(work: Path) -> None:
    trained = load_cnn(work / "cnn")[0]
    started = InceptionStrata(0.125, 75).eval()
    take_cnn(started, load_verified(work / "single"))
    slices = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 75, 75)).astype(np.float32))
    with torch.inference_mode():
        np.testing.assert_allclose(started(slices), trained(slices), atol=1e-4)
    given = onnx.load_from_string(load_verified(work / "single").files["cnn.onnx"]).graph
    again = cnn_graph(started, (1000, 1000)).graph
    assert [node.name for node in again.node] == [node.name for node in given.node]
    for first, second in zip(constants(given).values(), constants(again).values(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_classifier_is_in_a_single_image_bundle_and_fitted_for_others(work: Path) -> None:
    trained, started = load_cnn(work / "cnn")[0], InceptionStrata(0.125, 75)
    assert take_cnn(started, load_verified(work / "single"))
    assert torch.equal(started.fc.weight, trained.fc.weight)
    started = InceptionStrata(0.125, 75)
    before = started.fc.weight.clone()
    assert not take_cnn(started, load_verified(work / "whole"))
    assert torch.equal(started.fc.weight, before)
    prepared = prepare(load_data_set(work / "data"), 75, work / "data" / "cache", n_workers=1)
    slices, labels = torch.from_numpy(np.array(prepared.slices)), prepared.labels
    for kept in (labels >= 0, labels > 0):  # all strata, two of them
        fit_classifier(started, slices[kept], labels[kept])
        with torch.inference_mode():
            said = started.eval()(slices[kept]).numpy()
            whether = trained(slices[kept]).argmax(1).numpy() == labels[kept]
        assert np.mean(said.argmax(1) == labels[kept]) > max(0.5, whether.mean())
    assert not started.fc.weight[0].any()
    weight = started.fc.weight.clone()
    fit_classifier(started, slices[:3], np.zeros(3, np.int64))  # one stratum teaches nothing
    assert torch.equal(started.fc.weight, weight)


def test_settled_norms_change_nothing_in_use_and_little_in_training(work: Path) -> None:
    network = InceptionStrata(0.125, 75, dropout=0.0).eval()
    take_cnn(network, load_verified(work / "single"))
    prepared = prepare(load_data_set(work / "data"), 75, work / "data" / "cache", n_workers=1)
    slices = torch.from_numpy(np.array(prepared.slices[:64]))
    with torch.inference_mode():
        before = network.embed(slices)
        torn = copy.deepcopy(network).train().embed(slices)
        settle_norms(network, slices)
        after = network.embed(slices)
        in_training = copy.deepcopy(network).train().embed(slices)
    size = before.abs().max().item()
    assert (after - before).abs().max().item() < 1e-4 * size
    assert (in_training - before).abs().max().item() < 1e-3 * size
    assert (torn - before).abs().max().item() > 0.1 * size  # without, a first step would start elsewhere
    assert not network.training


def test_the_default_bundle_starts_the_default_cnn_and_the_live_network() -> None:
    bundle = load_verified(default_bundle_path())
    with np.load(default_bundle_path() / "golden.npz") as golden:
        slices, embeddings = golden["slices"], golden["slice_embeddings"]
        stack, z_um = golden["stack_embeddings"], golden["stack_z_um"]
    recipe = CnnRecipe()
    cnn = InceptionStrata(recipe.width, recipe.size).eval()
    take_cnn(cnn, bundle)
    rcn = RecurrentStrata(LIVE.architecture).eval()
    graph = onnx.load_from_string(bundle.files["rcn.onnx"]).graph
    take_rcn(rcn, graph, bundle.folder)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    temperature = float(constants.get("temperature", 1.0))  # of the calibration: a start leaves it behind
    expected = Networks.open(bundle, "cpu", 1).recur(stack, z_um, np.ones(len(stack)))
    places = [torch.from_numpy(z_um)[None], torch.ones(1, len(stack))]
    with torch.inference_mode():
        found = SliceEmbedder(cnn)(torch.from_numpy(slices)).numpy()
        rows = torch.from_numpy(stack)[None]
        logits, weighed = rcn.with_evidence(rows, torch.tensor([len(stack)]), *places)
    assert np.abs(found - embeddings).max() < 5e-4 * np.abs(embeddings).max()
    np.testing.assert_allclose(torch.softmax(logits[0] / temperature, -1), expected.probabilities, atol=2e-5)
    np.testing.assert_allclose(weighed[0], expected.evidence, atol=2e-5)
    assert starting_point("default") == default_bundle_path()


def test_what_does_not_fit_is_refused(work: Path, tmp_path: Path) -> None:
    whole = load_verified(work / "whole")
    for other in (InceptionStrata(0.25, 75), InceptionStrata(0.125, 75, n_slices=3)):
        with pytest.raises(DataSetError, match="one of its own method and size"):
            take_cnn(other, whole)
    for method in ("toeplitz-2", "full-bigru", "partial-bigru", "global", "full-rnn"):
        with pytest.raises(DataSetError, match="one of its own method and size"):
            take_rcn(drawn(0, METHODS[method].changes), rcn_graph(drawn(0, {})).graph, tmp_path)
    head = onnx.load_from_string(load_verified(work / "single").files["rcn.onnx"]).graph
    with pytest.raises(DataSetError, match="18 parameters of"):
        take_rcn(drawn(0, {}), head, tmp_path)
    data, options = ("--data", work / "data"), (*CNN_OPTIONS[2:], "--workers", "1", "--epochs", "1")
    for start in (work / "whole", work / "cnn"):
        with pytest.raises(DataSetError, match=r"parameters of .* do not fit"):
            run("cnn", *data, "--out", tmp_path / "cnn", *options, "--width", "0.25", "--start-from", start)
        assert not (tmp_path / "cnn").exists()


@pytest.mark.parametrize("start", ["whole", "rcn"])
def test_a_recurrent_network_is_fine_tuned_from_the_command_line(
    work: Path, tmp_path: Path, start: str
) -> None:
    """A rate of nearly nothing leaves it where it started, and that is where the bundle stands."""
    arguments = ("--epochs", "1", "--copies", "0", "--workers", "1", "--learning-rate", "1e-9")
    data = ("--data", work / "data", "--cnn", work / "cnn", "--out", tmp_path / "rcn")
    run("rcn", *data, *arguments, "--start-from", work / start)
    started_from = load_checkpoint(tmp_path / "rcn", "rcm-rcn-1")["provenance"]["started_from"]
    expected = "tiny 0.1.0 (research" if start == "whole" else "a checkpoint trained on recorded stacks"
    assert started_from.startswith(expected)
    run(
        "export", "--cnn", work / "cnn", "--rcn", tmp_path / "rcn", "--out", tmp_path / "b", "--name", "tuned"
    )
    assert (
        f"The RCN was fine-tuned: it started from {started_from}."
        in (tmp_path / "b" / "MODEL_CARD.md").read_text()
    )
    embeddings = np.random.default_rng(0).normal(size=(7, 256)).astype(np.float32)
    said = [
        Networks.open(load_verified(folder), "cpu", 1).label(embeddings, np.arange(7.0), np.ones(7))
        for folder in (work / "whole", tmp_path / "b")
    ]
    np.testing.assert_allclose(said[0], said[1], atol=1e-4)
    # Going on from the last checkpoint does not start anew.
    run("rcn", *data, *arguments, "--start-from", tmp_path / "nowhere", "--resume")
    assert (
        load_checkpoint(tmp_path / "rcn" / "last.pt", "rcm-rcn-1")["provenance"]["started_from"]
        == started_from
    )


def test_a_convolutional_network_is_fine_tuned_from_a_bundle(work: Path, tmp_path: Path) -> None:
    split = ("--split", work / "cnn" / "split.json", "--epochs", "1", "--workers", "1")
    start = ("--start-from", work / "single", "--learning-rate", "1e-6")
    run("cnn", "--data", work / "data", "--out", tmp_path / "cnn", *CNN_OPTIONS, *split, *start)
    tuned, before = load_cnn(tmp_path / "cnn")[0], load_cnn(work / "cnn")[0]
    difference = (tuned.fc_embedding.weight - before.fc_embedding.weight).abs().max().item()
    assert 0 < difference < 1e-3
    slices = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 75, 75)).astype(np.float32))
    with torch.inference_mode():
        assert torch.equal(tuned(slices).argmax(1), before(slices).argmax(1))
    assert load_rcn(work / "rcn")[1]["provenance"].get("started_from") is None
