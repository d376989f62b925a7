"""Proof that a bundle is whole and computes on this machine what it computed where it was made."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.manifest import ESTIMATOR_FILE
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import BundleError, RcmError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from rcm_daemon.bundle.manifest import Manifest
    from rcm_daemon.bundle.provider import ProviderChoice
    from rcm_daemon.bundle.verify import VerifiedBundle

# Largest difference allowed, as a share of the largest golden embedding value. Measured on a CPU: 2e-6
# between ONNX Runtime's optimisation levels, 6e-5 between it and torch (antialiased resize); a wrong operator
# is off by whole per cents. cuDNN's algorithms sum in other orders still.
EMBEDDING_TOLERANCE = {"cpu": 1e-3, "cuda": 5e-3}
PROBABILITY_TOLERANCE = 1e-4
"""Largest difference of a probability; the recurrent network always runs on the CPU in float32."""


@dataclass(frozen=True)
class CheckItem:
    """One thing checked, how it went, and the numbers behind it."""

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """All items of one check, in order; `ok` when each of them is."""

    folder: Path
    items: tuple[CheckItem, ...]

    @property
    def ok(self) -> bool:
        """Whether every item passed."""
        return all(item.ok for item in self.items)


def check_bundle(
    folder: Path, provider: ProviderChoice = "auto", public_key: bytes | None = None
) -> CheckReport:
    """Verify digests, load both networks, and compare golden vectors on the provider at hand.

    Nothing is raised for a bundle that fails: the report ends with the item that stopped it.
    """
    items: list[CheckItem] = []
    step = "files"
    try:
        bundle = load_verified(folder, public_key)
        items.append(_describe_files(bundle))
        if public_key is not None:
            items.append(CheckItem("signature", True, "by the key given"))
        step = "networks"
        networks = Networks.open(bundle, provider)
        items.append(_describe_networks(networks))
        step = "golden vectors"
        items.extend(check_golden(bundle, networks))
    except RcmError as error:
        items.append(CheckItem(step, False, str(error)))
    return CheckReport(folder, tuple(items))


def check_golden(bundle: VerifiedBundle, networks: Networks) -> list[CheckItem]:
    """Compare what the networks give here with what they gave where the bundle was made.

    Raises
    ------
    BundleError
        There are no golden vectors of the right shapes.
    InferenceError
        A network does not run.
    """
    golden = _read_golden(bundle)
    return [_check_embeddings(networks, golden), *_check_recurrence(networks, golden)]


def _describe_files(bundle: VerifiedBundle) -> CheckItem:
    n_bytes = sum(map(len, bundle.files.values()))
    return CheckItem(
        "files",
        True,
        f"{len(bundle.files)} files, {n_bytes / 1e6:.1f} MB, lengths and SHA-256 as listed; "
        f"bundle {bundle.manifest.name} {bundle.manifest.version} {bundle.digest[:12]}",
    )


def _describe_networks(networks: Networks) -> CheckItem:
    manifest = networks.manifest
    shape = " x ".join(map(str, manifest.input.shape))
    return CheckItem(
        "networks",
        True,
        f"CNN on {networks.provider}, {shape} at {manifest.input.pixel_size_um:g} um to "
        f"{manifest.embedding_size} values; {manifest.kind} network over {', '.join(manifest.rcn_inputs)}",
    )


def _check_embeddings(networks: Networks, golden: dict[str, npt.NDArray[Any]]) -> CheckItem:
    expected = golden["slice_embeddings"]
    scale = float(np.abs(expected).max())
    difference = float(np.abs(networks.embed_many(golden["slices"]) - expected).max())
    allowed = EMBEDDING_TOLERANCE[networks.provider] * scale
    return CheckItem(
        "golden embeddings",
        difference <= allowed,
        f"{len(expected)} slices on {networks.provider}: largest difference {difference:.1e}, "
        f"allowed {allowed:.1e} (largest value {scale:.2g})",
    )


def _check_recurrence(networks: Networks, golden: dict[str, npt.NDArray[Any]]) -> list[CheckItem]:
    found = networks.recur(golden["stack_embeddings"], golden["stack_z_um"], golden["stack_weight"])
    items = []
    for name, values in vars(found).items():
        if values is None:
            continue
        expected = golden[f"stack_{name}"]
        difference = float(np.abs(values - expected).max())
        items.append(
            CheckItem(
                f"golden {name}",
                difference <= PROBABILITY_TOLERANCE,
                f"stack of {len(expected)} slices: largest difference {difference:.1e}, "
                f"allowed {PROBABILITY_TOLERANCE:.1e}",
            )
        )
    return items


def _read_golden(bundle: VerifiedBundle) -> dict[str, npt.NDArray[Any]]:
    shapes = _golden_shapes(bundle.manifest)
    try:
        with np.load(io.BytesIO(bundle.files["golden.npz"]), allow_pickle=False) as archive:
            golden = {name: archive[name] for name in shapes}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise BundleError(
            f"golden.npz must hold {', '.join(shapes)}, got {error} in {bundle.folder}"
        ) from error
    n = len(golden["stack_z_um"])
    for name, shape in shapes.items():
        wanted = tuple(n if length == -1 else length for length in shape)
        if golden[name].shape != wanted or golden[name].size == 0:
            got = list(golden[name].shape)
            raise BundleError(f"{name} of golden.npz must be {list(wanted)}, got {got} in {bundle.folder}")
    return golden


def _golden_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    size = manifest.embedding_size
    return {
        "stack_z_um": (-1,),
        "slices": (2, *manifest.cnn_shape),
        "slice_embeddings": (2, size),
        "stack_embeddings": (-1, size),
        "stack_weight": (-1,),
        "stack_probabilities": (-1, 3),
        **({"stack_evidence": (-1, 3)} if ESTIMATOR_FILE in manifest.files else {}),
    }
