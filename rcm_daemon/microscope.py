"""`rcm-daemon simulate`: recorded stacks or phantoms, published as a microscope would."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from rcm_daemon.core.controller import StackPlan
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.authenticator import Authenticator
from rcm_daemon.io.curve import CurveServer, demand_curve
from rcm_daemon.io.keys import load_key_pair
from rcm_daemon.readers import open_stack
from rcm_daemon.simulator import make_phantom
from rcm_daemon.simulator.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rcm_daemon.simulator import Phantom


@dataclass(frozen=True)
class Place:
    """Where and as which instrument the microscope publishes.

    With a `key`, the name of a key pair in `keys_dir`, only daemons on the allow-list there may listen.
    """

    bind: str
    instrument: str
    keys_dir: Path
    key: str | None = None

    def check(self, *, allow_unencrypted_remote: bool) -> None:
        """Refuse to publish where others can listen and nothing is encrypted, unless that is wanted."""
        demand_curve(
            self.bind, locked=self.key is not None, allow_unencrypted_remote=allow_unencrypted_remote
        )


def phantom_plan(phantom: Phantom) -> StackPlan:
    """Describe a phantom as the microscope would announce it."""
    return StackPlan(
        phantom.stack_id,
        tuple(float(z) for z in phantom.z_um),
        phantom.shape,
        "uint8",
        0,
        phantom.pixel_size_um,
    )


def simulate_phantoms(
    place: Place,
    fps: float,
    n_stacks: int,
    seed: int,
    side_px: int,
    pixel_size_um: float,
    z_step_um: float | None,
) -> None:
    """Publish phantoms with seeds `seed`, `seed + 1`, ... once somebody listens.

    Raises
    ------
    ConfigurationError
        No such instrument, endpoint or phantom.
    """
    with _publisher(place) as publisher:
        for number in range(n_stacks):
            try:
                phantom = make_phantom(
                    seed + number, shape=(side_px, side_px), pixel_size_um=pixel_size_um, z_step_um=z_step_um
                )
            except ValueError as error:
                raise ConfigurationError([str(error)]) from error
            publisher.play(phantom_plan(phantom), phantom.render, fps)
            _say(f"{phantom.stack_id}: {len(phantom.z_um)} slices sent")


def simulate_recorded(
    path: Path,
    place: Place,
    fps: float,
    n_times: int,
    z_step_um: float | None,
    pixel_size_um: float | None,
    series: int | None,
) -> None:
    """Publish a recorded stack, `n_times` over, once somebody listens."""
    with open_stack(path, z_step_um=z_step_um, pixel_size_um=pixel_size_um, series=series) as stack:
        plan = StackPlan(
            stack.stack_id, stack.z_um, stack.shape, stack.dtype, stack.max_value, stack.pixel_size_um
        )
        with _publisher(place) as publisher:
            for _ in range(n_times):
                publisher.play(plan, stack.read, fps)
                _say(f"{stack.stack_id}: {len(stack.z_um)} slices sent")


@contextmanager
def _publisher(place: Place) -> Iterator[Publisher]:
    """Publish at a place once somebody listens."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context:
        if place.key is None:
            with Publisher(context, place.bind, place.instrument, _new_run_id()) as publisher:
                yield _heard(publisher, place)
            return
        lock = CurveServer(load_key_pair(place.keys_dir, place.key))
        with (
            closing(Authenticator(context, place.keys_dir)),
            Publisher(context, place.bind, place.instrument, _new_run_id(), lock.secure) as publisher,
        ):
            yield _heard(publisher, place)


def _heard(publisher: Publisher, place: Place) -> Publisher:
    _say(f"publishing on {place.bind} once somebody listens")
    publisher.wait_for_subscriber()
    return publisher


def _new_run_id() -> str:
    return f"{time.time_ns()}-{os.getpid()}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
