"""The simulated microscope as a controller: plays stacks as `rcm-slice-1` at a frame rate."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

import zmq

from rcm_daemon.core.controller import Controller, StackPlan
from rcm_daemon.core.records import INSTRUMENT_PATTERN
from rcm_daemon.core.wire import encode
from rcm_daemon.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from rcm_daemon.core.records import Message

    Image = NDArray[np.uint8] | NDArray[np.uint16]

HEARTBEAT_S = 1.0


class Publisher:
    """Publishes the stacks of one instrument on a socket it binds; numbers its messages within one run.

    Parameters
    ----------
    context
        Of its socket.
    endpoint
        Where to bind.
    instrument
        Name of the instrument, `[A-Za-z0-9_-]{1,64}`.
    run_id
        New at each start of the controller.
    secure
        Locks the socket before it is bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        instrument: str,
        run_id: str,
        secure: Callable[[zmq.Socket[bytes]], None] | None = None,
    ) -> None:
        if not re.fullmatch(INSTRUMENT_PATTERN, instrument):
            detail = f"an instrument's name must match {INSTRUMENT_PATTERN}, got {instrument!a}"
            raise ConfigurationError([detail])
        self._controller = Controller(instrument, run_id)
        self._socket = context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)  # a simulated microscope waits rather than loses
        self._socket.linger = 5_000
        if secure is not None:
            secure(self._socket)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise ConfigurationError([f"slices cannot be bound to {endpoint}: {error}"]) from error

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def wait_for_subscriber(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody listens; False after `timeout_s` without."""
        return bool(self._socket.poll(None if timeout_s is None else round(timeout_s * 1e3), zmq.POLLIN))

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

    def _send(self, message: Message) -> None:
        self._socket.send_multipart(encode(message))
