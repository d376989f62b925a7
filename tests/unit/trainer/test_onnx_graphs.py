from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from trainer.networks.inception import InceptionStrata, SliceEmbedder
from trainer.onnx_graphs import cnn_graph, head_graph


def session(model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("channels", [[], [3]])
def test_cnn_graph_agrees_with_torch_from_uint8_slices_on(channels: list[int]) -> None:
    torch.manual_seed(0)
    network = InceptionStrata(width=0.125, size=99, n_slices=3 if channels else 1).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    found = session(cnn_graph(network, (250, 300)))
    assert found.get_inputs()[0].shape == ["batch", *channels, 250, 300]
    assert found.get_inputs()[0].type == "tensor(uint8)"
    assert found.get_outputs()[0].shape == ["batch", 256]
    rng = np.random.default_rng(0)
    for n_slices in (1, 3):
        slices = rng.integers(0, 256, (n_slices, *channels, 250, 300), dtype=np.uint8)
        slices[0, ..., :100, :] //= 3
        with torch.inference_mode():
            expected = SliceEmbedder(network)(torch.from_numpy(slices)).numpy()
        (embeddings,) = found.run(None, {"slices": slices})
        np.testing.assert_allclose(embeddings, expected, atol=5e-4 * np.abs(expected).max())


def test_head_graph_is_the_cnns_own_classifier() -> None:
    network = InceptionStrata(width=0.125, size=75).eval()
    embeddings = torch.randn(5, 256)
    expected = torch.softmax(network.fc(embeddings.relu()), -1).detach().numpy()
    (probabilities,) = session(head_graph(network)).run(None, {"embeddings": embeddings.numpy()})
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
