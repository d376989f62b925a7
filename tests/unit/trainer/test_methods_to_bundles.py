"""Every network of the comparison, from its command to a bundle that is checked, replays and is torch's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from trainer_commands import CNN_OPTIONS, run
from typer.testing import CliRunner

from rcm_daemon.bundle.manifest import Manifest
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.cli import app
from rcm_daemon.errors import InferenceError
from trainer.data.manifest import load_data_set
from trainer.methods import METHODS
from trainer.networks.attention import ToeplitzAttention
from trainer.train_cnn import load_cnn
from trainer.train_rcn import load_rcn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainer.networks.rcn import RecurrentStrata

    Answers = Callable[..., np.ndarray]

LENGTHS = (1, 2, 7, 50, 101)
LONGEST = 50
NETWORKS = [method.name for method in METHODS.values() if method.trained_by != "textons"]
KINDS = {"whole stack": "whole", "partial stack": "partial", "single image": "single"}


def trained(work: Path, folder: Path, name: str) -> tuple[Path, Answers]:
    """Train one method and write its bundle; what torch answers to the same inputs comes with it."""
    method, rcn = METHODS[name], folder / "rcn"
    arguments = ["--method", name, "--workers", "1", "--epochs", "2"]
    cnn = work / "cnn"
    if method.trained_by == "rcn":
        arguments += ["--max-slices", str(LONGEST)] if name == "global" else []
        run("rcn", "--data", work / "data", "--cnn", cnn, "--out", rcn, *arguments, "--copies", "0")
        network = load_rcn(rcn)[0]
        check_kernel(network)
        pair = ("--rcn", rcn)
    else:
        if method.changes:  # otherwise it is the CNN that stands already
            cnn, split = folder / "cnn", ("--split", work / "cnn" / "split.json")
            run("cnn", "--data", work / "data", "--out", cnn, *CNN_OPTIONS, *split, *arguments)
        classifier, pair = load_cnn(cnn)[0], ()
    run("export", "--cnn", cnn, *pair, "--out", folder / "bundle", "--name", name)

    @torch.inference_mode()
    def answers(embeddings: np.ndarray, *places: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(embeddings)
        if method.trained_by == "cnn":
            return torch.softmax(classifier.fc(rows.relu()), -1).numpy()
        given = (torch.from_numpy(values)[None] for values in places)
        return torch.softmax(network(rows[None], torch.tensor([len(rows)]), *given)[0], -1).numpy()

    return folder / "bundle", answers


def check_kernel(network: RecurrentStrata) -> None:
    assert isinstance(network.attention, ToeplitzAttention) == (network.architecture.attention == "toeplitz")
    if not isinstance(network.attention, ToeplitzAttention):
        return
    half_width, kernel = network.architecture.half_width, network.attention.kernel()
    assert len(kernel) == 2 * half_width + 1
    assert (kernel >= 0).all()
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    if half_width:  # it has learnt, so this says something of training
        assert not torch.equal(network.attention.logits, ToeplitzAttention(half_width).logits)


def daemon_says(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize("name", NETWORKS)
def test_a_methods_bundle_is_checked_replays_and_says_what_torch_says(
    work: Path, tmp_path: Path, name: str
) -> None:
    bundle, answers = trained(work, tmp_path, name)
    manifest = Manifest.load(bundle)
    assert manifest.kind == ("context" if name == "iv3-context" else KINDS[METHODS[name].sees])
    assert manifest.max_slices == (LONGEST if name == "global" else 0)
    assert manifest.attention_half_width == METHODS[name].changes.get("half_width", int(name == "live"))
    assert "FAIL" not in daemon_says("check", bundle, "--provider", "cpu")
    session = onnxruntime.InferenceSession(bundle / "rcn.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for n_slices in LENGTHS:
        if manifest.max_slices and n_slices > manifest.max_slices:
            continue
        embeddings = rng.normal(size=(n_slices, 256)).astype(np.float32)
        z_um = np.cumsum(rng.uniform(1, 5, n_slices)).astype(np.float32)
        given = {"embeddings": embeddings, "z_um": z_um, "weight": np.ones(n_slices, np.float32)}
        feed = {key: given[key] for key in manifest.rcn_inputs}
        (found,) = session.run(["probabilities"], feed)
        np.testing.assert_allclose(found, answers(*feed.values()), atol=1e-5)
    stack, final = load_data_set(work / "data").stacks[0], tmp_path / "final.json"
    options = ("--provider", "cpu", "--json", final, "--live-json", tmp_path / "live.json")
    daemon_says("replay", stack.files[0], "--bundle", bundle, *options)
    message = json.loads(final.read_text())
    assert (message["state"], message["n_slices"]) == ("complete", stack.n_slices)
    np.testing.assert_allclose(np.sum(message["probability"], axis=1), 1, atol=1e-5)
    live = [json.loads(line) for line in (tmp_path / "live.json").read_text().splitlines()]
    assert [len(one["probability"]) for one in live] == list(range(1, stack.n_slices + 1))
    if manifest.kind == "single":  # a slice says the same whatever came before and after
        assert all(one["probability"] == message["probability"][: one["n_slices"]] for one in live)


def test_a_stack_longer_than_global_attention_takes_is_refused_in_one_sentence(
    work: Path, tmp_path: Path
) -> None:
    stack = load_data_set(work / "data").stacks[0]
    data, cnn, longest = work / "data", work / "cnn", str(stack.n_slices - 1)
    options = ("--max-slices", longest, "--epochs", "1", "--copies", "0", "--workers", "1")
    run("rcn", "--data", data, "--cnn", cnn, "--out", tmp_path / "rcn", "--method", "global", *options)
    run("export", "--cnn", cnn, "--rcn", tmp_path / "rcn", "--out", tmp_path / "b", "--name", "global")
    done = CliRunner().invoke(app, ["replay", str(stack.files[0]), "--bundle", str(tmp_path / "b")])
    refusal = f"labels stacks of 1 to {longest} slices, got {stack.n_slices}"
    assert done.exit_code == 1
    (complaint,) = done.stderr.splitlines()
    assert refusal in complaint
    networks = Networks.open(load_verified(tmp_path / "b"), "cpu", 1)
    with pytest.raises(InferenceError, match=refusal):
        networks.label(np.zeros((stack.n_slices, 256)), stack.z_um, np.ones(stack.n_slices))
