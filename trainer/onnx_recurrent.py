"""rcn.onnx: the recurrent networks in standard ONNX operators, exact for every number of slices.

Written node by node, because torch's exporter bakes the example's number of slices into a recurrent layer.

Shapes: N slices, E embedding values, H hidden values a direction, C context values, K classes, W slices of a
Toeplitz kernel or of a window, M places of global attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from trainer.networks.attention import GlobalAttention, ToeplitzAttention
from trainer.networks.inception import EMBEDDING_SIZE, N_CLASSES
from trainer.onnx_graphs import checked

if TYPE_CHECKING:
    import onnx
    import torch

    from trainer.networks.rcn import RecurrentStrata


class _Graph:
    """Nodes and constants in the order they are written down; a node is called what its output is."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: torch.Tensor | np.ndarray | list[int]) -> str:
        array = np.asarray(values, np.int64) if isinstance(values, list) else np.asarray(values, np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output


def rcn_graph(network: RecurrentStrata) -> onnx.ModelProto:
    """Build rcn.onnx: "embeddings" float32 [n, 256] to "probabilities" float32 [n, 3].

    Parameters
    ----------
    network
        The recurrent network, in evaluation mode.
    """
    network = network.cpu().eval().requires_grad_(False)
    graph = _Graph()
    if network.architecture.window:
        contexts = _encode_windows(graph, network)
    else:
        contexts = _encode(graph, network)
    if isinstance(network.attention, ToeplitzAttention):
        contexts = _attend_near(graph, contexts, network.attention)
    elif network.attention is not None:
        contexts = _attend_everywhere(graph, contexts, network.attention)
    if network.architecture.attention == "none":
        logits = graph.node("Gemm", [contexts, *_decoder(graph, network)], "logits")
        graph.node("Softmax", [logits], "probabilities", axis=-1)
    elif network.decoder_gru is None:
        _decode_linear(graph, contexts, network)
    else:
        _decode_gru(graph, contexts, network)
    return checked(
        helper.make_graph(
            graph.nodes,
            "rcn",
            [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", EMBEDDING_SIZE])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", N_CLASSES])],
            graph.constants,
        )
    )


def _layer(graph: _Graph, network: RecurrentStrata, sequence: str, lengths: str, outputs: list[str]) -> None:
    """Write the encoder's layer over `sequence` [slices, batch, E]."""
    encoder, mean, scale = network.encoder, network.input_mean.double(), network.input_scale.double()

    def gates(name: str, suffix: str) -> np.ndarray:
        values: np.ndarray = encoder.get_parameter(f"{name}_l0{suffix}").double().numpy()
        if encoder.cell == "rnn":
            return values
        # ONNX orders the gates update, reset, candidate; torch reset, update, candidate.
        reset, update, candidate = np.split(values, 3)
        return np.concatenate([update, reset, candidate])

    weights, recurrences, biases = [], [], []
    for suffix in encoder.suffixes:
        # The standardisation of the embeddings is linear: it goes into the input weights and their bias.
        weights.append(gates("weight_ih", suffix) / scale.numpy())
        recurrences.append(gates("weight_hh", suffix))
        biases.append(
            np.concatenate([gates("bias_ih", suffix) - weights[-1] @ mean.numpy(), gates("bias_hh", suffix)])
        )
    inputs = [
        sequence,
        graph.constant("encoder_w", np.stack(weights)),
        graph.constant("encoder_r", np.stack(recurrences)),
        graph.constant("encoder_b", np.stack(biases)),
        lengths,
    ]
    attributes: dict[str, Any] = {
        "direction": "bidirectional" if len(encoder.suffixes) == 2 else "forward",
        "hidden_size": encoder.n_hidden,
    }
    if encoder.cell == "gru":
        attributes["linear_before_reset"] = 1  # torch's variant; without it silently off by per cents
    graph.nodes.append(helper.make_node(encoder.cell.upper(), inputs, outputs, "encoder", **attributes))


def _encode(graph: _Graph, network: RecurrentStrata) -> str:
    axis = graph.constant("batch_axis", [1])
    sequence = graph.node("Unsqueeze", ["embeddings", axis], "sequence")
    _layer(graph, network, sequence, "", ["states"])
    # [N, directions, 1, H] to [N, C]: downward values, then upward ones, as torch lays them out.
    shape = graph.constant("context_shape", [0, network.encoder.n_outputs])
    return graph.node("Reshape", ["states", shape], "encodings")


def _encode_windows(graph: _Graph, network: RecurrentStrata) -> str:
    """Run the encoder over the neighbourhoods of all slices as one batch, cut at the ends of the stack."""
    width = network.architecture.window
    zero, one = graph.constant("zero", [0]), graph.constant("one", [1])
    reach = graph.constant("reach", [width // 2])
    n_slices = graph.node("Shape", ["embeddings"], "n_slices", start=0, end=1)
    scalars = [graph.node("Squeeze", [name], f"{name}_scalar") for name in (zero, n_slices, one)]
    index_N = graph.node("Range", scalars, "index")
    first_N = graph.node("Max", [graph.node("Sub", [index_N, reach], "from"), zero], "first")
    deepest = graph.node("Sub", [n_slices, one], "deepest")
    last_N = graph.node("Min", [graph.node("Add", [index_N, reach], "to"), deepest], "last")
    places = numpy_helper.from_array(np.arange(width, dtype=np.int64).reshape(-1, 1), "places")
    graph.constants.append(places)
    taken_WN = graph.node("Min", [graph.node("Add", [first_N, "places"], "wanted"), last_N], "taken")
    windows_WNE = graph.node("Gather", ["embeddings", taken_WN], "windows", axis=0)
    steps_N = graph.node("Add", [graph.node("Sub", [last_N, first_N], "steps"), one], "counts")
    lengths_N = graph.node("Cast", [steps_N], "lengths", to=TensorProto.INT32)
    _layer(graph, network, windows_WNE, lengths_N, ["", "ends"])
    by_slice = graph.node("Transpose", ["ends"], "ends_by_slice", perm=[1, 0, 2])
    shape = graph.constant("context_shape", [0, network.encoder.n_outputs])
    return graph.node("Reshape", [by_slice, shape], "encodings")


def _attend_near(graph: _Graph, encodings: str, attention: ToeplitzAttention) -> str:
    if attention.half_width == 0:
        return encodings
    kernel = graph.constant("kernel", attention.kernel().view(1, 1, -1))
    padded = {"kernel_shape": [2 * attention.half_width + 1], "pads": [attention.half_width] * 2}
    axis = graph.constant("row_axis", [1])
    rows = graph.node("Unsqueeze", [graph.node("Transpose", [encodings], "values"), axis], "rows")
    mixed = graph.node("Conv", [rows, kernel], "mixed_rows", **padded)
    # The kernel's weight that falls on real slices, to scale it to one at the ends of the stack.
    bounds = [graph.constant(name, [value]) for name, value in (("row", 0), ("next_row", 1), ("axis", 0))]
    one_row = graph.node("Slice", [rows, *bounds], "one_row")
    zeros = graph.node("Mul", [one_row, graph.constant("nought", np.zeros(1))], "zeros")
    ones = graph.node("Add", [zeros, graph.constant("unit", np.ones(1))], "ones")
    total = graph.node("Conv", [ones, kernel], "total", **padded)
    mixed = graph.node("Div", [mixed, total], "context_rows")
    mixed = graph.node("Squeeze", [mixed, axis], "context_values")
    return graph.node("Transpose", [mixed], "contexts")


def _attend_everywhere(graph: _Graph, encodings: str, attention: GlobalAttention) -> str:
    def dense(layer: torch.nn.Linear, name: str, inputs: str) -> str:
        weight = graph.constant(f"{name}_weight", layer.weight.T)
        return graph.node("Gemm", [inputs, weight, graph.constant(f"{name}_bias", layer.bias)], name)

    hidden = graph.node("Tanh", [dense(attention.hidden, "hidden", encodings)], "hidden_tanh")
    logits_NM = dense(attention.places, "places", hidden)
    bounds = [graph.constant("from", [0]), graph.node("Shape", [encodings], "n_slices", start=0, end=1)]
    logits_NN = graph.node("Slice", [logits_NM, *bounds, graph.constant("place_axis", [1])], "real_places")
    weights_NN = graph.node("Softmax", [logits_NN], "attention", axis=-1)
    return graph.node("MatMul", [weights_NN, encodings], "contexts")


def _decoder(graph: _Graph, network: RecurrentStrata, n_inputs: int | None = None) -> list[str]:
    weight = graph.constant("decoder_weight", network.decoder.weight[:, :n_inputs].T)
    return [weight, graph.constant("decoder_bias", network.decoder.bias)]


def _decode_linear(graph: _Graph, contexts: str, network: RecurrentStrata) -> None:
    n_context = network.encoder.n_outputs
    scores = graph.node("Gemm", [contexts, *_decoder(graph, network, n_context)], "scores")
    graph.constant("feedback", network.decoder.weight[:, n_context:].T)
    step = _Graph()
    fed_back = step.node("MatMul", ["above", "feedback"], "fed_back")
    step.node("Add", [fed_back, "score"], "logits")
    _scan(graph, step, scores, N_CLASSES, {"above": N_CLASSES})


def _decode_gru(graph: _Graph, contexts: str, network: RecurrentStrata) -> None:
    gru, n_context = network.decoder_gru, network.encoder.n_outputs
    if gru is None:
        raise ValueError("a decoder without a GRU is written by _decode_linear")
    n_hidden = gru.hidden_size
    weight = graph.constant("decoder_w", gru.weight_ih[:, :n_context].T)
    gates = graph.node("Gemm", [contexts, weight, graph.constant("decoder_wb", gru.bias_ih)], "scores")
    graph.constant("feedback", gru.weight_ih[:, n_context:].T)
    graph.constant("decoder_r", gru.weight_hh.T)
    graph.constant("decoder_rb", gru.bias_hh)
    graph.constant("gate_sizes", [2 * n_hidden, n_hidden])
    _decoder(graph, network)
    step = _Graph()
    own = step.node("Add", [step.node("MatMul", ["above", "feedback"], "fed_back"), "score"], "own")
    recurrent = step.node("Gemm", ["state", "decoder_r", "decoder_rb"], "recurrent")
    for name, values in (("own", own), ("recurrent", recurrent)):
        parts = [f"{name}_reset_update", f"{name}_candidate"]
        step.nodes.append(helper.make_node("Split", [values, "gate_sizes"], parts, f"{name}_split", axis=-1))
    summed = step.node("Add", ["own_reset_update", "recurrent_reset_update"], "reset_update_sum")
    both = step.node("Sigmoid", [summed], "reset_update")
    step.constant("half_sizes", [n_hidden, n_hidden])
    step.nodes.append(helper.make_node("Split", [both, "half_sizes"], ["reset", "update"], "halves", axis=-1))
    kept = step.node("Mul", ["reset", "recurrent_candidate"], "kept")
    candidate = step.node("Tanh", [step.node("Add", ["own_candidate", kept], "candidate_sum")], "candidate")
    change = step.node("Mul", ["update", step.node("Sub", ["state", candidate], "gap")], "change")
    state = step.node("Add", [candidate, change], "next_state")
    step.node("Gemm", [state, "decoder_weight", "decoder_bias"], "logits")
    _scan(graph, step, gates, 3 * n_hidden, {"state": n_hidden, "above": N_CLASSES})


def _scan(graph: _Graph, step: _Graph, rows: str, n_row: int, states: dict[str, int]) -> None:
    """Write the loop over slices: `step` turns its states and a row `score` into `logits`.

    What the slice was taken for, the softmax of the logits, is the next slice's state `above`.
    """
    step.node("Softmax", ["logits"], "next_above", axis=-1)
    step.node("Reshape", ["next_above", step.constant("row_shape", [N_CLASSES])], "probability")

    def value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    body = helper.make_graph(
        step.nodes,
        "one_slice",
        [*(value(name, [1, size]) for name, size in states.items()), value("score", [n_row])],
        [
            *(value(f"next_{name}", [1, size]) for name, size in states.items()),
            value("probability", [N_CLASSES]),
        ],
        step.constants,
    )
    first = [graph.constant(f"first_{name}", np.zeros((1, size))) for name, size in states.items()]
    outputs = [*(f"last_{name}" for name in states), "probabilities"]
    graph.nodes.append(
        helper.make_node("Scan", [*first, rows], outputs, "decoder", body=body, num_scan_inputs=1)
    )
