"""Device and number format of a training: CPU or CUDA, full or mixed precision."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "full", "mixed")


def choose_device(name: str) -> torch.device:
    """Map auto, cpu or cuda to a device.

    Raises
    ------
    DataSetError
        If the name is another, or CUDA is asked for and not there.
    """
    if name not in DEVICES:
        raise DataSetError(f"a device must be one of {', '.join(DEVICES)}, got {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataSetError("the device cuda was asked for, but torch sees no CUDA device here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def set_threads(threads: int) -> None:
    """Give torch so many threads on the CPU; 0 leaves its own choice."""
    if threads > 0:
        torch.set_num_threads(threads)


class MixedPrecision:
    """Autocast and, where float16 needs it, loss scaling.

    Parameters
    ----------
    precision
        auto, full or mixed. Auto is mixed where it is quicker: on CUDA, and on CPUs with bfloat16 arithmetic.
    device
        Where the network runs.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        if precision not in PRECISIONS:
            raise DataSetError(f"a precision must be one of {', '.join(PRECISIONS)}, got {precision}")
        self.device = device
        if device.type == "cuda":
            self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            mixed = precision != "full"
        else:
            self.dtype = torch.bfloat16
            mixed = precision == "mixed" or (precision == "auto" and _cpu_has_bfloat16())
        self.mixed = mixed
        self._scaler = torch.amp.GradScaler(device.type, enabled=mixed and self.dtype == torch.float16)

    def __enter__(self) -> MixedPrecision:
        self._context: AbstractContextManager[object] = (
            torch.autocast(self.device.type, self.dtype) if self.mixed else nullcontext()
        )
        self._context.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)  # type: ignore[arg-type]

    def step(
        self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]
    ) -> None:
        """Backpropagate, clip the gradient's norm to 5, and step."""
        optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        self._scaler.step(optimizer)
        self._scaler.update()


def _cpu_has_bfloat16() -> bool:
    check = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return check is not None and bool(check())
