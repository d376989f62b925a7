"""The simulated microscope as a controller: plays stacks as `rcm-slice-1` at a frame rate."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
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
        self.run_id = run_id
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

    def follow(
        self,
        plan: StackPlan,
        image_at: Callable[[float, int], Image],
        advised: Callable[[int], tuple[str, float]],
        fps: float,
    ) -> int:
        """Send one stack whose depths are chosen on the way; returns how many slices it has.

        Parameters
        ----------
        plan
            Its first depth is where the stack begins; the mean step of its depths is that of a sweep, and it
            has at most as many slices.
        image_at
            Gives the picture at a depth in um, as slice `index`.
        advised
            Given the number of slices sent, waits for the answer to the last of them: `continue` (a step
            below the deepest), `acquire_at` a depth, or `stop`.
        fps
            No slice is sent before 1/fps seconds after the one before.
        """
        step_um = (plan.z_um[-1] - plan.z_um[0]) / max(1, len(plan.z_um) - 1)
        start = self._controller.start(plan)
        self._send(start.model_copy(update={"n_slices": 0, "z_step_um": 0.0}))
        z_um = [plan.z_um[0]]
        due_s = time.monotonic()
        while True:
            index = len(z_um) - 1
            image = image_at(z_um[-1], index)
            so_far = replace(plan, z_um=tuple(z_um))
            self._pause_until(due_s, plan.stack_id)
            due_s = time.monotonic() + 1.0 / fps
            self._send(self._controller.slice(so_far, index, image, time.time_ns()))
            kind, wanted_um = advised(len(z_um))
            if kind == "stop" or len(z_um) == len(plan.z_um):
                self._send(self._controller.end(plan, len(z_um)))
                return len(z_um)
            z_um.append(wanted_um if kind == "acquire_at" else max(z_um) + step_um)

    def _pause_until(self, due_s: float, stack_id: str) -> None:
        while (left_s := due_s - time.monotonic()) > 0:
            if left_s > HEARTBEAT_S:
                self._send(self._controller.heartbeat(stack_id, time.time_ns()))
            threading.Event().wait(min(left_s, HEARTBEAT_S))
