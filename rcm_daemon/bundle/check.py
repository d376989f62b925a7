"""Proof that a bundle is whole and computes on this machine what it computed where it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.golden import golden_difference, read_golden
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.estimator import monotone_estimate
from rcm_daemon.errors import RcmError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from rcm_daemon.bundle.execution import ProviderChoice, ProviderName
    from rcm_daemon.bundle.manifest import OtherVariant
    from rcm_daemon.bundle.verify import VerifiedBundle
    from rcm_daemon.core.estimator import EstimatorParameters

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
        for variant in bundle.manifest.variants:
            step = f"variant {variant}"
            items.append(_check_variant(bundle, networks.provider, variant))
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
    difference = golden_difference(networks.embed, bundle, networks.variant, networks.provider)
    detail = f"{networks.variant} on {networks.provider}: {difference}"
    return [CheckItem("golden embeddings", difference.ok, detail), *_check_recurrence(bundle, networks)]


def _check_variant(bundle: VerifiedBundle, provider: ProviderName, variant: OtherVariant) -> CheckItem:
    networks = Networks.open(bundle, provider, variant=variant)  # refused unless its golden vectors come out
    difference = golden_difference(networks.embed, bundle, variant, provider)
    about = bundle.manifest.variants[variant]
    return CheckItem(
        f"variant {variant}",
        difference.ok,
        f"{variant} on {provider}: {difference}; accuracy {about.accuracy:.4f} instead of "
        f"{about.accuracy_fp32:.4f}, the same label in {about.agreement:.2%} of "
        f"{about.n_validation_slices} validation slices; digest {networks.digest[:12]}",
    )


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


def _check_recurrence(bundle: VerifiedBundle, networks: Networks) -> list[CheckItem]:
    golden = read_golden(bundle)
    found = networks.recur(golden["stack_embeddings"], golden["stack_z_um"], golden["stack_weight"])
    items, parameters = [], networks.estimator_parameters
    if parameters is not None and found.evidence is not None:
        items.append(_check_estimator(golden, found.probabilities, found.evidence, parameters))
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


def _check_estimator(
    golden: dict[str, Any],
    probabilities: NDArray[np.float32],
    evidence: NDArray[np.float32],
    parameters: EstimatorParameters,
) -> CheckItem:
    """Estimate every prefix of the golden stack: parameters that obey every rule may still allow nothing."""
    z_um, weight = golden["stack_z_um"].astype(np.float64), golden["stack_weight"]
    try:
        for n in range(1, len(z_um) + 1):
            monotone_estimate(z_um[:n], weight[:n], probabilities[:n], evidence[:n], parameters)
    except (RcmError, ArithmeticError, ValueError) as error:
        return CheckItem("estimator", False, f"stack of {n} slices: {error}")
    calibration = "" if parameters.is_calibrated else "; its intervals are not calibrated"
    return CheckItem("estimator", True, f"estimates every one of {len(z_um)} prefixes{calibration}")
