"""`rcm-daemon simulate`: recorded stacks or phantoms, published as a microscope would."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from rcm_daemon.core.controller import StackPlan
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.readers import open_stack
from rcm_daemon.simulator import make_phantom
from rcm_daemon.simulator.publisher import Publisher

if TYPE_CHECKING:
    from pathlib import Path

    from rcm_daemon.simulator import Phantom


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
    bind: str,
    instrument: str,
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
    with Publisher(bind, instrument, _new_run_id()) as publisher:
        _await(publisher, bind)
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
    bind: str,
    instrument: str,
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
        with Publisher(bind, instrument, _new_run_id()) as publisher:
            _await(publisher, bind)
            for _ in range(n_times):
                publisher.play(plan, stack.read, fps)
                _say(f"{stack.stack_id}: {len(stack.z_um)} slices sent")


def _await(publisher: Publisher, bind: str) -> None:
    _say(f"publishing on {bind} once somebody listens")
    publisher.wait_for_subscriber()


def _new_run_id() -> str:
    return f"{time.time_ns()}-{os.getpid()}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
