"""A controller as a vendor would write it, and small deterministic slices."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np


class Sender:
    """Plain dicts, JSON and bytes; no code of the product."""

    def __init__(self, instrument: str = "m1", run_id: str = "run-1") -> None:
        self.instrument = instrument
        self.run_id = run_id
        self.next_number = 0

    def envelope(self, htype: str, **keys: Any) -> dict[str, Any]:
        number = self.next_number
        self.next_number += 1
        return {
            "htype": htype,
            "schema": "rcm-slice-1",
            "instrument": self.instrument,
            "run_id": self.run_id,
            "msg_number": number,
            **keys,
        }

    def start(
        self, stack_id: str, n_slices: int = 0, shape: tuple[int, int] = (64, 64), **keys: Any
    ) -> list[bytes]:
        fields = self.envelope(
            "stack_start",
            stack_id=stack_id,
            n_slices=n_slices,
            shape=list(shape),
            dtype="uint8",
            pixel_size_um=0.5,
            z_start_um=0.0,
            z_step_um=3.0,
        )
        return [json.dumps(fields | keys).encode()]

    def slice(
        self,
        stack_id: str,
        index: int,
        image: np.ndarray | None = None,
        z_um: float | None = None,
        **keys: Any,
    ) -> list[bytes]:
        if image is None:
            image = picture(index)
        blob = image.tobytes()
        fields = self.envelope(
            "slice",
            stack_id=stack_id,
            index=index,
            z_um=3.0 * index if z_um is None else z_um,
            shape=list(image.shape),
            dtype=str(image.dtype),
            max_value=0,
            byte_order="little",
            encoding="raw",
            pixel_size_um=0.5,
            crc32=zlib.crc32(blob),
            time_s=1_700_000_000,
            time_ns=5,
        )
        return [json.dumps(fields | keys).encode(), blob]

    def end(self, stack_id: str, n_slices: int, reason: str = "completed") -> list[bytes]:
        return [
            json.dumps(
                self.envelope("stack_end", stack_id=stack_id, n_slices=n_slices, reason=reason)
            ).encode()
        ]

    def heartbeat(self, stack_id: str = "") -> list[bytes]:
        fields = self.envelope("heartbeat", stack_id=stack_id, time_s=1_700_000_000, time_ns=5)
        self.next_number -= 1
        fields["msg_number"] = self.next_number - 1
        return [json.dumps(fields).encode()]

    def lose(self, n: int = 1) -> None:
        """Count messages as sent that nobody will receive."""
        self.next_number += n


def picture(seed: int, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    """A small textured slice, another one for each seed."""
    return np.random.default_rng(seed).integers(20, 230, shape, dtype=np.uint8)
