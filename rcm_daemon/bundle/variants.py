"""Which form of a bundle's CNN is run: the one asked for, or the fastest here that computes what it must."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcm_daemon.bundle.cnn import open_cnn, run_cnn
from rcm_daemon.bundle.execution import CANDIDATES
from rcm_daemon.bundle.golden import golden_difference, read_golden_slices
from rcm_daemon.bundle.processor import has_int8_products
from rcm_daemon.errors import BundleError, InferenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from rcm_daemon.bundle.cnn import Cnn
    from rcm_daemon.bundle.execution import Execution, ProviderName
    from rcm_daemon.bundle.manifest import VariantName
    from rcm_daemon.bundle.verify import VerifiedBundle

N_ROUNDS = (3, 20)
LONGEST_CPU_S = 0.4
"""All candidates in turn: at least and at most so many rounds, and no more once this much processor time is
spent; what other programs take on a busy machine does not count, so that they do not make it a guess."""
WORTH = 0.95
"""A variant is taken when its fastest run lasts less than this share of fp32's."""


@dataclass(frozen=True)
class Chosen:
    """A CNN that is open, which variant it is, and why that one, as half a sentence."""

    cnn: Cnn
    variant: VariantName
    reason: str


def choose(bundle: VerifiedBundle, provider: ProviderName, execution: Execution) -> Chosen:
    """Open the variant to run. Any but fp32 on ONNX Runtime's CPU must give its golden vectors first.

    Raises
    ------
    BundleError
        The bundle has no such variant, the provider refuses it, or it computes something else here.
    InferenceError
        It does not run.
    """
    held = ("fp32", *bundle.manifest.variants)
    if execution.variant != "auto":
        if execution.variant not in held:
            raise BundleError(
                f"bundle {bundle.manifest.name} must hold a variant to run it, got {execution.variant}, it "
                f"holds {', '.join(held)}"
            )
        return Chosen(_open(bundle, execution.variant, provider, execution), execution.variant, "as set")
    candidates = [variant for variant in CANDIDATES[provider] if variant in held]
    if "int8" in candidates and not has_int8_products():
        candidates.remove("int8")
    if len(candidates) == 1:
        return Chosen(_open(bundle, "fp32", provider, execution), "fp32", "nothing else to choose from")
    cnns: dict[VariantName, Cnn] = {}
    reason = ""
    for variant in candidates:
        try:
            cnns[variant] = _open(bundle, variant, provider, execution)
        except (BundleError, InferenceError) as error:
            if variant == "fp32":
                raise
            reason = f"{variant} left out: {error}"
    if len(cnns) == 1:
        return Chosen(cnns["fp32"], "fp32", reason)
    fastest_s = measure(cnns, read_golden_slices(bundle)[0], bundle.manifest.embedding_size)
    best = min(fastest_s, key=lambda variant: fastest_s[variant] * (WORTH if variant == "fp32" else 1.0))
    said = ", ".join(f"{variant} {1e3 * seconds:.2f} ms" for variant, seconds in fastest_s.items())
    return Chosen(cnns[best], best, said)


def measure(
    cnns: Mapping[VariantName, Cnn], image: npt.NDArray[np.uint8], size: int
) -> dict[VariantName, float]:
    """Run CNNs in turn and return the duration of the fastest run of each in seconds.

    The fastest, since whatever else the machine does can only add to a run.
    """
    fastest_s = dict.fromkeys(cnns, float("inf"))
    started_cpu_s = time.process_time()
    for n_done in range(N_ROUNDS[1] + 1):
        for variant, cnn in cnns.items():
            begun_s = time.perf_counter()
            run_cnn(cnn, image, size, "warm-up")
            if n_done:  # the first round pays for memory and algorithms
                fastest_s[variant] = min(fastest_s[variant], time.perf_counter() - begun_s)
        if n_done >= N_ROUNDS[0] and time.process_time() - started_cpu_s > LONGEST_CPU_S:
            break
    return fastest_s


def _open(bundle: VerifiedBundle, variant: VariantName, provider: ProviderName, execution: Execution) -> Cnn:
    if provider == "cuda":
        # A recorded run must be replayed right, or there is no recording: not every operator can be.
        try:
            cnn = open_cnn(bundle, variant, provider, execution, in_graph=True)
            _verify(cnn, bundle, variant, provider)
        except (BundleError, InferenceError):
            pass
        else:
            return cnn
    cnn = open_cnn(bundle, variant, provider, execution)
    if variant != "fp32" or provider != "cpu":
        _verify(cnn, bundle, variant, provider)
    return cnn


def _verify(cnn: Cnn, bundle: VerifiedBundle, variant: VariantName, provider: ProviderName) -> None:
    size = bundle.manifest.embedding_size

    def embed(image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float32]:
        return run_cnn(cnn, image, size, name)

    for _ in range(2):  # the first runs of a CUDA graph record it, later ones replay it
        difference = golden_difference(embed, bundle, variant, provider)
        if not difference.ok:
            raise BundleError(
                f"{variant} embeddings of bundle {bundle.manifest.name} must be the golden ones on "
                f"{provider}, but: {difference}"
            )
