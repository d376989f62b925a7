"""Where slices lie and how large a pixel is: what the file states, what the caller gives, or a question."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcm_daemon.errors import StackFileError

if TYPE_CHECKING:
    from pathlib import Path

PLAUSIBLE_PITCH_UM = (0.01, 20.0)
"""A microscope's pitch; outside it resolution tags hold a printer's dots per inch or a placeholder."""
MAX_DEPTH_UM = 1e6
_SAME = 1e-3


@dataclass(frozen=True)
class StatedScale:
    """What a file says about its own scale; None where it says nothing usable."""

    z_um: tuple[float, ...] | None = None
    pitch_x_um: float | None = None
    pitch_y_um: float | None = None


def evenly_spaced(n_slices: int, z_step_um: float) -> tuple[float, ...]:
    """Depths 0, z_step_um, 2 z_step_um ... of n slices."""
    return tuple(i * z_step_um for i in range(n_slices))


def settle_z(
    stated_um: tuple[float, ...] | None, n_slices: int, z_step_um: float | None, path: Path
) -> tuple[float, ...]:
    """Depths in um: the caller's step wins, then the file's word; a lone slice lies at 0.

    Raises
    ------
    StackFileError
        Neither is there: the spacing is asked for, never guessed.
    """
    if z_step_um is not None:
        return evenly_spaced(n_slices, z_step_um)
    if stated_um is not None and all(math.isfinite(z) and abs(z) <= MAX_DEPTH_UM for z in stated_um):
        return stated_um
    if n_slices == 1:
        return (0.0,)
    raise StackFileError(
        f"the spacing of slices must be known, but {path} does not state it in a unit of length: "
        "give it with --z-step-um"
    )


def settle_pitch(stated: StatedScale, pixel_size_um: float | None, path: Path) -> float:
    """Pitch in um: the caller's wins, then the file's word.

    Raises
    ------
    StackFileError
        The file states none, or one in x and another in y.
    """
    if pixel_size_um is not None:
        return pixel_size_um
    x, y = stated.pitch_x_um, stated.pitch_y_um
    lowest, highest = PLAUSIBLE_PITCH_UM
    if x is None or y is None or not (lowest <= x <= highest and lowest <= y <= highest):
        raise StackFileError(
            f"the size of a pixel must be known, but {path} does not state one between {lowest:g} and "
            f"{highest:g} um: give it with --pixel-size-um"
        )
    if abs(x - y) > _SAME * x:
        raise StackFileError(
            f"pixels must be square, got {x:g} um in x and {y:g} um in y in {path}: resample the stack, or "
            "give the pitch with --pixel-size-um"
        )
    return x


def check_options(z_step_um: float | None, pixel_size_um: float | None, series: int | None) -> None:
    """Refuse a step, pitch or series number that cannot be meant."""
    if z_step_um is not None and not 0 < z_step_um <= 1000:
        raise StackFileError(f"--z-step-um must be above 0 and at most 1000 um, got {z_step_um:g}")
    if pixel_size_um is not None and not 0 < pixel_size_um <= 1000:
        raise StackFileError(f"--pixel-size-um must be above 0 and at most 1000 um, got {pixel_size_um:g}")
    if series is not None and series < 0:
        raise StackFileError(f"--series counts from 0, got {series}")
