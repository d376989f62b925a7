"""The paper's own network, at full width: parameters, export, agreement of torch and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from trainer.networks.inception import InceptionStrata, SliceEmbedder
from trainer.onnx_graphs import cnn_graph


@pytest.mark.slow
def test_full_width_inception_exports_and_agrees():
    torch.manual_seed(0)
    network = InceptionStrata(width=1.0, size=299).eval()
    model = cnn_graph(network, (1000, 1000))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    slices = np.random.default_rng(0).integers(0, 256, (1, 1000, 1000), dtype=np.uint8)
    with torch.inference_mode():
        expected = SliceEmbedder(network)(torch.from_numpy(slices)).numpy()
    (found,) = session.run(None, {"slices": slices})
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
