"""Slices to a real daemon and its answers: a publisher and a subscriber over TCP, one slice at a time."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.controller import Controller, StackPlan
from rcm_daemon.errors import RcmError
from rcm_daemon.simulator import make_phantom
from rcm_daemon.simulator.publisher import Publisher
from rcm_daemon.watch import subscribe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zmq
    from numpy.typing import NDArray

    from rcm_daemon.bundle.manifest import Manifest
    from rcm_daemon.core.records import Slice
    from rcm_daemon.local_daemon import LocalDaemon

PATIENCE_MS = 60_000
N_PICTURES = 20
INSTRUMENT = "bench"


@dataclass(frozen=True)
class Answer:
    """From the first byte sent to the whole result received, and the daemon's message."""

    ms: float
    message: dict[str, Any]


class Stream:
    """One instrument of one daemon, and a subscriber of its results; a context manager.

    Parameters
    ----------
    context
        Of the publisher's socket.
    daemon
        Is ready.
    number
        Which of the daemon's controllers it is.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], daemon: LocalDaemon, number: int = 0) -> None:
        self._daemon = daemon
        instrument, endpoint = f"{INSTRUMENT}-{number}", daemon.controllers[number]
        self._controller = Controller(instrument, str(time.time_ns()))
        self._publisher = Publisher(context, endpoint)
        self._results = subscribe(daemon.results, f"strata.{instrument}.")
        self._plan: StackPlan | None = None
        if not self._publisher.wait_for_subscriber(PATIENCE_MS / 1e3):
            raise RcmError(f"the daemon must connect to {endpoint}, it did not")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self._publisher.__exit__(*exc)
        self._results.close(linger=0)

    def begin(self, plan: StackPlan) -> None:
        """Announce a stack, and wait until the daemon reports it."""
        self._plan = plan
        self._publisher.send(self._controller.start(plan))
        # Should the subscription not be in force yet, the state of the open stack comes as soon as it is.
        self._until(lambda fields: fields["stack_id"] == plan.stack_id)

    def send(self, index: int, image: NDArray[np.uint8]) -> Answer:
        """Send the next slice and wait for the first result that holds it."""
        assert self._plan is not None  # noqa: S101
        message = self._controller.slice(self._plan, index, image, time.time_ns())
        begun_ns = time.monotonic_ns()
        self._publisher.send(message)
        received_ns, fields = self._until(lambda fields: fields["n_slices"] + fields["n_rejected"] > index)
        if fields["n_rejected"]:
            raise RcmError(f"the daemon must take every slice, it refused: {fields['rejected_reason'][-1]}")
        return Answer((received_ns - begun_ns) / 1e6, fields)

    def end(self, n_slices: int) -> dict[str, Any]:
        """End the stack; returns its final result."""
        assert self._plan is not None  # noqa: S101
        self._publisher.send(self._controller.end(self._plan, n_slices))
        return self._until(lambda fields: fields["state"] != "open")[1]

    def _until(self, wanted: Any) -> tuple[int, dict[str, Any]]:
        while True:
            if not self._results.poll(PATIENCE_MS):
                self._daemon.check_alive()
                raise RcmError(f"the daemon must answer within {PATIENCE_MS / 1e3:g} s, it did not")
            _, payload = self._results.recv_multipart()
            received_ns = time.monotonic_ns()
            fields = json.loads(payload)
            if wanted(fields):
                return received_ns, fields


@dataclass(frozen=True)
class Pictures:
    """Slices of a phantom, used over and over, and the depths of a sweep as long as it is wanted."""

    images: Sequence[NDArray[np.uint8]]
    pixel_size_um: float
    z_um: tuple[float, ...]

    @classmethod
    def render(cls, manifest: Manifest, n_slices: int, side_px: int) -> Pictures:
        """Render square slices at the bundle's pitch, a step apart that the bundle was trained for."""
        pitch_um = manifest.input.pixel_size_um
        phantom = make_phantom(0, shape=(side_px, side_px), pixel_size_um=pitch_um)
        images = [phantom.render(index) for index in range(min(n_slices, len(phantom), N_PICTURES))]
        step_um = float(np.mean(manifest.z_step_um))
        return cls(images, pitch_um, tuple(step_um * index for index in range(n_slices)))

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the picture of slice `index`."""
        return self.images[index % len(self.images)]

    def plan(self, stack_id: str) -> StackPlan:
        """Announce them all as one stack."""
        shape = self.images[0].shape
        return StackPlan(stack_id, self.z_um, (shape[0], shape[1]), "uint8", 0, self.pixel_size_um)

    def slices(self) -> list[Slice]:
        """Return them as received slices, for who runs without a daemon."""
        controller, plan = Controller(INSTRUMENT, INSTRUMENT), self.plan(INSTRUMENT)
        return [controller.slice(plan, i, self.image(i), 0) for i in range(len(self.z_um))]


def pause_until(due_s: float) -> None:
    """Idle until then (monotonic)."""
    threading.Event().wait(max(0.0, due_s - time.monotonic()))
