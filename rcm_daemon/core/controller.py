"""The sending side of `rcm-slice-1`: builds and numbers the messages of one run of one instrument."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from rcm_daemon.core.records import Heartbeat, Slice, SliceHeader, StackEnd, StackStart

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class StackPlan:
    """What all slices of a stack share, and their depths `z_um` [n]."""

    stack_id: str
    z_um: tuple[float, ...]
    shape: tuple[int, int]
    dtype: str
    max_value: int
    pixel_size_um: float

    @property
    def z_step_um(self) -> float:
        """The one step between slices, 0 where it varies."""
        steps = np.diff(self.z_um)
        return float(steps[0]) if len(steps) and np.allclose(steps, steps[0], atol=1e-6) else 0.0


class Controller:
    """Numbers messages within a run, from `first_number` on; times are nanoseconds since the epoch."""

    def __init__(self, instrument: str, run_id: str, first_number: int = 0) -> None:
        self._instrument = instrument
        self._run_id = run_id
        self._highest = first_number - 1

    def start(self, plan: StackPlan) -> StackStart:
        """Announce a stack."""
        return StackStart(
            instrument=self._instrument,
            run_id=self._run_id,
            msg_number=self._number(),
            stack_id=plan.stack_id,
            n_slices=len(plan.z_um),
            shape=plan.shape,
            dtype=cast("Literal['uint8', 'uint16']", plan.dtype),
            pixel_size_um=plan.pixel_size_um,
            z_start_um=plan.z_um[0],
            z_step_um=plan.z_step_um,
        )

    def slice(
        self,
        plan: StackPlan,
        index: int,
        image: NDArray[np.uint8] | NDArray[np.uint16],
        time_ns: int,
        *,
        with_crc: bool = True,
    ) -> Slice:
        """Send slice `index` of a stack; `image` [rows, columns] must be as planned.

        One that never leaves this process needs no checksum.
        """
        blob = memoryview(np.ascontiguousarray(image).data).cast("B")
        header = SliceHeader(
            instrument=self._instrument,
            run_id=self._run_id,
            msg_number=self._number(),
            stack_id=plan.stack_id,
            index=index,
            z_um=plan.z_um[index],
            shape=cast("tuple[int, int]", image.shape),
            dtype=cast("Literal['uint8', 'uint16']", image.dtype.name),
            max_value=plan.max_value,
            byte_order="little",
            encoding="raw",
            pixel_size_um=plan.pixel_size_um,
            crc32=zlib.crc32(blob) if with_crc else 0,
            time_s=time_ns // 1_000_000_000,
            time_ns=time_ns % 1_000_000_000,
        )
        return Slice(header, blob)

    def end(
        self, plan: StackPlan, n_slices: int, reason: Literal["completed", "aborted"] = "completed"
    ) -> StackEnd:
        """End a stack of which `n_slices` were sent."""
        return StackEnd(
            instrument=self._instrument,
            run_id=self._run_id,
            msg_number=self._number(),
            stack_id=plan.stack_id,
            n_slices=n_slices,
            reason=reason,
        )

    def heartbeat(self, stack_id: str, time_ns: int) -> Heartbeat:
        """Say what has been sent, so that a loss at the end of a stack is seen at once."""
        return Heartbeat(
            instrument=self._instrument,
            run_id=self._run_id,
            msg_number=self._highest,
            stack_id=stack_id,
            time_s=time_ns // 1_000_000_000,
            time_ns=time_ns % 1_000_000_000,
        )

    def _number(self) -> int:
        self._highest += 1
        return self._highest
