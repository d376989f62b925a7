"""Golden vectors: what a bundle's networks gave where it was made, and how far they may be off elsewhere."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.manifest import ESTIMATOR_FILE
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from rcm_daemon.bundle.manifest import VariantName
    from rcm_daemon.bundle.verify import VerifiedBundle

    Shapes = Mapping[str, tuple[int, ...]]

GOLDEN_FILE = "golden.npz"
N_GOLDEN_SLICES = 2
# Largest difference allowed, as a share of the largest golden embedding value. Measured on a CPU: 2e-6
# between ONNX Runtime's optimisation levels, 6e-5 between it and torch (antialiased resize), 2e-5 between it
# and OpenVINO; a wrong operator is off by whole per cents. cuDNN's algorithms sum in other orders still.
EMBEDDING_TOLERANCE = {"cpu": 1e-3, "openvino": 1e-3, "cuda": 5e-3, "tensorrt": 5e-3}


def read_golden(bundle: VerifiedBundle) -> dict[str, npt.NDArray[Any]]:
    """Read golden.npz.

    Returns
    -------
    dict
        slices uint8 [2, *cnn_shape], slice_embeddings [2, e]; stack_embeddings [n, e], stack_z_um [n],
        stack_weight [n], stack_probabilities [n, 3], and stack_evidence [n, 3] where the network gives it.

    Raises
    ------
    BundleError
        One of them is missing or of another shape.
    """
    manifest, size = bundle.manifest, bundle.manifest.embedding_size
    shapes = {
        "stack_z_um": (-1,),
        "slices": (N_GOLDEN_SLICES, *manifest.cnn_shape),
        "slice_embeddings": (N_GOLDEN_SLICES, size),
        "stack_embeddings": (-1, size),
        "stack_weight": (-1,),
        "stack_probabilities": (-1, 3),
        **({"stack_evidence": (-1, 3)} if ESTIMATOR_FILE in manifest.files else {}),
    }
    return _read(bundle, GOLDEN_FILE, shapes)


def read_golden_slices(bundle: VerifiedBundle) -> npt.NDArray[np.uint8]:
    """Read the slices alone, uint8 [2, *cnn_shape]."""
    shapes = {"slices": (N_GOLDEN_SLICES, *bundle.manifest.cnn_shape)}
    return _read(bundle, GOLDEN_FILE, shapes)["slices"]


@dataclass(frozen=True)
class Difference:
    """How far embeddings of the golden slices are off at most and may be; their largest golden value."""

    found: float
    allowed: float
    scale: float

    @property
    def ok(self) -> bool:
        """Whether they are near enough; what is not finite never is."""
        return self.found <= self.allowed

    def __str__(self) -> str:
        allowed = f"allowed {self.allowed:.1e} (largest value {self.scale:.2g})"
        return f"largest difference {self.found:.1e}, {allowed}"


def golden_difference(
    embed: Callable[[npt.NDArray[np.uint8], str], npt.NDArray[np.float32]],
    bundle: VerifiedBundle,
    variant: VariantName,
    provider: str,
) -> Difference:
    """Embed the golden slices and compare with what this variant must give.

    Parameters
    ----------
    embed
        Takes a slice uint8 [*cnn_shape] and its name for errors, gives [e].

    Raises
    ------
    BundleError
        There are no golden vectors of the right shapes.
    InferenceError
        The network does not run.
    """
    if variant == "fp32":
        file, tolerance = GOLDEN_FILE, EMBEDDING_TOLERANCE[provider]
    else:
        about = bundle.manifest.variants[variant]
        file, tolerance = about.golden, about.embedding_tolerance
    shapes = {"slice_embeddings": (N_GOLDEN_SLICES, bundle.manifest.embedding_size)}
    expected = _read(bundle, file, shapes)["slice_embeddings"]
    slices = read_golden_slices(bundle)
    found = np.stack([embed(image, f"golden slice {i}") for i, image in enumerate(slices)])
    scale = float(np.abs(expected).max())
    return Difference(float(np.abs(found - expected).max()), tolerance * scale, scale)


def _read(bundle: VerifiedBundle, file: str, shapes: Shapes) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(io.BytesIO(bundle.files[file]), allow_pickle=False) as archive:
            golden = {name: archive[name] for name in shapes}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise BundleError(f"{file} must hold {', '.join(shapes)}, got {error} in {bundle.folder}") from error
    n = len(golden["stack_z_um"]) if "stack_z_um" in golden else 0
    for name, shape in shapes.items():
        wanted = tuple(n if length == -1 else length for length in shape)
        if golden[name].shape != wanted or golden[name].size == 0:
            got = list(golden[name].shape)
            raise BundleError(f"{name} of {file} must be {list(wanted)}, got {got} in {bundle.folder}")
    return golden
