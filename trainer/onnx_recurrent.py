"""rcn.onnx: the recurrent networks in standard ONNX operators, exact for every number of slices.

Written node by node, because torch's exporter bakes the example's number of slices into a recurrent layer.

Shapes: N slices, E embedding values, H hidden values a direction, C context values, K classes, W slices of a
Toeplitz kernel or of a window, M places of global attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from trainer.networks.attention import GlobalAttention, ToeplitzAttention
from trainer.networks.inception import EMBEDDING_SIZE, N_CLASSES
from trainer.networks.rcn import GAP_UNIT_UM, N_SPACING, STRONGEST_EVIDENCE, WIDEST_GAP
from trainer.onnx_graphs import checked

if TYPE_CHECKING:
    import onnx

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


def rcn_graph(network: RecurrentStrata, temperature: float = 1.0) -> onnx.ModelProto:
    """Build rcn.onnx: "embeddings" float32 [n, 256] to "probabilities" float32 [n, 3].

    A segmental network takes "z_um" and "weight" float32 [n] too, and gives "evidence" float32 [n, 3] too.

    Parameters
    ----------
    network
        The recurrent network, in evaluation mode.
    temperature
        The probabilities given are p^(1/temperature), scaled to sum to one; what the decoder feeds back is p.
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
    given = "probabilities" if temperature == 1.0 else "uncalibrated"
    if network.architecture.attention == "none":
        logits = graph.node("Gemm", [contexts, *_decoder(graph, network)], "logits")
        graph.node("Softmax", [logits], given, axis=-1)
    elif network.decoder_gru is None:
        _decode_linear(graph, contexts, network, given)
    else:
        _decode_gru(graph, contexts, network, given)
    if temperature != 1.0:
        _calibrate(graph, temperature)
    outputs = {"probabilities": N_CLASSES}
    if network.evidence is not None:
        _weigh_evidence(graph, contexts, network.evidence)
        outputs["evidence"] = N_CLASSES
    sizes: dict[str, list[str | int]] = {"embeddings": ["n", EMBEDDING_SIZE], "z_um": ["n"], "weight": ["n"]}
    return checked(
        helper.make_graph(
            graph.nodes,
            "rcn",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes[name])
                for name in network.architecture.inputs
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
                for name, size in outputs.items()
            ],
            graph.constants,
        )
    )


def _calibrate(graph: _Graph, temperature: float) -> None:
    smallest = graph.constant("smallest", np.array(1e-12))
    logits = graph.node(
        "Log", [graph.node("Max", ["uncalibrated", smallest], "positive")], "log_probabilities"
    )
    cooled = graph.node("Div", [logits, graph.constant("temperature", np.array(temperature))], "cooled")
    graph.node("Softmax", [cooled], "probabilities", axis=-1)


def _weigh_evidence(graph: _Graph, contexts: str, layer: torch.nn.Linear) -> None:
    weights = [graph.constant("evidence_weight", layer.weight.T), graph.constant("evidence_bias", layer.bias)]
    raw = graph.node("Gemm", [contexts, *weights], "raw_evidence")
    bound = graph.constant("strongest", np.array(STRONGEST_EVIDENCE))
    bounded = graph.node("Tanh", [graph.node("Div", [raw, bound], "raw_share")], "evidence_share")
    graph.node("Mul", [bounded, bound], "evidence")


def _see_spacing(graph: _Graph, network: RecurrentStrata) -> str:
    """Weigh the embeddings about their mean; put the gaps to the neighbours and the weight beside them."""
    axis = graph.constant("value_axis", [1])
    centred = graph.node("Sub", ["embeddings", graph.constant("mean", network.input_mean)], "centred")
    weight_N1 = graph.node("Unsqueeze", ["weight", axis], "weight_column")
    weighed = graph.node("Mul", [centred, weight_N1], "weighed")
    bounds = {
        name: graph.constant(name, [value])
        for name, value in (("z_first", 0), ("z_second", 1), ("z_last", -1))
    }
    end = graph.constant("z_end", [np.iinfo(np.int64).max])
    below = graph.node("Slice", ["z_um", bounds["z_second"], end, bounds["z_first"]], "below_um")
    above = graph.node("Slice", ["z_um", bounds["z_first"], bounds["z_last"], bounds["z_first"]], "above_um")
    gap = graph.node("Sub", [below, above], "gap_um")
    gap = graph.node("Div", [gap, graph.constant("gap_unit", np.array(GAP_UNIT_UM))], "gap")
    limits = [graph.constant("no_gap", np.array(0.0)), graph.constant("widest_gap", np.array(WIDEST_GAP))]
    gap = graph.node("Clip", [gap, *limits], "clipped_gap")
    columns = [weighed]
    for name, pads in (("gap_above", [1, 0]), ("gap_below", [0, 1])):
        padded = graph.node("Pad", [gap, graph.constant(f"{name}_pads", pads)], name)
        columns.append(graph.node("Unsqueeze", [padded, axis], f"{name}_column"))
    graph.nodes.append(helper.make_node("Concat", [*columns, weight_N1], ["seen"], "seen", axis=1))
    return "seen"


def _layer(graph: _Graph, network: RecurrentStrata, sequence: str, lengths: str, outputs: list[str]) -> None:
    """Write the encoder's layer over `sequence` [slices, batch, E]."""
    encoder, mean, scale = network.encoder, network.input_mean.double(), network.input_scale.double()
    if network.architecture.segmental:  # whose embeddings have been shifted before they were weighed
        mean = torch.zeros(EMBEDDING_SIZE + N_SPACING, dtype=torch.float64)
        scale = torch.cat([scale, torch.ones(N_SPACING, dtype=torch.float64)])

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
    values = _see_spacing(graph, network) if network.architecture.segmental else "embeddings"
    sequence = graph.node("Unsqueeze", [values, axis], "sequence")
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


def _decode_linear(graph: _Graph, contexts: str, network: RecurrentStrata, given: str) -> None:
    n_context = network.encoder.n_outputs
    scores = graph.node("Gemm", [contexts, *_decoder(graph, network, n_context)], "scores")
    graph.constant("feedback", network.decoder.weight[:, n_context:].T)
    step = _Graph()
    fed_back = step.node("MatMul", ["above", "feedback"], "fed_back")
    step.node("Add", [fed_back, "score"], "logits")
    _scan(graph, step, scores, N_CLASSES, {"above": N_CLASSES}, given)


def _decode_gru(graph: _Graph, contexts: str, network: RecurrentStrata, given: str) -> None:
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
    _scan(graph, step, gates, 3 * n_hidden, {"state": n_hidden, "above": N_CLASSES}, given)


def _scan(graph: _Graph, step: _Graph, rows: str, n_row: int, states: dict[str, int], given: str) -> None:
    """Write the loop over slices, of output `given`: `step` turns its states and a row `score` into `logits`.

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
    outputs = [*(f"last_{name}" for name in states), given]
    graph.nodes.append(
        helper.make_node("Scan", [*first, rows], outputs, "decoder", body=body, num_scan_inputs=1)
    )
