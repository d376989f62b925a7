"""The two networks of a bundle, ready to run: one slice to its embedding, a partial stack to its labels."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.cnn import run_cnn, run_failed
from rcm_daemon.bundle.dimensions import check_dimensions
from rcm_daemon.bundle.estimator import estimator_parameters
from rcm_daemon.bundle.execution import ON_GPU, SPIN_US, Execution
from rcm_daemon.bundle.manifest import variant_digest
from rcm_daemon.bundle.openvino_cnn import openvino_fault
from rcm_daemon.bundle.processor import n_cores
from rcm_daemon.bundle.provider import cuda_fault, open_session, tensorrt_fault
from rcm_daemon.bundle.threads import settle_threads
from rcm_daemon.bundle.variants import choose
from rcm_daemon.core.pipeline import Recurrence
from rcm_daemon.errors import BundleError, InferenceError

if TYPE_CHECKING:
    import numpy.typing as npt

    from rcm_daemon.bundle.execution import ProviderChoice, ProviderName, VariantChoice
    from rcm_daemon.bundle.manifest import Manifest
    from rcm_daemon.bundle.variants import Chosen
    from rcm_daemon.bundle.verify import VerifiedBundle

_WARM_UP_RUNS = 2
FAULTS = {
    "cpu": lambda: "",
    "openvino": openvino_fault,
    "cuda": lambda: cuda_fault(),
    "tensorrt": tensorrt_fault,
}
NEEDS = {
    "openvino": "the package openvino",
    "cuda": "a working CUDA device and its libraries",
    "tensorrt": "a working CUDA device and the libraries of TensorRT",
}
"""What must be there for a provider that not every machine has, and why it is not."""


class Networks:
    """CNN and recurrent network of one verified bundle in ONNX Runtime sessions.

    One caller at a time, but for `embed`, which `n_lanes` threads may call at once.

    Attributes
    ----------
    manifest
        Of the bundle.
    digest
        Of what makes embeddings: the bundle's for fp32, another one for each variant.
    provider
        Where the CNN runs; the recurrent network is faster on the CPU and always runs there.
    variant, reason
        Which form of the CNN runs, and why that one.
    n_threads
        CPU threads of a run, as set or measured.
    n_lanes
        Threads that embed slices side by side: one a core where a run on the CPU takes one thread, else one.
    n_cnn_runs
        Slices embedded since opening, warm-up not counted.
    estimator_parameters
        Of the bundle's monotone estimator, None where it has none.
    """

    def __init__(
        self, bundle: VerifiedBundle, chosen: Chosen, rcn: Any, provider: ProviderName, n_threads: int
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.digest = variant_digest(bundle.digest, chosen.variant)
        self.provider = provider
        self.variant = chosen.variant
        self.reason = chosen.reason
        self.n_threads = n_threads
        self.n_lanes = n_cores() if provider == "cpu" and n_threads == 1 else 1
        self.n_cnn_runs = 0
        self._counting = threading.Lock()
        self.estimator_parameters = estimator_parameters(bundle)
        self.domain = self.estimator_parameters.domain if self.estimator_parameters else None
        self._cnn = chosen.cnn
        self._rcn = rcn
        given = {output.name for output in rcn.get_outputs()}
        self._rcn_outputs = ["probabilities", *({"evidence"} & given)]

    @classmethod
    def open(
        cls,
        bundle: VerifiedBundle,
        provider: ProviderChoice = "auto",
        n_threads: int = 0,
        variant: VariantChoice = "fp32",
        spin_us: int = SPIN_US,
    ) -> Networks:
        """Create the sessions from the bundle's bytes.

        Parameters
        ----------
        provider, variant, n_threads, spin_us
            As in `Execution`.

        Raises
        ------
        BundleError
            A network cannot be loaded, its dimensions disagree with the manifest or with the other network,
            what was asked for is not there, or a variant computes something else than where it was made.
        """
        execution = Execution(provider, variant, n_threads, spin_us)
        rcn = open_session(bundle.files["rcn.onnx"], "rcn.onnx", "cpu", 1)
        if provider == "auto":
            fault = ""
            if not cuda_fault():
                try:
                    return cls._on("cuda", bundle, rcn, execution)
                except (BundleError, InferenceError) as error:
                    fault = f"; on the CPU, for CUDA is there but failed ({error})"
            networks = cls._on("cpu", bundle, rcn, execution)
            networks.reason += fault
            return networks
        fault = FAULTS[provider]()
        if fault:
            raise BundleError(f"provider {provider} needs {NEEDS[provider]}, but {fault}")
        try:
            return cls._on(provider, bundle, rcn, execution)
        except InferenceError as error:
            raise BundleError(str(error)) from error

    @classmethod
    def _on(cls, provider: ProviderName, bundle: VerifiedBundle, rcn: Any, execution: Execution) -> Networks:
        execution = settle_threads(bundle, provider, execution)
        chosen = choose(bundle, provider, execution)
        check_dimensions(bundle.manifest, chosen.cnn, rcn, bundle.folder)
        networks = cls(bundle, chosen, rcn, provider, execution.threads)
        if provider in ON_GPU:
            networks.warm_up()  # what fails on a GPU often fails in its first run only
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
        embedding = run_cnn(self._cnn, image, self.manifest.embedding_size, name)
        with self._counting:
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
            raise InferenceError(run_failed("recurrent network", f"a stack of {n} slices", error)) from error
        if probabilities.shape != (n, 3) or not np.all(np.abs(probabilities.sum(axis=1) - 1) < 1e-3):
            raise InferenceError(f"probabilities must be [{n}, 3] with rows that sum to 1, got others")
        evidence = others[0] if others else None
        if evidence is not None and (evidence.shape != (n, 3) or not np.all(np.isfinite(evidence))):
            raise InferenceError(f"evidence must be finite [{n}, 3], got others")
        return Recurrence(probabilities, evidence)

    def warm_up(self) -> None:
        """Run both networks until their first-run costs (allocation, algorithm choice) are paid."""
        for _ in range(_WARM_UP_RUNS):
            embedding = self.keep_warm()
        for n in (1, min(2, self.manifest.max_slices or 2)):
            self.label(np.repeat(embedding[None], n, axis=0), np.arange(n) * 3.0, np.ones(n))

    def keep_warm(self) -> npt.NDArray[np.float32]:
        """Run the CNN on a black slice: left alone for 0.1 s it is slower, and on a GPU many times slower."""
        blank = np.zeros(self.manifest.cnn_shape, dtype=np.uint8)
        return run_cnn(self._cnn, blank, self.manifest.embedding_size, "warm-up")
