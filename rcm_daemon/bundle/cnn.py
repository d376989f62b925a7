"""One CNN, ready to run on one provider: uint8 pixels in, one embedding out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rcm_daemon.bundle.execution import ON_GPU
from rcm_daemon.bundle.openvino_cnn import open_openvino
from rcm_daemon.bundle.provider import open_session
from rcm_daemon.errors import DeviceError, InferenceError

if TYPE_CHECKING:
    import numpy.typing as npt

    from rcm_daemon.bundle.execution import Execution, ProviderName
    from rcm_daemon.bundle.manifest import Manifest, VariantName
    from rcm_daemon.bundle.verify import VerifiedBundle


class Cnn(Protocol):
    """A CNN on a provider; one caller at a time."""

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed uint8 [1, *cnn_shape] to float32 [embedding_size]."""

    def get_inputs(self) -> list[Any]:
        """Name, type and shape of what it takes."""

    def get_outputs(self) -> list[Any]:
        """Name, type and shape of what it gives."""


class SessionCnn:
    """An ONNX Runtime session on the CPU."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed uint8 [1, *cnn_shape] to float32 [embedding_size]."""
        return np.asarray(self._session.run(["embeddings"], {"slices": batch})[0][0])


class GpuCnn:
    """An ONNX Runtime session on a GPU: one input and one output buffer there, used for every slice.

    A CUDA graph replays its kernels on these very addresses.
    """

    def __init__(self, session: Any, manifest: Manifest) -> None:
        import onnxruntime as ort

        self._session = session
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        empty = ort.OrtValue.ortvalue_from_shape_and_type
        self._slices = empty([1, *manifest.cnn_shape], np.uint8, "cuda", 0)
        self._embeddings = empty([1, manifest.embedding_size], np.float32, "cuda", 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("slices", self._slices)
        self._binding.bind_ortvalue_output("embeddings", self._embeddings)

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed uint8 [1, *cnn_shape] to float32 [embedding_size]."""
        self._slices.update_inplace(batch)
        self._session.run_with_iobinding(self._binding)
        return np.array(self._embeddings.numpy()[0], dtype=np.float32)


def network_file(manifest: Manifest, variant: VariantName) -> str:
    """Name the file of one variant of a bundle's CNN."""
    return "cnn.onnx" if variant == "fp32" else manifest.variants[variant].network


def open_cnn(
    bundle: VerifiedBundle,
    variant: VariantName,
    provider: ProviderName,
    execution: Execution,
    *,
    in_graph: bool = False,
) -> Cnn:
    """Open one variant of a bundle's CNN.

    Raises
    ------
    BundleError
        The provider refuses it.
    """
    manifest = bundle.manifest
    name = network_file(manifest, variant)
    model = bundle.files[name]
    if provider == "openvino":
        return open_openvino(model, name, manifest, execution)
    half = variant == "fp16"
    session = open_session(
        model, name, provider, execution.threads, execution.spin_us, in_graph=in_graph, half=half
    )
    return GpuCnn(session, manifest) if provider in ON_GPU else SessionCnn(session)


def run_cnn(cnn: Cnn, image: npt.NDArray[np.uint8], size: int, name: str) -> npt.NDArray[np.float32]:
    """Embed uint8 [*cnn_shape] to float32 [size]; `name` is what errors call the slice.

    Raises
    ------
    DeviceError
        The run failed.
    InferenceError
        It gave another number of values.
    """
    try:
        embedding = cnn.run(np.ascontiguousarray(image)[None])
    except Exception as error:  # the runtimes' own classes share no base
        raise DeviceError(run_failed("CNN", name, error)) from error
    if embedding.shape != (size,):
        raise InferenceError(f"the CNN must give {size} values, got {list(embedding.shape)} for {name}")
    return embedding


def run_failed(network: str, name: str, error: Exception) -> str:
    """Say in one sentence that a network failed."""
    reason = " ".join(str(error).split())[:300].rstrip(". ")
    return f"the {network} must answer, but its run failed for {name}: {reason}"
