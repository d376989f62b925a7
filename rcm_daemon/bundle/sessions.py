"""The two networks of a bundle, ready to run: one slice to its embedding, a partial stack to its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rcm_daemon.bundle.dimensions import check_dimensions
from rcm_daemon.bundle.estimator import estimator_parameters
from rcm_daemon.bundle.provider import cuda_fault, open_session
from rcm_daemon.core.pipeline import Recurrence
from rcm_daemon.errors import BundleError, DeviceError, InferenceError

if TYPE_CHECKING:
    import numpy.typing as npt

    from rcm_daemon.bundle.manifest import Manifest
    from rcm_daemon.bundle.provider import ProviderChoice
    from rcm_daemon.bundle.verify import VerifiedBundle

_WARM_UP_RUNS = 2


class Networks:
    """CNN and recurrent network of one verified bundle in ONNX Runtime sessions; one caller at a time.

    Attributes
    ----------
    manifest, digest
        Of the bundle.
    provider
        Where the CNN runs; the recurrent network is faster on the CPU and always runs there.
    n_cnn_runs
        Slices embedded since opening, warm-up not counted.
    estimator_parameters
        Of the bundle's monotone estimator, None where it has none.
    """

    def __init__(self, bundle: VerifiedBundle, cnn: Any, rcn: Any, provider: Literal["cpu", "cuda"]) -> None:
        self.manifest: Manifest = bundle.manifest
        self.digest = bundle.digest
        self.provider = provider
        self.n_cnn_runs = 0
        self.estimator_parameters = estimator_parameters(bundle)
        self.domain = self.estimator_parameters.domain if self.estimator_parameters else None
        self._cnn = cnn
        self._rcn = rcn
        given = {output.name for output in rcn.get_outputs()}
        self._rcn_outputs = ["probabilities", *({"evidence"} & given)]
        self._gpu_buffers = _GpuBuffers(cnn, bundle.manifest) if provider == "cuda" else None

    @classmethod
    def open(cls, bundle: VerifiedBundle, provider: ProviderChoice = "auto", n_threads: int = 0) -> Networks:
        """Create the sessions from the bundle's bytes.

        Parameters
        ----------
        provider
            `cuda`: the CNN runs on the GPU or this raises; `cpu`; `auto`: the GPU where it works, else the
            CPU, without a word.
        n_threads
            CPU threads of the CNN, 0 = one a core.

        Raises
        ------
        BundleError
            A network cannot be loaded, its dimensions disagree with the manifest or with the other network,
            or CUDA was asked for and is not there.
        """
        rcn = open_session(bundle.files["rcn.onnx"], "rcn.onnx", "cpu", 1)
        on_cpu = open_session(bundle.files["cnn.onnx"], "cnn.onnx", "cpu", n_threads)
        check_dimensions(bundle.manifest, on_cpu, rcn, bundle.folder)
        if provider == "cpu":
            return cls(bundle, on_cpu, rcn, "cpu")
        fault = cuda_fault()
        if fault:
            if provider == "cuda":
                raise BundleError(f"provider cuda needs a working CUDA device and its libraries, but {fault}")
            return cls(bundle, on_cpu, rcn, "cpu")
        try:
            on_gpu = open_session(bundle.files["cnn.onnx"], "cnn.onnx", "cuda", n_threads)
            networks = cls(bundle, on_gpu, rcn, "cuda")
            networks.warm_up()
        except (BundleError, InferenceError) as error:
            if provider == "cuda":
                raise BundleError(str(error)) from error
            return cls(bundle, on_cpu, rcn, "cpu")
        return networks

    def embed(self, image: npt.NDArray[np.uint8], name: str = "this slice") -> npt.NDArray[np.float32]:
        """Embed one slice.

        Parameters
        ----------
        image
            uint8 of the manifest's `cnn_shape`: [rows, columns] as `to_field` gives it, or three of them.
        name
            What errors call the slice.

        Returns
        -------
        embedding
            float32 [embedding_size], finite.

        Raises
        ------
        InferenceError
            Wrong shape or dtype, the run failed, or the embedding is not finite.
        """
        shape = self.manifest.cnn_shape
        if image.dtype != np.uint8 or image.shape != shape:
            raise InferenceError(
                f"the CNN takes uint8 {list(shape)}, got {image.dtype} {list(image.shape)} for {name}"
            )
        embedding = self._run_cnn(image, name)
        self.n_cnn_runs += 1
        n_bad = int(np.count_nonzero(~np.isfinite(embedding)))
        if n_bad:
            raise InferenceError(
                f"an embedding must be finite, got {n_bad} of {embedding.size} values that are not for {name}"
            )
        return embedding

    def embed_many(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed uint8 [n, *cnn_shape] to float32 [n, embedding_size].

        One slice at a time, so that an embedding never depends on its neighbours in a batch, to the last bit.
        """
        embeddings = [self.embed(image, f"slice {i} of {len(images)}") for i, image in enumerate(images)]
        return np.asarray(embeddings, dtype=np.float32).reshape(len(images), self.manifest.embedding_size)

    def label(
        self,
        embeddings: npt.NDArray[np.floating[Any]],
        z_um: npt.NDArray[np.floating[Any]],
        weight: npt.NDArray[np.floating[Any]],
    ) -> npt.NDArray[np.float32]:
        """Return the probabilities float32 [n, 3] that `recur` gives."""
        return self.recur(embeddings, z_um, weight).probabilities

    def recur(
        self,
        embeddings: npt.NDArray[np.floating[Any]],
        z_um: npt.NDArray[np.floating[Any]],
        weight: npt.NDArray[np.floating[Any]],
    ) -> Recurrence:
        """Rerun the recurrent network over a partial stack in depth order.

        Parameters
        ----------
        embeddings
            [n, embedding_size], shallowest first.
        z_um, weight
            [n] depth in um and trust in each slice; unused where rcn_inputs does not name them.

        Returns
        -------
        Recurrence
            Probabilities float32 [n, 3] in the order of the manifest's classes, and a segmental network's
            evidence.

        Raises
        ------
        InferenceError
            No slices, more than max_slices, lengths that differ, or an answer that is no probability.
        """
        n, limit = len(embeddings), self.manifest.max_slices
        if n == 0 or (limit and n > limit):
            wanted = f"1 to {limit}" if limit else "at least 1"
            raise InferenceError(f"bundle {self.manifest.name} labels stacks of {wanted} slices, got {n}")
        given = {"embeddings": embeddings, "z_um": z_um, "weight": weight}
        expected = {"embeddings": (n, self.manifest.embedding_size), "z_um": (n,), "weight": (n,)}
        for key, values in given.items():
            if values.shape != expected[key]:
                raise InferenceError(f"{key} must be {list(expected[key])}, got {list(values.shape)}")
        feed = {key: np.ascontiguousarray(given[key], dtype=np.float32) for key in self.manifest.rcn_inputs}
        try:
            probabilities, *others = self._rcn.run(self._rcn_outputs, feed)
        except Exception as error:  # ONNX Runtime's own classes share no base
            raise InferenceError(_failed("recurrent network", f"a stack of {n} slices", error)) from error
        if probabilities.shape != (n, 3) or not np.all(np.abs(probabilities.sum(axis=1) - 1) < 1e-3):
            raise InferenceError(f"probabilities must be [{n}, 3] with rows that sum to 1, got others")
        evidence = others[0] if others else None
        if evidence is not None and (evidence.shape != (n, 3) or not np.all(np.isfinite(evidence))):
            raise InferenceError(f"evidence must be finite [{n}, 3], got others")
        return Recurrence(probabilities, evidence)

    def warm_up(self) -> None:
        """Run both networks until their first-run costs (allocation, algorithm choice) are paid."""
        blank = np.zeros(self.manifest.cnn_shape, dtype=np.uint8)
        for _ in range(_WARM_UP_RUNS):
            embedding = self._run_cnn(blank, "warm-up")
        for n in (1, min(2, self.manifest.max_slices or 2)):
            self.label(np.repeat(embedding[None], n, axis=0), np.arange(n) * 3.0, np.ones(n))

    def _run_cnn(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float32]:
        batch = np.ascontiguousarray(image)[None]
        try:
            if self._gpu_buffers is not None:
                embedding = self._gpu_buffers.run(batch)
            else:
                embedding = np.asarray(self._cnn.run(["embeddings"], {"slices": batch})[0][0])
        except Exception as error:  # ONNX Runtime's own classes share no base
            raise DeviceError(_failed("CNN", name, error)) from error
        size = self.manifest.embedding_size
        if embedding.shape != (size,):
            raise InferenceError(f"the CNN must give {size} values, got {list(embedding.shape)} for {name}")
        return embedding


class _GpuBuffers:
    """One input buffer on the GPU, filled in place for every slice (IO binding with a fixed batch of one)."""

    def __init__(self, session: Any, manifest: Manifest) -> None:
        import onnxruntime as ort

        self._session = session
        self._slices = ort.OrtValue.ortvalue_from_shape_and_type(
            [1, *manifest.cnn_shape], np.uint8, "cuda", 0
        )
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("slices", self._slices)
        self._binding.bind_output("embeddings", "cpu")

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self._slices.update_inplace(batch)
        self._session.run_with_iobinding(self._binding)
        return np.array(self._binding.copy_outputs_to_cpu()[0][0], dtype=np.float32)


def _failed(network: str, name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300].rstrip(". ")
    return f"the {network} must answer, but its run failed for {name}: {reason}"
