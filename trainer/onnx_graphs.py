"""The CNN as ONNX graphs, exact for every batch: the trunk as cnn.onnx, its own classifier as rcn.onnx.

The trunk is what torch's exporter writes, behind the preprocessing nodes written here (the exporter has no
antialiased resize). The recurrent networks are written in `trainer.onnx_recurrent`.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from trainer.networks.inception import EMBEDDING_SIZE, N_CLASSES, InceptionStrata

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

    A network over three slices takes [batch, 3, rows, columns].

    Parameters
    ----------
    network
        The CNN, in evaluation mode.
    field_shape
        Rows and columns of the bundle's field.
    """
    network = network.cpu().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    size = network.size
    channels = [] if network.n_slices == 1 else [network.n_slices]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch calls this exporter the old one; the new one bakes sizes in and cannot be merged as simply.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _Trunk(network).eval(),
            (torch.zeros(2, *channels, size, size),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=["field"],
            output_names=["embeddings"],
            dynamic_axes={"field": {0: "batch"}, "embeddings": {0: "batch"}},
        )
    trunk = onnx.load_from_string(buffer.getvalue()).graph
    rows, columns = field_shape
    # Resize takes images with channels, which neighbours are and a slice alone is not.
    images, resized = ("grey", "field") if channels else ("grey_image", "field_image")
    nodes = [
        helper.make_node("Cast", ["slices"], ["grey"], "preprocess_cast", to=TensorProto.FLOAT),
        helper.make_node(
            "Resize",
            [images, "", "", "preprocess_size"],
            [resized],
            "preprocess_resize",
            axes=[2, 3],  # so that the batch stays free
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            antialias=1,
            exclude_outside=1,
        ),
    ]
    constants = [numpy_helper.from_array(np.array([size, size], np.int64), "preprocess_size")]
    if not channels:
        axis = "preprocess_axis"
        nodes.insert(1, helper.make_node("Unsqueeze", ["grey", axis], [images], "preprocess_unsqueeze"))
        nodes.append(helper.make_node("Squeeze", [resized, axis], ["field"], "preprocess_squeeze"))
        constants.append(numpy_helper.from_array(np.array([1], np.int64), axis))
    graph = helper.make_graph(
        [*nodes, *trunk.node],
        "cnn",
        [helper.make_tensor_value_info("slices", TensorProto.UINT8, ["batch", *channels, rows, columns])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", EMBEDDING_SIZE])],
        [*constants, *trunk.initializer],
    )
    return checked(graph)


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
    return checked(
        helper.make_graph(
            nodes,
            "head",
            [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", EMBEDDING_SIZE])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", N_CLASSES])],
            constants,
        )
    )


def checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Wrap a graph as a model of this program's opset, and check it as the onnx package does."""
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rcm-trainer",
    )
    onnx.checker.check_model(model, full_check=True)
    return model
