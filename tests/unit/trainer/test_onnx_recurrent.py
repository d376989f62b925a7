from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from trainer.networks.rcn import Architecture, RecurrentStrata
from trainer.onnx_recurrent import rcn_graph

LENGTHS = (1, 2, 7, 50, 101)
DIRECTIONS_AND_CELLS = [("gru", True), ("gru", False), ("rnn", True), ("rnn", False)]


def drawn(architecture: Architecture) -> RecurrentStrata:
    torch.manual_seed(1)
    network = RecurrentStrata(architecture).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.input_mean.normal_()
    network.input_scale.uniform_(0.5, 2)
    return network


def operators_agreeing_with_torch(network: RecurrentStrata, lengths: tuple[int, ...]) -> set[str]:
    """Compare both at every length, and tell which operators the graph has."""
    model = rcn_graph(network)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found = onnxruntime.InferenceSession(model.SerializeToString(), options)
    assert found.get_inputs()[0].shape == ["n", 256]
    assert found.get_outputs()[0].shape == ["n", 3]
    for n_slices in lengths:
        embeddings = torch.randn(1, n_slices, 256)
        with torch.inference_mode():
            expected = torch.softmax(network(embeddings, torch.tensor([n_slices]))[0], -1).numpy()
        (probabilities,) = found.run(None, {"embeddings": embeddings[0].numpy()})
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    encoder = next(node for node in model.graph.node if node.name == "encoder")
    linear = {attribute.name: attribute.i for attribute in encoder.attribute}.get("linear_before_reset")
    assert linear == (1 if encoder.op_type == "GRU" else None)
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("half_width", [0, 1, 2, 3, 5, 7])
def test_toeplitz_attention(half_width: int) -> None:
    operators = operators_agreeing_with_torch(drawn(Architecture(half_width=half_width)), LENGTHS)
    assert {"GRU", "Scan"} <= operators
    assert ("Conv" in operators) == (half_width > 0)


@pytest.mark.parametrize(("cell", "bidirectional"), DIRECTIONS_AND_CELLS)
@pytest.mark.parametrize("window", [0, 3])
def test_full_and_partial_sequences(cell: str, bidirectional: bool, window: int) -> None:
    network = drawn(Architecture("none", cell=cell, bidirectional=bidirectional, window=window))
    operators = operators_agreeing_with_torch(network, LENGTHS)
    assert cell.upper() in operators
    assert not {"Scan", "Conv"} & operators


@pytest.mark.parametrize("max_slices", [71, 101])
def test_global_attention_up_to_its_longest_stack(max_slices: int) -> None:
    network = drawn(Architecture("global", max_slices=max_slices))
    operators = operators_agreeing_with_torch(network, (1, 2, 7, 50, max_slices))
    assert {"GRU", "Scan", "MatMul"} <= operators
