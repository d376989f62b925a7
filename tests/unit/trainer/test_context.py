"""A CNN over neighbouring slices: from its command to a bundle that labels recorded stacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from trainer_commands import CNN_OPTIONS, run

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.manifest import Manifest
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import DataSetError
from rcm_daemon.readers.opening import open_stack
from rcm_daemon.readers.recorded_stack import RecordedStack
from rcm_daemon.replay import Replayer
from trainer.data.augmentation import Augmentation, Augmenter
from trainer.data.manifest import load_data_set
from trainer.data.prepared import fields_of_stack, prepare
from trainer.networks.preprocess import resize
from trainer.offline import run_bundles
from trainer.train_cnn import load_cnn

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def context(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    split = ("--split", work / "cnn" / "split.json", "--epochs", "2", "--workers", "1")
    arguments = (*CNN_OPTIONS, *split, "--method", "iv3-context")
    run("cnn", "--data", work / "data", "--out", folder / "cnn", *arguments)
    run("export", "--cnn", folder / "cnn", "--out", folder / "bundle", "--name", "iv3-context")
    return folder


def test_a_context_bundle_replays_and_evaluates_as_torch_does(work: Path, context: Path) -> None:
    assert check_bundle(context / "bundle", "cpu").ok
    networks = Networks.open(load_verified(context / "bundle"), "cpu", 1)
    assert networks.manifest.cnn_shape == (3, 1000, 1000)
    stack = load_data_set(work / "data").stacks[1]
    network = load_cnn(context / "cnn")[0]
    fields = torch.from_numpy(np.stack(list(fields_of_stack(stack))))
    rows = np.arange(stack.n_slices)
    trios = np.stack([np.maximum(rows - 1, 0), rows, np.minimum(rows + 1, rows[-1])], 1)
    with torch.inference_mode():
        expected = torch.softmax(network(resize(fields[torch.from_numpy(trios)], network.size)), -1).numpy()
    (evaluated,) = run_bundles([context / "bundle"], [stack], 1, "context")
    np.testing.assert_allclose(evaluated.probabilities[0], expected, atol=2e-3)
    assert expected.std(0).max() > 0.02  # or agreement would mean nothing
    with open_stack(stack.files[0], z_step_um=3.0) as recorded:
        replayed = Replayer(networks).replay(recorded)
    found = np.array(replayed.final.probability)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_replay_takes_neighbours_in_depth_whatever_the_files_order(context: Path) -> None:
    replayer = Replayer(Networks.open(load_verified(context / "bundle"), "cpu", 1))
    fields = [np.full((9, 9), grey, np.uint8) for grey in range(3)]
    stack = RecordedStack(
        "s", context, (6.0, 0.0, 3.0), 0.5, (9, 9), "uint8", 255, (), fields.__getitem__, lambda: None
    )
    found = [[int(part[0, 0]) for part in replayer._neighbours(stack, index)] for index in range(3)]
    assert found == [[2, 0], [1, 2], [1, 0]]


def test_a_recurrent_network_refuses_a_context_cnn(work: Path, context: Path, tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="takes a CNN of single slices"):
        run("rcn", "--data", work / "data", "--cnn", context / "cnn", "--out", tmp_path)


def test_neighbours_end_with_their_stack(work: Path) -> None:
    data = load_data_set(work / "data")
    prepared = prepare(data, 75, work / "data" / "cache", n_workers=1)
    first, last = data.starts[1], data.starts[2] - 1
    found = prepared.with_neighbours(np.array([last, first, first + 1]))
    assert found.tolist() == [
        [last - 1, last, last],
        [first, first, first + 1],
        [first, first + 1, first + 2],
    ]


def test_neighbours_are_warped_alike() -> None:
    augmentation = Augmentation().without(["speckle", "noise"])
    slices = torch.rand(5, 1, 32, 32).mul(255).expand(5, 3, 32, 32)
    found = Augmenter(augmentation, torch.Generator().manual_seed(1)).with_neighbours(slices)
    alone = Augmenter(augmentation, torch.Generator().manual_seed(1))(slices[:, 0])
    for channel in range(3):
        np.testing.assert_allclose(found[:, channel].numpy(), alone.numpy(), atol=1e-4)


def test_the_manifest_says_what_the_cnn_takes(work: Path) -> None:
    assert Manifest.load(work / "whole").cnn_shape == (1000, 1000)
