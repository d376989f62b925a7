"""The CNN on OpenVINO (extra `openvino`), computing what ONNX Runtime computes.

OpenVINO ignores `antialias` of the Resize that brings a slice to the network's size: embeddings would be off
by half their size. The same resize is written here as matrix products, which is exact.

Shapes: R rows (or columns) before, S after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    import numpy.typing as npt

    from rcm_daemon.bundle.execution import Execution
    from rcm_daemon.bundle.manifest import Manifest

# Rows of a resize done by one product: each reads only the rows it weighs. Measured from 1000 x 1000 to
# 192 x 192: 1.2 ms with 32, 1.8 with 64, 4 to 5 with all at once.
BLOCK = 32
_TYPES = {"u8": "tensor(uint8)", "f32": "tensor(float)"}


class Port(NamedTuple):
    """An input or output, in ONNX Runtime's words."""

    name: str
    type: str
    shape: list[int | str]


class OpenVinoCnn:
    """One compiled CNN; one caller at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed uint8 [1, *cnn_shape] to float32 [embedding_size]."""
        self._request.infer({0: batch}, share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data[0], dtype=np.float32)

    def get_inputs(self) -> list[Port]:
        """Name, type and shape of what it takes."""
        return [_port(port) for port in self._compiled.inputs]

    def get_outputs(self) -> list[Port]:
        """Name, type and shape of what it gives."""
        return [_port(port) for port in self._compiled.outputs]


def openvino_fault() -> str:
    """Why OpenVINO cannot be used here, as half a sentence; empty when it can."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        return 'it is not installed: pip install "rcm-daemon[openvino]"'
    return ""


def open_openvino(model: bytes, name: str, manifest: Manifest, execution: Execution) -> OpenVinoCnn:
    """Compile one CNN for this machine's processor.

    Raises
    ------
    BundleError
        OpenVINO cannot read or compile it.
    """
    import openvino

    # Left to itself OpenVINO computes float32 networks in bfloat16 where it can: parity comes first.
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": execution.threads,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        core = openvino.Core()
        network = core.read_model(model)
        network.reshape({network.input(0): [1, *manifest.cnn_shape]})
        for node in network.get_ops():
            if node.get_type_name() == "Interpolate":
                node.output(0).replace(_resized(node).output(0))
        network.validate_nodes_and_infer_types()
        return OpenVinoCnn(core.compile_model(network, "CPU", options))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300].rstrip(". ")
        raise BundleError(f"{name} must run here with OpenVINO, but it was refused: {reason}") from error


def _resized(node: Any) -> Any:
    wanted = {"mode": "linear_onnx", "coordinate_transformation_mode": "half_pixel", "antialias": True}
    found = {key: node.get_attributes().get(key) for key in wanted}
    if found != wanted:
        raise RuntimeError(f"a Resize must be linear, half_pixel and antialiased, got {found}")
    before, after = list(node.get_input_shape(0)), list(node.get_output_shape(0))
    values = node.input_value(0)
    for axis in (2, 3):
        if before[axis] != after[axis]:
            values = _along(values, axis, resize_weights(before[axis], after[axis]))
    return values.get_node() if hasattr(values, "get_node") else values


def _along(values: Any, axis: int, weights_SR: npt.NDArray[np.float32]) -> Any:
    from openvino import opset13 as op

    parts = []
    for start in range(0, len(weights_SR), BLOCK):
        block = weights_SR[start : start + BLOCK]
        weighed = np.flatnonzero(block.any(axis=0))
        first, end = int(weighed[0]), int(weighed[-1]) + 1
        taken = op.slice(values, np.array([first]), np.array([end]), np.array([1]), np.array([axis]))
        weights = op.constant(np.ascontiguousarray(block[:, first:end]))
        if axis == 2:
            parts.append(op.matmul(weights, taken, False, False))
        else:
            parts.append(op.matmul(taken, weights, False, True))
    return op.concat(parts, axis)


def resize_weights(n_before: int, n_after: int) -> npt.NDArray[np.float32]:
    """Weights [S, R] of an antialiased linear resize (half_pixel, exclude_outside), rows summing to 1."""
    scale = n_before / n_after
    centres_S = (np.arange(n_after) + 0.5) * scale
    distances_SR = np.abs(np.arange(n_before)[None, :] + 0.5 - centres_S[:, None])
    weights_SR = np.maximum(0.0, 1.0 - distances_SR / max(scale, 1.0))
    return np.asarray(weights_SR / weights_SR.sum(axis=1, keepdims=True), dtype=np.float32)


def _port(port: Any) -> Port:
    kind = port.get_element_type().get_type_name()
    shape = [int(str(length)) if length.is_static else str(length) for length in port.get_partial_shape()]
    return Port(port.get_any_name(), _TYPES.get(kind, kind), shape)
