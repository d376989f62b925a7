"""The simulated microscope as a controller: plays stacks as `rcm-slice-1` at a frame rate."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from rcm_daemon.core.controller import Controller, StackPlan
from rcm_daemon.core.records import INSTRUMENT_PATTERN
from rcm_daemon.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from rcm_daemon.core.records import Message

    Image = NDArray[np.uint8] | NDArray[np.uint16]

HEARTBEAT_S = 1.0


class Player:
    """Sends the stacks of one instrument, its messages numbered within one run.

    Parameters
    ----------
    instrument
        Name of the instrument, `[A-Za-z0-9_-]{1,64}`.
    run_id
        New at each start of the controller.
    send
        Takes each message in turn.
    """

    def __init__(self, instrument: str, run_id: str, send: Callable[[Message], None]) -> None:
        if not re.fullmatch(INSTRUMENT_PATTERN, instrument):
            detail = f"an instrument's name must match {INSTRUMENT_PATTERN}, got {instrument!a}"
            raise ConfigurationError([detail])
        self._controller = Controller(instrument, run_id)
        self._send = send

    def play(self, plan: StackPlan, read: Callable[[int], Image], fps: float) -> None:
        """Send one stack, a slice every 1/fps seconds.

        `read` gives slice `index`; all are read before the first is sent, so that the rate holds.
        """
        images = [read(index) for index in range(len(plan.z_um))]
        self._send(self._controller.start(plan))
        due_s = time.monotonic()
        for index, image in enumerate(images):
            self._pause_until(due_s, plan.stack_id)
            self._send(self._controller.slice(plan, index, image, time.time_ns()))
            due_s += 1.0 / fps
        self._pause_until(due_s, plan.stack_id)
        self._send(self._controller.end(plan, len(images)))

    def _pause_until(self, due_s: float, stack_id: str) -> None:
        while (left_s := due_s - time.monotonic()) > 0:
            if left_s > HEARTBEAT_S:
                self._send(self._controller.heartbeat(stack_id, time.time_ns()))
            threading.Event().wait(min(left_s, HEARTBEAT_S))
