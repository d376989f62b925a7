"""How the CNN of a bundle is to be run: where, in which numbers, on how many threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rcm_daemon.bundle.processor import n_cores

if TYPE_CHECKING:
    from rcm_daemon.bundle.manifest import VariantName

ProviderName = Literal["cpu", "openvino", "cuda", "tensorrt"]
ProviderChoice = Literal["auto", "cpu", "openvino", "cuda", "tensorrt"]
VariantChoice = Literal["auto", "fp32", "int8", "fp16"]

SPIN_US = 1000
"""A daemon idles between frames: spinning this long costs 2 ms of latency and saves most of the idle CPU."""
ON_GPU = ("cuda", "tensorrt")


@dataclass(frozen=True)
class Execution:
    """What is asked for.

    Attributes
    ----------
    provider
        `cpu`, `openvino`, `cuda` or `tensorrt`: there or not at all. `auto`: CUDA where it works, else the
        CPU.
    variant
        `fp32`: cnn.onnx. `int8`, `fp16`: that variant or not at all. `auto`: the fastest that the bundle
        holds, as measured when it is opened.
    n_threads
        CPU threads inside an operator, 0 = one a core that this process may use; on ONNX Runtime's CPU a
        single one where that is quicker (`settle_threads`).
    spin_us
        How long these threads wait busily for more work before they sleep; 0 = not at all.
    """

    provider: ProviderChoice = "auto"
    variant: VariantChoice = "fp32"
    n_threads: int = 0
    spin_us: int = SPIN_US

    @property
    def threads(self) -> int:
        """CPU threads as a number."""
        return self.n_threads or n_cores()


CANDIDATES: dict[str, tuple[VariantName, ...]] = {
    "cpu": ("fp32", "int8"),
    "openvino": ("fp32", "int8"),
    "cuda": ("fp32", "fp16"),
    "tensorrt": ("fp32", "fp16"),
}
"""What `auto` measures on each provider. On a GPU, int8 with unsigned activations has no fast kernels."""
