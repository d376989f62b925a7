"""The two graphs of a bundle, exact for every batch and every number of slices.

cnn.onnx: the trunk as torch's exporter writes it, behind the preprocessing nodes written here (the exporter
has no antialiased resize). rcn.onnx: standard GRU, Conv and Scan operators, written node by node, because
torch's exporter bakes the example's number of slices into a GRU.

Shapes: N slices, E embedding values, H hidden values a direction, K classes, W = 2D+1.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from trainer.networks.inception import EMBEDDING_SIZE, N_CLASSES, InceptionStrata

if TYPE_CHECKING:
    from trainer.networks.rcn import RecurrentStrata

OPSET = 18
"""The first one with Resize's antialias."""
IR_VERSION = 10
"""Old enough for ONNX Runtime 1.23, the oldest the daemon accepts."""


class _Trunk(torch.nn.Module):
    def __init__(self, network: InceptionStrata) -> None:
        super().__init__()
        self.network = network

    def forward(self, field_BSS: torch.Tensor) -> torch.Tensor:
        return self.network.embed(field_BSS)


def cnn_graph(network: InceptionStrata, field_shape: tuple[int, int]) -> onnx.ModelProto:
    """Build cnn.onnx: "slices" uint8 [batch, rows, columns] to "embeddings" float32 [batch, 256].

    Parameters
    ----------
    network
        The CNN, in evaluation mode.
    field_shape
        Rows and columns of the bundle's field.
    """
    network = network.cpu().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    size = network.size
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch calls this exporter the old one; the new one bakes sizes in and cannot be merged as simply.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _Trunk(network).eval(),
            (torch.zeros(2, size, size),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=["field"],
            output_names=["embeddings"],
            dynamic_axes={"field": {0: "batch"}, "embeddings": {0: "batch"}},
        )
    trunk = onnx.load_from_string(buffer.getvalue()).graph
    rows, columns = field_shape
    nodes = [
        helper.make_node("Cast", ["slices"], ["grey"], "preprocess_cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["grey", "preprocess_axis"], ["grey_image"], "preprocess_unsqueeze"),
        helper.make_node(
            "Resize",
            ["grey_image", "", "", "preprocess_size"],
            ["field_image"],
            "preprocess_resize",
            axes=[2, 3],  # so that the batch stays free
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            antialias=1,
            exclude_outside=1,
        ),
        helper.make_node("Squeeze", ["field_image", "preprocess_axis"], ["field"], "preprocess_squeeze"),
    ]
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "preprocess_axis"),
        numpy_helper.from_array(np.array([size, size], np.int64), "preprocess_size"),
    ]
    graph = helper.make_graph(
        [*nodes, *trunk.node],
        "cnn",
        [helper.make_tensor_value_info("slices", TensorProto.UINT8, ["batch", rows, columns])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", EMBEDDING_SIZE])],
        [*constants, *trunk.initializer],
    )
    return _checked(graph)


def rcn_graph(network: RecurrentStrata) -> onnx.ModelProto:
    """Build rcn.onnx: "embeddings" float32 [n, 256] to "probabilities" float32 [n, 3].

    Parameters
    ----------
    network
        The RCN, in evaluation mode.
    """
    network = network.cpu().eval()
    n_hidden = network.encoder.n_hidden
    constants = _gru_constants(network)
    decoder = network.decoder.weight.detach().double().numpy()
    kernel_W = network.attention.kernel().detach().numpy()
    half_width = network.attention.half_width

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(values, name))
        return name

    constant("batch_axis", np.array([1], np.int64))
    constant("flat", np.array([0, 2 * n_hidden], np.int64))
    nodes = [
        helper.make_node("Unsqueeze", ["embeddings", "batch_axis"], ["sequence"], "sequence"),
        helper.make_node(
            "GRU",
            ["sequence", "gru_w", "gru_r", "gru_b"],
            ["states"],
            "encoder",
            direction="bidirectional",
            hidden_size=n_hidden,
            linear_before_reset=1,  # torch's variant; without it results are silently off by per cents
        ),
        # [n, 2, 1, H] to [n, 2H]: downward values, then upward ones, as torch lays them out.
        helper.make_node(
            "Squeeze", ["states", constant("stack_axis", np.array([2], np.int64))], ["directions"], "squeeze"
        ),
        helper.make_node("Reshape", ["directions", "flat"], ["encodings"], "encodings"),
    ]
    context = "encodings"
    if half_width:
        constant("kernel", kernel_W.reshape(1, 1, -1))
        constant("row_axis", np.array([1], np.int64))
        pads = [half_width, half_width]
        nodes += [
            helper.make_node("Transpose", ["encodings"], ["values_first"], "values_first", perm=[1, 0]),
            helper.make_node("Unsqueeze", ["values_first", "row_axis"], ["rows"], "rows"),
            helper.make_node(
                "Conv",
                ["rows", "kernel"],
                ["mixed_rows"],
                "attention",
                kernel_shape=[len(kernel_W)],
                pads=pads,
            ),
            # The kernel's weight that falls on real slices, to scale it to one at the ends of the stack.
            helper.make_node(
                "Slice",
                [
                    "rows",
                    constant("from", np.array([0], np.int64)),
                    constant("to", np.array([1], np.int64)),
                    constant("first_axis", np.array([0], np.int64)),
                ],
                ["one_row"],
                "one_row",
            ),
            helper.make_node(
                "Mul", ["one_row", constant("zero", np.zeros(1, np.float32))], ["zeros"], "zeros"
            ),
            helper.make_node("Add", ["zeros", constant("one", np.ones(1, np.float32))], ["ones"], "ones"),
            helper.make_node(
                "Conv",
                ["ones", "kernel"],
                ["total"],
                "attention_total",
                kernel_shape=[len(kernel_W)],
                pads=pads,
            ),
            helper.make_node("Div", ["mixed_rows", "total"], ["context_rows"], "renormalise"),
            helper.make_node("Squeeze", ["context_rows", "row_axis"], ["context_values"], "context_values"),
            helper.make_node("Transpose", ["context_values"], ["contexts"], "contexts", perm=[1, 0]),
        ]
        context = "contexts"
    constant("decoder_context", decoder[:, : 2 * n_hidden].T.astype(np.float32))
    constant("decoder_bias", network.decoder.bias.detach().numpy())
    constant("decoder_feedback", decoder[:, 2 * n_hidden :].T.astype(np.float32))
    constant("nothing_yet", np.zeros((1, N_CLASSES), np.float32))
    nodes += [
        helper.make_node("Gemm", [context, "decoder_context", "decoder_bias"], ["scores"], "decoder"),
        helper.make_node(
            "Scan",
            ["nothing_yet", "scores"],
            ["last", "probabilities"],
            "feedback",
            body=_feedback(),
            num_scan_inputs=1,
        ),
    ]
    return _checked(
        helper.make_graph(
            nodes,
            "rcn",
            [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", EMBEDDING_SIZE])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", N_CLASSES])],
            constants,
        )
    )


def _feedback() -> onnx.GraphProto:
    """Build one step of the decoder: the slice's scores plus what the slice above was taken for."""
    state = ["above", "next"]
    return helper.make_graph(
        [
            helper.make_node("MatMul", ["above", "decoder_feedback"], ["fed_back"], "fed_back"),
            helper.make_node("Add", ["fed_back", "score"], ["logits"], "logits"),
            helper.make_node("Softmax", ["logits"], ["next"], "softmax", axis=-1),
            helper.make_node("Reshape", ["next", "row_shape"], ["probability"], "row"),
        ],
        "one_slice",
        [
            helper.make_tensor_value_info(state[0], TensorProto.FLOAT, [1, N_CLASSES]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [N_CLASSES]),
        ],
        [
            helper.make_tensor_value_info(state[1], TensorProto.FLOAT, [1, N_CLASSES]),
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, [N_CLASSES]),
        ],
        [numpy_helper.from_array(np.array([N_CLASSES], np.int64), "row_shape")],
    )


def _gru_constants(network: RecurrentStrata) -> list[onnx.TensorProto]:
    # ONNX orders the gates update, reset, candidate; torch reset, update, candidate.
    encoder, n_hidden = network.encoder, network.encoder.n_hidden
    mean, scale = (value.double().numpy() for value in (network.input_mean, network.input_scale))

    def gates(name: str, suffix: str) -> np.ndarray:
        values = encoder.get_parameter(f"{name}_l0{suffix}").detach().double().numpy()
        reset, update, candidate = np.split(values, [n_hidden, 2 * n_hidden])
        return np.concatenate([update, reset, candidate])

    w, r, b = [], [], []
    for suffix in ("", "_reverse"):
        # The standardisation of the embeddings is linear: it goes into the input weights and their bias.
        weight = gates("weight_ih", suffix) / scale
        w.append(weight)
        r.append(gates("weight_hh", suffix))
        b.append(np.concatenate([gates("bias_ih", suffix) - weight @ mean, gates("bias_hh", suffix)]))
    named = (("gru_w", w), ("gru_r", r), ("gru_b", b))
    return [numpy_helper.from_array(np.stack(values).astype(np.float32), name) for name, values in named]


def head_graph(network: InceptionStrata) -> onnx.ModelProto:
    """Build rcn.onnx of a single-image bundle: the CNN's own head, slice by slice.

    Parameters
    ----------
    network
        The CNN.
    """
    constants = [
        numpy_helper.from_array(network.fc.weight.detach().cpu().numpy().T.copy(), "head_weight"),
        numpy_helper.from_array(network.fc.bias.detach().cpu().numpy(), "head_bias"),
    ]
    nodes = [
        helper.make_node("Relu", ["embeddings"], ["active"], "relu"),
        helper.make_node("Gemm", ["active", "head_weight", "head_bias"], ["logits"], "head"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=-1),
    ]
    return _checked(
        helper.make_graph(
            nodes,
            "head",
            [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", EMBEDDING_SIZE])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", N_CLASSES])],
            constants,
        )
    )


def _checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rcm-trainer",
    )
    onnx.checker.check_model(model, full_check=True)
    return model
